"""torch's tinygemm kernel for NVIDIA GPUs."""

import functools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from grace.int4.backends.base import Buffers, KernelBackend
from grace.int4.layouts import (
    WeightShape,
    codes_of_kernel,
    inner_tiles,
    kernel_codes,
    kernel_scales,
    pack_tensor_core,
    row_steps,
    unpack_tensor_core,
)

# Codes that are unpacked at a time: 32 MiB of bfloat16, enough to fill a GPU.
_BLOCK = 1 << 24


@functools.cache
def _packs_as_expected(index: int) -> bool:
    """Whether torch packs on this device as `pack_tensor_core` does, for every tile count."""
    generator = torch.Generator().manual_seed(0)
    for columns in (32, 64, 128):
        codes = torch.randint(
            -8, 8, (16, columns), generator=generator, dtype=torch.int8, device="cpu"
        )
        nibbles = (codes + 8).to(torch.uint8)
        pairs = (nibbles[:, 0::2] << 4) | nibbles[:, 1::2]
        tiles = inner_tiles(columns)
        packed = torch.ops.aten._convert_weight_to_int4pack(pairs.to(f"cuda:{index}"), tiles)
        if not torch.equal(packed.cpu(), pack_tensor_core(codes)):
            return False
    return True


class CudaBackend(KernelBackend):
    """`_weight_int4pack_mm` for few rows, unpacking and a bfloat16 product for many.

    Inputs are bfloat16. Both round s * q to bfloat16 and accumulate in float32 on tensor cores.
    8-bit weights run as two 4-bit planes (`grace.int4.layouts`); `_weight_int8pack_mm` is for
    scales of whole rows, and on CUDA computes in float32 without tensor cores.
    """

    name = "cuda"
    product = "_weight_int4pack_mm"
    row_multiple = 8
    arithmetic = "bfloat16 inputs and weights, float32 accumulation"

    def unavailable(self, device: torch.device) -> str | None:
        if not torch.cuda.is_available():
            return "torch sees no CUDA device"
        if torch.version.hip is not None:
            return "on ROCm the kernel has another layout"
        if device.type != "cuda":
            return f"it runs on CUDA devices, and the weight is on {device}"
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            return f"it needs compute capability 8.0, and {device} has {major}.{minor}"
        index = torch.cuda.current_device() if device.index is None else device.index
        if not _packs_as_expected(index):
            return f"torch {torch.__version__} packs in an unknown layout"
        return None

    def pack(self, codes: Tensor, scales: Tensor, shape: WeightShape) -> Buffers:
        columns = shape.in_features * shape.bits // 4
        tiles = inner_tiles(columns)
        assert tiles is not None
        size = (shape.out_features // 8, columns // (16 * tiles), 32, tiles // 2)
        packed = torch.empty(size, dtype=torch.int32, device=codes.device)
        for rows in row_steps(shape, 8, _BLOCK // 8):
            part = pack_tensor_core(kernel_codes(codes[rows], shape))
            packed[rows.start // 8 : rows.stop // 8] = part
        return {"packed": packed, "scales_and_zeros": kernel_scales(scales, shape)}

    def code_rows(
        self, buffers: Buffers, shape: WeightShape, limit: int = _BLOCK
    ) -> Iterator[tuple[slice, Tensor]]:
        for rows in row_steps(shape, 8, limit):
            tiles = slice(rows.start // 8, rows.stop // 8)
            yield rows, codes_of_kernel(unpack_tensor_core(buffers["packed"][tiles]), shape)

    def dense(
        self, x: Tensor, buffers: Buffers, shape: WeightShape, bias: Tensor | None = None
    ) -> Tensor:
        y = x.new_empty(x.shape[0], shape.out_features)
        scale = self.scales(buffers, shape).to(torch.bfloat16).unsqueeze(-1)
        for rows, codes in self.code_rows(buffers, shape):
            weight = codes.unflatten(-1, (shape.groups, -1)).to(torch.bfloat16).mul_(scale[rows])
            part = None if bias is None else bias[rows].to(x.dtype)
            y[:, rows] = functional.linear(x, weight.flatten(1), part)
        return y
