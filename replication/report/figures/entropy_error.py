"""The teacher's entropy against its errors (the paper's Figure 2; C11)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from replication.base.scales import FULL_SCALE
from replication.paper import load_tables
from replication.report.figures import style
from replication.report.figures.figure import Figure, NotRun
from replication.report.figures.observed import numbers, span
from replication.report.figures.reading import Inputs, listed
from replication.results.measurements import Measurement, read_measurement

PRINTED = "llava"  # the family whose teacher the paper shows


def draw(inputs: Inputs) -> Figure:
    """One panel a family that was measured.

    Raises:
        NotRun: where no family was, or no teacher was both right and wrong.
    """
    families: dict[str, Measurement] = {}
    for name in inputs.families:
        measured = read_measurement(inputs.results, inputs.scale, f"entropy_error-{name}")
        if measured is not None and measured.values:
            families[name] = measured
    if not families:
        raise NotRun(
            "no teacher's entropy was measured, or its answers were all right or all wrong"
        )
    reported = load_tables().figures["figure2_entropy_vs_error"]
    counts = [
        f"{inputs.named(name)} {measured.n['items']:,}" for name, measured in families.items()
    ]
    bins = next(iter(families.values())).n["bins"]
    return inputs.figure(
        families=families,
        name="entropy_error",
        title="Teacher's entropy and teacher's error",
        caption=(
            "Share of wrong answers against the entropy of the first token of the teacher's "
            f"answer, ScienceQA, in {bins} bins of equal count (the axis of entropy is "
            "logarithmic, because most answers are nearly certain). Line: the straight line "
            "through the bins' means, whose R² is given. r: correlation over single questions. "
            "Brackets: 95 % intervals, by a bootstrap over questions. The paper reports r = "
            f"{reported['pearson_r']:g} and a binned R² of {reported['binned_r2']:g} for "
            f"{reported['teacher']}. " + inputs.reservations(inputs.scale != FULL_SCALE)
        ),
        alt="Scatter plots of error rate against entropy, by bin. "
        + " ".join(_in_words(inputs.named(name), measured) for name, measured in families.items()),
        n=f"questions: {listed(counts)}; {bins} bins each",
        units="nats; percent of answers",
        sources=tuple(
            inputs.source(f"measurements/entropy_error-{name}.json") for name in families
        ),
        paper="Figure 2",
        claims=("C11",),
        data={
            "reported": {key: reported[key] for key in ("pearson_r", "binned_r2")},
            "families": {name: _record(measured) for name, measured in families.items()},
        },
        canvas=_canvas(families, reported, {name: inputs.named(name) for name in families}),
    )


def _in_words(family: str, measured: Measurement) -> str:
    errors, r, r2 = (
        measured.data["bin_error"], measured.values["pearson_r"], measured.values["binned_r2"]
    )  # fmt: skip
    return (
        f"{family}: from {min(errors):.1%} wrong in the most certain bins to {max(errors):.1%} in "
        f"the least certain; r = {r.point:.2f}, binned R² = {r2.point:.2f}."
    )


def _record(measured: Measurement) -> dict[str, Any]:
    return {
        "n": measured.n["items"],
        "bin_entropy": list(measured.data["bin_entropy"]),
        "bin_error": list(measured.data["bin_error"]),
        **{key: numbers(interval) for key, interval in measured.values.items()},
    }


def _canvas(
    families: Mapping[str, Measurement], reported: Mapping[str, Any], names: Mapping[str, str]
) -> Canvas:
    canvas = style.canvas(style.WIDTH, 1.75 * len(families) + 0.4)
    panels = canvas.subplots(len(families), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, measured) in zip(panels, families.items(), strict=True):
        _draw(axes, measured, reported if name == PRINTED else None)
        style.heading(axes, names[name], f"n = {measured.n['items']:,}")
    panels[-1].set_xlabel("teacher's entropy, nats (mean of a bin)")
    canvas.supylabel("wrong answers, %", fontsize=style.SMALL)
    return canvas


def _draw(axes: Axes, measured: Measurement, reported: Mapping[str, Any] | None) -> None:
    entropy = np.array(measured.data["bin_entropy"])
    error = 100 * np.array(measured.data["bin_error"])
    slope, start = np.polyfit(entropy, error, 1)
    line = np.linspace(entropy.min(), entropy.max(), 200)
    if entropy.min() > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        line = np.geomspace(entropy.min(), entropy.max(), 200)
    axes.plot(line, start + slope * line, color=style.GREY, linewidth=1.2, zorder=1)
    axes.plot(entropy, error, linestyle="none", **{**style.marks("teacher"), "markersize": 9})
    top = max(error.max(), 1.0)
    axes.set_ylim(-0.12 * top, 1.2 * top)
    lines = [
        f"{name} = {span(measured.values[key], 2)}"
        for name, key in (("r", "pearson_r"), ("binned R²", "binned_r2"))
    ]
    if reported is not None:
        lines.append(f"paper: r = {reported['pearson_r']:g}, R² = {reported['binned_r2']:g}")
    axes.text(0.02, 0.95, "\n".join(lines), transform=axes.transAxes, va="top")
