"""Attention of one new token to what is cached, on CPUs.

torch's fused kernel works on blocks of queries; for a single one it reads keys and values several
times slower than memory gives them. Products of a matrix with a few vectors, one for each query
head that shares the keys, do better.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

IMPLEMENTATION = "decode"
"""Under this name transformers' models find `attention`."""


def attention(  # noqa: PLR0917 (transformers calls it so)
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """softmax(q Kᵀ · scaling + mask) V, in the form of transformers' attention functions.

    Scores are in the input's dtype, their softmax in float32, as in transformers' eager attention.
    More than one query a row goes to torch's fused kernel.

    Args:
        module: The attention layer; only the fused kernel reads it.
        query: (B, H, 1, D).
        key: (B, H / n, L, D): n query heads share a key head.
        value: (B, H / n, L, D).
        attention_mask: (B, 1, 1, L), true (or added 0) where a slot is attended to; None: all are.
        scaling: Of the scores; by default 1 / √D.
        **kwargs: For the fused kernel.

    Returns:
        (B, 1, H, D), and None in place of the attention weights.
    """
    if query.shape[2] != 1:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    rows, heads, _, width = query.shape
    scaling = width**-0.5 if scaling is None else scaling
    out = value.new_empty(rows, 1, heads, value.shape[-1])
    for row in range(rows):  # a product over several rows at once is slower than one after another
        vectors = query[row].reshape(key.shape[1], -1, width)  # (H / n, n, D)
        scores = torch.matmul(key[row], vectors.transpose(1, 2)).float()  # (H / n, L, n)
        scores *= scaling
        if attention_mask is not None:
            mask = attention_mask[min(row, len(attention_mask) - 1), 0, 0, : key.shape[2]]
            if mask.dtype == torch.bool:
                scores.masked_fill_(~mask[:, None], float("-inf"))
            else:
                scores += mask[:, None]
        weights = scores.softmax(1).to(value.dtype).transpose(1, 2)
        out[row, 0] = torch.matmul(weights, value[row]).flatten(0, 1)
    return out, None


@contextmanager
def decode_attention(config: Any) -> Iterator[None]:
    """Within this context models of this text configuration use `attention`."""
    before = config._attn_implementation
    config._attn_implementation = IMPLEMENTATION
    try:
        yield
    finally:
        config._attn_implementation = before


AttentionInterface.register(IMPLEMENTATION, attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
