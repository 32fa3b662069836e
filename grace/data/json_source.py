"""Records of JSON files: an array, or one object a line. They are found once and read on demand."""

import codecs
import json
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from grace.errors import InputError

_CHUNK = 1 << 20  # bytes read at once
_LARGEST = 1 << 27  # bytes that one record may have
_SPACE = re.compile(r"[ \t\n\r]*")


class JsonFile:
    """The records of one JSON or JSONL file, by position.

    ::

        records = JsonFile("train.jsonl")
        records[0]["conversations"]

    Only where each record begins and ends is kept in memory.

    Args:
        path: The file.

    Raises:
        InputError: It cannot be read, or is neither an array nor lines of objects.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                begin = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
            spans = self._elements() if begin.startswith(b"[") else self._lines()
            self._spans = np.array(list(spans), np.int64).reshape(-1, 2)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{str(path)!r} cannot be read ({error}); write it again") from error
        self._content: mmap.mmap | None = None

    def __len__(self) -> int:
        return len(self._spans)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_content": None}  # a mapping belongs to its process

    def __getitem__(self, position: int) -> Any:
        if self._content is None:
            with self.path.open("rb") as file:
                self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start, stop = self._spans[position]
        try:
            return json.loads(self._content[start:stop])
        except (ValueError, RecursionError) as error:
            raise InputError(f"it is no JSON ({error})") from error

    def _lines(self) -> Iterator[tuple[int, int]]:
        """Begin and end of every line that is not blank."""
        start = 0
        with self.path.open("rb") as file:
            for line in file:
                stop = start + len(line)
                if start == 0 and line.startswith(b"\xef\xbb\xbf"):
                    start = 3
                if line.strip():
                    yield start, stop
                start = stop

    def _elements(self) -> Iterator[tuple[int, int]]:
        """Begin and end of every element of an array, which is read as a stream."""
        for start, stop, _ in elements(self.path):
            yield start, stop


def elements(path: Path) -> Iterator[tuple[int, int, Any]]:
    """The elements of a JSON array one by one: first byte, one past the last, and value.

    Raises:
        InputError: The file is no JSON array; the message names the record at which it ends to be
            one.
    """
    with path.open("rb") as file:
        scanner = _Scanner(path, file)
        yield from scanner.elements()


class _Scanner:
    """Reads a JSON array as a stream; one element is held at a time."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path, self._file, self._count = path, file, 0
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text, self._at = "", 0
        self._byte = 3 if file.read(3) == b"\xef\xbb\xbf" else 0  # where _text[_known] stands
        self._known = 0
        file.seek(self._byte)

    def _fail(self, reason: str) -> NoReturn:
        raise InputError(
            f"{str(self._path)!r} is not a JSON array: {reason} at record {self._count}; write or "
            "download it again"
        )

    def _byte_of(self, place: int) -> int:
        """The byte of the file at which a character of the text stands; never an earlier one."""
        self._byte += len(self._text[self._known : place].encode())
        self._known = place
        return self._byte

    def _more(self, size: int = _CHUNK) -> bool:
        """Read on; whether there was anything."""
        self._byte_of(self._at)
        self._text, self._at, self._known = self._text[self._at :], 0, 0
        content = self._file.read(size)
        self._text += self._decoder.decode(content, final=not content)
        return bool(content)

    def _next(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def elements(self) -> Iterator[tuple[int, int, Any]]:
        decoder = json.JSONDecoder()
        expected = "["
        while (character := self._next()) or expected != "end":
            if expected == "end":
                self._fail("it goes on after its end")
            if not character:
                self._fail("it ends")
            if character == "]" and expected in ("first", ","):
                self._at, expected = self._at + 1, "end"
            elif expected in ("[", ","):
                if character != expected:
                    self._fail(f"{character!r} stands in the place of {expected!r}")
                self._at, expected = self._at + 1, "first" if expected == "[" else "next"
            else:
                value, stop = self._value(decoder)
                yield self._byte_of(self._at), self._byte_of(stop), value
                self._at, expected = stop, ","
                self._count += 1

    def _value(self, decoder: json.JSONDecoder) -> tuple[Any, int]:
        """The element that begins here, and where it ends in the text."""
        while True:
            reason = "it ends"
            try:
                value, stop = decoder.raw_decode(self._text, self._at)
                after = _SPACE.match(self._text, stop).end()  # type: ignore[union-attr]
                if self._text[after : after + 1] in (",", "]"):  # 1 may go on as 1.5
                    return value, stop
                if after < len(self._text):
                    reason = f"{self._text[after]!r} stands in the place of ','"
            except json.JSONDecodeError as error:
                reason = error.msg
            except RecursionError:
                self._fail("it is nested too deep")
            except ValueError as error:  # such as a number of thousands of digits
                self._fail(str(error))
            size = len(self._text) - self._at
            if size > _LARGEST or not self._more(max(_CHUNK, size)):
                self._fail(reason)
