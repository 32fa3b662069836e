"""Puts packed layers into a model, and says what a model really runs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from grace.errors import InputError
from grace.int4.backends import AUTO, select
from grace.int4.layouts import WeightShape, check, check_scales, row_steps
from grace.int4.linear import LAYERS, PackedLinear
from grace.quantization import CodesFile, FakeQuantLinear
from grace.types import Codes


def pack(
    model: nn.Module,
    exact: Codes | None = None,
    *,
    bits: int | None = None,
    backend: str = AUTO,
    crossover: int | None = None,
) -> list[str]:
    """Replace a model's quantized linear layers by packed ones, in place, and freeze the model.

    Without `exact`, every `FakeQuantLinear` becomes an `Int4Linear`, or an `Int8Linear` where its
    codes have more than 4 bits: with the codes and scales that it trains with. With `exact`, the
    named `nn.Linear`s of a plain model do, whose weights must be s * q as far as their dtype tells
    (`bake` makes such a model, and returns its `exact`).

    Embeddings, norms, the vision tower and whatever else is no such linear stay as they are, but
    nothing keeps `requires_grad`: a packed layer passes no gradient on.

    Memory: the smallest layers go first, and each layer's weight is dropped before the next is
    touched. So the peak is the larger of the two models, and above it, while the first layers are
    packed, no more than their codes and their packed form, one layer's at a time, with some MiB of
    scratch. A weight that something else refers to, an optimizer for one, is not freed.

    Examples:
        >>> import torch
        >>> from grace.int4 import pack
        >>> from grace.quantization import QuantSpec, prepare
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.Linear(16, 2))
        >>> _ = prepare(model, QuantSpec(group_size=64), ["0"])
        >>> pack(model, backend="reference")
        ['0']

    Args:
        model: Left as it was where an InputError is raised.
        exact: Codes and scales by name, for a plain model.
        bits: 4 or 8, with `exact` only; by default those of a `CodesFile`, else 4.
        backend: As of `Int4Linear.from_codes`.
        crossover: Likewise.

    Returns:
        The names of the replaced modules, in the order of the model's modules.

    Raises:
        InputError: A model with nothing to pack, names that the model lacks or that are no plain
            linear, codes or scales that do not fit them (`check`), weights that are not s * q, or a
            back end that cannot run here.
        RuntimeError: What was packed, unpacked again, differs in any code or scale.
    """
    if isinstance(model, FakeQuantLinear | nn.Linear):
        raise InputError("pack: the model itself is a linear: wrap it in a parent module")
    if exact is None:
        assert bits is None, "the layers know their bits"
        names = _check_prepared(model, backend)
    else:
        bits = _bits_of(exact) if bits is None else bits
        names = _check_plain(model, exact, bits, backend)
    model.requires_grad_(False)
    with torch.no_grad():
        for shared in _smallest_first(model, names):
            layer = _packed(model, shared[0], exact, bits, backend=backend, crossover=crossover)
            for name in shared:
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, layer)
    return names


def _packed(
    model: nn.Module,
    name: str,
    exact: Codes | None,
    bits: int | None,
    *,
    backend: str,
    crossover: int | None,
) -> PackedLinear:
    """The packed layer for a linear of the model; no other reference to its weight is kept."""
    source: Any = model.get_submodule(name)
    codes, scales, container = _exact(source, name, exact, bits)
    layer = LAYERS[container].from_codes(
        codes, scales, source.bias, backend, crossover=crossover, name=name
    )
    wrong = layer.mismatches(codes, scales)
    if wrong:
        raise RuntimeError(
            f"{name}: {wrong} codes or scales differ after packing for {layer.backend}: "
            "this back end must not be used here"
        )
    return layer.train(source.training)


def _smallest_first(model: nn.Module, names: list[str]) -> list[list[str]]:
    """The names of each module, one list a module, in order of its size."""
    shared: dict[int, list[str]] = {}
    sizes: dict[int, int] = {}
    for name in names:
        module: Any = model.get_submodule(name)
        shared.setdefault(id(module), []).append(name)
        sizes[id(module)] = module.weight.numel()
    return [shared[key] for key in sorted(shared, key=sizes.__getitem__)]


def _exact(
    source: Any, name: str, exact: Codes | None, bits: int | None
) -> tuple[Tensor, Tensor, int]:
    """Codes, scales, and the bits that a code is packed in."""
    if exact is None:
        return source.codes(), source.scales(), _container(source.spec.bits)
    assert bits is not None
    codes, scales = exact[name]
    return codes.to(source.weight.device), scales.to(source.weight.device), bits


def _container(bits: int) -> int:
    """Codes of 2 to 4 bits are packed in 4, of 5 to 8 in 8."""
    return 4 if bits <= 4 else 8


def _bits_of(exact: Codes) -> int:
    return _container(exact.bits) if isinstance(exact, CodesFile) else 4


def _check_prepared(model: nn.Module, backend: str) -> list[str]:
    """The fake-quantized layers' names, once all of them are known to be packable."""
    names = []
    for name, layer in model.named_modules(remove_duplicate=False):
        if isinstance(layer, FakeQuantLinear):
            container = _container(layer.spec.bits)
            shape = check_scales(
                layer.scales(), (layer.out_features, layer.in_features), container, name
            )
            select(backend, shape, layer.weight.device, name, warn=False)
            names.append(name)
    if not names:
        raise InputError(
            "pack: the model has no fake-quantized layer: call prepare first, or give the codes "
            "and scales of its linears"
        )
    return names


