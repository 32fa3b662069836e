"""What each component of the loss adds: the effects of Table 3's eight runs (C07)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from replication.judge.quantities import signed
from replication.paper import AVERAGE
from replication.report.figures import style
from replication.report.figures.figure import Figure, NotRun, command_of
from replication.report.figures.reading import (
    counted,
    is_standin,
    listed,
    read_table,
    source,
    standins,
    table_path,
)
from replication.report.names import FAMILIES

TABLE = "effects"
DESIGN = "table3"  # the runs behind the effects
INTERACTION = " × "


def draw(results: Path, scale: str, family: str) -> Figure:
    """One row an effect: main effects on every benchmark and on the average, interactions on the
    average.

    Raises NotRun without the table, for another family than the table's, or without the runs."""
    table = read_table(results, scale, TABLE)
    if table["family"] != family:
        raise NotRun(f"components are varied in {table['family']}, not in {family}")
    names = [column["name"] for column in table["columns"]]
    columns = [AVERAGE, *(name for name in names if name != AVERAGE)]
    groups: list[tuple[str, list[tuple[str, dict[str, Any]]]]] = []
    interactions = []
    for row in table["rows"]:
        effect = row["labels"][0]
        if INTERACTION in effect:
            interactions.append((effect, row["cells"][AVERAGE]))
        else:
            shown = [(_column(name), row["cells"][name]) for name in columns]
            groups.append((f"{effect}, main effect", shown))
    groups.append(("Interactions, average", interactions))
    if any(cell["measured"] is None for _, rows in groups for _, cell in rows):
        raise NotRun("not all eight runs of Table 3 were trained and evaluated at this scale")

    canvas = style.canvas(style.WIDTH, 5.4)
    axes = canvas.subplots(
        len(groups), 1, sharex=True, height_ratios=[len(rows) + 0.4 for _, rows in groups]
    )
    color = style.COLORS["grace"]
    for panel, (title, rows) in zip(axes, groups, strict=True):
        style.heading(panel, title)
        panel.axvline(0, color=style.INK, linewidth=1)
        for place, (_, cell) in enumerate(rows):
            panel.errorbar(
                cell["measured"],
                place,
                xerr=[
                    [max(0.0, cell["measured"] - cell["low"])],
                    [max(0.0, cell["high"] - cell["measured"])],
                ],
                color=color,
                marker=style.MARKERS["grace"],
                capsize=2.5,
                linestyle="none",
                label="measured, 95 % interval",
            )
            if cell["reported"] is not None:
                panel.plot(
                    cell["reported"],
                    place,
                    marker="D",
                    markersize=8,
                    markerfacecolor="none",
                    markeredgecolor=style.INK,
                    linestyle="none",
                    zorder=4,
                    label="reported",
                )
        panel.set_yticks(range(len(rows)), [label for label, _ in rows])
        panel.set_ylim(len(rows) - 0.5, -0.5)
        panel.grid(axis="y", visible=False)
    axes[-1].set_xlabel("effect, percentage points")
    handles, labels = axes[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    canvas.legend(
        [unique[label] for label in sorted(unique)],
        sorted(unique),
        loc="outside upper center",
        ncols=2,
    )

    main = {title.partition(",")[0]: rows[0][1] for title, rows in groups[:-1]}
    return Figure(
        name="effects",
        title="What each component adds",
        caption=(
            f"Effects of GDKD, RCKA and the adaptive weight (IB) on accuracy, {FAMILIES[family]}, "
            "BF16 students, from the full design of eight runs of Table 3. A main effect is the "
            "mean of the four runs with the component minus the mean of the four without it. "
            "Filled: measured, with the 95 % interval (paired bootstrap over questions, and over "
            "seeds where there are several). Hollow: the same effects computed from the printed "
            "cells; the paper gives no intervals. " + standins(scale, is_standin(table))
        ),
        alt=(
            "Dot plot of main effects on the average. "
            + " ".join(
                f"{name}: measured {signed(cell['measured'], 2)} points, from "
                f"{signed(cell['low'], 2)} to {signed(cell['high'], 2)}; reported "
                f"{signed(cell['reported'], 2)}."
                for name, cell in main.items()
            )
        ),
        n=_questions(results, scale),
        units="percentage points of accuracy",
        sources=tuple(
            source(results, table_path(results, scale, name)) for name in (TABLE, DESIGN)
        ),
        command=command_of(scale),
        paper=None,
        claims=("C07",),
        data={
            "family": family,
            "columns": columns,
            "effects": {
                row["labels"][0]: {
                    name: {key: cell[key] for key in ("measured", "low", "high", "reported")}
                    for name, cell in row["cells"].items()
                }
                for row in table["rows"]
            },
        },
        canvas=canvas,
    )


def _column(name: str) -> str:
    return "average" if name == AVERAGE else name


def _questions(results: Path, scale: str) -> str:
    """What the eight runs answered, as Table 3 says."""
    table = read_table(results, scale, DESIGN)
    asked = {column["name"]: column["n"] for column in table["columns"]}
    runs = [row for row in table["rows"] if row["role"] in ("ablation", "ours")]
    seeds = [len(row["seeds"]) for row in runs]
    sizes = [f"{name} {asked[name]:,}" for name in asked if name != AVERAGE]
    return f"{len(runs)} runs of {counted(seeds, 'seed')}; questions: {listed(sizes)}"
