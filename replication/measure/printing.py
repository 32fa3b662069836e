"""Results of benchmarks as tables: for the terminal, and in markdown for a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from replication.base.terminal import table, write


@dataclass(frozen=True)
class ResultTable:
    """Rows of text under a title.

    Attributes:
        title: above the table.
        header: names of the columns.
        rows: cells; a row may have fewer than the header.
        notes: lines below the table.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default=())


def print_report(report: Mapping[str, Any], tables: Sequence[ResultTable]) -> None:
    """Print a benchmark's tables on standard output."""
    origin, evidence = report["provenance"], report.get("evidence", "measured")
    parts: list[Any] = [f"{origin['device']}, {origin['instruction_set']} ({evidence})"]
    for result in tables:
        parts += ["", result.title, table(result.header, result.rows), *result.notes]
    write(*parts)


def markdown(introduction: str, tables: Sequence[ResultTable]) -> str:
    """An introduction and tables in markdown."""
    lines = [introduction]
    for result in tables:
        lines += ["", f"**{result.title}**", "", _row(result.header)]
        lines += ["|" + "---|" * len(result.header), *map(_row, result.rows)]
    return "\n".join(lines) + "\n"


def range_text(values: Mapping[str, Any], number: str = ".3g") -> str:
    """A median with its ends, such as "1.2 [1.1, 1.4]"; without them where all are the same.

    Args:
        values: "median", "low" and "high".
        number: format of each.
    """
    low, median, high = (format(values[key], number) for key in ("low", "median", "high"))
    return median if low == high else f"{median} [{low}, {high}]"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
