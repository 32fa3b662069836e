"""What each component of the loss adds: the effects of Table 3's eight runs (C07)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from replication.judge.quantities import signed
from replication.paper import AVERAGE
from replication.report.figures import style
from replication.report.figures.figure import Figure, NotRun
from replication.report.figures.reading import Inputs, counted, is_standin, listed

TABLE = "effects"
DESIGN = "table3"  # the runs behind the effects
INTERACTION = " × "
_MEASURED, _REPORTED = "measured, 95 % interval", "reported"

Groups = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""The cells of every panel, by the labels of their rows."""


def draw(inputs: Inputs) -> Figure:
    """One row an effect: main effects on every benchmark and on the average, interactions on the
    average.

    Raises:
        NotRun: without the table, for another family than the table's, or without the runs.
    """
    table = inputs.table(TABLE, "components are varied")
    names = [column["name"] for column in table["columns"]]
    columns = [AVERAGE, *(name for name in names if name != AVERAGE)]
    effects = {row["labels"][0]: row["cells"] for row in table["rows"]}
    main = [effect for effect in effects if INTERACTION not in effect]
    groups = {
        f"{effect}, main effect": {_row(name): effects[effect][name] for name in columns}
        for effect in main
    }
    groups["Interactions, average"] = {
        effect: cells[AVERAGE] for effect, cells in effects.items() if effect not in main
    }
    if any(cell["measured"] is None for rows in groups.values() for cell in rows.values()):
        raise NotRun("not all eight runs of Table 3 were trained and evaluated at this scale")
    return inputs.figure(
        families=[inputs.family],
        name="effects",
        title="What each component adds",
        caption=(
            f"Effects of GDKD, RCKA and the adaptive weight (IB) on accuracy, "
            f"{inputs.named(inputs.family)}, BF16 students, from the full design of eight runs of "
            "Table 3. A main effect is the mean of the four runs with the component minus the mean "
            "of the four without it. Filled: measured, with the 95 % interval (paired bootstrap "
            "over questions, and over seeds where there are several). Hollow: the same effects "
            "computed from the printed cells; the paper gives no intervals. "
            + inputs.reservations(is_standin(table))
        ),
        alt="Dot plot of main effects on the average. "
        + " ".join(_in_words(effect, effects[effect][AVERAGE]) for effect in main),
        n=_questions(inputs),
        units="percentage points of accuracy",
        sources=tuple(inputs.source(f"tables/{name}.json") for name in (TABLE, DESIGN)),
        claims=("C07",),
        data={
            "family": inputs.family,
            "columns": columns,
            "effects": {
                effect: {
                    name: {key: cell[key] for key in ("measured", "low", "high", "reported")}
                    for name, cell in cells.items()
                }
                for effect, cells in effects.items()
            },
        },
        canvas=_canvas(groups),
    )


def _canvas(groups: Groups) -> Canvas:
    canvas = style.canvas(style.WIDTH, 5.4)
    heights = [len(rows) + 0.4 for rows in groups.values()]
    panels = canvas.subplots(len(groups), 1, sharex=True, height_ratios=heights)
    for axes, (title, rows) in zip(panels, groups.items(), strict=True):
        style.heading(axes, title)
        axes.axvline(0, color=style.INK, linewidth=1)
        for place, cell in enumerate(rows.values()):
            _draw(axes, place, cell)
        style.rows(axes, list(rows))
    panels[-1].set_xlabel("effect, percentage points")
    style.legend(canvas, [panels[0]], [_MEASURED, _REPORTED])
    return canvas


def _draw(axes: Axes, place: int, cell: Mapping[str, Any]) -> None:
    style.interval(
        axes, cell["measured"], place, cell["low"], cell["high"], color=style.COLORS["grace"],
        marker=style.MARKERS["grace"], capsize=2.5, linestyle="none", label=_MEASURED,
    )  # fmt: skip
    if cell["reported"] is not None:
        axes.plot(
            cell["reported"], place, marker="D", markersize=8, markerfacecolor="none",
            markeredgecolor=style.INK, linestyle="none", zorder=4, label=_REPORTED,
        )  # fmt: skip


def _row(name: str) -> str:
    return "average" if name == AVERAGE else name


def _in_words(effect: str, cell: Mapping[str, Any]) -> str:
    measured, low, high, reported = (
        signed(cell[key], 2) for key in ("measured", "low", "high", "reported")
    )
    return f"{effect}: measured {measured} points, from {low} to {high}; reported {reported}."


def _questions(inputs: Inputs) -> str:
    """What the eight runs answered, as Table 3 says."""
    table = inputs.table(DESIGN)
    runs = [row for row in table["rows"] if row["role"] in ("ablation", "ours")]
    seeds = counted((len(row["seeds"]) for row in runs), "seed")
    sizes = [f"{c['name']} {c['n']:,}" for c in table["columns"] if c["name"] != AVERAGE]
    return f"{len(runs)} runs of {seeds}; questions: {listed(sizes)}"
