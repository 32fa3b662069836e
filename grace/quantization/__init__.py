"""Symmetric group-wise learned-step-size quantization (Eq. 14 of arXiv 2601.22709).

`spec` has the settings of a quantizer, `primitives` the arithmetic, `linear` the module that
trains with it, `prepare` puts that module into a model and takes it out again, `codes` stores the
integers.
"""

from grace.quantization.codes import CODES_FILE, CodesFile, write_codes
from grace.quantization.linear import FakeQuantLinear
from grace.quantization.prepare import bake, fake_quant_layers, prepare
from grace.quantization.primitives import (
    deployed_scales,
    dequantize,
    fake_quantize,
    fake_quantized_linear,
    initial_scales,
    quantize,
)
from grace.quantization.spec import QuantSpec

__all__ = [
    "CODES_FILE",
    "CodesFile",
    "FakeQuantLinear",
    "QuantSpec",
    "bake",
    "deployed_scales",
    "dequantize",
    "fake_quant_layers",
    "fake_quantize",
    "fake_quantized_linear",
    "initial_scales",
    "prepare",
    "quantize",
    "write_codes",
]
