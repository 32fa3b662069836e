"""Attention of one token, against the definition in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AttentionInterface

from grace.decoding.attention import IMPLEMENTATION, attention, decode_attention


class Layer(torch.nn.Module):
    """What transformers' attention functions ask of a layer."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups, self.is_causal = groups, True


def by_definition(query, key, value, mask, scaling):
    """(B, 1, H, D) of float64: every query head with the key head that it shares."""
    rows, heads, _, _ = query.shape
    groups = heads // key.shape[1]
    out = torch.zeros(rows, 1, heads, value.shape[-1], dtype=torch.float64)
    for row in range(rows):
        for head in range(heads):
            q, k = query[row, head, 0].double(), key[row, head // groups].double()
            scores = k @ q * scaling
            if mask is not None:
                scores = scores.masked_fill(~mask[row, 0, 0, : len(k)], float("-inf"))
            out[row, 0, head] = scores.softmax(0) @ value[row, head // groups].double()
    return out


@given(
    rows=st.integers(1, 3),
    key_heads=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    length=st.integers(1, 9),
    spare=st.integers(0, 2),
    masked=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_definition(rows, key_heads, groups, length, spare, masked, seed):
    draw = torch.Generator().manual_seed(seed)
    query = torch.randn(rows, key_heads * groups, 1, 8, generator=draw)
    key, value = (torch.randn(rows, key_heads, length, 8, generator=draw) for _ in range(2))
    mask = None
    if masked:
        mask = torch.rand(rows, 1, 1, length + spare, generator=draw) < 0.6
        mask[..., 0] = True
    out, _ = attention(Layer(groups), query, key, value, mask, scaling=0.3)
    expected = by_definition(query, key, value, mask, 0.3)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=2e-6)
    if mask is not None:
        added = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
        again, _ = attention(Layer(groups), query, key, value, added, scaling=0.3)
        torch.testing.assert_close(again, out)


def test_the_scale_is_that_of_the_head_by_default():
    query, key, value = (torch.randn(1, 2, n, 16) for n in (1, 5, 5))
    out, _ = attention(Layer(1), query, key, value, None)
    torch.testing.assert_close(
        out.double(), by_definition(query, key, value, None, 0.25), rtol=0, atol=2e-6
    )


def test_bfloat16_is_as_near_as_eager_attention():
    draw = torch.Generator().manual_seed(5)
    query, key, value = (torch.randn(2, 4, n, 64, generator=draw).bfloat16() for n in (1, 300, 300))
    out, _ = attention(Layer(1), query, key, value, None)
    exact = by_definition(query, key, value, None, 64**-0.5)
    scores = (query @ key.transpose(2, 3)) * 64**-0.5
    eager = (scores.float().softmax(-1).bfloat16() @ value).transpose(1, 2)
    assert (out - exact).abs().max() <= 1.5 * (eager - exact).abs().max()


def test_several_queries_are_causal():
    query, key, value = (torch.randn(1, 2, 4, 8) for _ in range(3))
    out, _ = attention(Layer(1), query, key, value, None, scaling=0.3)
    for place in range(4):
        one = by_definition(
            query[:, :, place : place + 1],
            key[:, :, : place + 1],
            value[:, :, : place + 1],
            None,
            0.3,
        )
        torch.testing.assert_close(out[:, place : place + 1].double(), one, rtol=0, atol=2e-6)


def test_the_setting_is_put_back():
    class Config:
        _attn_implementation = "sdpa"

    config = Config()
    with pytest.raises(KeyError), decode_attention(config):
        assert AttentionInterface()[config._attn_implementation] is attention
        raise KeyError
    assert config._attn_implementation == "sdpa"
    assert IMPLEMENTATION not in ("sdpa", "eager")
