"""The map of regimes: where GRACE beats plain distillation, where nothing helps, where it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.figure import SubFigure

from replication.judge.quantities import signed
from replication.report.figures import style
from replication.report.figures.figure import Figure, NotRun
from replication.report.figures.reading import Inputs, is_standin
from replication.report.tables.regimes import DATA, LABELS, RUNS, SHARES

TABLE = "regimes"
_WIDTH, _ROW, _HEADS, _FEET = 7.0, 2.1, 0.45, 0.4  # inches
_LINES = 2  # of words, under the intervals of a panel
_LOOKS = {
    "sft": ("sft", "SFT", True),
    "qat_int4": ("qat", "QAT, 4 bits", True),
    "kd": ("kd", "naive KD", True),
    "kd_tuned": ("kd", "naive KD, tuned", False),
    "grace": ("grace", "GRACE, code", True),
    "grace_launcher": ("grace", "GRACE, launcher", False),
    "grace_nckd1": ("grace", "GRACE, β = 1", False),
    "grace_int4": ("grace", "GRACE, 4 bits", False),
}
"""Of every run: the method whose colour and marker it has, its name, whether it is filled."""
_OUTCOMES = {
    "beats KD": ("#DCEBF7", "GRACE beats KD"),
    "gains": ("#EDF4FA", "GRACE gains"),
    "KD is enough": ("#E3F2EC", "KD is enough"),
    "SFT is enough": ("#F3F1E4", "SFT is enough"),
    "no gain": ("#FFFFFF", "no gain"),
    "costs": ("#FBE3D3", "GRACE costs"),
    "not run": ("#F2F2F2", "not run"),
}
"""A panel's ground and its word, by what its cell says."""
_SHORT = {"clean": "clean labels", "noisy": "a fifth wrong"}
Cell = Mapping[str, Any]


def draw(inputs: Inputs) -> Figure:
    """A row of panels a share of the teacher's data, in each panel the effects of every run.

    Raises:
        NotRun: without the table, or where no cell was run.
    """
    table = inputs.table(TABLE, "the map was drawn")
    names = table.get("cells", [])
    cells = {group: row for (group, *_), row in zip(names, table["rows"], strict=True)}
    places = {group: tuple(place) for group, *place in names}
    if all(row["outcome"] == "not run" for row in cells.values()):
        raise NotRun("no cell of the map was trained and evaluated at this scale")
    return inputs.figure(
        families=[inputs.family],
        name="regimes",
        title="When does the method help?",
        caption=_caption(table, inputs),
        alt="Small multiples of effects by regime. "
        + " ".join(_in_words(places[group], row) for group, row in cells.items()),
        n=f"{len(cells)} cells, {len(RUNS)} runs of one seed in each",
        units="percentage points against the cell's baseline",
        sources=(inputs.source(f"tables/{TABLE}.json"),),
        data={
            "placed": table["placed"],
            "capacity_bound": table["capacity_bound"],
            "cells": {
                group: {
                    "outcome": row["outcome"],
                    "effects": {run: row["cells"][name] for run, name in RUNS.items()},
                }
                for group, row in cells.items()
            },
        },
        canvas=_canvas(table, {places[group]: (group, row) for group, row in cells.items()}),
    )


def _caption(table: Mapping[str, Any], inputs: Inputs) -> str:
    return (
        "Effects on average accuracy against the cell's baseline, each with its 95 % interval "
        "(paired bootstrap over questions, one seed a run). Rows: how much of the teacher's "
        "data the student has seen. Columns: whether a fifth of the labels is wrong, and "
        "whether the methods train on the student's own data or, with right labels, on fresh "
        "ones. Above a panel: what its intervals say of GRACE with the code's coefficients at "
        "16 bits, which also is the colour of its ground; under the intervals the accuracies of "
        "teacher / baseline. Framed by a solid line: the cell whose controls (gap, SFT, QAT at 4 "
        "bits, KD) are nearest to the paper's. Framed by a dashed line: the capacity-bound cell, "
        "of a student that has seen all that a sure teacher has. Hollow marks: other settings of "
        "the method with the same mark. " + inputs.reservations(is_standin(table))
    )


def _in_words(place: tuple[str, ...], row: Cell) -> str:
    share, labels, data = place
    cell = row["cells"][RUNS["grace"]]
    effect = "" if cell["measured"] is None else f", GRACE {signed(cell['measured'])} points"
    where = f"{SHARES[share]}, {_SHORT[labels]}, {DATA[data]}"
    return f"{where}: {_OUTCOMES[row['outcome']][1]}{effect}."


