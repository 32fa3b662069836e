"""A performance report as tables: aligned for the terminal, in markdown for a page."""

from collections.abc import Mapping, Sequence
from typing import Any

from replication.measure.method import OURS

_MIB = 2**20
TITLES = {
    "fake_quantization": "A training step of one decoder layer",
    "scale_search": "Start of the scales",
    "gated_distillation": "GDKD, forward and backward",
    "projection": "Vocabulary projection, cross-entropy and GDKD, forward and backward",
    "relational": "RCKA of one image, forward and backward",
}
_HEAD = ("case", "against", "ms", "its ms", "time ×", "MiB", "its MiB", "memory ×")


def lines(report: Mapping[str, Any]) -> list[str]:
    """For the terminal."""
    found = [f"{report['device']} ({report['evidence']})"]
    for title, rows in tables(report):
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        found += ["", title]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            found.append("  ".join(cells).rstrip())
    return found


def markdown(report: Mapping[str, Any]) -> str:
    """The same tables in markdown."""
    found = [
        f"Measured on {report['device']}: medians of {report['settings']['repeats']} rounds, in "
        "which the ways take turns; a quotient's ends are those of single rounds. Peak memory: "
        f"{report['memory']}."
    ]
    for title, (head, *rows) in tables(report):
        found += ["", f"**{title}**", "", _row(head), "|" + "---|" * len(head)]
        found += [_row(row) for row in rows]
    return "\n".join(found) + "\n"


def tables(report: Mapping[str, Any]) -> list[tuple[str, list[Sequence[str]]]]:
    """(title, rows with the head first) of every part, then of the bounds."""
    found: list[tuple[str, list[Sequence[str]]]] = []
    bounds: list[Sequence[str]] = []
    for name, title in TITLES.items():
        if (part := report["parts"].get(name)) is None:
            continue
        rows: list[Sequence[str]] = [_HEAD]
        for row in part["rows"]:
            rows += [_cells(row, other) for other in sorted(row["ways"]) if other != OURS]
        found.append((title, rows))
        bounds += [
            (one["what"], f"{one['at_most']:g}", _spread(one), verdict(one))
            for one in part["bounds"]
        ]
    if bounds:
        found.append(("Bounds", [("what", "at most", "found", ""), *bounds]))
    return found


def _cells(row: Mapping[str, Any], other: str) -> Sequence[str]:
    first, against = row["ways"][OURS], row["ways"][other]
    mine = [f"{1000 * first['seconds']['median']:.1f}", f"{first['peak_bytes'] / _MIB:.1f}"]
    if "not_run" in against:
        return (row["case"], other, mine[0], f"not run: {against['not_run']}", "", mine[1], "", "")
    return (
        row["case"],
        other,
        mine[0],
        f"{1000 * against['seconds']['median']:.1f}",
        _spread(row["time"][other]),
        mine[1],
        f"{against['peak_bytes'] / _MIB:.1f}",
        f"{row['memory'][other]:.3f}",
    )


def _spread(values: Mapping[str, Any]) -> str:
    low, median, high = (f"{values[key]:.3g}" for key in ("low", "median", "high"))
    return median if low == high else f"{median} [{low}, {high}]"


def verdict(found: Mapping[str, Any]) -> str:
    if found["high"] <= found["at_most"]:
        return "held"
    if found["median"] <= found["at_most"]:
        return "held by the median"
    return "not held"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
