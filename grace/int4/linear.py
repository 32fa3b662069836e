"""Linear layers on packed integer weights, for inference."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from grace.errors import InputError
from grace.int4.backends import AUTO, Backend, select
from grace.int4.crossover import ROWS, Crossover, crossover, forced_crossover
from grace.int4.layouts import (
    SCALE_DTYPE,
    check,
    pack_plain,
    unpack_stored,
)


class PackedLinear(nn.Module):
    """y = x (s q)^T + b on a packed weight; the base class of `Int4Linear` and `Int8Linear`.

    Inputs. x: (..., in_features), any floating-point dtype; the result is (..., out_features) in
    x's dtype, or in autocast's where it is on. The kernels work on bfloat16 inputs and give
    bfloat16: a float32 or float16 input is rounded to bfloat16 first, and the result widened. The
    back end "reference" instead computes in float32 (float64) and rounds once, to x's dtype. The
    bias is added before that rounding, except by the packed kernels, which give bfloat16 without a
    bias.

    Rows, that is vectors in x: up to `crossover_rows(...)` the kernel reads the packed weight;
    above, a block of the weight at a time is unpacked for a dense product. One row never asks for
    a measurement.

    The state dict has the keys packed (uint8, two codes a byte, or int8), scales (bfloat16) and
    bias, in `pack_plain`'s layout whatever the back end's: it can be loaded on another device.
    Moving the module to another device packs it again for that device; casting it casts the bias
    only. There are no gradients. Create it with `from_codes`.

    Examples:
        >>> import torch
        >>> from grace.int4 import Int4Linear
        >>> codes = torch.randint(-8, 8, (16, 64), dtype=torch.int8)
        >>> layer = Int4Linear.from_codes(codes, torch.ones(16, 2), backend="reference")
        >>> layer.bits, layer.shape.out_features, layer.shape.groups
        (4, 16, 2)

    Attributes:
        bits: In which a code is stored.
        bias: (out_features,) or None.
        name: Dotted name of the layer in its model, for messages.
        requested: The back end that was asked for.
        reason: One line on why the back end that runs was chosen.
        shape: Of the weight.
    """

    bits: ClassVar[int]
    bias: Tensor | None

    def __init__(
        self,
        codes: Tensor,
        scales: Tensor,
        bias: Tensor | None,
        backend: str,
        *,
        crossover: int | None,
        name: str,
    ) -> None:
        super().__init__()
        self.name = name
        self.requested = backend
        self.shape = check(codes, scales, self.bits, name)
        self.out_features, self.in_features = self.shape.out_features, self.shape.in_features
        if crossover is not None and (type(crossover) is not int or crossover < 0):
            raise InputError(
                f"{name or 'linear'}: crossover is {crossover!r}: give a number of rows, 0 or "
                "more, or None to measure it"
            )
        self._fixed_crossover = forced_crossover() if crossover is None else crossover
        self._measured: tuple[int, Crossover] | None = None  # of so many threads
        if bias is not None:
            _check_bias(bias, self.out_features, codes.device, name)
            bias = nn.Parameter(bias.detach(), requires_grad=False)
        self.bias = bias
        self._put(codes, scales)

    @classmethod
    def from_codes(
        cls,
        codes: Tensor,
        scales: Tensor,
        bias: Tensor | None = None,
        backend: str = AUTO,
        *,
        crossover: int | None = None,
        name: str = "",
    ) -> Self:
        """A layer with the weight s * q.

        Args:
            codes: int8 (out, in), in the range of `bits`.
            scales: (out, groups), positive and representable in bfloat16, one for every
                in / groups consecutive inputs of a row.
            bias: (out,) or None, shared and not copied.
            backend: A name of `grace.int4.BACKENDS`, or "auto": the kernel of the codes' device,
                or the reference, with a warning, where that cannot take the shape.
            crossover: Rows up to which the kernel is used, instead of what is measured; by default
                $GRACE_INT4_CROSSOVER, where that is set now.
            name: Name of the layer, for messages.

        Raises:
            InputError: Codes, scales or a bias that do not fit, or a back end that cannot run here;
                the message names the layer, the tensor, the value and the mend.
        """
        return cls(codes, scales, bias, backend, crossover=crossover, name=name)

    @property
    def backend(self) -> str:
        """The name of the back end that runs."""
        return self._backend.name

    @property
    def arithmetic(self) -> str:
        """What is computed in which precision, and by which kernel."""
        backend = self._backend
        kernel = f" ({backend.kernel_name(self.shape)})" if backend.kernel else ""
        return f"{backend.arithmetic}{kernel}"

    def packed_tensors(self) -> dict[str, Tensor]:
        """The tensors that hold the weight, by the back end's names."""
        return {name: getattr(self, name) for name in self._buffer_names}

    @torch.no_grad()
    def codes(self) -> Tensor:
        """(out_features, in_features) int8, from what is packed."""
        return self._backend.unpack(self.packed_tensors(), self.shape)[0]

    @torch.no_grad()
    def scales(self) -> Tensor:
        """(out_features, groups) float32, from what is packed."""
        return self._backend.scales(self.packed_tensors(), self.shape)

    @torch.no_grad()
    def mismatches(self, codes: Tensor, scales: Tensor) -> int:
        """How many codes and scales of what is packed differ from those given."""
        return self._backend.mismatches(self.packed_tensors(), self.shape, codes, scales)

    def crossover_rows(self, measure: bool = True, rows: int = ROWS[-1]) -> int | None:
        """Rows up to which the kernel is used; None where the back end has one product only.

        What `from_codes` was given, or a measurement on this device, which is kept in a file.

        Args:
            measure: Measure where necessary; without it, also None where this layer has not
                measured yet.
            rows: Up to which it has to be known.
        """
        if not self._backend.kernel:
            return None
        if self._fixed_crossover is not None:
            return self._fixed_crossover
        threads = torch.get_num_threads()
        known = self._measured[1] if self._measured and self._measured[0] == threads else None
        if known is None and not measure:
            return None
        if known is None or (measure and known.rows == known.compared < rows):
            known = crossover(self._backend, self.packed_tensors(), self.shape, rows)
            self._measured = threads, known
        return known.rows

    def product(self, rows: int) -> str:
        """The product that multiplies inputs of so many rows: "packed" or "dense"."""
        if not self._backend.kernel:
            return "dense"
        if rows <= 1 and self._fixed_crossover is None:
            return "packed"
        limit = self.crossover_rows(rows=rows)
        return "packed" if limit is not None and rows <= limit else "dense"

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in_features) -> (..., out_features)."""
        assert x.shape[-1] == self.in_features and x.is_floating_point(), (x.shape, x.dtype)
        if x.requires_grad and torch.is_grad_enabled():
            raise InputError(
                f"{self.name or 'linear'}: a packed layer has no gradients: run under "
                "torch.no_grad(), or train the fake-quantized model"
            )
        dtype = x.dtype
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        rows = x.reshape(-1, self.in_features).to(self._backend.activations or dtype).contiguous()
        if rows.shape[0] == 0:
            return x.new_empty(*x.shape[:-1], self.out_features, dtype=dtype)
        packed = self.product(rows.shape[0]) == "packed"
        with torch.no_grad():
            run = self._backend.packed if packed else self._backend.dense
            y = run(rows, self.packed_tensors(), self.shape, self.bias)
        return y.to(dtype).view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        limit = self.crossover_rows(measure=False)
        kernel = "" if limit is None else f", packed up to {limit} rows"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, bits={self.bits}, "
            f"group_size={self.shape.group_size}, backend={self.backend} ({self.reason}){kernel}"
        )

    @torch.no_grad()
    def _put(self, codes: Tensor, scales: Tensor) -> None:
        """Packs a weight of this shape for the device that it is on."""
        backend, reason = select(self.requested, self.shape, codes.device, self.name)
        buffers = backend.pack(codes, scales, self.shape)
        for name in getattr(self, "_buffer_names", ()):
            delattr(self, name)
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)  # the state dict has its own
        self._backend: Backend = backend
        self._buffer_names = tuple(buffers)
        self.reason = reason
        self._measured = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = self.packed_tensors()
        before = next(iter(kept.values())).device
        after = fn(torch.empty(0, device=before)).device
        if after.type == "meta":
            raise InputError(f"{self.name or 'linear'}: packed codes cannot be put on meta")
        for name in kept:
            self._buffers[name] = None  # no cast reaches them
        try:
            super()._apply(fn, recurse)
        finally:
            self._buffers.update(kept)
        if after == before:
            return self
        codes, scales = self._backend.unpack(kept, self.shape)
        self._put(codes.to(after), scales.to(after))
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        codes, scales = self.codes(), self.scales()
        destination[f"{prefix}packed"] = pack_plain(codes, self.bits)
        destination[f"{prefix}scales"] = scales.to(SCALE_DTYPE)

    def _load_from_state_dict(  # noqa: PLR0917 (torch calls it so)
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        keys = [f"{prefix}packed", f"{prefix}scales"]
        rest = {key: value for key, value in state_dict.items() if key not in keys}
        super()._load_from_state_dict(
            rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        absent = [key for key in keys if key not in state_dict]
        if absent:
            missing_keys.extend(absent)
            return
        try:
            self._take(state_dict[keys[0]], state_dict[keys[1]])
        except InputError as error:
            error_msgs.append(str(error))

    def _take(self, packed: Tensor, scales: Tensor) -> None:
        """Packs what a state dict holds, on the device that this layer is on."""
        size = (self.out_features, self.in_features)
        codes = unpack_stored(packed, size, self.bits, f"{self.name or 'linear'}: packed")
        device = next(iter(self.packed_tensors().values())).device
        codes, scales = codes.to(device), scales.to(device)
        self.shape = check(codes, scales, self.bits, self.name)
        self._put(codes, scales)


class Int4Linear(PackedLinear):
    """A linear layer whose weight is packed in 4 bits: codes in -8 .. 7. See `PackedLinear`.

    Examples:
        >>> import torch
        >>> from grace.int4 import Int4Linear
        >>> from grace.quantization import FakeQuantLinear, QuantSpec
        >>> quantized = FakeQuantLinear.from_linear(torch.nn.Linear(256, 64), QuantSpec())
        >>> layer = Int4Linear.from_codes(quantized.codes(), quantized.scales(), quantized.bias)
        >>> layer(torch.randn(1, 256)).shape, torch.equal(layer.codes(), quantized.codes())
        (torch.Size([1, 64]), True)
    """

    bits = 4


class Int8Linear(PackedLinear):
    """A linear layer whose weight is packed in 8 bits (W8A16): codes in -128 .. 127.

    See `PackedLinear`. No input is quantized.

    Examples:
        >>> import torch
        >>> from grace.int4 import Int8Linear
        >>> codes = torch.randint(-128, 128, (16, 64), dtype=torch.int8)
        >>> layer = Int8Linear.from_codes(codes, torch.ones(16, 2), backend="reference")
        >>> layer(torch.randn(3, 64)).shape
        torch.Size([3, 16])
    """

    bits = 8


LAYERS: dict[int, type[PackedLinear]] = {4: Int4Linear, 8: Int8Linear}
"""The layer for each number of bits that a code is stored in."""


def _check_bias(bias: Tensor, out_features: int, device: torch.device, name: str) -> None:
    label = f"{name or 'linear'}: bias"
    if tuple(bias.shape) != (out_features,) or not bias.is_floating_point():
        raise InputError(
            f"{label} has shape {tuple(bias.shape)} and dtype {bias.dtype}: give floating-point "
            f"values ({out_features},), or None"
        )
    if bias.device != device:
        raise InputError(f"{label} is on {bias.device}, codes on {device}: move one of them")
    if not torch.isfinite(bias).all():
        raise InputError(f"{label} has NaN or infinite values: mend the checkpoint")
