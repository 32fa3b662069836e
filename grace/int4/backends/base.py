"""The interface of a back end."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from grace.int4.layouts import WeightShape, scales_of_kernel

Buffers = dict[str, Tensor]
"""The tensors that hold a packed weight, by name; which ones, the back end decides."""


class Backend(ABC):
    """A layout of the weight and the products that read it. Stateless; one instance serves all.

    Attributes:
        name: By which a user asks for it.
        kernel: Whether it has a product for few rows, `packed`; without one, `dense` serves any
            number.
        activations: Dtype that inputs are cast to, or None for the input's own.
        arithmetic: One line for reports: what is computed in which precision.
    """

    name: ClassVar[str]
    kernel: ClassVar[bool] = True
    activations: ClassVar[torch.dtype | None] = torch.bfloat16
    arithmetic: ClassVar[str]

    @abstractmethod
    def unavailable(self, device: torch.device) -> str | None:
        """Why nothing can run here on this device, or None."""

    @abstractmethod
    def unsupported(self, shape: WeightShape) -> str | None:
        """Why weights of this shape cannot run here, or None."""

    @abstractmethod
    def pack(self, codes: Tensor, scales: Tensor, shape: WeightShape) -> Buffers:
        """Pack codes int8 (out, in) and scales (out, groups): both checked, on the right device."""

    @abstractmethod
    def code_rows(self, buffers: Buffers, shape: WeightShape) -> Iterator[tuple[slice, Tensor]]:
        """(rows, int8 codes (rows, in)) in order, in blocks of bounded memory."""

    @abstractmethod
    def scales(self, buffers: Buffers, shape: WeightShape) -> Tensor:
        """(out, groups) float32."""

    def kernel_name(self, shape: WeightShape) -> str:
        """What `packed` runs for a shape."""
        return self.name

    def packed(
        self, x: Tensor, buffers: Buffers, shape: WeightShape, bias: Tensor | None = None
    ) -> Tensor:
        """x What^T + b by the kernel: (rows, in) contiguous, in `activations` -> (rows, out)."""
        raise NotImplementedError(f"{self.name} has no kernel")

    @abstractmethod
    def dense(
        self, x: Tensor, buffers: Buffers, shape: WeightShape, bias: Tensor | None = None
    ) -> Tensor:
        """The same by unpacking a block of the weight at a time for a dense product."""

    def unpack(self, buffers: Buffers, shape: WeightShape) -> tuple[Tensor, Tensor]:
        """(codes int8 (out, in), scales float32 (out, groups)): what was packed."""
        scales = self.scales(buffers, shape)
        codes = torch.empty(
            shape.out_features, shape.in_features, dtype=torch.int8, device=scales.device
        )
        for rows, block in self.code_rows(buffers, shape):
            codes[rows] = block
        return codes, scales

    def mismatches(
        self, buffers: Buffers, shape: WeightShape, codes: Tensor, scales: Tensor
    ) -> int:
        """How many codes and scales differ from those given."""
        wrong = int((self.scales(buffers, shape) != scales).sum())
        for rows, block in self.code_rows(buffers, shape):
            wrong += int((block != codes[rows]).sum())
        return wrong


class KernelBackend(Backend):
    """One of torch's int4pack kernels, which read scales and zero points in pairs.

    Attributes:
        product: Name of the operator in torch.ops.aten.
        row_multiple: A divisor of the output features that the kernel takes.
    """

    product: ClassVar[str]
    row_multiple: ClassVar[int]

    def unsupported(self, shape: WeightShape) -> str | None:
        if shape.kernel_group is None:
            return f"groups of {shape.group_size} are no multiple of 32"
        if shape.out_features % self.row_multiple:
            return f"{shape.out_features} output features are no multiple of {self.row_multiple}"
        return None

    def kernel_name(self, shape: WeightShape) -> str:
        return self.product

    def scales(self, buffers: Buffers, shape: WeightShape) -> Tensor:
        return scales_of_kernel(buffers["scales_and_zeros"], shape)

    def packed(
        self, x: Tensor, buffers: Buffers, shape: WeightShape, bias: Tensor | None = None
    ) -> Tensor:
        if shape.bits == 8:
            x = torch.cat([x, x], dim=1)
        product = getattr(torch.ops.aten, self.product)
        y = product(x, buffers["packed"], shape.kernel_group, buffers["scales_and_zeros"])
        return y if bias is None else y.add_(bias)
