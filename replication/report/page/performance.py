"""Speed and memory of the method's own parts, beside the straightforward way to compute each."""

from __future__ import annotations

from markupsafe import Markup

from replication.measure.method import OURS
from replication.measure.method.tables import TITLES, verdict
from replication.report.page.grids import Cell, Grid, heads, stacked
from replication.report.page.sources import Node, absent, quoted, scaled

PERFORMANCE = "results/performance/performance.json"
_MS, _MB = 1e3, 1e-6


def bounds_grid(report: Node) -> Grid:
    """What was promised of every part, and what was measured."""
    parts = [report["parts"][name] for name in TITLES if name in report["parts"]]
    rows = []
    for bound in (bound for part in parts for bound in part["bounds"]):
        low, median, high = (f"{bound[end].value:.3g}" for end in ("low", "median", "high"))
        measured = quoted(bound["median"], median, pad="range")
        if bound["low"].value != bound["high"].value:
            measured = quoted(bound, f"{median} [{low}, {high}]", "median", "low", "high")
        rows.append(
            [
                *heads("words", bound["what"].value),
                Cell(measured, "num"),
                Cell(quoted(bound["at_most"], f"{bound['at_most'].value:g}"), "num"),
                Cell(verdict(bound.value), "words"),
            ]
        )
    head = [*heads("words", "What"), *heads("num", "Found [least, greatest]", "At most")]
    caption = "Bounds of speed and memory of the method itself"
    return Grid(caption, [[*head, *heads("", "Met?")]], rows)


def performance_grids(report: Node) -> list[Grid]:
    """One table a part: how time and memory grow, beside every other way."""
    head = [
        *heads("words", "Case, against"),
        *heads("num", "Time × [least, greatest]", "Memory ×"),
        *heads("num", "Ours, ms", "Theirs, ms", "Ours, MB", "Theirs, MB"),
    ]
    grids = []
    for name, title in TITLES.items():
        if name in report["parts"]:
            rows = [
                _line(row, other)
                for row in report["parts"][name]["rows"]
                for other in sorted(set(row["ways"].value) - {OURS})
            ]
            grids.append(Grid(title, [head], rows))
    return grids


def _line(row: Node, other: str) -> list[Cell]:
    ours, theirs = row["ways"][OURS], row["ways"][other]
    name = heads("words", stacked(row["case"].value, other))
    time, memory = Cell(_milliseconds(ours), "num"), Cell(_peak(ours), "num")
    if "not_run" in theirs:
        reason = Cell(absent(f"not run: {theirs['not_run'].value}"))
        none = Cell(absent("none"))
        return [*name, reason, none, time, none, memory, none]
    ratio, size = row["time"][other], row["memory"][other]
    low, median, high = (f"{ratio[end].value:.2f}" for end in ("low", "median", "high"))
    return [
        *name,
        Cell(quoted(ratio, f"{median} [{low}, {high}]", "median", "low", "high"), "num"),
        Cell(quoted(size, f"{size.value:.3f}"), "num"),
        time,
        Cell(_milliseconds(theirs), "num"),
        memory,
        Cell(_peak(theirs), "num"),
    ]


def _milliseconds(way: Node) -> Markup:
    return scaled(way["seconds"]["median"], _MS, 1)


def _peak(way: Node) -> Markup:
    return scaled(way["peak_bytes"], _MB, 1)
