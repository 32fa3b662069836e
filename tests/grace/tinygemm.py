"""tinygemm's operators in NumPy, from PTX's text on the fragments of mma.m16n8k16.

Lane t of a warp holds, of eight rows n of the weight and 16 inputs k, n = t // 4 and
k = 2 (t % 4) + {0, 1, 8, 9}. A word of 32 bits holds those of two k-tiles: even k in its lower
half, odd k in its upper one, each from low to high in the order k = 0, 8, 16, 24.
"""

import numpy as np
import torch

PLACES = (0, 8, 16, 24, 1, 9, 17, 25)  # k of a word's nibbles, from low to high


def _where(n_tiles, k_tiles, pairs):
    """Row and first k of every word (n tiles, k tiles, lanes, pairs)."""
    n_tile, k_tile, lane, pair = np.indices((n_tiles, k_tiles, 32, pairs))
    return 8 * n_tile + lane // 4, 32 * (k_tile * pairs + pair) + 2 * (lane % 4)


def pack_nibbles(nibbles, tiles):
    """uint8 (out, in) -> int32 (out / 8, in / (16 tiles), 32, tiles / 2)."""
    rows, columns = nibbles.shape
    row, first = _where(rows // 8, columns // (16 * tiles), tiles // 2)
    words = np.zeros(row.shape, np.uint32)
    for place, k in enumerate(PLACES):
        words |= nibbles[row, first + k].astype(np.uint32) << np.uint32(4 * place)
    return words.view(np.int32)


def unpack_nibbles(packed):
    """The inverse of `pack_nibbles`."""
    words = packed.view(np.uint32)
    n_tiles, k_tiles, _, pairs = words.shape
    row, first = _where(n_tiles, k_tiles, pairs)
    nibbles = np.zeros((8 * n_tiles, 32 * k_tiles * pairs), np.uint8)
    for place, k in enumerate(PLACES):
        nibbles[row, first + k] = words >> np.uint32(4 * place) & np.uint32(15)
    return nibbles


def convert(pairs, tiles):
    """`_convert_weight_to_int4pack`: uint8 (out, in / 2), the even input in the high nibble."""
    pairs = pairs.numpy()
    nibbles = np.stack([pairs >> 4, pairs & 15], -1).reshape(len(pairs), -1)
    return torch.from_numpy(pack_nibbles(nibbles, tiles))


def product(x, packed, group_size, scales_and_zeros):
    """`_weight_int4pack_mm`, summed in float64: the tensor cores are given bfloat16 weights."""
    assert x.dtype == scales_and_zeros.dtype == torch.bfloat16 and x.is_contiguous()
    nibbles = torch.from_numpy(unpack_nibbles(packed.numpy())).double()
    scale, zero = scales_and_zeros.double().repeat_interleave(group_size, 0).permute(2, 1, 0)
    weight = ((nibbles - 8) * scale + zero).bfloat16()
    return (x.double() @ weight.double().t()).bfloat16()
