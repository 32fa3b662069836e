"""Shared by the modules of this package: checks of numbers, working precision, chunking."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from grace.errors import InputError

#: Bound on the vocabulary-wide working memory of a chunked loss, in bytes: 32 MiB, which is under
#: 6 % of a bf16 logit tensor of 2,048 tokens x 151,936 classes and fits in a GPU's cache.
WORKSPACE_BYTES = 32 * 2**20

#: What of it a CPU's caches hold beside all else: chunks on a CPU, where there are several.
CACHED_BYTES = 8 * 2**20


def check_number(
    field: str,
    value: object,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    low_open: bool = False,
    high_open: bool = False,
) -> float:
    """`value` as a float.

    Args:
        field: Its name, for the error message.
        value: What the user wrote.
        low: Least legal number.
        high: Largest legal number.
        low_open: Whether `low` itself is illegal.
        high_open: Whether `high` itself is illegal.

    Raises:
        InputError: No finite number in the range; the message names field, value and range.
    """
    opening, closing = "(" if low_open else "[", ")" if high_open else "]"
    legal = f"a finite number in {opening}{low:g}, {high:g}{closing}"
    if math.isinf(low) and math.isinf(high):
        legal = "a finite number"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{field} is {value!r}; give {legal}")
    below = value <= low if low_open else value < low
    above = value >= high if high_open else value > high
    if below or above:
        raise InputError(f"{field} is {value!r}; give {legal}")
    return float(value)


def check_count(field: str, value: object, *, low: int = 0) -> int:
    """`value` as an int of at least `low`, or an InputError that names the field and the value."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise InputError(f"{field} is {value!r}; give an integer of at least {low}")
    return value


def compute_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """float64 as soon as one tensor is float64, float32 otherwise: never half precision."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def full_precision(tensor: torch.Tensor) -> torch.autocast:
    """A context in which autocast cannot lower the precision of operations on the device."""
    return torch.autocast(device_type=tensor.device.type, enabled=False)


def chunks(
    tokens: int,
    vocab: int,
    dtype: torch.dtype,
    buffers: int,
    chunk_size: int | None,
    *,
    device: torch.device,
) -> Iterator[slice]:
    """Slices over the tokens, such that the working memory of each is bounded.

    Args:
        tokens: Number of tokens.
        vocab: Classes per token.
        dtype: Of the buffers.
        buffers: (chunk, vocab) tensors that are alive at once.
        chunk_size: Tokens per chunk. By default all, if `WORKSPACE_BYTES` allows; otherwise as many
            as it does allow, on a CPU as `CACHED_BYTES` does; at least one.
        device: Where the buffers are.
    """
    if chunk_size is None:
        row = buffers * vocab * dtype.itemsize
        chunk_size = max(1, WORKSPACE_BYTES // row)
        if chunk_size < tokens and device.type == "cpu":
            chunk_size = max(1, min(WORKSPACE_BYTES, CACHED_BYTES) // row)
    assert chunk_size > 0, chunk_size
    for start in range(0, tokens, chunk_size):
        yield slice(start, min(start + chunk_size, tokens))


def shapes(*tensors: torch.Tensor) -> str:
    """Their shapes, for the message of an assertion."""
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
