"""What commands print: tables through rich, and plain text where there is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence
from io import StringIO
from typing import TextIO

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

_UNBOUNDED = 10_000
"""The width of what is no terminal: no line is broken, and none is cut."""


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    title: str | None = None,
    right: Collection[int] = (),
    indent: int = 0,
) -> Table:
    """A table without lines between its cells.

    Args:
        header: the columns' names; an empty sequence for none.
        rows: cells as plain text or with a style; square brackets are no markup.
        title: above the table.
        right: indices of the columns that are aligned to the right.
        indent: spaces before the first column.
    """
    lines = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
    grid = Table(
        box=None,
        show_header=bool(header),
        title=None if title is None else Text(title),
        title_justify="left",
        header_style="bold",
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    count = len(header) or max(map(len, lines), default=0)
    for index in range(count):
        name = Text(" " * indent if index == 0 else "")
        name.append(header[index] if header else "")
        grid.add_column(name, justify="right" if index in right else "left", overflow="fold")
    for line in lines:
        if indent:
            line[0] = Text(" " * indent).append_text(line[0])
        grid.add_row(*line)
    return grid


def write(*parts: RenderableType, stream: TextIO | None = None) -> None:
    """Print text and tables.

    On a terminal with its width and colours (none where NO_COLOR is set); elsewhere as plain text
    whose lines are never broken.

    Args:
        parts: plain text, ``Text`` with styles, or tables. Square brackets are no markup.
        stream: default: standard output.
    """
    stream = stream or sys.stdout
    if stream.isatty():
        console = Console(file=stream, highlight=False, markup=False, emoji=False)
        for part in parts:
            console.print(part)
    else:
        stream.write(as_text(*parts))


def as_text(*parts: RenderableType, width: int = _UNBOUNDED) -> str:
    """What `write` prints where there is no terminal: plain lines without spaces at their ends."""
    buffer = StringIO()
    console = Console(
        file=buffer, width=width, color_system=None, highlight=False, markup=False, emoji=False
    )
    for part in parts:
        console.print(part)
    return "".join(f"{line.rstrip()}\n" for line in buffer.getvalue().splitlines())
