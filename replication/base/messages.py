"""The words of error messages: names nearly right, values however large, a full disk."""

from __future__ import annotations

import difflib
import errno
import reprlib
from collections.abc import Iterable
from typing import Any

_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxdict, _REPR.maxlist, _REPR.maxtuple = 3, 6, 8, 8
_REPR.maxstring = _REPR.maxother = 120


def short(value: Any) -> str:
    """The repr of a value, shortened where the value is large or deep."""
    try:
        return _REPR.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"a very large {type(value).__name__}"


def unknown(what: str, name: Any, known: Iterable[str]) -> str:
    """The message for an unknown name, with the nearest known name and all known names.

    Args:
        what: the thing and its value, such as ``scale 'smal'``.
        name: the unknown name.
        known: the names to choose from.
    """
    names = list(known)
    near = difflib.get_close_matches(str(name), names, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{what} is unknown{hint} (known: {', '.join(names)})"


def no_space(error: OSError) -> str | None:
    """The message for an error because a disk is full or a quota used up; None for others."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    where = f" at {error.filename!r}" if error.filename else ""
    return (
        f"no space is left{where} ({error.strerror}); free some and run the same command again: "
        "what is finished is kept"
    )
