"""The arithmetic of symmetric group-wise LSQ, as functions on tensors.

A weight has shape (out, in); its scales have shape (out, in / g), one for every g consecutive
input channels of a row:

    q = clip(round(W / s), qmin, qmax),   What = s * q,   s = exp(theta)     (Eq. 14, 2601.22709)

`quantize` and `dequantize` are the two halves, `fake_quantize` their composition with LSQ's
gradients (Esser et al. 2019, arXiv 1902.08153), and `fake_quantized_linear` a linear on its result
that stores nothing weight-sized for the backward pass.

Every function walks the weight in blocks of whole rows that fit in cache. A quantizer is a dozen
element-wise operations and so bound by memory traffic: in blocks, the weight travels from main
memory once per pass instead of once per operation, and temporaries are four blocks (or rows, where
a row is longer) whatever the layer's size: 2 MiB on a CPU, 64 MiB elsewhere.

The arithmetic is in float32 (float64 for float64 weights). s * q has at most 15 significant bits
for bfloat16 scales and 18 for float16 scales, so it is exact in float32, on every device.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from grace.errors import InputError
from grace.quantization.spec import SCALE_DTYPES, QuantSpec

MSE_CANDIDATES = 20
MSE_RANGE = (0.3, 1.2)
PERCENTILE = 0.99
# What an all-zero group gets. Its codes are 0 at any scale; this one is representable in every
# scale dtype, and small enough that a weight which training moves off zero soon has a code.
ZERO_GROUP_SCALE = 2.0**-14

# Elements per block: 512 KiB of float32, so that the buffers of a block fit the L2 caches of a few
# cores and an operation takes long beside its launch; and 16 MiB elsewhere, so that they fit a
# GPU's L2 and launches stay few.
_CPU_BLOCK = 1 << 17
_DEVICE_BLOCK = 1 << 22


def deployed_scales(log_scale: Tensor, spec: QuantSpec) -> Tensor:
    """The scales s = exp(theta) as the deployed kernel stores them.

    Examples:
        >>> import torch
        >>> from grace.quantization import QuantSpec, deployed_scales
        >>> deployed_scales(torch.tensor([0.0, 1.0]), QuantSpec())  # e in bfloat16
        tensor([1.0000, 2.7188])

    Args:
        log_scale: theta = ln s, any shape.
        spec: The quantizer.

    Returns:
        float32 of that shape, every value exactly representable in `spec.scale_dtype` and positive:
        exp(theta) is clamped to the dtype's range, then rounded to nearest even.
    """
    return _round_scales(log_scale.detach().to(torch.float32).exp(), spec)


def quantize(weight: Tensor, scales: Tensor, spec: QuantSpec) -> Tensor:
    """q = round(clip(W / s, qmin, qmax)), half to even (Eq. 14).

    Examples:
        >>> import torch
        >>> from grace.quantization import QuantSpec, quantize
        >>> weight = torch.tensor([[0.6, -9.0] * 16])
        >>> quantize(weight, torch.ones(1, 1), QuantSpec(group_size=32))[0, :2]
        tensor([ 1, -8], dtype=torch.int8)

    Args:
        weight: (out, in).
        scales: (out, in / g), positive.
        spec: The quantizer.

    Returns:
        int8 codes (out, in).

    Raises:
        InputError: The shapes do not fit the group size.
    """
    _check_shapes(weight, scales, spec)
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    with torch.no_grad():
        for rows in _row_blocks(weight):
            scale = scales[rows].unsqueeze(-1).to(torch.float32)
            _grouped(codes[rows], scale).copy_(_codes(weight[rows], scale, spec))
    return codes


def dequantize(
    codes: Tensor, scales: Tensor, spec: QuantSpec, dtype: torch.dtype = torch.float32
) -> Tensor:
    """What = s * q (Eq. 14), computed in float32 and then rounded once to `dtype`.

    Examples:
        >>> import torch
        >>> from grace.quantization import QuantSpec, dequantize
        >>> codes = torch.arange(-8, 8, dtype=torch.int8).repeat(1, 2)
        >>> dequantize(codes, torch.tensor([[0.5]]), QuantSpec(group_size=32))[0, :3]
        tensor([-4.0000, -3.5000, -3.0000])

    Args:
        codes: (out, in) integers.
        scales: (out, in / g).
        spec: The quantizer.
        dtype: Of the result. float32 holds s * q exactly for bfloat16 and float16 scales; bfloat16
            rounds it to 8 significant bits, which still quantizes back to the same codes.

    Returns:
        (out, in) in `dtype`.

    Raises:
        InputError: The shapes do not fit the group size.
    """
    _check_shapes(codes, scales, spec)
    weight = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    with torch.no_grad():
        for rows in _row_blocks(codes):
            scale = scales[rows].unsqueeze(-1).to(torch.float32)
            product = _grouped(codes[rows], scale).to(_arithmetic(dtype)).mul_(scale)
            _grouped(weight[rows], scale).copy_(product)
    return weight


def fake_quantize(
    weight: Tensor, log_scale: Tensor, spec: QuantSpec, dtype: torch.dtype | None = None
) -> Tensor:
    """What = s * clip(round(W / s), qmin, qmax) with s = exp(theta), differentiable (Eq. 14).

    Gradients (arXiv 1902.08153), with v = W / s::

        dWhat/dW     = 1 where qmin <= v <= qmax, else 0
        dWhat/ds     = q - v where qmin <= v <= qmax, else q, which is qmin or qmax
        dWhat/dtheta = exp(theta) * dWhat/ds, summed over the group,
                       times 1/sqrt(g * qmax) where spec.gradient_factor

    The rounding of s to `spec.scale_dtype` passes the gradient straight through. Idempotent: with
    the same theta, `fake_quantize(What)` is What, in every dtype in which s * q neither overflows
    nor becomes subnormal. |What - W| <= s / 2 where v is inside the clipping range, before the
    rounding to `dtype`. Only weight and log_scale are kept for the backward pass.

    Examples:
        >>> import torch
        >>> from grace.quantization import QuantSpec, fake_quantize
        >>> weight = torch.tensor([[0.6, -9.0] * 16])
        >>> fake_quantize(weight, torch.zeros(1, 1), QuantSpec(group_size=32))[0, :2]
        tensor([ 1., -8.])

    Args:
        weight: (out, in).
        log_scale: theta = ln s, (out, in / g).
        spec: The quantizer.
        dtype: Of the result, by default the weight's.

    Returns:
        (out, in) in `dtype`: exactly `dequantize(quantize(weight, s), s)` for
        s = `deployed_scales(log_scale)`.

    Raises:
        InputError: The shapes do not fit the group size.
    """
    _check_shapes(weight, log_scale, spec)
    return _FakeQuantize.apply(weight, log_scale, spec, dtype or weight.dtype)


def fake_quantized_linear(
    x: Tensor,
    weight: Tensor,
    log_scale: Tensor,
    bias: Tensor | None,
    spec: QuantSpec,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """y = x What^T + b, the value and the gradients of `F.linear(x, fake_quantize(...), bias)`.

    `F.linear` would keep What until the backward pass of every layer. Here it is computed again
    there, in the walk that turns its gradient into the weight's, and dropped after it: the peak
    memory exceeds that of a plain linear layer by one layer's What.

    Examples:
        >>> import torch
        >>> from grace.quantization import QuantSpec, fake_quantized_linear, initial_scales
        >>> weight, spec = torch.randn(16, 64), QuantSpec(group_size=64)
        >>> theta = initial_scales(weight, spec).log()
        >>> fake_quantized_linear(torch.randn(3, 64), weight, theta, None, spec).shape
        torch.Size([3, 16])

    Args:
        x: (..., in).
        weight: (out, in).
        log_scale: theta = ln s, (out, in / g).
        bias: (out,) or None.
        spec: The quantizer.
        dtype: Of the computation and the result, by default the weight's.

    Returns:
        (..., out) in `dtype`.

    Raises:
        InputError: The shapes do not fit the group size.
    """
    _check_shapes(weight, log_scale, spec)
    return _FakeQuantizedLinear.apply(x, weight, log_scale, bias, spec, dtype or weight.dtype)


def initial_scales(weight: Tensor, spec: QuantSpec, name: str = "") -> Tensor:
    """The scales that training starts from, as `spec.init` says (Eq. 14).

    - "mse": of 20 candidates evenly spaced in [0.3, 1.2] * max|W| / qmax, each rounded to
      `spec.scale_dtype` first, the one with the least squared error of the group, the smallest
      such on a tie. The grid is the paper's; 1.0 is not on it, so at 8 bits, where clipping gains
      nothing, "max" can err slightly less.
    - "percentile": the 99th percentile of |W| (linear interpolation) over qmax; max|W| over qmax
      for a group whose 99th percentile is 0 and whose maximum is not.
    - "max": max|W| / qmax.

    A group of zeros gets `ZERO_GROUP_SCALE`, 2^-14.

    Examples:
        >>> import torch
        >>> from grace.quantization import QuantSpec, initial_scales
        >>> initial_scales(torch.full((1, 32), 3.5), QuantSpec(group_size=32, init="max"))
        tensor([[0.5000]])

    Args:
        weight: (out, in), any float dtype.
        spec: The quantizer.
        name: Name of the layer, for the error message.

    Returns:
        float32 (out, in / g), each value representable in `spec.scale_dtype`.

    Raises:
        InputError: Weights that are not finite, carry no data, or do not divide into groups; the
            message names the layer.
    """
    label = name or "linear"
    if weight.dim() != 2 or not weight.is_floating_point():
        raise InputError(
            f"{label}: weight has shape {tuple(weight.shape)} and dtype {weight.dtype}: "
            "give a floating-point matrix (out_features, in_features)"
        )
    if weight.is_meta:
        raise InputError(f"{label}: weight is on the meta device: load its values first")
    groups = weight.shape[1] // spec.group_width(weight.shape[1], name)
    weight = weight.detach()
    scales = torch.empty(weight.shape[0], groups, device=weight.device)
    for rows in _row_blocks(weight):
        block = _grouped(weight[rows], scales[rows].unsqueeze(-1)).to(torch.float32)
        magnitude = block.abs()
        largest = magnitude.amax(-1)  # carries NaN and infinity along
        if not torch.isfinite(largest).all():
            raise InputError(
                f"{label}: weight has NaN or infinite values (rows {rows.start} to "
                f"{rows.stop - 1}): mend the checkpoint, or load it in a wider dtype"
            )
        if spec.init == "mse":
            initial = _least_squares_scales(block, largest, spec, buffer=magnitude)
        elif spec.init == "percentile":
            quantile = torch.quantile(magnitude, PERCENTILE, dim=-1)
            initial = _round_scales(torch.where(quantile > 0, quantile, largest) / spec.qmax, spec)
        else:
            initial = _round_scales(largest / spec.qmax, spec)
        scales[rows] = initial.masked_fill_(largest == 0, ZERO_GROUP_SCALE)
    return scales


def _least_squares_scales(
    block: Tensor, largest: Tensor, spec: QuantSpec, buffer: Tensor
) -> Tensor:
    """Of the candidate scales of each group, the one with least |W - s q|^2.

    Args:
        block: (rows, groups, g) float32.
        largest: Its max|W|, (rows, groups).
        spec: The quantizer.
        buffer: Scratch, of the shape and dtype of `block`.

    Returns:
        (rows, groups) float32.
    """
    fractions = torch.linspace(*MSE_RANGE, MSE_CANDIDATES, dtype=torch.float64, device="cpu")
    fractions = (fractions / spec.qmax).to(device=largest.device, dtype=torch.float32)
    candidates = _round_scales(largest * fractions.view(-1, 1, 1), spec)
    inverse = candidates.reciprocal().unsqueeze(-1)
    codes, errors = torch.empty_like(block), torch.empty_like(candidates)
    for number in range(MSE_CANDIDATES):
        # |W - s q| = s |q - W / s|: the rounding residue, then one factor per group.
        torch.mul(block, inverse[number], out=buffer)
        torch.round(buffer, out=codes).clamp_(spec.qmin, spec.qmax).sub_(buffer)
        torch.linalg.vector_norm(codes, dim=-1, out=errors[number])
    # Errors are compared in units of max|W|, so no square over- or underflows.
    errors.mul_(candidates / torch.where(largest > 0, largest, 1.0))
    best = errors.argmin(0, keepdim=True)  # the first minimum, the smallest scale
    return candidates.gather(0, best).squeeze(0)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, log_scale: Tensor, spec: QuantSpec, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(weight, log_scale)
        ctx.spec = spec
        return _forward(weight, log_scale, spec, dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, log_scale = ctx.saved_tensors
        needs_weight, needs_scale = ctx.needs_input_grad[:2]
        # The incoming gradient is not ours to overwrite, hence a new tensor.
        grad_weight = torch.empty_like(weight) if needs_weight else None
        grad_theta = _backward(
            grad, weight, log_scale, ctx.spec, grad_weight=grad_weight, needs_scale=needs_scale
        )
        return grad_weight, grad_theta, None, None


class _FakeQuantizedLinear(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 (apply passes positions only)
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        log_scale: Tensor,
        bias: Tensor | None,
        spec: QuantSpec,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.spec, ctx.dtypes = spec, (x.dtype, None if bias is None else bias.dtype)
        x = x.to(dtype)  # what autocast does, and what it keeps for the backward pass
        ctx.save_for_backward(x, weight, log_scale)
        quantized = _forward(weight, log_scale, spec, dtype)
        return torch.nn.functional.linear(x, quantized, None if bias is None else bias.to(dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Autocast may be on around the caller's backward(); the forward pass chose the dtypes.
        with torch.autocast(grad.device.type, enabled=False):
            return *_linear_gradients(ctx, grad), None, None


def _linear_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight, log_scale and bias, those that autograd asks for."""
    x, weight, log_scale = ctx.saved_tensors
    x_dtype, bias_dtype = ctx.dtypes
    needs_x, needs_weight, needs_scale, needs_bias = ctx.needs_input_grad[:4]
    grad_x = grad_weight = grad_theta = grad_bias = None
    rows = grad.reshape(-1, grad.shape[-1])
    quantized = None
    if needs_weight or needs_scale:
        grad_quantized = rows.t() @ x.reshape(-1, x.shape[-1])
        if needs_weight:
            # This gradient is ours: where the dtype allows, it becomes the weight's.
            same = grad_quantized.dtype == weight.dtype
            grad_weight = grad_quantized if same else torch.empty_like(weight)
        if needs_x:
            quantized = torch.empty_like(weight, dtype=grad.dtype)
        grad_theta = _backward(
            grad_quantized,
            weight,
            log_scale,
            ctx.spec,
            grad_weight=grad_weight,
            needs_scale=needs_scale,
            quantized=quantized,
        )
        del grad_quantized
    elif needs_x:
        quantized = _forward(weight, log_scale, ctx.spec, grad.dtype)
    if quantized is not None:
        grad_x = torch.matmul(grad, quantized).to(x_dtype)
    if needs_bias:
        grad_bias = rows.sum(0).to(bias_dtype)
    return grad_x, grad_weight, grad_theta, grad_bias


