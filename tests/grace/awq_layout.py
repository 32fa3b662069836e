"""AutoAWQ's GEMM layout by its public description, in numpy; shares no code with `grace`.

A word of qweight (in, out / 8) or qzeros (groups, out / 8) holds eight 4-bit numbers. Counted from
the lowest bits, they belong to the output columns 0, 2, 4, 6, 1, 3, 5, 7 of the word's eight.
w[i, o] = (q[i, o] - z[i // g, o]) * s[i // g, o], and the linear computes x @ w.
"""

import numpy as np

COLUMN_OF_NIBBLE = [0, 2, 4, 6, 1, 3, 5, 7]


def read(words: np.ndarray) -> np.ndarray:
    """(rows, columns / 8) int32 -> (rows, columns), number by number."""
    rows, count = words.shape
    out = np.zeros((rows, 8 * count), dtype=np.int64)
    unsigned = words.astype(np.int64) % 2**32
    for nibble, column in enumerate(COLUMN_OF_NIBBLE):
        out[:, column::8] = unsigned // 16**nibble % 16
    return out


def write(numbers: np.ndarray) -> np.ndarray:
    """(rows, columns) of 0 .. 15 -> (rows, columns / 8) int32."""
    words = sum(
        numbers[:, column::8].astype(np.int64) * 16**nibble
        for nibble, column in enumerate(COLUMN_OF_NIBBLE)
    )
    return np.ascontiguousarray(np.where(words >= 2**31, words - 2**32, words), dtype=np.int32)


def weight(qweight: np.ndarray, qzeros: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The dense weight (out, in) in float64."""
    group = qweight.shape[0] // scales.shape[0]
    zeros, factors = (np.repeat(part, group, axis=0) for part in (read(qzeros), scales))
    return ((read(qweight) - zeros) * factors.astype(np.float64)).T