def _check_plain(model: nn.Module, exact: Codes, bits: int, backend: str) -> list[str]:
    """The names in `exact`, once codes, scales and weights are known to fit each other."""
    if not isinstance(exact, Mapping) or not exact:
        raise InputError(
            "pack: no codes are given: give a mapping of layer names to codes and scales"
        )
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in exact:
        if name not in modules:
            raise InputError(
                f"pack: there are codes for {name}, which the model lacks: give the codes that "
                "were written with this model"
            )
        if type(modules[name]) is not nn.Linear:
            raise InputError(
                f"pack: there are codes for {name}, which is a {type(modules[name]).__name__}: "
                "give the codes of nn.Linear only"
            )
    names = [name for name in modules if name in exact]
    for name in names:
        linear: Any = modules[name]
        codes, scales = exact[name]
        shape = check(codes, scales, bits, name)
        _check_weight(linear.weight.detach(), codes, scales, shape, name)
        select(backend, shape, linear.weight.device, name, warn=False)
    return names


def _check_weight(
    weight: Tensor, codes: Tensor, scales: Tensor, shape: WeightShape, name: str
) -> None:
    """Refuses a weight that is not s * q up to one rounding to 8 significant bits."""
    if tuple(weight.shape) != (shape.out_features, shape.in_features):
        raise InputError(
            f"{name}: codes have shape {tuple(codes.shape)} and the layer's weight "
            f"{tuple(weight.shape)}: give the codes that were written with this model"
        )
    for rows in row_steps(shape, 1):
        scale = scales[rows].to(weight.device, torch.float32).unsqueeze(-1)
        grid = codes[rows].to(weight.device, torch.float32).unflatten(-1, (shape.groups, -1))
        expected = grid.mul_(scale).flatten(1)
        error = (weight[rows].to(torch.float32) - expected).abs_()
        wrong = ~(error <= expected.abs_().mul_(2.0**-8))  # a NaN is wrong, too
        if wrong.any():
            row, column = (int(index) for index in wrong.nonzero()[0])
            row += rows.start
            raise InputError(
                f"{name}: its weight is {float(weight[row, column])} at row {row}, input "
                f"{column}, where codes and scales give {int(codes[row, column])} x "
                f"{float(scales[row, column // shape.group_size])}: give the codes that were "
                "written with this model, or prepare it and pack that"
            )


@dataclass(frozen=True)
class LayerBits:
    """What one linear layer runs.

    Examples:
        >>> import torch
        >>> from grace.int4 import effective_bits
        >>> (layer,) = effective_bits(torch.nn.Sequential(torch.nn.Linear(64, 8))).layers
        >>> layer.name, layer.kind, layer.weights, layer.how
        ('0', 'Linear', 512, 'dense float32')

    Attributes:
        name: Dotted name.
        kind: Name of its class.
        weights: Number of weights.
        stored_bytes: Of the tensors that hold them, scales and zero points included, bias not.
        backend: Of a packed layer, else None.
        how: Of a packed layer why that back end was chosen, its arithmetic and its dispatch; else
            the weight's dtype.
    """

    name: str
    kind: str
    weights: int
    stored_bytes: int
    backend: str | None
    how: str

    @property
    def bits(self) -> float:
        """Stored bits a weight, those of scales and zero points included."""
        return 8 * self.stored_bytes / self.weights


