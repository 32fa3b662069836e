"""Which number format this machine multiplies at full speed.

    native_dtype()            # torch.bfloat16 with AVX-512 bfloat16 or AMX, torch.float32 with AVX2

A processor without bfloat16 instructions emulates them: on one with AVX2, bfloat16 products take
about nine times as long as float32 ones. So what computes in bfloat16 for speed alone asks here.
"""

import functools

import torch

from grace.errors import InputError

CHOICES = ("auto", "bfloat16", "float32")
"""What a user can ask for: the machine's own, or one of the two."""


@functools.cache
def multiplies_bfloat16(device: str = "cpu") -> bool:
    """Whether a device has instructions for products of bfloat16.

    Args:
        device: "cpu", "cuda", or any other type of device that torch knows.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu":
        return False
    features = torch.cpu.get_capabilities()
    return any(features.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def chosen_device(choice: str = "auto") -> str:
    """The device to compute on: "auto" is CUDA where there is one.

    Raises:
        InputError: "cuda" is asked for and not there.
    """
    if choice == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda: torch sees no CUDA device here; choose cpu")
    if choice == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return choice


def native_dtype(device: str = "cpu") -> torch.dtype:
    """bfloat16 where the device multiplies it, else float32."""
    return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32


def chosen_dtype(choice: str = "auto", device: str = "cpu") -> torch.dtype:
    """The format to compute in.

    Args:
        choice: one of CHOICES.
        device: as in `multiplies_bfloat16`; it decides "auto" alone.

    Raises:
        InputError: for another choice.
    """
    if choice not in CHOICES:
        raise InputError(f"arithmetic is {choice!r}; choose one of {', '.join(CHOICES)}")
    return native_dtype(device) if choice == "auto" else getattr(torch, choice)


def arithmetic_name(choice: str = "auto") -> str:
    """The name of the format to compute in on this machine's device: "bfloat16" or "float32"."""
    return str(chosen_dtype(choice, chosen_device())).removeprefix("torch.")
