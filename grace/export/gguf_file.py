"""GGUF files: typed settings, named tensors, and the blocks of 32 codes that llama.cpp reads.

A block of Q4_0 is a float16 scale d and 16 bytes: byte j has the codes of columns j (low four bits)
and j + 16 (high four bits), stored as q + 8, and w = d q. A block of Q8_0 is d and 32 codes as
int8. Blocks of a row follow one another. A scale of a larger group is repeated in all its blocks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grace.errors import InputError
from grace.export.checkpoint import cast_weight

BLOCK = 32
KINDS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
Value = bool | int | float | str | list[bool] | list[int] | list[float] | list[str]


@dataclass(frozen=True)
class Stored:
    """One tensor as it lies in a file.

    Attributes:
        data: uint8 (..., bytes of a row), or float32.
        kind: GGML's name of its format: "F32", "F16", "BF16", "Q4_0" or "Q8_0".
    """

    data: np.ndarray
    kind: str


def library() -> Any:
    """The package gguf.

    Raises:
        InputError: It is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise InputError(
            "GGUF files are written with the package gguf, which is not installed: "
            "pip install 'grace-vlm[gguf]'"
        ) from error
    return gguf


def plain(name: str, tensor: Tensor, dtype: torch.dtype) -> Stored:
    """A tensor that is not quantized.

    Args:
        name: For error messages.
        tensor: Of any shape.
        dtype: float32, float16 or bfloat16.

    Raises:
        InputError: A value is not finite, or not any more in `dtype`; the message names it.
    """
    cast = cast_weight(name, tensor, dtype).contiguous()
    if dtype == torch.float32:
        return Stored(cast.numpy(), "F32")
    return Stored(cast.view(torch.int16).numpy().view(np.uint8), KINDS[dtype])


def pack_blocks(codes: Tensor, scales: Tensor, kind: str) -> Stored:
    """Codes and scales in blocks.

    Args:
        codes: int8 (out, in), `in` a multiple of 32; from -8 to 7 for "Q4_0".
        scales: float16 (out, groups), every group a whole number of blocks.
        kind: "Q4_0" or "Q8_0".

    Returns:
        data uint8 (out, in / 32 · 18), or (out, in / 32 · 34) for "Q8_0".
    """
    rows, columns = codes.shape
    blocks = codes.cpu().numpy().reshape(rows, columns // BLOCK, BLOCK)
    d = scales.cpu().numpy().repeat(blocks.shape[1] // scales.shape[1], axis=1)
    if kind == "Q4_0":
        numbers = (blocks + 8).astype(np.uint8)
        half = BLOCK // 2
        body = numbers[..., :half] | (numbers[..., half:] << 4)
    else:
        body = blocks.view(np.uint8)
    head = d.astype("<f2", copy=False)[..., None].view(np.uint8)
    return Stored(np.concatenate([head, body], axis=-1).reshape(rows, -1), kind)


def write_file(
    path: Path,
    architecture: str,
    values: Mapping[str, Value],
    tensors: Mapping[str, Stored],
) -> None:
    """Write one file.

    Args:
        path: Of the file.
        architecture: llama.cpp's name of it.
        values: Settings by their full names. Whole numbers become uint32, but int32 in lists, and
            others float32; llama.cpp checks the types.
        tensors: By llama.cpp's names.
    """
    gguf = library()
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in values.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, stored in tensors.items():
        writer.add_tensor(name, stored.data, raw_dtype=gguf.GGMLQuantizationType[stored.kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
