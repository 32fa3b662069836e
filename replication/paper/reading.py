"""Reading of YAML with one clear error for whatever is wrong in it."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from grace.errors import InputError
from replication.base.files import is_number, shown

_DEEPEST = 100


def nearest(name: Any, names: Collection[str]) -> str:
    """' (did you mean ...?)' for a misspelt name, or the list of valid names."""
    text = name if isinstance(name, str) else shown(name)
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
            raise InputError(f"{where}: unknown key {shown(key)}{nearest(key, allowed)}")
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
        raise InputError(f"{where} is {shown(value)}: expected text")
    return value


def expect_number(value: Any, where: str) -> float:
    if not is_number(value):
        raise InputError(f"{where} is {shown(value)}: expected a finite number")
    return float(value)


def expect_choice(value: Any, names: Collection[str], where: str) -> str:
    if not isinstance(value, str) or value not in names:
        raise InputError(f"{where}: unknown {shown(value)}{nearest(value, names)}")
    return value


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file. InputError if it is missing, not YAML, or has a key twice."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: cannot be read ({reason})") from error
    try:
        _check_depth(text)
        return yaml.load(text, Loader=_UniqueKeys)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # the library's constructors fail with types of their own
        raise InputError(f"{path}: not valid YAML ({error})") from error


def _check_depth(text: str) -> None:
    """Refuse a text nested so deep that the compiled loader, which recurses, would crash."""
    depth = 0
    for event in yaml.parse(text, Loader=_UniqueKeys):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise InputError(f"it is nested more than {_DEEPEST} deep")


class _UniqueKeys(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe loading in which a key given twice is an error, not a silent replacement."""


def _unique_mapping(loader: Any, node: Any, deep: bool = False) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | None):
            raise InputError(f"line {key_node.start_mark.line + 1}: a key is {shown(key)}")
        if key in found:
            raise InputError(f"line {key_node.start_mark.line + 1}: key {key!r} appears twice")
        found[key] = loader.construct_object(value_node, deep=True)
    return found


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)
