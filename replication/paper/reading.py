"""Reading of YAML with one clear error for whatever is wrong in it."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any

from grace.errors import InputError
from replication.base.files import is_number
from replication.base.messages import short


def nearest(name: Any, names: Collection[str]) -> str:
    """' (did you mean ...?)' for a misspelt name, or the list of valid names."""
    text = name if isinstance(name, str) else short(name)
    close = difflib.get_close_matches(text, sorted(names), n=1)
    return f" (did you mean {close[0]!r}?)" if close else f" (valid: {', '.join(sorted(names))})"


def expect_mapping(
    value: Any, where: str, required: Collection[str], optional: Collection[str] = ()
) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where} must be a mapping, not {type(value).__name__}")
    allowed = {*required, *optional}
    for key in value:
        if key not in allowed:
            raise InputError(f"{where}: unknown key {short(key)}{nearest(key, allowed)}")
    for key in required:
        if key not in value:
            raise InputError(f"{where} lacks {key!r}")
    return value


def expect_list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{where} must be a list that is not empty")
    return value


def expect_texts(value: Any, where: str) -> list[str]:
    """A list of texts, perhaps an empty one."""
    if not isinstance(value, list):
        raise InputError(f"{where} must be a list, not {type(value).__name__}")
    return [expect_text(one, f"{where}[{index}]") for index, one in enumerate(value)]


def expect_text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where} is {short(value)}: expected text")
    return value


def expect_number(value: Any, where: str) -> float:
    if not is_number(value):
        raise InputError(f"{where} is {short(value)}: expected a finite number")
    return float(value)


def expect_choice(value: Any, names: Collection[str], where: str) -> str:
    if not isinstance(value, str) or value not in names:
        raise InputError(f"{where}: unknown {short(value)}{nearest(value, names)}")
    return value