# --- drawing --------------------------------------------------------------------------------------


def _canvas(table: Mapping[str, Any], cells: Mapping[tuple[str, ...], tuple[str, Cell]]) -> Canvas:
    shares = [share for share in SHARES if any(place[0] == share for place in cells)]
    kinds = [
        (labels, data)
        for labels in LABELS
        for data in DATA
        if any(place[1:] == (labels, data) for place in cells)
    ]
    heights = [_ROW] * len(shares)
    heights[0] += _HEADS
    heights[-1] += _FEET
    canvas = style.canvas(_WIDTH, sum(heights))
    parts = canvas.subfigures(len(shares), 1, squeeze=False, height_ratios=heights)[:, 0]
    low, high = _range(row for _, row in cells.values())
    for index, (part, share) in enumerate(zip(parts, shares, strict=True)):
        row = [cells.get((share, *kind)) for kind in kinds]
        _row(part, f"Student has seen {SHARES[share]}", row, table)
        for axes, (labels, data) in zip(part.axes, kinds, strict=True):
            axes.set_xlim(low, high)
            if index == 0:
                words = f"{_SHORT[labels]},\n{data} data"
                axes.annotate(
                    words, (0.5, 1.0), (0, 20), xycoords="axes fraction",
                    textcoords="offset points", ha="center", va="bottom",
                )  # fmt: skip
            if index < len(shares) - 1:
                axes.tick_params(labelbottom=False)
    parts[-1].supxlabel("points against the baseline", fontsize=style.SMALL)
    return canvas


def _range(rows: Any) -> tuple[float, float]:
    ends = [
        row["cells"][name][end]
        for row in rows
        for name in RUNS.values()
        for end in ("low", "high")
        if row["cells"][name][end] is not None
    ]
    low, high = min(*ends, 0.0), max(*ends, 0.0)
    room = 0.06 * (high - low or 1.0)
    return low - room, high + room


def _row(
    part: SubFigure,
    title: str,
    cells: Sequence[tuple[str, Cell] | None],
    table: Mapping[str, Any],
) -> None:
    part.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    panels = part.subplots(1, len(cells), sharey=True, squeeze=False)[0]
    for axes, found in zip(panels, cells, strict=True):
        group, row = found or ("", None)
        _panel(axes, row)
        _mark(axes, group, table)
    style.rows(panels[0], [name for _, name, _ in _LOOKS.values()], room=0.7)
    panels[0].set_ylim(len(_LOOKS) + _LINES, -0.7)


def _panel(axes: Axes, row: Cell | None) -> None:
    color, word = _OUTCOMES["not run" if row is None else row["outcome"]]
    axes.set_facecolor(color)
    axes.set_title(word, fontsize=style.SMALL)
    axes.axvline(0, color=style.INK, linewidth=1)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    names = ("Teacher", "Baseline")
    levels = [] if row is None else [row["cells"][name]["measured"] for name in names]
    if levels and None not in levels:
        text = " / ".join(f"{level:.0f}" for level in levels)
        _words(axes, len(_LOOKS) + 0.1, f"{text} %")
    for place, (run, (method, _, filled)) in enumerate(_LOOKS.items()):
        cell = None if row is None else row["cells"][RUNS[run]]
        if cell is None or cell["measured"] is None:
            continue
        look: dict[str, Any] = {**style.marks(method), "markersize": 4.5, "capsize": 2.0}
        if not filled:
            look |= {"markerfacecolor": color, "markeredgecolor": style.COLORS[method]}
        style.interval(
            axes, cell["measured"], place, cell["low"], cell["high"],
            elinewidth=1.2, linestyle="none", **look,
        )  # fmt: skip


def _words(axes: Axes, place: float, words: str, **look: Any) -> None:
    """A line of words under the intervals."""
    across = axes.get_yaxis_transform()
    ground = {"facecolor": axes.get_facecolor(), "edgecolor": "none", "pad": 0.8}
    axes.text(
        0.04, place, words, transform=across, va="center", fontsize=8.5, bbox=ground, **look
    )  # fmt: skip


def _mark(axes: Axes, group: str, table: Mapping[str, Any]) -> None:
    """The frame and the name of a marked cell."""
    names = {table["capacity_bound"]: "capacity-bound", table["placed"]: "paper's controls"}
    if group not in names:
        return
    _words(axes, len(_LOOKS) + 1.1, names[group], fontweight="bold")
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(style.INK)
        spine.set_linewidth(2.2)
        spine.set_linestyle("-" if group == table["placed"] else (0, (3, 1.5)))
