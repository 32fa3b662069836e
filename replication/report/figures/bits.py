"""Accuracy against the bits of a weight, for every method (R08)."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from replication.report.figures import reading, style
from replication.report.figures.figure import Figure, NotRun
from replication.report.figures.reading import Accuracy, Inputs

TABLE = "bits"
SELF = "qad"  # the table that has self-distillation at every width, too
ORDER = ("rtn", "awq", "qat", "kd", "qad", "grace")
_DODGE = 0.11  # of the distance between two widths
_ROOM = 1.0  # points around what the lower panel shows

Curves = Mapping[str, list[Accuracy]]


def draw(inputs: Inputs) -> Figure:
    """Two panels of the same points: all of them, and closer those near the baseline.

    Raises:
        NotRun: without the table, for another family than the table's, or where fewer than two bit
            widths were measured.
    """
    table = inputs.table(TABLE, "bit widths are swept")
    runs, sources = reading.accuracies(table), [inputs.source(f"tables/{TABLE}.json")]
    if other := _self_distillation(inputs, reading.averaged(table)):
        runs = {**other, **runs}
        sources.append(inputs.source(f"tables/{SELF}.json"))
    curves = {
        method: sorted(
            (point for run, point in runs.items() if style.method_of(run) == method),
            key=lambda point: -point.bits,
        )
        for method in ORDER
    }
    curves = {method: points for method, points in curves.items() if points}
    widths = sorted({point.bits for points in curves.values() for point in points}, reverse=True)
    if len(widths) < 2:
        raise NotRun("fewer than two bit widths were trained and evaluated at this scale")
    baseline, names = runs["baseline"], reading.averaged(table)
    seeds = [point.seeds for points in curves.values() for point in points]
    return inputs.figure(
        families=[inputs.family],
        name="bits",
        title="Accuracy against the bits of a weight",
        caption=(
            f"Average accuracy of {reading.listed(names)}, {inputs.named(inputs.family)}, by the "
            "number of bits of a decoder weight. Above all widths, below the same points near the "
            "BF16 baseline (dashed). RTN and AWQ quantize the baseline without training; QAT, "
            "naive KD, QAD and GRACE train it. Bars: the 95 % interval of the difference from the "
            "baseline (paired bootstrap over questions, and over seeds where there are several); "
            "one that does not reach the dashed line differs from it. "
            + inputs.reservations(reading.is_standin(table))
        ),
        alt=_alt(curves, baseline),
        n=f"{baseline.n:,} questions; {reading.counted(seeds, 'seed')} a point",
        units="accuracy in percent; bits of a decoder weight",
        sources=tuple(sources),
        claims=("R08", "C05", "C14"),
        data={
            "family": inputs.family,
            "benchmarks": names,
            "baseline": vars(baseline),
            "methods": {method: list(map(vars, points)) for method, points in curves.items()},
        },
        canvas=_canvas(curves, widths, baseline),
    )


def _self_distillation(inputs: Inputs, benchmarks: list[str]) -> dict[str, Accuracy]:
    """The runs of the table beside it, where it was written and averages the same."""
    try:
        table = inputs.table(SELF, "bit widths are swept")
    except NotRun:
        return {}
    return reading.accuracies(table) if reading.averaged(table) == benchmarks else {}


def _alt(curves: Curves, baseline: Accuracy) -> str:
    lines = (
        f"{style.LABELS[method]}: "
        + ", ".join(f"{point.accuracy:.1f} at {point.bits} bits" for point in points)
        for method, points in curves.items()
    )
    return (
        f"Line chart of accuracy by bit width; the baseline has {baseline.accuracy:.1f} percent. "
        f"{'; '.join(lines)}."
    )


def _canvas(curves: Curves, widths: list[int], baseline: Accuracy) -> Canvas:
    canvas = style.canvas(style.WIDTH, 5.6)
    whole, close = canvas.subplots(2, 1, sharex=True)
    for axes in (whole, close):
        _draw(axes, curves, widths)
        axes.axhline(
            baseline.accuracy, color=style.COLORS["baseline"], linestyle="--", zorder=1,
            label="BF16 baseline",
        )  # fmt: skip
        axes.set_ylabel("accuracy, %")
    style.heading(whole, "All widths")
    style.heading(close, "Near the baseline")
    least = baseline.accuracy - 10
    near = [point for points in curves.values() for point in points if point.accuracy > least]
    low = min(point.accuracy - point.reach[0] for point in near)
    high = max(point.accuracy + point.reach[1] for point in (*near, baseline))
    close.set_ylim(low - _ROOM, high + _ROOM)
    close.set_xlabel("bits of a decoder weight")
    close.set_xticks(range(len(widths)), [str(bits) for bits in widths])
    close.set_xlim(-0.4, len(widths) - 0.6)
    style.legend(canvas, [whole], columns=3)
    return canvas


def _draw(axes: Axes, curves: Curves, widths: list[int]) -> None:
    for index, (method, points) in enumerate(curves.items()):
        shift = (index - (len(curves) - 1) / 2) * _DODGE
        axes.errorbar(
            [widths.index(point.bits) + shift for point in points],
            [point.accuracy for point in points],
            yerr=list(zip(*(point.reach for point in points), strict=True)),
            label=style.LABELS[method],
            linewidth=1.2,
            elinewidth=1.2,
            capsize=2,
            **style.marks(method),
        )
