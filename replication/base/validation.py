"""Content of files against types: unknown keys refused, and one clear line for what is wrong.

Types are pydantic dataclasses and typed dictionaries whose fields carry their bounds::

    @record
    class Camera:
        name: Text
        width: Positive

    validate(Camera, read_yaml(path), str(path))
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    Field,
    Strict,
    Tag,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import is_typeddict

from grace.errors import InputError
from replication.base.messages import short, unknown

T = TypeVar("T")

STRICT = ConfigDict(extra="forbid")


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("it must be text that is not blank")
    return text


Text = Annotated[str, Strict(), AfterValidator(_not_blank)]
Flag = Annotated[bool, Strict()]
Natural = Annotated[int, Strict(), Field(ge=0, le=2**53)]
Positive = Annotated[int, Strict(), Field(ge=1, le=2**53)]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]


TextTag, MappingTag = Tag("text"), Tag("mapping")
TEXT_OR_MAPPING = Discriminator(lambda value: "mapping" if isinstance(value, dict) else "text")
"""For a union of a text, tagged `TextTag`, and a mapping, tagged `MappingTag`."""


@dataclass_transform(frozen_default=True, field_specifiers=(Field, dataclasses.field))
def record(cls: type[T]) -> type[T]:
    """Make a class a frozen pydantic dataclass that refuses unknown keys."""
    return typing.cast("type[T]", pydantic_dataclass(frozen=True, config=STRICT)(cls))


def closed(cls: type[T]) -> type[T]:
    """Make a typed dictionary refuse unknown keys."""
    cls.__pydantic_config__ = STRICT  # type: ignore[attr-defined]
    return cls


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def validate(kind: type[T], content: Any, source: str) -> T:
    """The content of a file as a value of a type.

    Args:
        kind: a pydantic dataclass, a typed dictionary, or a mapping or list of them.
        content: what the file holds.
        source: what it is, for error messages.

    Raises:
        InputError: in one line that names the source, the place, the value and what is allowed.
    """
    try:
        return typing.cast("T", _adapter(typing.cast("Any", kind)).validate_python(content))
    except ValidationError as error:
        reason = _explain(error.errors(include_url=False), content, kind)
    except RecursionError:
        reason = "it is nested too deep"
    raise InputError(f"{source}: {reason}")


_EXPECTED = {
    "bool_type": "true or false",
    "dataclass_type": "a mapping",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_attributes_type": "a mapping",
    "string_type": "text",
    "tuple_type": "a list",
}
"""What a field takes, by pydantic's type of the error; its own words otherwise."""

_UNKNOWN_KEY = ("unexpected_keyword_argument", "extra_forbidden")


def _explain(errors: Sequence[Mapping[str, Any]], content: Any, kind: Any) -> str:
    """The first error in words; an unknown key, which may be a missing one misspelt, goes first."""
    first = min(errors, key=lambda error: error["type"] not in ("invalid_key", *_UNKNOWN_KEY))
    code, loc = first["type"], first["loc"]
    where, value = _locate(content, loc)
    if code == "missing":
        return f"{where or 'the file'} lacks the key {loc[-1]!r}; add it"
    if code in _UNKNOWN_KEY:
        parent, _ = _locate(content, loc[:-1])
        what = f"{parent}: key {loc[-1]!r}".removeprefix(": ")
        return unknown(what, loc[-1], _keys(kind, loc[:-1]))
    if code == "invalid_key" or loc[-1:] == ("[key]",):
        parent, _ = _locate(content, loc[: -1 if code == "invalid_key" else -2])
        key = first["input"]
        what = f"{parent}: key {short(key)}".removeprefix(": ")
        if not isinstance(key, str):
            return f"{what} is not text; put it in quotes"
        names = _choices(first)
        return unknown(what, key, names) if names else f"{what} must {_allowed(first)}"
    if code == "value_error":
        message = str(first["ctx"]["error"])
        if message.startswith("it must be"):
            return f"{where} is {short(value)}; {message}"
        return f"{where}: {message}".removeprefix(": ")
    if code == "union_tag_invalid":
        tag, key = first["ctx"]["tag"], first["ctx"]["discriminator"].strip("'")
        return unknown(f"{where}.{key} {tag!r}", tag, _quoted(first["ctx"]["expected_tags"]))
    if code == "union_tag_not_found":
        return f"{where} lacks the key {first['ctx']['discriminator']}; add it"
    same = [error for error in errors if _locate(content, error["loc"])[0] == where]
    if isinstance(value, str) and (names := [n for error in same for n in _choices(error)]):
        return unknown(f"{where} {value!r}", value, names)
    allowed = " or ".join(dict.fromkeys(map(_allowed, same))).replace(" or be ", " or ")
    hint = ""
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value):
        hint = "; YAML reads a power of ten as text unless it has a point, as in 1.0e-5"
    return f"{where or 'the file'} is {short(value)}; it must {allowed}{hint}"


def _allowed(error: Mapping[str, Any]) -> str:
    """What a value must do, as in "be at least 1"."""
    if error["type"] in _EXPECTED:
        return f"be {_EXPECTED[error['type']]}"
    words = re.sub(r"^\w+ should | after validation, not \d+$", "", error["msg"])
    words = words.replace("greater than or equal to", "at least")
    return words.replace("less than or equal to", "at most")


def _choices(error: Mapping[str, Any]) -> list[str]:
    """The names that a literal takes."""
    return _quoted(error["ctx"]["expected"]) if error["type"] == "literal_error" else []


def _quoted(names: str) -> list[str]:
    return re.findall(r"'([^']*)'", names)


def _locate(content: Any, loc: Iterable[Any]) -> tuple[str, Any]:
    """The dotted place that an error is at, and its value; pydantic's names of types left out."""
    place = ""
    for part in loc:
        if isinstance(content, dict) and part in content:
            place = f"{place}.{part}".removeprefix(".")
        elif isinstance(content, list) and isinstance(part, int):
            place += f"[{part}]"
        else:
            continue
        content = content[part]
    return place, content


def _keys(kind: Any, loc: Iterable[Any]) -> list[str]:
    """The names of the fields at a place."""
    kinds = [kind]
    for part in loc:
        kinds = [inner for outer in kinds for inner in _inside(outer, part)]
    return list(dict.fromkeys(name for kind in kinds for name in _fields(kind)))


def _inside(kind: Any, part: Any) -> list[Any]:
    """The types that a key or an index leads to; the tag of a union's member to the member."""
    if hints := _hints(kind):
        literals = [hint for hint in hints.values() if typing.get_origin(hint) is typing.Literal]
        tags = [tag for literal in literals for tag in typing.get_args(literal)]
        return [hints[part]] if part in hints else [kind] if part in tags or not tags else []
    if _is_union(kind):
        return [inner for member in typing.get_args(kind) for inner in _inside(member, part)]
    return list(typing.get_args(kind)[-1:])  # of a mapping or a list


def _fields(kind: Any) -> list[str]:
    members = typing.get_args(kind) if _is_union(kind) else ()
    return [*_hints(kind), *(name for member in members for name in _fields(member))]


def _hints(kind: Any) -> dict[str, Any]:
    """The types of a class's fields by their keys; none of other types."""
    if not (dataclasses.is_dataclass(kind) or is_typeddict(kind)):
        return {}
    fields = getattr(kind, "__pydantic_fields__", {})
    hints = typing.get_type_hints(kind)
    return {(name in fields and fields[name].alias) or name: hints[name] for name in hints}


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)
