"""Answers that change from one model to another, by question type (R07)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from replication.judge.quantities import signed
from replication.report.figures import style
from replication.report.figures.figure import Figure, NotRun
from replication.report.figures.reading import Inputs, is_standin

TABLE = "flips"
PAIRS = ("grace_bf16 → grace_int4", "baseline → grace_int4")
NAMES = {
    "baseline": "baseline",
    "grace_bf16": "BF16 GRACE",
    "grace_int4": "INT4 GRACE",
}

Types = Mapping[str, Sequence[Mapping[str, Any]]]
"""By pair of runs, what changes in each question type."""


def draw(inputs: Inputs) -> Figure:
    """Two panels, what quantization changes and what all of the method changes: one row a type.

    Raises:
        NotRun: without the table, for another family than the table's, or without the runs.
    """
    table = inputs.table(TABLE, "changed answers are counted")
    pairs: dict[str, list[dict[str, Any]]] = {}
    for row in table["rows"]:
        pair, kind = row["labels"]
        if pair in PAIRS and row["cells"]["Questions"]["measured"] is not None:
            pairs.setdefault(pair, []).append(_type(kind, row["cells"]))
    if list(pairs) != list(PAIRS):
        lacking = [pair for pair in PAIRS if pair not in pairs]
        raise NotRun(f"not evaluated at this scale: {'; '.join(lacking)}")
    questions = [row["questions"] for row in pairs[PAIRS[-1]]]
    return inputs.figure(
        families=[inputs.family],
        name="flips",
        title="Answers that change, by question type",
        caption=(
            "Share of the questions of a type whose answer changes, "
            f"{inputs.named(inputs.family)}: to the left right answers that become wrong, to the "
            "right wrong ones that become right. Black: the change of the score, second model "
            "minus first, with its 95 % interval (paired bootstrap over questions, and over seeds "
            "where there are several). Left: the "
            "same distillation at 16 and at 4 bits; right: training and quantization together. "
            "Counts are means over seeds. " + inputs.reservations(is_standin(table))
        ),
        alt="Bar chart of changed answers by question type. "
        + " ".join(_in_words(pair, types) for pair, types in pairs.items()),
        n=(
            f"{len(questions)} question types of {min(questions):,.0f} to {max(questions):,.0f} "
            "questions"
        ),
        units="percent of the questions of a type",
        sources=(inputs.source(f"tables/{TABLE}.json"),),
        claims=("R07",),
        data={"family": inputs.family, "pairs": pairs},
        canvas=_canvas(pairs),
    )


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


def _in_words(pair: str, types: Sequence[Mapping[str, Any]]) -> str:
    worst = min(types, key=lambda row: row["change"])
    change, low, high = (signed(worst[key]) for key in ("change", "low", "high"))
    runs = " to ".join(NAMES[run] for run in pair.split(" → "))
    return (
        f"From {runs} the type that loses most is {worst['type']}: {change} points, from {low} to "
        f"{high}."
    )


def _canvas(pairs: Types) -> Canvas:
    order = [row["type"] for row in sorted(pairs[PAIRS[-1]], key=lambda row: row["change"])]
    canvas = style.canvas(style.WIDTH, 0.29 * len(order) + 1.5)
    panels = canvas.subplots(1, 2, sharey=True, sharex=True)
    for axes, pair in zip(panels, PAIRS, strict=True):
        _draw(axes, sorted(pairs[pair], key=lambda row: order.index(row["type"])))
        first, second = (NAMES[run] for run in pair.split(" → "))
        axes.set_title(f"{first}\nto {second}", fontsize=style.SMALL)
        axes.set_xlabel("questions, %")
    style.rows(panels[0], order, room=0.6)
    style.legend(canvas, [panels[0]])
    return canvas


def _draw(axes: Axes, types: Sequence[Mapping[str, Any]]) -> None:
    places = range(len(types))
    lost = [-row["lost_percent"] for row in types]
    gained = [row["gained_percent"] for row in types]
    axes.barh(places, lost, color=style.COLORS["grace"], height=0.72, label="right, then wrong")
    axes.barh(
        places, gained, color=style.COLORS["qat"], height=0.72, hatch="///", edgecolor="white",
        linewidth=0, label="wrong, then right",
    )  # fmt: skip
    reaches = [style.reach(row["change"], row["low"], row["high"]) for row in types]
    axes.errorbar(
        [row["change"] for row in types], places, xerr=list(zip(*reaches, strict=True)),
        color=style.INK, marker="o", markersize=4, linestyle="none", elinewidth=1.2, capsize=2,
        label="change, 95 % interval",
    )  # fmt: skip
    axes.axvline(0, color=style.INK, linewidth=1)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
