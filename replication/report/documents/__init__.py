"""The generated parts of documents; text by hand stands outside of their markers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from grace.errors import InputError


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    lines.insert(1, "|" + "---|" * len(head))
    return "\n".join(lines)


def fill(text: str, parts: Mapping[str, str], document: Path) -> str:
    """A document's text with its generated parts replaced.

    Args:
        text: The document; a part stands between <!-- name:begin --> and <!-- name:end -->.
        parts: The new parts by name.
        document: Its path, for the error message.

    Raises:
        InputError: for a marker that is not there once, or after its part's end.
    """
    for name, part in parts.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise InputError(f"{document} needs the lines {begin} and {end}, once each, in order")
        before, rest = text.split(begin)
        text = f"{before}{begin}\n\n{part}\n\n{end}{rest.split(end)[1]}"
    return text
