"""A product of packed codes that is compiled on the machine that it runs on.

torch's int4pack kernel for CPUs converts codes and inputs to float32. Where the processor
multiplies pairs of bfloat16 (AVX-512 bfloat16), ``product.cpp`` does that instead, which takes half
as long, and less than a dense bfloat16 product up to some dozens of rows. It needs a C++ compiler,
once, for some seconds; without one torch's kernel runs.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from grace.files import atomic_path
from grace.machine import cache_folder

ENVIRONMENT = "GRACE_INT4_COMPILE"
"""Set to 0, nothing is compiled."""
OUTPUTS = 64
"""A multiple of these many output features can be computed."""
_SOURCE = Path(__file__).with_name("product.cpp")
_FLAGS = (
    *("-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp"),
    *("-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512bf16"),
)
_SECONDS = 120  # that a compiler is given

Product = Callable[[Tensor, Tensor, Tensor, int], Tensor]


@functools.cache
def compiled() -> tuple[Product | None, str]:
    """(the product, "") on this machine, or (None, one line on why there is none).

    The product takes x (rows, in) bfloat16, packed codes in blocks of 64 outputs, scales and zero
    points (groups, out, 2), and the width of a group, and gives (rows, out) bfloat16. With twice as
    many codes as inputs they are those of 8 bits: high nibbles first, then low ones.
    """
    if os.environ.get(ENVIRONMENT) == "0":
        return None, f"${ENVIRONMENT} is 0"
    if not torch.cpu.get_capabilities().get("avx512_bf16", False):
        return None, "the processor has no AVX-512 products of bfloat16"
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++"))), None)
    if compiler is None:
        return None, "there is no C++ compiler (set CXX)"
    try:
        library = ctypes.CDLL(str(_built(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        told = getattr(error, "stderr", None) or str(error)
        return None, f"{compiler} does not build it: {told.strip().splitlines()[-1]}"
    return functools.partial(_call, library.grace_int4_product), ""


def _built(compiler: str) -> Path:
    """The library, from the cache or by the compiler."""
    key = hashlib.sha256(_SOURCE.read_bytes() + " ".join((compiler, *_FLAGS)).encode())
    path = cache_folder() / f"int4_product_{key.hexdigest()[:16]}.so"
    if not path.is_file():
        with atomic_path(path) as temporary:
            command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(temporary)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)
    return path


def _call(
    function: Callable[..., None], x: Tensor, codes: Tensor, scales: Tensor, group: int
) -> Tensor:
    rows, inputs = x.shape
    outputs = scales.shape[1]
    pairs = x.view(torch.int32).t().contiguous()
    y = x.new_empty(rows, outputs)
    pointers = (ctypes.c_void_p(one.data_ptr()) for one in (pairs, codes, scales, y))
    planes = scales.shape[0] * group // inputs
    function(*pointers, rows, outputs, inputs, planes, group, torch.get_num_threads())
    return y
