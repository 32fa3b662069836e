"""How much memory work takes: of a process, of a call, and of the tensors alive in a run."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from grace.machine import peak_resident


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def shortage(needed: float, device: torch.device) -> str | None:
    """What to say where so many bytes are not free; None where they are."""
    free = free_bytes(device)
    if needed <= free:
        return None
    return f"needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"


def peak_bytes(device: torch.device) -> int:
    """The most memory so far: resident in this process, or of the allocator on CUDA."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return peak_resident()


def peak_allocated(call: Callable[[], Any], device: torch.device) -> int:
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
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are alive.

    Every storage that an operation returns is counted from then until it is freed, on any device.
    What a kernel allocates for itself is not seen.

    Args:
        tensors: those that exist already.

    Attributes:
        now: bytes that are alive now.
        peak: the most bytes that were alive at once.
    """

    def __init__(self, tensors: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, Any] = {}
        for tensor in tensors:
            self._add(tensor)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf)
        return result

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive or not size:
            return

        def freed(_: Any) -> None:
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)
