"""Speed and memory of the method's own parts, beside the straightforward way to compute each."""

from __future__ import annotations

from markupsafe import Markup

from replication.measure.method import OURS
from replication.measure.method.tables import TITLES, verdict
from replication.report.page.grids import Cell, Grid
from replication.report.page.sources import Node, absent, quoted

PERFORMANCE = "results/performance/performance.json"
_HEADS = (
    "Against",
    "Ours, ms",
    "Theirs, ms",
    "Time × [least, greatest]",
    "Ours, MB",
    "Theirs, MB",
    "Memory ×",
)
_MS, _MB = 1e3, 1e-6


def bounds_grid(report: Node) -> Grid:
    """What was promised of every part, and what was found."""
    rows = []
    for name in TITLES:
        for one in report["parts"][name]["bounds"] if name in report["parts"] else ():
            ends = [one[end].value for end in ("low", "median", "high")]
            found = quoted(one["median"], f"{ends[1]:.3g}", pad="range")
            if ends[0] != ends[2]:
                text = f"{ends[1]:.3g} [{ends[0]:.3g}, {ends[2]:.3g}]"
                found = quoted(one, text, "median", "low", "high")
            rows.append(
                [
                    Cell(one["what"].value, head=True, css="words"),
                    Cell(quoted(one["at_most"], f"{one['at_most'].value:g}"), css="num"),
                    Cell(found, css="num"),
                    Cell(verdict(one.value), css="words"),
                ]
            )
    head = [Cell("What", head=True, css="words")]
    head += [Cell(one, head=True, css="num") for one in ("At most", "Found [least, greatest]")]
    head += [Cell("", head=True)]
    return Grid("Bounds of speed and memory of the method itself", [head], rows)


def performance_grids(report: Node) -> list[Grid]:
    """One table a part: how time and memory grow, beside every other way."""
    grids = []
    for name, title in TITLES.items():
        if name not in report["parts"]:
            continue
        rows = [
            _line(row, other)
            for row in report["parts"][name]["rows"]
            for other in sorted(set(row["ways"].value) - {OURS})
        ]
        head = [Cell("Case", head=True, css="words"), Cell(_HEADS[0], head=True, css="words")]
        head += [Cell(one, head=True, css="num") for one in _HEADS[1:]]
        grids.append(Grid(title, [head], rows))
    return grids


def _line(row: Node, other: str) -> list[Cell]:
    first, against = row["ways"][OURS], row["ways"][other]
    line = [Cell(row["case"].value, head=True, css="words"), Cell(other, css="words")]
    line.append(Cell(_milliseconds(first), css="num"))
    if "not_run" in against:
        reason = absent(f"not run: {against['not_run'].value}")
        return [*line, Cell(reason), Cell(""), Cell(_peak(first), css="num"), Cell(""), Cell("")]
    time, memory = row["time"][other], row["memory"][other]
    low, median, high = (time[end].value for end in ("low", "median", "high"))
    spread = quoted(time, f"{median:.2f} [{low:.2f}, {high:.2f}]", "median", "low", "high")
    return [
        *line,
        Cell(_milliseconds(against), css="num"),
        Cell(spread, css="num"),
        Cell(_peak(first), css="num"),
        Cell(_peak(against), css="num"),
        Cell(quoted(memory, f"{memory.value:.3f}"), css="num"),
    ]


def _milliseconds(way: Node) -> Markup:
    seconds = way["seconds"]["median"]
    return quoted(seconds, f"{seconds.value * _MS:,.1f}", scale=_MS)


def _peak(way: Node) -> Markup:
    size = way["peak_bytes"]
    return quoted(size, f"{size.value * _MB:,.1f}", scale=_MB)
