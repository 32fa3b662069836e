"""Time and memory of several ways to do one thing, side by side in one process."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from replication.measure.method import OURS
from replication.measure.speed.measure import Clock, spread

Call = Callable[[], Any]


def side_by_side(calls: Mapping[str, Call], repeats: int, device: torch.device) -> dict[str, Any]:
    """Seconds of each call by name, as `spread`s over repeats.

    The calls take turns, and every other round goes backwards, so that what the machine does
    beside them meets all alike. One round before is not timed.
    """
    clock = Clock(device)
    order = list(calls)
    for name in order:
        calls[name]()
    seconds: dict[str, list[float]] = {name: [] for name in order}
    for repeat in range(repeats):
        for name in order if repeat % 2 else reversed(order):
            seconds[name].append(clock.time(calls[name]))
    return {name: spread(values) for name, values in seconds.items()}


def ratio(above: Mapping[str, Any], below: Mapping[str, Any]) -> dict[str, Any]:
    """Quotients of two `spread`s of `side_by_side`, round by round: their `spread`."""
    pairs = zip(above["values"], below["values"], strict=True)
    return spread([one / other for one, other in pairs])


def peak_allocated(call: Call, device: torch.device) -> int:
    """The most bytes that a call holds at once beyond what was there before, its result included.

    On a CPU from the profiler's record of every allocation through torch's allocator, temporaries
    inside kernels included: a count, the same in every run. Libraries that allocate for themselves
    (oneDNN's scratch space) are not in it. On CUDA the allocator's own high-water mark.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return int(torch.cuda.max_memory_allocated(device) - before)
    with torch.autograd.profiler.profile(use_kineto=True, profile_memory=True) as profiler:
        result = call()
    del result
    assert profiler.kineto_results is not None
    events = [one for one in profiler.kineto_results.events() if one.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


def compare(
    calls: Mapping[str, Call],
    repeats: int,
    device: torch.device,
    *,
    held: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Time and peak memory of every way, and what part ours has of each other's.

    held: bytes that a way holds beside what it allocates, such as parameters; they count.

    Returns {"ways": {name: {"seconds", "peak_bytes"}}, "time": {other: spread of the quotients},
    "memory": {other: quotient}}; below one, ours is the quicker and the smaller.
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


def bound(what: str, limit: float, found: Mapping[str, Any] | float) -> dict[str, Any]:
    """A stated bound from above beside what was found, a number or a `spread`."""
    if not isinstance(found, Mapping):
        found = {"median": found, "low": found, "high": found}
    return {
        "what": what,
        "at_most": limit,
        **{name: found[name] for name in ("median", "low", "high")},
    }
