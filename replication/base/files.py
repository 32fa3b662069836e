"""Reading and writing of small files: whole or not at all, the same bytes for the same content."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any, TypeGuard

from grace.errors import InputError
from grace.files import atomic_path

ROOT = Path(__file__).resolve().parents[2]
"""The repository, or the folder that the packages lie in."""


def write_text_atomic(path: str | Path, text: str) -> Path:
    """Write a text in UTF-8, through a temporary name and a rename."""
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
    """A value as JSON: sorted keys, two spaces, a newline at the end.

    Args:
        value: what JSON can hold.
        name: of the value, for error messages.

    Raises:
        InputError: naming the place of a NaN or an infinity.
    """
    _check_finite(value, name)
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_json_atomic(path: str | Path, value: Any) -> Path:
    """Write a value as JSON (see `json_text`), whole or not at all.

    Raises:
        InputError: for a NaN or an infinity; the file stays as it was.
    """
    return write_text_atomic(path, json_text(value, Path(path).name))


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: if it is missing, is not JSON, or holds a number that is not finite or too large
            for a float.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        return json.loads(text, parse_int=_whole, parse_float=_real, parse_constant=_real)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a decoded value is a finite number in a float's range; true and false are none."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max


def _whole(text: str) -> int:
    value = int(text)
    if not is_number(value):
        raise ValueError(f"the number {text[:20]}... is too large")
    return value


def _real(text: str) -> float:
    value = float(text)
    if not is_number(value):
        raise ValueError(f"{text} is no finite number")
    return value
