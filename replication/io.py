"""Reading and writing of small files: whole or not at all, the same bytes for the same content."""

from __future__ import annotations

import errno
import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grace.errors import InputError


def no_space(error: OSError) -> str | None:
    """What to say of an error for want of space on a disk; None for any other."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    where = f" at {error.filename!r}" if error.filename else ""
    return (
        f"no space is left{where} ({error.strerror}); free some and run the same command again: "
        "what is finished is kept"
    )


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to `path` when the block ends well.

    On any exception the temporary file is removed and whatever was at `path` stays as it was.
    Folders that are missing are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomic(path: str | Path, text: str) -> Path:
    """Write `text` (UTF-8) to `path`, through a temporary name and a rename."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def _check_finite(value: Any, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where} is {value}: a result file holds finite numbers or null")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_finite(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_finite(item, f"{where}[{index}]")


def json_text(value: Any, name: str = "value") -> str:
    """`value` as JSON: sorted keys, two spaces, a newline at the end.

    Raises InputError, naming the place, for a NaN or an infinity.
    """
    _check_finite(value, name)
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_json_atomic(path: str | Path, value: Any) -> Path:
    """Write `value` as JSON (see `json_text`), whole or not at all.

    Raises InputError for a NaN or an infinity, and then leaves `path` as it was.
    """
    return write_text_atomic(path, json_text(value, Path(path).name))


def read_json(path: str | Path) -> Any:
    """The content of a JSON file. Raises InputError if it is missing or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error
