"""Answers that change from one model to another, by question type (R07)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from replication.judge.quantities import signed
from replication.report.figures import style
from replication.report.figures.figure import Figure, NotRun, command_of
from replication.report.figures.reading import (
    is_standin,
    read_table,
    source,
    standins,
    table_path,
)
from replication.report.names import FAMILIES

TABLE = "flips"
PAIRS = ("grace_bf16 → grace_int4", "baseline → grace_int4")
NAMES = {
    "baseline": "baseline",
    "grace_bf16": "BF16 GRACE",
    "grace_int4": "INT4 GRACE",
}
_LOST, _GAINED = style.COLORS["grace"], style.COLORS["qat"]


def draw(results: Path, scale: str, family: str) -> Figure:
    """Two panels, what quantization changes and what all of the method changes: one row a type.

    Raises NotRun without the table, for another family than the table's, or without the runs."""
    table = read_table(results, scale, TABLE)
    if table["family"] != family:
        raise NotRun(f"changed answers are counted in {table['family']}, not in {family}")
    pairs: dict[str, list[dict[str, Any]]] = {}
    for row in table["rows"]:
        pair, kind = row["labels"]
        if pair in PAIRS and row["cells"]["Questions"]["measured"] is not None:
            pairs.setdefault(pair, []).append(_type(kind, row["cells"]))
    if list(pairs) != list(PAIRS):
        lacking = [pair for pair in PAIRS if pair not in pairs]
        raise NotRun(f"not evaluated at this scale: {'; '.join(lacking)}")
    worst = {pair: min(types, key=lambda one: one["change"]) for pair, types in pairs.items()}
    order = sorted(pairs[PAIRS[-1]], key=lambda one: one["change"])
    kinds = [one["type"] for one in order]

    canvas = style.canvas(style.WIDTH, 0.29 * len(kinds) + 1.5)
    panels = canvas.subplots(1, 2, sharey=True, sharex=True)
    for axes, pair in zip(panels, PAIRS, strict=True):
        by_kind = {one["type"]: one for one in pairs[pair]}
        _draw(axes, [by_kind[kind] for kind in kinds])
        first, second = (NAMES[run] for run in pair.split(" → "))
        axes.set_title(f"{first}\nto {second}", fontsize=style.SMALL)
        axes.set_xlabel("questions, %")
    panels[0].set_yticks(range(len(kinds)), kinds)
    panels[0].set_ylim(len(kinds) - 0.4, -0.6)
    handles, labels = panels[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside upper center", ncols=2)

    questions = [one["questions"] for one in order]
    return Figure(
        name="flips",
        title="Answers that change, by question type",
        caption=(
            f"Share of the questions of a type whose answer changes, {FAMILIES[family]}: to the "
            "left right answers that become wrong, to the right wrong ones that become right. "
            "Black: the change of the score, second model minus first, with its 95 % interval "
            "(paired bootstrap over questions, and over seeds where there are several). Left: the "
            "same distillation at 16 and at 4 bits; right: training and quantization together. "
            "Counts are means over seeds. " + standins(scale, is_standin(table))
        ),
        alt="Bar chart of changed answers by question type. "
        + " ".join(
            f"From {_named(pair)} the type that loses most is {one['type']}: "
            f"{signed(one['change'])} points, from {signed(one['low'])} to {signed(one['high'])}."
            for pair, one in worst.items()
        ),
        n=(
            f"{len(kinds)} question types of {min(questions):,.0f} to {max(questions):,.0f} "
            "questions"
        ),
        units="percent of the questions of a type",
        sources=(source(results, table_path(results, scale, TABLE)),),
        command=command_of(scale),
        paper=None,
        claims=("R07",),
        data={"family": family, "pairs": pairs},
        canvas=canvas,
    )


def _named(pair: str) -> str:
    return " to ".join(NAMES[run] for run in pair.split(" → "))


def _type(kind: str, cells: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    questions, change = cells["Questions"]["measured"], cells["Change"]
    return {
        "type": kind,
        "questions": questions,
        "lost_percent": 100 * cells["Right → wrong"]["measured"] / questions,
        "gained_percent": 100 * cells["Wrong → right"]["measured"] / questions,
        "change": change["measured"],
        "low": change["low"],
        "high": change["high"],
    }


def _draw(axes: Axes, types: list[dict[str, Any]]) -> None:
    places = range(len(types))
    lost = [-one["lost_percent"] for one in types]
    gained = [one["gained_percent"] for one in types]
    axes.barh(places, lost, color=_LOST, height=0.72, label="right, then wrong")
    axes.barh(
        places, gained, color=_GAINED, height=0.72, hatch="///", edgecolor="white",
        linewidth=0, label="wrong, then right",
    )  # fmt: skip
    axes.errorbar(
        [one["change"] for one in types],
        places,
        xerr=[
            [max(0.0, one["change"] - one["low"]) for one in types],
            [max(0.0, one["high"] - one["change"]) for one in types],
        ],
        color=style.INK,
        marker="o",
        markersize=4,
        linestyle="none",
        elinewidth=1.2,
        capsize=2,
        label="change, 95 % interval",
    )
    axes.axvline(0, color=style.INK, linewidth=1)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
