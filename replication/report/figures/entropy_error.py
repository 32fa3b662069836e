"""The teacher's entropy against its errors (the paper's Figure 2; C11)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from replication.base.scales import FULL_SCALE
from replication.paper import load_tables
from replication.report.figures import style
from replication.report.figures.figure import Figure, NotRun, command_of
from replication.report.figures.reading import listed, source, standins
from replication.report.names import FAMILIES
from replication.results.measurements import Measurement, measurement_path, read_measurement

PRINTED = "llava"  # the family whose teacher the paper shows


def draw(results: Path, scale: str, family: str) -> Figure:
    """One panel a family that was measured, `family` first.

    Raises NotRun where no family was, or no teacher was both right and wrong."""
    found: dict[str, Measurement] = {}
    for name in (family, *(one for one in FAMILIES if one != family)):
        measured = read_measurement(results, scale, f"entropy_error-{name}")
        if measured is not None and measured.values:
            found[name] = measured
    if not found:
        raise NotRun("no teacher's entropy was measured at this scale, or every answer was right")
    reported = load_tables().figures["figure2_entropy_vs_error"]
    canvas = style.canvas(style.WIDTH, 1.75 * len(found) + 0.4)
    panels = canvas.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, measured) in zip(panels, found.items(), strict=True):
        _draw(axes, measured, reported if name == PRINTED else None)
        style.heading(axes, FAMILIES[name], f"n = {measured.n['items']:,}")
    panels[-1].set_xlabel("teacher's entropy, nats (mean of a bin)")
    canvas.supylabel("wrong answers, %", fontsize=style.SMALL)
    counts = [f"{FAMILIES[name]} {one.n['items']:,}" for name, one in found.items()]
    bins = next(iter(found.values())).n["bins"]
    return Figure(
        name="entropy_error",
        title="Teacher's entropy and teacher's error",
        caption=(
            "Share of wrong answers against the entropy of the first token of the teacher's "
            f"answer, ScienceQA, in {bins} bins of equal count (the axis of entropy is "
            "logarithmic, because most answers are nearly certain). Line: the straight line "
            "through the bins' means, whose R² is given. r: correlation over single questions. "
            "Brackets: 95 % intervals, by a bootstrap over questions. The paper reports r = "
            f"{reported['pearson_r']:g} and a binned R² of {reported['binned_r2']:g} for "
            f"{reported['teacher']}. " + standins(scale, scale != FULL_SCALE)
        ),
        alt="Scatter plots of error rate against entropy, by bin. "
        + " ".join(
            f"{FAMILIES[name]}: from {min(one.data['bin_error']):.1%} wrong in the most certain "
            f"bins to {max(one.data['bin_error']):.1%} in the least certain; "
            f"r = {one.values['pearson_r'].point:.2f}, binned R² = "
            f"{one.values['binned_r2'].point:.2f}."
            for name, one in found.items()
        ),
        n=f"questions: {listed(counts)}; {bins} bins each",
        units="nats; percent of answers",
        sources=tuple(
            source(results, measurement_path(results, scale, f"entropy_error-{name}"))
            for name in found
        ),
        command=command_of(scale),
        paper="Figure 2",
        claims=("C11",),
        data={
            "reported": {key: reported[key] for key in ("pearson_r", "binned_r2")},
            "families": {
                name: {
                    "n": one.n["items"],
                    "bin_entropy": list(one.data["bin_entropy"]),
                    "bin_error": list(one.data["bin_error"]),
                    **{
                        key: {"point": i.point, "low": i.low, "high": i.high}
                        for key, i in one.values.items()
                    },
                }
                for name, one in found.items()
            },
        },
        canvas=canvas,
    )


def _draw(axes: Axes, measured: Measurement, reported: dict | None) -> None:
    entropy = np.array(measured.data["bin_entropy"])
    error = 100 * np.array(measured.data["bin_error"])
    slope, start = np.polyfit(entropy, error, 1)
    if entropy.min() > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        line = np.geomspace(entropy.min(), entropy.max(), 200)
    else:
        line = np.linspace(entropy.min(), entropy.max(), 200)
    axes.plot(line, start + slope * line, color=style.GREY, linewidth=1.2, zorder=1)
    axes.plot(entropy, error, linestyle="none", **{**style.marks("teacher"), "markersize": 9})
    top = max(error.max(), 1.0)
    axes.set_ylim(-0.12 * top, 1.2 * top)
    said = [
        f"{name} = {i.point:.2f} [{i.low:.2f}, {i.high:.2f}]"
        for name, i in (
            ("r", measured.values["pearson_r"]),
            ("binned R²", measured.values["binned_r2"]),
        )
    ]
    if reported is not None:
        said.append(f"paper: r = {reported['pearson_r']:g}, R² = {reported['binned_r2']:g}")
    axes.text(0.02, 0.95, "\n".join(said), transform=axes.transAxes, va="top")
