"""How many rows a packed product is good for: measured once on a device, then read from a file.

A kernel that reads packed codes saves memory traffic and pays for it in arithmetic, for every few
rows again. From some number of rows on it is faster to unpack the weight and to take a dense
product. Where this crossover lies depends on the processor, its threads, torch and the weight's
shape, so it is timed here, on the weight that is about to be used.

The file is `crossover_path()`. A file that cannot be read is measured again and replaced.
"""

import functools
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grace.errors import InputError
from grace.files import atomic_path
from grace.int4.backends import Backend, Buffers
from grace.int4.layouts import WeightShape

ENVIRONMENT = "GRACE_INT4_CROSSOVER"
CACHE_ENVIRONMENT = "GRACE_CACHE"
ROWS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_FORMAT = 2  # raised where a product here gets faster, so that it is measured again
_REPEATS = 5

_known: dict[str, int] = {}  # of this process, by key


def crossover_path() -> Path:
    """Where crossovers are kept: $GRACE_CACHE, or grace/ in the user's cache directory."""
    folder = os.environ.get(CACHE_ENVIRONMENT)
    if not folder:
        cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        folder = str(Path(cache) / "grace")
    return Path(folder) / "int4_crossover.json"


def forced_crossover() -> int | None:
    """The value of $GRACE_INT4_CROSSOVER, which new layers take instead of measuring.

    Raises:
        InputError: It is no whole number of rows.
    """
    text = os.environ.get(ENVIRONMENT)
    if text is None or text == "":
        return None
    if not text.isdecimal():
        raise InputError(f"${ENVIRONMENT} is {text!r}: give a number of rows, 0 or more")
    return int(text)


def crossover(backend: Backend, buffers: Buffers, shape: WeightShape) -> int:
    """The largest number of rows for which `backend.packed` is used; above it, `backend.dense`.

    From this process, the file, or a measurement on `buffers`, in that order. One measurement
    serves all weights of a class (`crossover_key`). It takes a second or so.
    """
    device = next(iter(buffers.values())).device
    key = crossover_key(backend, shape, device)
    if key not in _known:
        _known.update({k: v for k, v in _read().items() if k not in _known})
    if key not in _known:
        _known[key] = measure(backend, buffers, shape)
        _write({**_read(), key: _known[key]})
    return _known[key]


def forget() -> None:
    """Drop the crossovers that this process knows: the next layer reads the file or measures."""
    _known.clear()


def crossover_key(backend: Backend, shape: WeightShape, device: torch.device) -> str:
    """What a crossover holds for: device, torch, threads, back end, and class of the shape.

    The class is bits, group size, and both sides of the weight rounded to powers of two.
    """
    threads = f"{torch.get_num_threads()} threads" if device.type == "cpu" else "-"
    sides = " x ".join(
        str(1 << _round_log2(side)) for side in (shape.out_features, shape.in_features)
    )
    form = f"{shape.bits} bits, groups of {shape.kernel_group or shape.group_size}, {sides}"
    parts = (_device_name(device), f"torch {torch.__version__}", threads, backend.name, form)
    return " | ".join(parts)


def _round_log2(side: int) -> int:
    """The nearest integer to log2(side), on the logarithmic scale."""
    power = side.bit_length() - 1
    return power + (side * side > 2 * 4**power)


def measure(
    backend: Backend,
    buffers: Buffers,
    shape: WeightShape,
    clock: Callable[[Callable[[], Tensor], torch.device], float] | None = None,
) -> int:
    """The largest of `ROWS` (or 1) at which the packed product is faster than the dense one.

    By bisection, which takes the packed product's advantage to fall as rows are added.

    Args:
        backend: With a kernel.
        buffers: A packed weight.
        shape: Of the weight.
        clock: Seconds that a call takes; by default the median of a few calls.
    """
    device = next(iter(buffers.values())).device
    clock = clock or _seconds
    low, high = 0, len(ROWS)  # packed wins below `low`, dense from `high` on
    with torch.no_grad():
        while low < high:
            middle = (low + high) // 2
            generator = torch.Generator().manual_seed(0)
            size = ROWS[middle], shape.in_features
            x = torch.randn(size, generator=generator, device="cpu")
            x = x.to(device, backend.activations or torch.float32)
            packed = clock(functools.partial(backend.packed, x, buffers, shape), device)
            dense = clock(functools.partial(backend.dense, x, buffers, shape), device)
            low, high = (middle + 1, high) if packed <= dense else (low, middle)
    return ROWS[low - 1] if low else 1


def _seconds(call: Callable[[], Tensor], device: torch.device) -> float:
    def once() -> float:
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        return time.perf_counter() - start

    once()
    return statistics.median(once() for _ in range(_REPEATS))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor_name()} {torch.backends.cpu.get_cpu_capability()}"


@functools.cache
def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _read() -> dict[str, int]:
    """The file's crossovers; none where it is missing or damaged."""
    try:
        content: Any = json.loads(crossover_path().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        return {}
    rows = content.get("rows")
    if not isinstance(rows, dict):
        return {}
    return {key: value for key, value in rows.items() if type(value) is int and value >= 1}


def _write(rows: dict[str, int]) -> None:
    """Whole or not at all. A directory that cannot be written costs a warning."""
    path = crossover_path()
    content = {"format": _FORMAT, "rows": dict(sorted(rows.items()))}
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    try:
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        warnings.warn(
            f"{path}: crossovers cannot be kept ({error}) and are measured in every process; "
            f"set ${CACHE_ENVIRONMENT} to a directory that can be written",
            stacklevel=2,
        )
