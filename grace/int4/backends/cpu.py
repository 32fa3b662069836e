"""torch's int4pack kernel for CPUs, and one of our own in its layout."""

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from grace.arithmetic import native_dtype
from grace.int4.backends.base import Buffers, KernelBackend
from grace.int4.backends.compiled import OUTPUTS, Product, compiled
from grace.int4.layouts import (
    BlockedLayout,
    WeightShape,
    codes_of_kernel,
    kernel_codes,
    kernel_scales,
    row_steps,
)

_KNOWN_LAYOUTS = (
    BlockedLayout(64, halves=True),
    BlockedLayout(32, halves=True),
    BlockedLayout(64, halves=False),
    BlockedLayout(32, halves=False),
    BlockedLayout(16, halves=False),
)
_WIDEST = 64  # rows: every layout's blocks fill these
# Codes that are unpacked at a time, in all and at least by each thread: products with some hundred
# outputs take up to a third less time in float32 than with 64, and bfloat16 ones no more.
_CODES, _CODES_PER_THREAD = 1 << 21, 1 << 18


@functools.cache
def native_layout() -> BlockedLayout | None:
    """The layout that this build of torch uses on this processor, or None for an unknown one.

    torch chooses by the vector instructions it finds and does not say which; so a small weight is
    packed by torch and compared.
    """
    convert = getattr(torch.ops.aten, "_convert_weight_to_int4pack_for_cpu", None)
    if convert is None or not hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu"):
        return None
    generator = torch.Generator().manual_seed(0)
    # full blocks of every width, and a last block of 48, 16 or none
    codes = torch.randint(-8, 8, (176, 32), generator=generator, dtype=torch.int8, device="cpu")
    try:
        packed = convert((codes + 8).to(torch.int32), 1)
    except (RuntimeError, NotImplementedError):
        return None
    for layout in _KNOWN_LAYOUTS:
        if torch.equal(layout.pack(codes).view(-1), packed.view(-1)):
            return layout
    return None


class CpuBackend(KernelBackend):
    """A kernel for few rows, unpacking and dense products for many.

    Inputs are bfloat16. The kernel is `compiled` where there is one and it takes the shape: it
    sums products of bfloat16 codes in float32 and scales them by groups. Elsewhere it is
    `_weight_int4pack_mm_for_cpu`, which multiplies by s * q in float32 and accumulates in float32.
    The dense product does so too, but where the processor multiplies bfloat16 natively, it rounds
    s * q to bfloat16 first, as a bfloat16 model does. 8-bit weights run as two 4-bit planes
    (`grace.int4.layouts`).
    """

    name = "cpu"
    product = "_weight_int4pack_mm_for_cpu"
    row_multiple = 16
    arithmetic = "bfloat16 inputs, float32 accumulation"

    def kernel_name(self, shape: WeightShape) -> str:
        return self.product if _compiled(shape) is None else "compiled"

    def unavailable(self, device: torch.device) -> str | None:
        if device.type != "cpu":
            return f"it runs on the CPU, and the weight is on {device}"
        if native_layout() is None:
            return f"torch {torch.__version__} has no int4pack kernel of a known layout here"
        return None

    def pack(self, codes: Tensor, scales: Tensor, shape: WeightShape) -> Buffers:
        layout = _layout()
        width = shape.in_features * shape.bits // 8  # bytes of a row
        packed = torch.empty(shape.out_features, width, dtype=torch.uint8, device=codes.device)
        for rows in row_steps(shape, _WIDEST):
            packed[rows] = layout.pack(kernel_codes(codes[rows], shape))
        return {"packed": packed, "scales_and_zeros": kernel_scales(scales, shape)}

    def code_rows(self, buffers: Buffers, shape: WeightShape) -> Iterator[tuple[slice, Tensor]]:
        layout, packed = _layout(), buffers["packed"]
        for rows in row_steps(shape, _WIDEST):
            yield rows, codes_of_kernel(layout.unpack(packed[rows]), shape)

    def packed(
        self, x: Tensor, buffers: Buffers, shape: WeightShape, bias: Tensor | None = None
    ) -> Tensor:
        product = _compiled(shape)
        if product is None:
            return super().packed(x, buffers, shape, bias)
        assert shape.kernel_group is not None
        y = product(x, buffers["packed"], buffers["scales_and_zeros"], shape.kernel_group)
        return y if bias is None else y.add_(bias)

    def dense(
        self, x: Tensor, buffers: Buffers, shape: WeightShape, bias: Tensor | None = None
    ) -> Tensor:
        """A block of the weight is unpacked to (in, outputs), scaled and multiplied.

        The scratch memory is bounded by some bytes per code of what is unpacked at a time.
        """
        layout = _layout()
        inputs = x.to(native_dtype())
        y = inputs.new_empty(x.shape[0], shape.out_features)
        assert shape.kernel_group is not None
        bias = None if bias is None else bias.to(inputs.dtype)
        groups = shape.in_features // shape.kernel_group
        # At 8 bits, those of the low nibbles. Side by side, as a strided factor is read one by one.
        scale = buffers["scales_and_zeros"][-groups:, :, 0].contiguous()
        limit = max(_CODES, _CODES_PER_THREAD * torch.get_num_threads()) * shape.bits // 4
        scratch: tuple[Tensor, Tensor] | None = None
        for rows, block in layout.blocks(buffers["packed"], limit):
            count, _, half = block.shape
            size = (count, shape.in_features, 2 * half)
            if scratch is None or scratch[0].shape != size:
                scratch = (
                    torch.empty(size, dtype=torch.uint8, device=x.device),
                    torch.empty(size[1], count * size[2], dtype=inputs.dtype, device=x.device),
                )
            nibbles, weight = scratch
            by_block = weight.unflatten(1, (count, -1)).transpose(0, 1)
            by_block.copy_(_signed(layout, block, shape, nibbles))
            weight.unflatten(0, (groups, -1)).mul_(scale[:, rows].unsqueeze(1))
            if bias is None:
                torch.mm(inputs, weight, out=y[:, rows])
            else:
                torch.addmm(bias[rows], inputs, weight, out=y[:, rows])
        return y.to(x.dtype)


def _compiled(shape: WeightShape) -> Product | None:
    """The compiled product, where it takes this shape."""
    fits = shape.out_features % OUTPUTS == 0 and native_layout() == _KNOWN_LAYOUTS[0]
    return compiled()[0] if fits else None


def _signed(layout: BlockedLayout, block: Tensor, shape: WeightShape, out: Tensor) -> Tensor:
    """Codes int8 (blocks, in, w) of packed blocks (blocks, K, w / 2); out: where they may lie."""
    if shape.bits == 4:
        return layout.nibbles(block, out).view(torch.int8).sub_(8)
    high, low = block.chunk(2, dim=1)  # the nibbles h + 8 and l, so that a byte is q + 128
    first = ((high & 15) << 4).bitwise_or_(low & 15)
    second = (high & 240).bitwise_or_(low >> 4)
    return layout.in_order(first, second, out).bitwise_xor_(128).view(torch.int8)


def _layout() -> BlockedLayout:
    layout = native_layout()
    assert layout is not None, "asked for only where it is available"
    return layout
