"""A table of the page: heads and rows of cells, which the template writes out."""

from __future__ import annotations

from dataclasses import dataclass, field

from markupsafe import Markup


@dataclass(frozen=True)
class Cell:
    """One cell. columns, rows: how many it spans. head: whether it names its row or column."""

    html: Markup | str
    head: bool = False
    columns: int = 1
    rows: int = 1
    css: str = ""


@dataclass(frozen=True)
class Grid:
    """A table. caption: what it shows, for those who cannot see it. tall: it scrolls by itself.
    wide: it needs small print on paper. marked: rows set apart."""

    caption: str
    head: list[list[Cell]]
    rows: list[list[Cell]]
    tall: bool = False
    wide: bool = False
    marked: frozenset[int] = field(default_factory=frozenset)


def stacked(*parts: Markup | str) -> Markup:
    """Parts of a cell, one under the other; empty ones are left out."""
    shown = [Markup("<div>{}</div>").format(part) for part in parts if part]
    return Markup("").join(shown)