def _forward(weight: Tensor, log_scale: Tensor, spec: QuantSpec, dtype: torch.dtype) -> Tensor:
    scales = deployed_scales(log_scale, spec)
    quantized = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    # The arithmetic happens in the result itself where that is wide enough.
    wide = dtype == _arithmetic(weight.dtype)
    workspace = [] if wide else _workspace(weight, 1)
    for rows in _row_blocks(weight):
        scale = scales[rows].unsqueeze(-1)
        target = _grouped(quantized[rows], scale)
        buffer = target if wide else _part(workspace[0], target)
        codes = _codes(weight[rows], scale, spec, out=buffer).mul_(scale)
        if not wide:
            target.copy_(codes)
    return quantized


def _backward(
    grad: Tensor,
    weight: Tensor,
    log_scale: Tensor,
    spec: QuantSpec,
    *,
    grad_weight: Tensor | None,
    needs_scale: bool,
    quantized: Tensor | None = None,
) -> Tensor | None:
    """Write dL/dW into `grad_weight`, which may be `grad` itself, and return dL/dtheta.

    Args:
        grad: dL/dWhat, (out, in).
        weight: (out, in).
        log_scale: (out, in / g).
        spec: The quantizer.
        grad_weight: Where dL/dW goes, or None.
        needs_scale: Whether dL/dtheta is computed; None is returned otherwise.
        quantized: Where What goes, or None: its codes are computed on the way.
    """
    scales = deployed_scales(log_scale, spec)
    arithmetic = _arithmetic(weight.dtype)
    grad_scale = torch.empty_like(scales, dtype=arithmetic) if needs_scale else None
    workspace = _workspace(weight, 4)
    for rows in _row_blocks(weight):
        scale = scales[rows].unsqueeze(-1)
        block, grads = _grouped(weight[rows], scale), _grouped(grad[rows], scale)
        inside, clipped, codes, spare = (_part(buffer, block) for buffer in workspace)
        _ratio(block, scale, inside)
        torch.clamp(inside, spec.qmin, spec.qmax, out=clipped)
        # 1.0 where W/s was not clipped, judged before rounding; a float, for bool is slow on CPUs.
        inside.eq_(clipped)
        if grad_scale is not None or quantized is not None:
            torch.round(clipped, out=codes)
        if quantized is not None:
            _grouped(quantized[rows], scale).copy_(torch.mul(codes, scale, out=spare))
        if grads.dtype != arithmetic:
            grads = spare.copy_(grads)  # once, where each product would do so for itself
        if grad_scale is not None:
            codes.addcmul_(clipped, inside, value=-1)  # q - W/s inside, q outside
            grad_scale[rows] = codes.mul_(grads).sum(-1)
        if grad_weight is not None:
            _grouped(grad_weight[rows], scale).copy_(inside.mul_(grads))
    if grad_scale is None:
        return None
    if spec.gradient_factor:
        grad_scale *= (weight.shape[1] // scales.shape[1] * spec.qmax) ** -0.5
    # The rounding of s is passed straight through, so the chain rule has the unrounded s.
    low, high = _scale_range(spec)
    return grad_scale.mul_(log_scale.exp().clamp_(low, high)).to(log_scale.dtype)


def _codes(weight: Tensor, scale: Tensor, spec: QuantSpec, out: Tensor | None = None) -> Tensor:
    """Codes of a block of rows as floats (rows, groups, g); clipped first, then rounded."""
    return _ratio(_grouped(weight, scale), scale, out).clamp_(spec.qmin, spec.qmax).round_()


def _ratio(block: Tensor, scale: Tensor, out: Tensor | None = None) -> Tensor:
    # Divided, not multiplied by 1/s: the reciprocal's rounding would move weights across ties.
    if out is not None and block.dtype == out.dtype:
        return torch.div(block, scale, out=out)
    if out is None:
        out = torch.empty(block.shape, dtype=_arithmetic(block.dtype), device=block.device)
    return out.copy_(block).div_(scale)


def _workspace(weight: Tensor, buffers: int) -> list[Tensor]:
    """Room for the largest of `_row_blocks`, so that no block allocates."""
    first = next(_row_blocks(weight), slice(0, 0))
    size = (first.stop - first.start) * weight.shape[1]
    dtype = _arithmetic(weight.dtype)
    return [torch.empty(size, dtype=dtype, device=weight.device) for _ in range(buffers)]


def _part(buffer: Tensor, block: Tensor) -> Tensor:
    """As much of a buffer as a block takes, in its shape."""
    return buffer[: block.numel()].view(block.shape)


def _arithmetic(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _grouped(rows: Tensor, scale: Tensor) -> Tensor:
    """(rows, in) seen as (rows, groups, g), for scales (rows, groups, 1)."""
    return rows.unflatten(-1, (scale.shape[1], -1))


def _row_blocks(weight: Tensor) -> Iterator[slice]:
    limit = _CPU_BLOCK if weight.device.type == "cpu" else _DEVICE_BLOCK
    rows, columns = weight.shape
    step = max(1, limit // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _scale_range(spec: QuantSpec) -> tuple[float, float]:
    # float16 subnormals are kept, for a group of small weights needs them and kernels read them;
    # those of bfloat16 and float32 lie below what float32 arithmetic can be trusted with.
    info = torch.finfo(SCALE_DTYPES[spec.scale_dtype])
    return max(info.smallest_normal * info.eps, torch.finfo(torch.float32).tiny), info.max


def _round_scales(scales: Tensor, spec: QuantSpec) -> Tensor:
    low, high = _scale_range(spec)
    return scales.clamp(low, high).to(SCALE_DTYPES[spec.scale_dtype]).to(torch.float32)


def _check_shapes(weight: Tensor, scales: Tensor, spec: QuantSpec) -> None:
    if weight.dim() != 2:
        raise InputError(
            f"weight has shape {tuple(weight.shape)}: give a matrix (out_features, in_features)"
        )
    rows, columns = weight.shape
    expected = (rows, columns // spec.group_width(columns, "weight"))
    if tuple(scales.shape) != expected:
        raise InputError(
            f"scales have shape {tuple(scales.shape)}: a weight {rows} x {columns} in groups of "
            f"{spec.group_size} needs {expected}"
        )
