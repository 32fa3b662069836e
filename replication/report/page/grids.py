"""A table of the page: heads and rows of cells, which the template writes out."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        html: What it shows.
        css: Its classes.
        head: Whether it names its row or column.
        columns: How many columns it spans.
        rows: How many rows it spans.
    """

    html: Markup | str
    css: str = ""
    head: bool = False
    columns: int = 1
    rows: int = 1


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        caption: What it shows, for those who cannot see it.
        head: Its heads, line by line.
        rows: Its rows.
        tall: Whether it scrolls by itself.
        wide: Whether it needs small print on paper.
        marked: The rows that are set apart.
        css: Its classes.
    """

    caption: str
    head: list[list[Cell]]
    rows: list[list[Cell]]
    tall: bool = False
    wide: bool = False
    marked: frozenset[int] = frozenset()
    css: str = ""


def heads(css: str, *names: Markup | str) -> list[Cell]:
    """Heads of columns of one kind, such as "num" for numbers and "words" for text."""
    return [Cell(name, css, head=True) for name in names]


def stacked(*parts: Markup | str) -> Markup:
    """Parts of a cell, one under the other; empty ones are left out."""
    return Markup("").join(Markup("<div>{}</div>").format(part) for part in parts if part)
