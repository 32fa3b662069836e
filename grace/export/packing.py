"""Integer codes in 32-bit words, as checkpoints store them.

`pack_words` puts consecutive codes of a row into one word, the first in the lowest bits:
compressed-tensors' pack-quantized layout for 4 and 8 bits. AWQ's GEMM layout stores the transposed
weight and puts the eight codes of a word in the order 0 2 4 6 1 3 5 7, lowest bits first, which is
how its kernel reads them.

Both store unsigned numbers: a code q of b bits is stored as q + 2^(b-1).
"""

import torch
from torch import Tensor

from grace.errors import InputError

WORD = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
AWQ_BITS = 4
AWQ_ZERO = 1 << (AWQ_BITS - 1)


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """Consecutive codes of a row in one word, the first in the lowest bits.

    Args:
        codes: (rows, n) int8 in -2^(bits-1) .. 2^(bits-1) - 1.
        bits: 4 or 8, so that no code crosses a word.

    Returns:
        (rows, ceil(n bits / 32)) int32. A last word that is not full has zeros on top.
    """
    per_word = WORD // bits
    rows, count = codes.shape
    numbers = codes.to(torch.int32) + (1 << (bits - 1))
    if count % per_word:
        numbers = torch.nn.functional.pad(numbers, (0, per_word - count % per_word))
    return _join(numbers.view(rows, -1, per_word), range(per_word), bits)


def pack_awq(codes: Tensor) -> Tensor:
    """codes: (out, in) int8 in -8 .. 7, out a multiple of 8 -> qweight (in, out / 8) int32."""
    numbers = (codes.to(torch.int32) + AWQ_ZERO).t().contiguous()
    return _join(numbers.unflatten(1, (-1, len(AWQ_ORDER))), AWQ_ORDER, AWQ_BITS)


def awq_zeros(groups: int, out_features: int, device: torch.device | str | None = None) -> Tensor:
    """qzeros (groups, out / 8) int32 of a symmetric grid: zero point 8 everywhere."""
    zeros = torch.full((groups, out_features), AWQ_ZERO, dtype=torch.int32, device=device)
    return _join(zeros.unflatten(1, (-1, len(AWQ_ORDER))), AWQ_ORDER, AWQ_BITS)


def unpack_awq(words: Tensor) -> Tensor:
    """(rows, columns / 8) int32 -> (rows, columns) int8, the stored numbers 0 .. 15."""
    numbers = torch.empty(*words.shape, len(AWQ_ORDER), dtype=torch.int8)
    for place, column in enumerate(AWQ_ORDER):
        # The shift is arithmetic, so the sign's copies are masked away.
        numbers[..., column] = (words >> (AWQ_BITS * place)).bitwise_and_(15).to(torch.int8)
    return numbers.flatten(1)


def _join(numbers: Tensor, order: "range | tuple[int, ...]", bits: int) -> Tensor:
    words = torch.zeros(numbers.shape[:-1], dtype=torch.int32, device=numbers.device)
    for place, index in enumerate(order):
        words |= numbers[..., index] << (bits * place)
    return words


def stored_scales(scales: Tensor, dtype: torch.dtype, name: str, *, round_scales: bool) -> Tensor:
    """Float32 scales in the dtype of a checkpoint, of the same shape.

    Args:
        scales: float32, positive.
        dtype: Of the checkpoint.
        name: Of the tensor, for the message.
        round_scales: Whether scales may be rounded.

    Raises:
        InputError: A scale would be rounded (or with `round_scales`, become zero or infinite): the
            exported model would not be the trained one. The message names the tensor and the scale.
    """
    stored = scales.to(dtype)
    kept = stored.to(torch.float32)
    wrong = ~torch.isfinite(kept) | (kept <= 0) if round_scales else kept != scales
    if wrong.any():
        value = scales[wrong][0].item()
        mend = (
            "export with a dtype of wider range"
            if round_scales
            else "train with scales of that dtype (QuantSpec.scale_dtype), export with another "
            "dtype, or pass round_scales=True to round them"
        )
        raise InputError(f"{name}: scale {value!r} is not representable in {dtype}: {mend}")
    return stored
