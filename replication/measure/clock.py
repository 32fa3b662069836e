"""How long work takes: one clock for every benchmark."""

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Call = Callable[[], Any]

_COPY_BYTES = 1 << 28
_COPIES = 9


class Clock:
    """Seconds of work on a device; waits for the device only at both ends.

    Args:
        device: the device.
        processor: count this process's processor time, which other programs do not lengthen,
            instead of the time that passes. On CUDA it is always the time that passes.
    """

    def __init__(self, device: torch.device, *, processor: bool = False) -> None:
        self.cuda = device if device.type == "cuda" else None
        self._read = time.process_time if processor and not self.cuda else time.perf_counter

    def wait(self) -> None:
        """Until the device has done all its work."""
        if self.cuda is not None:
            torch.cuda.synchronize(self.cuda)

    def now(self) -> float:
        """Seconds from some moment on, once the device has done all its work."""
        self.wait()
        return self._read()

    def time(self, call: Call) -> float:
        """Seconds of a call."""
        start = self.now()
        call()
        return self.now() - start

    def steps(self, run: Callable[[Call], None]) -> tuple[float, list[float]]:
        """Seconds of all steps of a run, and of each.

        Args:
            run: takes a function, and calls it after every step.
        """
        if self.cuda is None:
            stamps = [self._read()]
            run(lambda: stamps.append(self._read()))
        else:  # events are recorded on the device: the host does not wait for a step
            events: list[Any] = [torch.cuda.Event(enable_timing=True)]
            self.wait()
            events[0].record()

            def after() -> None:
                events.append(torch.cuda.Event(enable_timing=True))
                events[-1].record()

            run(after)
            self.wait()
            stamps = [events[0].elapsed_time(event) / 1000 for event in events]
        single = [after - before for before, after in itertools.pairwise(stamps)]
        return stamps[-1] - stamps[0], single


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Repeats with their median, least ("low") and greatest ("high")."""
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "values": list(values),
    }


def side_by_side(calls: Mapping[str, Call], repeats: int, device: torch.device) -> dict[str, Any]:
    """Seconds of several calls, each a `spread` over repeats.

    The calls take turns, and every other round goes backwards, so that what else the machine does
    meets all alike. One round before is not timed.
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
    """The `spread` of the quotients of two spreads of `side_by_side`, round by round."""
    pairs = zip(above["values"], below["values"], strict=True)
    return spread([numerator / denominator for numerator, denominator in pairs])


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that a large copy reads and writes here: the best of a few, twice its size."""
    source = torch.ones(_COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source).copy_(source)
    clock = Clock(device)
    return 2 * _COPY_BYTES / min(clock.time(lambda: target.copy_(source)) for _ in range(_COPIES))
