"""Annotation files: JSON arrays of conversations, found on disk or on the hub, and read as streams.

The published files have more than a gigabyte. Only one record is held at a time.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from grace.errors import InputError
from grace.files import file_sha256

_CHUNK = 1 << 20  # characters read at once
_LARGEST = 1 << 26  # characters that one record may have
_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class AnnotationFile:
    """One annotation file on disk.

    Attributes:
        name: as given in the parameters.
        path: where it lies.
        repository: the hub's data set it was taken from; None for a local file.
        sha256: of its bytes.
    """

    name: str
    path: Path
    repository: str | None
    sha256: str


def find_annotations(
    name: str, repository: str | None = None, revision: str | None = None
) -> AnnotationFile:
    """The file of this name: a local path if there is such a file, else one of the repository.

    Raises:
        InputError: when neither can be had.
    """
    local = Path(name)
    if local.is_file():
        return AnnotationFile(name, local, None, file_sha256(local))
    if repository is None or local.is_absolute():
        raise InputError(
            f"annotation file {name!r} does not exist; correct data.training.files, or name the "
            "hub's data set in data.training.repository"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        path = Path(hf_hub_download(repository, name, repo_type="dataset", revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        at = "" if revision is None else f" at revision {revision!r}"
        raise InputError(
            f"annotation file {name!r} of the data set {repository!r}{at} cannot be downloaded "
            f"({reason}); check the name and the network, or put the path of a local copy into "
            "data.training.files"
        ) from error
    return AnnotationFile(name, path, repository, file_sha256(path))


def read_records(path: Path) -> Iterator[Any]:
    """The elements of a JSON array, one by one.

    Raises:
        InputError: when the file cannot be read or is not a JSON array, naming the record at which
            it ends to be one.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from _elements(str(path), file)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"annotation file {str(path)!r} cannot be read ({error}); download it again"
        ) from error


def _elements(name: str, file: TextIO) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    text, at, count, expected = "", 0, 0, "["

    def broken(reason: str) -> InputError:
        return InputError(
            f"annotation file {name!r} is not a JSON array: {reason} at record {count}; download "
            "it again"
        )

    while True:
        at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
        if at == len(text):
            text, at = file.read(_CHUNK), 0
            if text:
                continue
            if expected != "end":
                raise broken("it ends")
            return
        if expected == "end":
            raise broken("it goes on after its end")
        if text[at] == "]" and expected in ("first", ","):
            at, expected = at + 1, "end"
        elif expected in ("[", ","):
            if text[at] != expected:
                raise broken(f"{text[at]!r} stands in the place of {expected!r}")
            at, expected = at + 1, "first" if expected == "[" else "next"
        else:
            try:
                value, stop = decoder.raw_decode(text, at)
                after, reason = _SPACE.match(text, stop).end(), "it ends"  # type: ignore[union-attr]
                whole = text[after : after + 1] in (",", "]")  # 1 may go on as 1.5
            except json.JSONDecodeError as error:
                whole, reason = False, error.msg
            except RecursionError:
                raise broken("it is nested too deep") from None
            except ValueError as error:  # such as a number of thousands of digits
                raise broken(str(error)) from None
            if not whole:
                if len(text) - at > _LARGEST:
                    raise broken(reason)
                more = file.read(max(_CHUNK, len(text) - at))
                if not more:
                    raise broken(reason)
                text, at = text[at:] + more, 0
                continue
            yield value
            at, expected, count = stop, ",", count + 1
