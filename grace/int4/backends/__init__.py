"""The back ends by name, and the choice between them.

`base` has their interface; `reference`, `cpu` and `cuda` are one each.
"""

import warnings

import torch

from grace.errors import InputError
from grace.int4.backends.base import Backend, Buffers
from grace.int4.backends.cpu import CpuBackend
from grace.int4.backends.cuda import CudaBackend
from grace.int4.backends.reference import ReferenceBackend
from grace.int4.layouts import WeightShape

BACKENDS: dict[str, Backend] = {
    backend.name: backend for backend in (CpuBackend(), CudaBackend(), ReferenceBackend())
}
AUTO = "auto"
# What "auto" tries on a device, in this order; the reference comes last everywhere.
_PREFERRED = {"cpu": "cpu", "cuda": "cuda"}

__all__ = ["AUTO", "BACKENDS", "Backend", "Buffers", "available", "select"]


def available(device: torch.device | str = "cpu") -> dict[str, str | None]:
    """Every back end's name -> None where it runs on this device, else why it does not.

    Examples:
        >>> from grace.int4 import available
        >>> available("cpu")["reference"] is None  # it runs everywhere
        True
    """
    return {name: backend.unavailable(torch.device(device)) for name, backend in BACKENDS.items()}


def select(
    requested: str, shape: WeightShape, device: torch.device, name: str = "", *, warn: bool = True
) -> tuple[Backend, str]:
    """The back end for a weight.

    Args:
        requested: Name of a back end, or "auto": the device's kernel where it is available and
            takes the shape, else the reference with a warning.
        shape: Of the weight.
        device: Where the weight is.
        name: Name of the layer, for messages.
        warn: Whether the reference in the kernel's place is worth a warning.

    Returns:
        (back end, one line on why it was chosen).

    Raises:
        InputError: A back end asked for by name is unknown, unavailable on the device, or cannot
            take the shape: nothing falls back in silence.
    """
    label = name or "linear"
    if requested == AUTO:
        preferred = BACKENDS.get(_PREFERRED.get(device.type, ""))
        if preferred is None:
            return BACKENDS["reference"], f"no kernel for devices of type {device.type}"
        why_not = preferred.unavailable(device) or preferred.unsupported(shape)
        if why_not is None:
            return preferred, f"the kernel for {device.type}"
        if warn:
            warnings.warn(  # without the layer's name: once for all of a shape
                f"linears of {shape} run on the slow reference back end, because {preferred.name} "
                f"cannot take them: {why_not}",
                stacklevel=2,
            )
        return BACKENDS["reference"], f"{preferred.name} cannot: {why_not}"
    if not isinstance(requested, str) or requested not in BACKENDS:
        raise InputError(
            f"{label}: there is no back end {requested!r}: give one of "
            f"{', '.join([AUTO, *BACKENDS])}"
        )
    backend = BACKENDS[requested]
    why_not = backend.unavailable(device)
    if why_not is not None:
        raise InputError(
            f"{label}: back end {requested!r} is not available: {why_not}; "
            f"use {_others(requested, device)}, or move the weight"
        )
    why_not = backend.unsupported(shape)
    if why_not is not None:
        raise InputError(
            f"{label} ({shape}): back end {requested!r} cannot take it: {why_not}; "
            f"use {_others(requested, device)}"
        )
    return backend, "asked for by name"


def _others(name: str, device: torch.device) -> str:
    """The other back ends that run on the device."""
    usable = [
        repr(other.name)
        for other in BACKENDS.values()
        if other.name != name and other.unavailable(device) is None
    ]
    return " or ".join(usable) or "another device"