@dataclass(frozen=True)
class EffectiveBits:
    """What the linear layers of a model really run; `str()` is a table.

    Examples:
        >>> import torch
        >>> from grace.int4 import effective_bits
        >>> bits = effective_bits(torch.nn.Sequential(torch.nn.Linear(64, 8)))
        >>> [layer.stored_bytes for layer in bits.layers]  # 32 bits a weight
        [2048]

    Attributes:
        layers: In the order of the model's modules.
    """

    layers: tuple[LayerBits, ...]

    @property
    def bits(self) -> float:
        """Stored bits a weight over all linears."""
        return _mean(self.layers)

    @property
    def packed_bits(self) -> float:
        """Stored bits a weight over the packed layers; NaN where there is none."""
        return _mean([layer for layer in self.layers if layer.backend is not None])

    def of(self, names: Iterable[str]) -> "EffectiveBits":
        """The same for some layers only.

        Raises:
            InputError: A name is no linear of the model.
        """
        layers = {layer.name: layer for layer in self.layers}
        names = list(names)
        for name in names:
            if name not in layers:
                raise InputError(f"effective bits: {name!r} is no linear of the model")
        return EffectiveBits(tuple(layers[name] for name in names))

    def __str__(self) -> str:
        lines = [
            f"{layer.name}: {layer.kind}, {layer.bits:.3f} bits, {layer.how}"
            for layer in self.layers
        ]
        packed = sum(layer.backend is not None for layer in self.layers)
        lines.append(
            f"{len(self.layers)} linears: {self.bits:.3f} bits a weight; {packed} packed: "
            f"{self.packed_bits:.3f} bits a weight"
        )
        return "\n".join(lines)

    def summary(self) -> str:
        """A line for all linears that run alike: their number, bits and how."""
        alike: dict[tuple[str, str], list[LayerBits]] = {}
        for layer in self.layers:
            alike.setdefault((layer.kind, layer.how), []).append(layer)
        return "\n".join(
            f"{len(layers)} x {kind}: {_mean(layers):.3f} bits a weight, {how}"
            for (kind, how), layers in alike.items()
        )


def _mean(layers: Iterable[LayerBits]) -> float:
    layers = list(layers)
    weights = sum(layer.weights for layer in layers)
    return 8 * sum(layer.stored_bytes for layer in layers) / weights if weights else float("nan")


def effective_bits(model: nn.Module) -> EffectiveBits:
    """What every linear layer of the model runs, from the tensors that it holds now.

    Linears are `nn.Linear` and its subclasses, `FakeQuantLinear` and packed layers. A
    fake-quantized layer counts with the bits of its weight's dtype: it saves nothing.

    Examples:
        >>> import torch
        >>> from grace.int4 import effective_bits
        >>> bits = effective_bits(torch.nn.Sequential(torch.nn.Linear(64, 8)))
        >>> [(layer.name, 8 * layer.stored_bytes / layer.weights) for layer in bits.layers]
        [('0', 32.0)]
    """
    return EffectiveBits(
        tuple(
            _layer_bits(name, module)
            for name, module in model.named_modules()
            if isinstance(module, PackedLinear | FakeQuantLinear | nn.Linear)
        )
    )


def _layer_bits(name: str, module: Any) -> LayerBits:
    weights = module.in_features * module.out_features
    kind = type(module).__name__
    if isinstance(module, PackedLinear):
        stored = sum(t.numel() * t.element_size() for t in module.packed_tensors().values())
        limit = module.crossover_rows(measure=False)
        dispatch = "" if limit is None else f"; packed product up to {limit} rows"
        how = f"{module.backend} ({module.reason}): {module.arithmetic}{dispatch}"
        return LayerBits(name, kind, weights, stored, module.backend, how)
    weight = module.weight
    how = f"dense {weight.dtype}".replace("torch.", "")
    if isinstance(module, FakeQuantLinear):
        how += f", quantized to {module.spec.bits} bits in every forward pass"
    return LayerBits(name, kind, weights, weight.numel() * weight.element_size(), None, how)
