"""Every image is opened and decoded once, in parallel, and what was seen is kept.

An interrupted check goes on where it stopped, and a later one decodes only what has changed. This
module imports little: it is what the processes that decode load.
"""

import json
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from grace.data.images import image_size
from grace.errors import InputError
from replication.base.workers import cores

REASONS = ("missing", "unreadable", "empty", "undecodable")
"""Why an image cannot be used: no such file; the system refuses it; no bytes; no image."""

_CHUNK = 64  # images that a process takes at once
_ALONE = 256  # fewer images than that are not worth further processes


@dataclass(frozen=True)
class Seen:
    """What an image file looked like when it was opened.

    Attributes:
        bytes: Its size.
        modified: When it was changed last, in nanoseconds.
        width: In pixels; 0 if it cannot be used.
        height: In pixels; 0 if it cannot be used.
        reason: Why it cannot be used, of REASONS; None if it can.
    """

    bytes: int
    modified: int
    width: int
    height: int
    reason: str | None

    @property
    def usable(self) -> bool:
        return self.reason is None


def inspect(path: str, known: Seen | None = None) -> Seen:
    """Open and decode an image file; `known` is returned if the file has not changed since."""
    try:
        state = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return Seen(0, 0, 0, 0, "missing")
    except OSError:
        return Seen(0, 0, 0, 0, "unreadable")
    if known is not None and (known.bytes, known.modified) == (state.st_size, state.st_mtime_ns):
        return known

    def seen(width: int = 0, height: int = 0, reason: str | None = None) -> Seen:
        return Seen(state.st_size, state.st_mtime_ns, width, height, reason)

    if not state.st_size:
        return seen(reason="empty")
    try:
        with open(path, "rb") as file:
            try:
                return seen(*image_size(file, path))
            except InputError:
                return seen(reason="undecodable")
    except OSError:
        # permissions may be mended without the file changing, so this is never kept
        return Seen(0, 0, 0, 0, "unreadable")


def _inspect_all(jobs: Sequence[tuple[str, Seen | None]]) -> list[Seen]:
    return [inspect(*job) for job in jobs]


def check_images(
    files: Mapping[str, Path], cache: Path, *, workers: int | None = None
) -> dict[str, Seen]:
    """What every image looks like, by the names in `files`.

    Args:
        files: The images by name.
        cache: JSON lines of the files' states, one a file; added to as the check goes on.
        workers: Processes; default, as many as there are cores.

    Returns:
        The state of every image, in the order of `files`.

    Raises:
        InputError: When the cache cannot be read or written.
    """
    known = _read_cache(cache)
    names = list(files)
    jobs = [(str(files[name]), known.get(str(files[name]))) for name in names]
    chunks = [jobs[start : start + _CHUNK] for start in range(0, len(jobs), _CHUNK)]
    states: dict[str, Seen] = {}
    try:
        with _writer(cache) as written, _mapper(workers, len(jobs)) as results:
            progress = tqdm(total=len(jobs), desc="images", unit="image")
            for index, batch in enumerate(results(_inspect_all, chunks)):
                for (path, before), seen in zip(chunks[index], batch, strict=True):
                    states[names[len(states)]] = seen
                    if seen != before and seen.modified:
                        written.write(json.dumps([path, *vars(seen).values()]) + "\n")
                written.flush()
                progress.update(len(batch))
            progress.close()
    except OSError as error:
        raise InputError(
            f"what was seen of the images cannot be kept in {str(cache)!r} ({error}); make it "
            "writable"
        ) from error
    return states


@contextmanager
def _mapper(workers: int | None, count: int) -> Iterator:
    if workers is None:
        workers = cores() if count >= _ALONE else 1
    if workers < 2:
        yield map
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context)
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


def _read_cache(path: Path) -> dict[str, Seen]:
    known = {}
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                try:
                    name, *seen = json.loads(line)
                    *numbers, reason = seen
                    if reason in (None, *REASONS) and all(type(n) is int for n in numbers):
                        known[name] = Seen(*seen)
                except (ValueError, TypeError, RecursionError):
                    continue  # the line that an interruption tore
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{str(path)!r} cannot be read ({error}); remove it, and the images are checked again"
        ) from error
    return known


@contextmanager
def _writer(path: Path) -> Iterator[IO[str]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        if file.tell():
            file.write("\n")  # ends a torn line; an empty one is read over
        yield file
