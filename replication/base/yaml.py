"""The one reader of YAML files: safe, and an error for a key that appears twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from grace.errors import InputError
from replication.base.messages import one_line, short


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        InputError: naming the file, and the line where there is one: a file that cannot be read,
            bad YAML, a key that appears twice, or anything but a mapping at the top.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{str(path)!r} cannot be read ({reason})") from error
    content = parse_yaml(text, repr(str(path)))
    if not isinstance(content, dict):
        raise InputError(f"{str(path)!r} holds {short(content)}, not a mapping")
    return content


def parse_yaml(text: str, where: str) -> Any:
    """The content of a YAML text.

    Args:
        text: one document.
        where: what the text is, for error messages.

    Raises:
        InputError: for bad YAML, or a key that appears twice.
    """
    try:
        return yaml.load(text, Loader=_UniqueKeys)  # noqa: S506  # a safe loader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f", line {mark.line + 1}"
        reason = one_line(error.problem or str(error))
        raise InputError(f"{where}{line}: not valid YAML ({reason})") from error
    except InputError as error:
        raise InputError(f"{where}, {error}") from error
    except Exception as error:  # the library's constructors fail with types of their own
        raise InputError(f"{where}: not valid YAML ({one_line(error)})") from error


class _UniqueKeys(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe loading in which a key that appears twice is an error, not a silent replacement."""


def _unique_mapping(loader: Any, node: Any) -> dict[Any, Any]:
    keys = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":  # "<<": its keys may be replaced
            continue
        line = key_node.start_mark.line + 1
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | None):
            raise InputError(f"line {line}: the key {short(key)} is no text; put it in quotes")
        if key in keys:
            raise InputError(f"line {line}: the key {short(key)} appears twice; remove one")
        keys.add(key)
    loader.flatten_mapping(node)
    return {
        loader.construct_object(key, deep=True): loader.construct_object(value, deep=True)
        for key, value in node.value
    }


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)
