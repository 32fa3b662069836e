"""Time and memory of several ways to do one thing, side by side in one process."""

from collections.abc import Mapping
from typing import Any

import torch

from replication.measure.clock import Call, ratio, side_by_side
from replication.measure.memory import peak_allocated
from replication.measure.method import OURS


def device_with(threads: int) -> torch.device:
    """The device that is measured, and on a CPU its number of threads (0: torch's choice)."""
    if threads:
        torch.set_num_threads(threads)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compare(
    calls: Mapping[str, Call],
    repeats: int,
    device: torch.device,
    *,
    held: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Time and peak memory of every way, and the quotients of ours over every other.

    Args:
        calls: the ways by name; `OURS` is one of them.
        repeats: rounds that are timed.
        device: the device that they run on.
        held: bytes that a way holds beside what it allocates, such as parameters; they count.

    Returns:
        {"ways": {name: {"seconds", "peak_bytes"}}, "time": {other: `spread` of the quotients},
        "memory": {other: quotient}}; below one, ours is the faster and the smaller.
    """
    others = [name for name in calls if name != OURS]
    peaks = {name: peak_allocated(call, device) for name, call in calls.items()}
    for name, size in (held or {}).items():
        peaks[name] += size
    seconds = side_by_side(calls, repeats, device)
    return {
        "ways": {name: {"seconds": seconds[name], "peak_bytes": peaks[name]} for name in calls},
        "time": {name: ratio(seconds[OURS], seconds[name]) for name in others},
        "memory": {name: peaks[OURS] / peaks[name] for name in others},
    }


def bound(what: str, limit: float, measured: Mapping[str, Any] | float) -> dict[str, Any]:
    """A stated upper bound beside what was measured, a number or a `spread`."""
    if not isinstance(measured, Mapping):
        measured = {"median": measured, "low": measured, "high": measured}
    return {
        "what": what,
        "at_most": limit,
        **{name: measured[name] for name in ("median", "low", "high")},
    }
