"""Faults put into a program on purpose: at its n-th change of a folder, or when a file grows.

Python tells its audit hooks of every file that it opens to write and of every rename, removal and
new folder, whichever library asks for it; an exception raised there is one that the operation
fails with. What compiled code writes is met by a bound on the size of files, which makes its
writes fail in the middle, as on a full disk.
"""

import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CHANGES = {
    *("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.link", "os.symlink"),
    *("os.truncate", "tempfile.mkstemp", "tempfile.mkdtemp"),
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_watcher: Callable[[str, tuple], None] | None = None


def _audit(event: str, arguments: tuple) -> None:
    if _watcher is not None and (event == "open" or event in _CHANGES):
        _watcher(event, arguments)


sys.addaudithook(_audit)  # for good; without a watcher it does nothing


@contextmanager
def watched(folder: Path, changes: Callable[[str], None]) -> Iterator[None]:
    """`changes` is called before every change of the folder, with what is about to happen."""
    global _watcher
    inside = str(folder.resolve())
    real = os.fsync

    def watcher(event: str, arguments: tuple) -> None:
        place = arguments[0]
        if event == "open" and not (
            arguments[2] & _WRITING and isinstance(place, str | os.PathLike)
        ):
            return
        if isinstance(place, bytes):
            place = os.fsdecode(place)
        if isinstance(place, str | os.PathLike):
            path = os.fspath(place)
            relative = event in ("os.remove", "os.rmdir") and arguments[-1] not in (-1, None)
            if not relative and not os.path.abspath(path).startswith(inside):
                return
        changes(f"{event} {place}")

    def fsync(descriptor: int) -> None:
        changes("fsync")
        real(descriptor)

    before = _watcher
    _watcher, os.fsync = watcher, fsync
    try:
        yield
    finally:
        _watcher, os.fsync = before, real


@contextmanager
def failing(folder: Path, at: int, error: BaseException) -> Iterator[None]:
    """The folder's change number `at` (from 0) fails with `error`; a full disk stays full."""
    count = -1

    def changes(what: str) -> None:
        nonlocal count
        count += 1
        removes = what.startswith(("os.remove", "os.rmdir"))
        if count == at or (count > at and isinstance(error, OSError) and not removes):
            raise error

    with watched(folder, changes):
        yield


def changes_of(folder: Path, run: Callable[[], Any]) -> list[str]:
    """What `run` changes in the folder, in order."""
    changes: list[str] = []
    with watched(folder, changes.append):
        run()
    return changes


@contextmanager
def file_size(limit: int) -> Iterator[None]:
    """No file grows beyond so many bytes: a longer write fails in its middle."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def killed(folder: Path, run: Callable[[], Any]) -> list[dict[str, bytes]]:
    """Every state that killing `run` could leave the folder in, as its files' contents.

    Compiled code writes without an audit event. So before each change there are up to three states:
    the folder as it is, and the files that are new or have changed since the change before, cut in
    half and empty.
    """
    states: list[dict[str, bytes]] = []
    previous = contents(folder)

    def keep(_: str) -> None:
        nonlocal previous
        with unwatched():
            now = contents(folder)
        now = {n: previous[n] if previous.get(n) == c else c for n, c in now.items()}
        # what was there under a name that is gone was renamed, and that is never half done
        moved = {content for name, content in previous.items() if name not in now}
        torn = {
            name: content
            for name, content in now.items()
            if previous.get(name) != content and content not in moved
        }
        if torn:
            states.append({**now, **{name: b"" for name in torn}})
            states.append(
                {**now, **{name: whole[: len(whole) // 2] for name, whole in torn.items()}}
            )
        if torn or now.keys() != previous.keys() or not states:
            states.append(now)
        previous = now

    with watched(folder, keep):
        run()
        keep("")  # what the last change began
    return states


@contextmanager
def unwatched() -> Iterator[None]:
    global _watcher
    kept, _watcher = _watcher, None
    try:
        yield
    finally:
        _watcher = kept


def put(folder: Path, state: dict[str, bytes]) -> Path:
    """Makes a folder hold these files and no others."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in state.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its path in it, temporary ones included."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def is_temporary(name: str) -> bool:
    """Whether a path is of a file, or in a folder, that is not under its final name."""
    return any(part.startswith(".") or part.endswith((".tmp", ".old")) for part in Path(name).parts)


def settled(state: dict[str, bytes]) -> dict[str, bytes]:
    """The files that are under their final names."""
    return {name: content for name, content in state.items() if not is_temporary(name)}
