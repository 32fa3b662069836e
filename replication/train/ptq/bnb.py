"""NF4 and LLM.int8, as bitsandbytes computes them. Both run on CPUs and on CUDA."""

from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from bitsandbytes.nn import Linear8bitLt
from torch import nn

from grace.models import decoder_linears

NF4_BLOCK = 64
"""Weights to a block; bitsandbytes' own default, as is leaving the block maxima in float32."""

OUTLIER = 6.0
"""Activations at least this large are multiplied in 16 or more bits (arXiv 2208.07339)."""


@torch.no_grad()
def round_to_nf4(model: nn.Module) -> None:
    """Replace the decoder's weights by what NF4 keeps of them, in place.

    W^ = m * c(k): m is the maximum of |W| over 64 consecutive weights of a row, c the 16 quantiles
    of a normal distribution that arXiv 2305.14314 (Appendix E) lists, k the nearest to W / m. NF4
    quantizes weights only, so a float linear with these weights is the NF4 linear.
    """
    for name in decoder_linears(model):
        weight: Any = model.get_submodule(name).weight
        packed, state = quantize_4bit(
            weight.detach(), blocksize=NF4_BLOCK, compress_statistics=False, quant_type="nf4"
        )
        weight.copy_(dequantize_4bit(packed, state))


def load_llm_int8(source: Path, plain: nn.Module) -> nn.Module:
    """The model in ``source``, ``plain`` as it is, with ``Linear8bitLt`` for the decoder's linears.

    Weights are int8 with one scale a row. Activations are rounded to int8 by row as they come,
    but for columns with a value of at least ``OUTLIER`` anywhere in the batch.
    """
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    linears = set(decoder_linears(plain))
    others = [
        name
        for name, module in plain.named_modules()
        if isinstance(module, nn.Linear) and name not in linears
    ]
    settings = BitsAndBytesConfig(
        load_in_8bit=True, llm_int8_threshold=OUTLIER, llm_int8_skip_modules=others
    )
    loader: Any = AutoModelForImageTextToText
    model = loader.from_pretrained(source, dtype=torch.float32, quantization_config=settings)
    int8 = {name for name, module in model.named_modules() if isinstance(module, Linear8bitLt)}
    assert int8 == linears, f"transformers converted other linears: {sorted(int8 ^ linears)[:3]}"
    return model.eval()
