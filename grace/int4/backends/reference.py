"""The back end to read, and to compare the others with: any device, any group size."""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from grace.int4.backends.base import Backend, Buffers
from grace.int4.layouts import SCALE_DTYPE, WeightShape, pack_plain, row_steps, unpack_plain


class ReferenceBackend(Backend):
    """y = x (s q)^T + b in float32 (float64 for float64 inputs), rounded once to the input's dtype.

    s * q is exact in float32: 8 significant bits of the scale times 8 of the code.
    """

    name = "reference"
    kernel = False
    activations: ClassVar[torch.dtype | None] = None
    arithmetic = "float32 product of the exact weight"

    def unavailable(self, device: torch.device) -> str | None:
        return None

    def unsupported(self, shape: WeightShape) -> str | None:
        return None

    def pack(self, codes: Tensor, scales: Tensor, shape: WeightShape) -> Buffers:
        return {"packed": pack_plain(codes, shape.bits), "scale": scales.to(SCALE_DTYPE)}

    def code_rows(self, buffers: Buffers, shape: WeightShape) -> Iterator[tuple[slice, Tensor]]:
        for rows in row_steps(shape, 1):
            yield rows, unpack_plain(buffers["packed"][rows], shape)

    def scales(self, buffers: Buffers, shape: WeightShape) -> Tensor:
        return buffers["scale"].to(torch.float32)

    def dense(
        self, x: Tensor, buffers: Buffers, shape: WeightShape, bias: Tensor | None = None
    ) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        y = x.new_empty(x.shape[0], shape.out_features)
        with torch.autocast(x.device.type, enabled=False):
            for rows, codes in self.code_rows(buffers, shape):
                scale = buffers["scale"][rows].unsqueeze(-1).to(dtype)
                weight = codes.unflatten(-1, (shape.groups, -1)).to(dtype).mul_(scale).flatten(1)
                part = None if bias is None else bias[rows].to(dtype)
                y[:, rows] = functional.linear(x.to(dtype), weight, part).to(x.dtype)
        return y
