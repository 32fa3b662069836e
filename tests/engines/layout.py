"""vLLM's weights of W4A16 linears on a CPU, by their layout, and their product in plain torch.

The loaded weight is cut into blocks of 16 output features. A block is one row of words: for every
input feature two words, each with the 4-bit numbers of eight output features, the first in the
lowest bits. Scales are (groups, out). Zero points, where there are any, are (groups, out / 8) words
in the same order; without them the zero point is 8.
"""

import os

import torch
from torch import Tensor
from torch.nn.functional import linear

BLOCK = 16
NIBBLES = 8
ZERO = 8
KERNEL = "ENGINES_KERNEL"
"""Environment variable: with the value ``plain`` the engine's own kernel is not used."""


def _nibbles(words: Tensor) -> Tensor:
    """(..., n) int32 -> (..., 8 n) of 0 .. 15, lowest bits first."""
    shifts = torch.arange(0, 4 * NIBBLES, 4, dtype=torch.int32)
    return ((words.unsqueeze(-1) >> shifts) & 15).flatten(-2)


def read_codes(words: Tensor, zeros: Tensor | None, groups: int) -> Tensor:
    """The signed codes (out, in) int8 of a loaded weight.

    Args:
        words: (out / 16, 2 in) int32.
        zeros: (groups, out / 8) int32, or None.
        groups: Number of groups of input features.
    """
    blocks, count = words.shape
    in_features = count // 2
    stored = _nibbles(words.view(blocks, in_features, 2)).permute(1, 0, 2).flatten(1)
    if zeros is None:
        codes = stored - ZERO
    else:
        codes = stored - _nibbles(zeros).repeat_interleave(in_features // groups, 0)
    return codes.t().to(torch.int8)


def plain_product(
    input: Tensor,
    q_weight: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bias: Tensor | None,
    pack_factor: int,
    isa_hint: str,
) -> Tensor:
    """What vLLM's kernel computes, with a dense weight: slow, and on any processor.

    Args:
        input: (..., in).
        q_weight: (out / 16, 2 in) int32.
        scales: (groups, out).
        zeros: (groups, out / 8) int32, or None.
        bias: (out,), or None.
        pack_factor: Codes a word; 8.
        isa_hint: Which variant of the kernel would be taken; without meaning here.
    """
    assert pack_factor == NIBBLES
    codes = read_codes(q_weight, zeros, scales.shape[0])
    factors = scales.t().repeat_interleave(codes.shape[1] // scales.shape[0], 1)
    return linear(input, codes.to(input.dtype) * factors.to(input.dtype), bias)


def has_kernel() -> bool:
    """Whether this processor's build of vLLM has the kernel, and it is not switched off."""
    import vllm._custom_ops  # noqa: F401  loads the operators

    return hasattr(torch.ops._C, "cpu_gemm_wna16") and os.environ.get(KERNEL) != "plain"


def install() -> None:
    """Put the plain product into the kernel's place where there is none.

    `vllm serve` calls it in each of its processes: it is announced as one of vLLM's plugins.
    """
    import vllm._custom_ops as operators

    if not has_kernel():
        operators.cpu_gemm_wna16 = plain_product
