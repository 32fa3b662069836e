"""A linear layer that trains through the quantizer it will be deployed with."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from grace.quantization.primitives import (
    deployed_scales,
    dequantize,
    fake_quantized_linear,
    initial_scales,
    quantize,
)
from grace.quantization.spec import QuantSpec


class FakeQuantLinear(nn.Module):
    """A linear layer with fake-quantized weight (Eq. 14 of arXiv 2601.22709)::

        y = x What^T + b,    What = fake_quantize(W, theta)

    Create it with `from_linear`. The state dict has the keys weight, bias and log_scale.

    Examples:
        >>> import torch
        >>> from grace.quantization import FakeQuantLinear, QuantSpec
        >>> linear = torch.nn.Linear(256, 64)
        >>> layer = FakeQuantLinear.from_linear(linear, QuantSpec(group_size=128))
        >>> layer(torch.randn(2, 256)).shape, layer.codes().dtype, layer.scales().shape
        (torch.Size([2, 64]), torch.int8, torch.Size([64, 2]))

    Attributes:
        weight: (out_features, in_features), trained through the quantizer.
        bias: (out_features,) or None.
        log_scale: theta = ln s, (out_features, groups), trained jointly with the weight. It is
            float32 whatever the rest of the model is cast to: ln s spans a few units, of which
            bfloat16 has only 128 or 256 steps each, and a learning rate moves it by less than one
            step. `.to(dtype)`, `.half()` and `.bfloat16()`, on this module or a parent, keep its
            dtype.
        spec: The quantizer.
        name: Dotted name of the layer in its model, for error messages.
    """

    # Parameters, typed as nn.Linear types its own.
    weight: Tensor
    bias: Tensor | None
    log_scale: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        log_scale: Tensor,
        spec: QuantSpec,
        *,
        name: str = "",
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.spec = spec
        self.name = name
        self.weight = weight
        self.bias = bias
        self.log_scale = log_scale

    @classmethod
    def from_linear(cls, linear: nn.Linear, spec: QuantSpec, name: str = "") -> "FakeQuantLinear":
        """Wrap `linear`: its weight and bias Parameters are shared, the scales are `spec.init`'s.

        Raises:
            InputError: The group size does not divide the input features, or the weight is not
                finite; the message names the layer.
        """
        spec.group_width(linear.in_features, name)
        log_scale = nn.Parameter(initial_scales(linear.weight, spec, name).log_())
        return cls(linear.weight, linear.bias, log_scale, spec, name=name).train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in_features) -> (..., out_features), in autocast's dtype or the weight's."""
        assert self.log_scale.dtype == torch.float32, f"{self.name}: log_scale must stay float32"
        device = x.device.type
        dtype = self.weight.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        elif x.dtype != dtype:
            # As nn.Linear would: a silent cast would hide a model of mixed dtypes.
            raise RuntimeError(
                f"{self.name or 'linear'}: input is {x.dtype} and weight is {dtype}: "
                "cast one of them, or run under autocast"
            )
        return fake_quantized_linear(
            x, self.weight, self.log_scale, self.bias, self.spec, dtype=dtype
        )

    @torch.no_grad()
    def scales(self) -> Tensor:
        """(out_features, groups) float32, every value representable in `spec.scale_dtype`.

        float32 rather than that dtype, because integer codes times bfloat16 scales would be
        rounded to bfloat16.
        """
        return deployed_scales(self.log_scale, self.spec)

    @torch.no_grad()
    def codes(self) -> Tensor:
        """(out_features, in_features) int8, in qmin .. qmax."""
        return quantize(self.weight, self.scales(), self.spec)

    @torch.no_grad()
    def dequantized(self, dtype: torch.dtype | None = None) -> Tensor:
        """The quantized weight s * q, (out_features, in_features), detached.

        Args:
            dtype: By default the weight's. float32 holds s * q exactly (unless the scales are
                float32 themselves); bfloat16 and float16 round it once.
        """
        return dequantize(self.codes(), self.scales(), self.spec, dtype or self.weight.dtype)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, bits={self.spec.bits}, "
            f"group_size={self.spec.group_size}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FakeQuantLinear":
        def keep_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            is_scale = tensor is self.log_scale or tensor is self.log_scale.grad
            # From the original, not from `moved`, whose low bits are gone already.
            return tensor.to(moved.device) if is_scale and moved.dtype != tensor.dtype else moved

        return super()._apply(keep_float32, recurse)
