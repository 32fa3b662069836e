"""bitsandbytes' NF4, to compare with."""

import importlib.util
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from grace.errors import InputError
from grace.int4.backends.base import Backend, Buffers
from grace.int4.layouts import WeightShape

_BLOCK_SIZE = 64  # weights that share one absmax, bitsandbytes' default


class BitsAndBytesBackend(Backend):
    """Another quantizer, not another kernel: s * q is rounded once more, to NF4.

    NF4's 16 levels are quantiles of a normal distribution (arXiv 2305.14314), in blocks of 64 with
    a float32 absmax; they are not the integer grid that the codes are on. So the layer computes
    another function than it was trained to, its codes are gone, and "auto" never chooses it.
    """

    name = "bitsandbytes"
    exact = False
    kernel = False  # it dispatches by rows itself
    arithmetic = "NF4, rounded anew: not the codes it was given"

    def unavailable(self, device: torch.device) -> str | None:
        if device.type not in ("cpu", "cuda"):
            return f"it runs on the CPU or on CUDA devices, and the weight is on {device}"
        if importlib.util.find_spec("bitsandbytes") is None:
            return "the package bitsandbytes is not installed"
        try:
            _functional()
        except (ImportError, OSError, RuntimeError) as error:
            return f"the package bitsandbytes cannot be imported ({error})"
        return None

    def unsupported(self, shape: WeightShape) -> str | None:
        if shape.bits != 4:
            return "NF4 has 4 bits (bitsandbytes' 8-bit products also quantize the inputs)"
        if shape.in_features % _BLOCK_SIZE:
            return f"{shape.in_features} input features are no multiple of {_BLOCK_SIZE}"
        return None

    def pack(self, codes: Tensor, scales: Tensor, shape: WeightShape) -> Buffers:
        functional = _functional()
        scale = scales.to(torch.float32).unsqueeze(-1)
        weight = codes.unflatten(-1, (shape.groups, -1)).to(torch.float32).mul_(scale).flatten(1)
        packed, state = functional.quantize_4bit(
            weight.to(torch.bfloat16), blocksize=_BLOCK_SIZE, quant_type="nf4"
        )
        if _repacks(functional, codes.device, shape):
            packed, state = functional._convert_weight_packed_for_cpu(packed, state)
        return {"packed": packed, "absmax": state.absmax, "levels": state.code}

    def code_rows(self, buffers: Buffers, shape: WeightShape) -> Iterator[tuple[slice, Tensor]]:
        raise InputError("an NF4 layer no longer has its integer codes: use the model it was from")

    def scales(self, buffers: Buffers, shape: WeightShape) -> Tensor:
        raise InputError("an NF4 layer no longer has its scales: use the model it was from")

    def dense(
        self, x: Tensor, buffers: Buffers, shape: WeightShape, bias: Tensor | None = None
    ) -> Tensor:
        import bitsandbytes

        functional = _functional()
        state = functional.QuantState(
            buffers["absmax"],
            shape=torch.Size((shape.out_features, shape.in_features)),
            code=buffers["levels"],
            blocksize=_BLOCK_SIZE,
            quant_type="nf4",
            dtype=torch.bfloat16,
        )
        state.packing_format_for_cpu = _repacks(functional, x.device, shape)
        if bias is not None:
            bias = bias.to(x.dtype)
        return bitsandbytes.matmul_4bit(x, buffers["packed"], state, bias=bias)


def _functional() -> Any:
    """bitsandbytes.functional, without its advice on kernels to be downloaded."""
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.setLevel(logging.ERROR)
    import bitsandbytes.functional as found

    return found


def _repacks(functional: Any, device: torch.device, shape: WeightShape) -> bool:
    """Whether bitsandbytes' own layers would use their layout for AVX512-BF16, the faster one."""
    return bool(
        device.type == "cpu" and shape.out_features % 32 == 0 and functional.has_avx512bf16()
    )
