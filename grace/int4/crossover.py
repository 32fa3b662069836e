"""How many rows a packed product is good for: measured once on a device, then read from a file.

A kernel that reads packed codes saves memory traffic and pays for it in arithmetic, for every few
rows again. From some number of rows on it is faster to unpack the weight and to take a dense
product. Where this crossover lies depends on the processor, its threads, torch and the weight's
shape, so it is timed here, on the weight that is about to be used.

No choice is used where nothing was compared: where the packed product still wins at the largest
number of rows so far and more rows come, twice as many are compared, and so on.

The file is `crossover_path()`. A file that cannot be read is measured again and replaced.
"""

import functools
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grace.errors import InputError
from grace.files import atomic_path
from grace.int4.backends import Backend, Buffers
from grace.int4.layouts import WeightShape
from grace.machine import CACHE_ENVIRONMENT, cache_folder, processor_name

ENVIRONMENT = "GRACE_INT4_CROSSOVER"
ROWS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_FORMAT = 4  # raised where a product here gets faster, so that it is measured again
_REPEATS = 5
_LONG = 1.0  # seconds after which a measurement is not repeated

Clock = Callable[[Callable[[], Tensor], torch.device], float]
"""Seconds that a call takes on a device."""


class Crossover(NamedTuple):
    """Up to how many rows the packed product is the faster one.

    Attributes:
        rows: The largest number of rows for which `Backend.packed` is used.
        compared: The largest number for which this is known; where it equals `rows`, the dense
            product has not won anywhere yet.
    """

    rows: int
    compared: int


_known: dict[str, Crossover] = {}  # of this process, by key


def crossover_path() -> Path:
    """Where crossovers are kept: $GRACE_CACHE, or grace/ in the user's cache directory.

    Examples:
        >>> from grace.int4 import crossover_path
        >>> crossover_path().is_absolute()
        True
    """
    return cache_folder() / "int4_crossover.json"


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


def crossover(
    backend: Backend, buffers: Buffers, shape: WeightShape, rows: int = ROWS[-1]
) -> Crossover:
    """Up to how many rows `backend.packed` is used, known at least for `rows`.

    From this process, the file, or a measurement on `buffers`, in that order. One measurement
    serves all weights of a class (`crossover_key`). It takes a second or so, and longer where
    more rows than `ROWS` come and the packed product is still the faster one.
    """
    device = next(iter(buffers.values())).device
    key = crossover_key(backend, shape, device)
    if key not in _known:
        _known.update({k: v for k, v in _read().items() if k not in _known})
    found = _known.get(key) or measure(backend, buffers, shape)
    while found.rows == found.compared < rows:
        found = extend(found, backend, buffers, shape)
    if found != _known.get(key):
        _known[key] = found
        _write({**_read(), key: found})
    return found


def forget() -> None:
    """Drop the crossovers that this process knows: the next layer reads the file or measures."""
    _known.clear()


def crossover_key(backend: Backend, shape: WeightShape, device: torch.device) -> str:
    """What a crossover holds for: device, torch, threads, kernel, and class of the shape.

    The class is bits, group size, and both sides of the weight rounded to powers of two.
    """
    threads = f"{torch.get_num_threads()} threads" if device.type == "cpu" else "-"
    sides = " x ".join(
        str(1 << _round_log2(side)) for side in (shape.out_features, shape.in_features)
    )
    form = f"{shape.bits} bits, groups of {shape.kernel_group or shape.group_size}, {sides}"
    parts = (
        _device_name(device),
        f"torch {torch.__version__}",
        threads,
        backend.kernel_name(shape),
        form,
    )
    return " | ".join(parts)


def _round_log2(side: int) -> int:
    """The nearest integer to log2(side), on the logarithmic scale."""
    power = side.bit_length() - 1
    return power + (side * side > 2 * 4**power)


def measure(
    backend: Backend, buffers: Buffers, shape: WeightShape, clock: Clock | None = None
) -> Crossover:
    """The largest of `ROWS` (or 1) at which the packed product is faster than the dense one.

    By bisection, which takes the packed product's advantage to fall as rows are added.

    Args:
        backend: With a kernel.
        buffers: A packed weight.
        shape: Of the weight.
        clock: By default the median of a few calls.
    """
    low, high = 0, len(ROWS)  # packed wins below `low`, dense from `high` on
    while low < high:
        middle = (low + high) // 2
        wins = _packed_wins(ROWS[middle], backend, buffers, shape, clock or _seconds)
        low, high = (middle + 1, high) if wins else (low, middle)
    return Crossover(ROWS[low - 1] if low else 1, ROWS[-1])


def extend(
    found: Crossover,
    backend: Backend,
    buffers: Buffers,
    shape: WeightShape,
    clock: Clock | None = None,
) -> Crossover:
    """The crossover after comparing at twice as many rows as so far; arguments as of `measure`."""
    rows = 2 * found.compared
    wins = _packed_wins(rows, backend, buffers, shape, clock or _seconds)
    return Crossover(rows if wins else found.rows, rows)


@torch.no_grad()
def _packed_wins(
    rows: int, backend: Backend, buffers: Buffers, shape: WeightShape, clock: Clock
) -> bool:
    device = next(iter(buffers.values())).device
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((rows, shape.in_features), generator=generator, device="cpu")
    x = x.to(device, backend.activations or torch.float32)
    packed = clock(functools.partial(backend.packed, x, buffers, shape), device)
    dense = clock(functools.partial(backend.dense, x, buffers, shape), device)
    return packed <= dense


def _seconds(call: Callable[[], Tensor], device: torch.device) -> float:
    def once() -> float:
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        return time.perf_counter() - start

    once()
    times = [once()]
    while len(times) < _REPEATS and sum(times) < _LONG:
        times.append(once())
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor_name()} {torch.backends.cpu.get_cpu_capability()}"


def _read() -> dict[str, Crossover]:
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
    return {key: Crossover(*value) for key, value in rows.items() if _is_crossover(value)}


def _is_crossover(value: Any) -> bool:
    whole = isinstance(value, list) and [type(part) for part in value] == [int, int]
    return whole and 1 <= value[0] <= value[1] and value[1] >= ROWS[-1]


def _write(rows: dict[str, Crossover]) -> None:
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
