"""Accuracy against the bits of a weight, for every method (R08)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes

from replication.report.figures import style
from replication.report.figures.figure import Figure, NotRun, command_of
from replication.report.figures.reading import (
    Accuracy,
    accuracies,
    averaged,
    counted,
    is_standin,
    listed,
    read_table,
    source,
    standins,
    table_path,
)
from replication.report.names import FAMILIES

TABLE = "bits"
METHODS = ("rtn", "awq", "qat", "kd", "grace")
_DODGE = 0.11  # of the distance between two widths
_ROOM = 1.0  # points around what the lower panel shows


def draw(results: Path, scale: str, family: str) -> Figure:
    """Two panels of the same points: all of them, and closer those near the baseline.

    Raises NotRun without the table, for another family than the table's, or where fewer than two
    bit widths were measured."""
    table = read_table(results, scale, TABLE)
    if table["family"] != family:
        raise NotRun(f"bit widths are swept in {table['family']}, not in {family}")
    found = accuracies(table)
    curves: dict[str, list[Accuracy]] = {
        method: sorted(
            (one for run, one in found.items() if style.method_of(run) == method),
            key=lambda one: -one.bits,
        )
        for method in METHODS
    }
    curves = {method: points for method, points in curves.items() if points}
    widths = sorted({one.bits for points in curves.values() for one in points}, reverse=True)
    if len(widths) < 2:
        raise NotRun("fewer than two bit widths were trained and evaluated at this scale")
    baseline = found["baseline"]
    near = [p for points in curves.values() for p in points if p.point > baseline.point - 10]

    canvas = style.canvas(style.WIDTH, 5.6)
    whole, close = canvas.subplots(2, 1, sharex=True)
    for axes in (whole, close):
        _draw(axes, curves, widths)
        axes.axhline(
            baseline.point, color=style.COLORS["baseline"], linestyle="--", zorder=1,
            label="BF16 baseline",
        )  # fmt: skip
    style.heading(whole, "All widths")
    style.heading(close, "Near the baseline")
    low = min(one.point - one.reach[0] for one in near)
    high = max(one.point + one.reach[1] for one in (*near, baseline))
    close.set_ylim(low - _ROOM, high + _ROOM)
    whole.set_ylabel("accuracy, %")
    close.set_ylabel("accuracy, %")
    close.set_xlabel("bits of a decoder weight")
    close.set_xticks(range(len(widths)), [str(bits) for bits in widths])
    close.set_xlim(-0.4, len(widths) - 0.6)
    handles, labels = whole.get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside upper center", ncols=3)

    names = averaged(table)
    seeds = [one.seeds for points in curves.values() for one in points]
    return Figure(
        name="bits",
        title="Accuracy against the bits of a weight",
        caption=(
            f"Average accuracy of {listed(names)}, {FAMILIES[family]}, by the number of bits of a "
            "decoder weight. Above all widths, below the same points near the BF16 baseline "
            "(dashed). RTN and AWQ quantize the baseline without training; QAT, naive KD and GRACE "
            "train it. Bars: the 95 % interval of the difference from the baseline (paired "
            "bootstrap over questions, and over seeds where there are several); one that does not "
            "reach the dashed line differs from it. " + standins(scale, is_standin(table))
        ),
        alt=(
            f"Line chart of accuracy by bit width; the baseline has {baseline.point:.1f} percent. "
            + "; ".join(
                f"{style.LABELS[method]}: "
                + ", ".join(f"{one.point:.1f} at {one.bits} bits" for one in points)
                for method, points in curves.items()
            )
            + "."
        ),
        n=f"{baseline.n:,} questions; {counted(seeds, 'seed')} a point",
        units="accuracy in percent; bits of a decoder weight",
        sources=(source(results, table_path(results, scale, TABLE)),),
        command=command_of(scale),
        paper=None,
        claims=("R08", "C05", "C14"),
        data={
            "family": family,
            "benchmarks": names,
            "baseline": baseline.record(),
            "methods": {
                method: [one.record() for one in points] for method, points in curves.items()
            },
        },
        canvas=canvas,
    )


def _draw(axes: Axes, curves: Mapping[str, list[Accuracy]], widths: list[int]) -> None:
    for index, (method, points) in enumerate(curves.items()):
        shift = (index - (len(curves) - 1) / 2) * _DODGE
        axes.errorbar(
            [widths.index(one.bits) + shift for one in points],
            [one.point for one in points],
            yerr=list(zip(*(one.reach for one in points), strict=True)),
            label=style.LABELS[method],
            linewidth=1.2,
            elinewidth=1.2,
            capsize=2,
            **style.marks(method),
        )
