"""What the decoder's linears become: ours, and what else one may choose.

Embeddings, vocabulary projection, norms, projector and vision tower stay BF16 in every variant but
those named float32, which a processor without products of bfloat16 may compute faster. Every 4-bit
variant starts from the same weights.
"""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from grace.errors import InputError
from grace.export.packing import awq_zeros, pack_awq
from grace.quantization import FakeQuantLinear, QuantSpec
from replication.base.messages import unknown
from replication.measure.speed.weights import Convert

GROUP_SIZE = 128


@dataclass(frozen=True)
class Variant:
    """One way to run a model.

    Attributes:
        name: by which it is asked for.
        label: in tables.
        bits: of a decoder weight's code.
        convert: makes a linear's replacement; None leaves it as it is.
        unavailable: why it cannot be run on a device, or None.
        ours: whether it is this project's, not a peer.
        module: whose `measure_part` measures it.
        outside: whether it runs in the environment of the engines (`make bench-engines`).
        dtype: of weights that are not converted, activations and cache.
    """

    name: str
    label: str
    bits: int
    convert: Convert | None
    unavailable: Callable[[torch.device], str | None]
    ours: bool = False
    module: str = "replication.measure.speed.measure"
    outside: bool = False
    dtype: torch.dtype = torch.bfloat16


ENGINES_PYTHON = Path(".venv-engines") / "bin" / "python"
"""The interpreter of what needs other versions than the rest."""


def _packed(bits: int, linear: nn.Linear, name: str) -> nn.Module:
    """Rounded to nearest on a grid of the group's maximum, packed for the device it is on."""
    from grace.int4 import Int4Linear, Int8Linear

    spec = QuantSpec(bits=bits, group_size=GROUP_SIZE, init="max")
    quantized = FakeQuantLinear.from_linear(linear, spec, name)
    layer = Int4Linear if bits == 4 else Int8Linear
    return layer.from_codes(quantized.codes(), quantized.scales(), linear.bias, name=name)


def _no_kernel(device: torch.device) -> str | None:
    from grace.int4 import available

    return available(device).get(device.type, f"there is no kernel for {device.type}")


class UnfusedAwqLinear(nn.Module):
    """A linear in AutoAWQ's GEMM layout whose weight is unpacked in full by plain PyTorch at every
    call: what one gets of such a checkpoint without its kernels.

    qweight: (in, out / 8) int32, eight codes of a row of outputs in each, at bits 0, 16, 4, 20, 8,
    24, 12, 28; qzeros: (groups, out / 8), likewise; scales: (groups, out).
    """

    shifts: Tensor

    def __init__(self, codes: Tensor, scales: Tensor, bias: Tensor | None, dtype: torch.dtype):
        super().__init__()
        from grace.export.packing import AWQ_BITS, AWQ_ORDER

        places = [AWQ_BITS * AWQ_ORDER.index(column) for column in range(len(AWQ_ORDER))]
        shifts = torch.tensor(places, dtype=torch.int32, device=codes.device)
        self.register_buffer("shifts", shifts, persistent=False)
        self.register_buffer("qweight", pack_awq(codes))
        zeros = awq_zeros(scales.shape[1], codes.shape[0], codes.device)
        self.register_buffer("qzeros", zeros)
        self.register_buffer("scales", scales.t().contiguous().to(dtype))
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @classmethod
    def from_linear(cls, linear: nn.Linear, name: str) -> "UnfusedAwqLinear":
        spec = QuantSpec(bits=4, group_size=GROUP_SIZE, init="max")
        quantized = FakeQuantLinear.from_linear(linear, spec, name)
        return cls(quantized.codes(), quantized.scales(), linear.bias, linear.weight.dtype)

    def _split(self, joined: Tensor) -> Tensor:
        return ((joined.unsqueeze(-1) >> self.shifts) & 15).flatten(1)

    def dequantized(self) -> Tensor:
        """The weight, (in, out)."""
        qweight: Any = self.qweight
        qzeros: Any = self.qzeros
        scales: Any = self.scales
        group = qweight.shape[0] // scales.shape[0]
        codes = self._split(qweight).unflatten(0, (-1, group))
        centred = codes - self._split(qzeros).unsqueeze(1)
        return (centred * scales.unsqueeze(1)).flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.dequantized().to(x.dtype)
        return y if self.bias is None else y + self.bias


def _nf4(linear: nn.Linear, name: str) -> nn.Module:
    """As transformers makes it of ``BitsAndBytesConfig(load_in_4bit=True,
    bnb_4bit_quant_type="nf4")``."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    layer: Any = Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=linear.weight.dtype,
        compress_statistics=False,
        quant_type="nf4",
        device="meta",
    )
    device = linear.weight.device
    weight: Any = Params4bit(
        linear.weight.detach(),
        requires_grad=False,
        compress_statistics=False,
        quant_type="nf4",
        module=layer,
    )
    layer.weight = weight.to(device)
    layer.bias = linear.bias
    return layer.eval()


def _torchao(linear: nn.Linear, name: str) -> nn.Module:
    from torchao.quantization import Int4WeightOnlyConfig, quantize_

    settings: Any
    if linear.weight.device.type == "cuda":
        settings = Int4WeightOnlyConfig(
            group_size=GROUP_SIZE, int4_packing_format="tile_packed_to_4d"
        )
    else:
        # its layout for torch's int4pack kernel, the one that ours runs on
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        settings = PrototypeInt4WeightOnlyConfig(group_size=GROUP_SIZE, set_inductor_config=False)
    holder = nn.Sequential(linear)
    quantize_(holder, settings)
    return holder[0]


def _package(name: str, device: torch.device) -> str | None:
    if importlib.util.find_spec(name) is None:
        return f"the package {name} is not installed"
    return None


def _always(device: torch.device) -> str | None:
    return None


def _engine(name: str, label: str, bits: int, module: str) -> Variant:
    module = f"replication.measure.speed.{module}"
    return Variant(name, label, bits, None, _always, module=module, outside=True)


_VARIANTS = (
    Variant("bf16", "BF16", 16, None, _always),
    Variant("float32", "float32", 32, None, _always, dtype=torch.float32),
    Variant("int8", "INT8", 8, functools.partial(_packed, 8), _no_kernel, ours=True),
    Variant("int4", "INT4", 4, functools.partial(_packed, 4), _no_kernel, ours=True),
    Variant(
        "int4_float32",
        "INT4, rest float32",
        4,
        functools.partial(_packed, 4),
        _no_kernel,
        ours=True,
        dtype=torch.float32,
    ),
    Variant("nf4", "NF4, bitsandbytes", 4, _nf4, functools.partial(_package, "bitsandbytes")),
    Variant(
        "torchao",
        "INT4, torchao",
        4,
        _torchao,
        functools.partial(_package, "torchao"),
        outside=True,
    ),
    Variant("awq_unfused", "INT4, AWQ without kernels", 4, UnfusedAwqLinear.from_linear, _always),
    _engine("llama_cpp", "Q4_0, llama.cpp", 4, "llama_cpp"),
    _engine("openvino", "INT4, OpenVINO GenAI", 4, "openvino"),
    _engine("vllm_bf16", "BF16, vLLM", 16, "vllm_cpu"),
    _engine("vllm_int4", "INT4, vLLM", 4, "vllm_cpu"),
)
VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _VARIANTS}


def variant(name: str) -> Variant:
    """A variant by name.

    Raises:
        InputError: listing the known names, for another.
    """
    if name not in VARIANTS:
        raise InputError(unknown(f"variant {name!r}", name, VARIANTS))
    return VARIANTS[name]
