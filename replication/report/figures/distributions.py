"""How gates, weights and scales are distributed, and what training makes of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from replication.report.figures import observed, style
from replication.report.figures.figure import Figure, command_of
from replication.report.figures.reading import standins
from replication.report.names import FAMILIES


def draw(results: Path, scale: str, family: str) -> Figure:
    """Four histograms: the confidence gate; decoder weights and scales, before and after
    quantization-aware training; and how much each scale changes.

    Raises NotRun where nothing was measured inside the family's models.
    """
    found = observed.read(results, scale, family)
    shown, bits = found.data["distributions"], found.data["bits"]
    gate, weights, scales = shown["gates"]["gate"], shown["weights"], shown["scales"]
    ratio = shown["scale_ratio"]["ratio"]

    canvas = style.canvas(style.WIDTH, 4.2)
    (of_gates, of_weights), (of_scales, of_ratios) = canvas.subplots(2, 2)
    before, after = style.COLORS["baseline"], style.COLORS["grace"]
    _fill(of_gates, shown["gates"]["edges"], gate, style.COLORS["teacher"])
    of_gates.set_yscale("log")
    of_gates.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    of_gates.set_xlabel("gate $g$ of a token")
    of_gates.set_ylabel("tokens, %")
    of_gates.set_title("Gate")
    for axes, part, what in (
        (of_weights, weights, "weights"),
        (of_scales, scales, "scales"),
    ):
        _outline(axes, part["edges"], part["before"], before, "before")
        _outline(axes, part["edges"], part["after"], after, "after")
        axes.set_ylabel(f"{what}, %")
        axes.set_title(what.capitalize())
    of_weights.set_xlabel("decoder weight")
    of_scales.set_xlabel("scale $s$ of a group")
    _fill(of_ratios, shown["scale_ratio"]["edges"], ratio, after)
    of_ratios.axvline(1, color=style.INK, linewidth=1)
    of_ratios.set_xlabel("$s$ after / $s$ before")
    of_ratios.set_ylabel("scales, %")
    of_ratios.set_title("Change of scales")
    handles, labels = of_weights.get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside upper center", ncols=2)

    kappa = found.data["kappa"]
    lowest, sharpness = math.exp(-kappa), "" if kappa == 1 else f"{kappa:g}·"
    return Figure(
        name="distributions",
        title="Gates, weights and scales",
        caption=(
            f"{FAMILIES[family]}. Gate: g = exp(−{sharpness}h) of Eq. 5 at the "
            f"supervised tokens of training conversations, which can lie between {lowest:.2f} and "
            f"1; logarithmic axis. Its median is {gate['median']:.3f}, and 99 % of it lies above "
            f"{gate['percentile_1']:.2f}: "
            "a gate near 1 everywhere weighs tokens almost alike. Weights: of all linears of the "
            f"decoder, in the baseline, and in INT{bits} GRACE as its checkpoint holds them, on "
            "the grid s·q. Scales: of all groups, as the least squared error finds them in the "
            "baseline, and as trained. The median scale changes by a factor of "
            f"{ratio['median']:.3f}. One seed. " + standins(scale, True)
        ),
        alt=(
            f"Four histograms. The gate's median is {gate['median']:.3f}. Weights have a standard "
            f"deviation of {weights['before']['standard_deviation']:.3g} before and "
            f"{weights['after']['standard_deviation']:.3g} after training; the median scale is "
            f"{scales['before']['median']:.3g} before and {scales['after']['median']:.3g} after."
        ),
        n=(
            f"{gate['count']:,} tokens of {found.n['conversations']:,} conversations; "
            f"{weights['before']['count']:,} weights; {scales['before']['count']:,} scales"
        ),
        units="percent of tokens, weights or scales in a bin; gate, weight and scale have no unit",
        sources=(observed.source_of(results, scale, family),),
        command=command_of(scale),
        paper=None,
        claims=("R09",),
        data={"family": family, **shown},
        canvas=canvas,
    )


def _percent(sample: Mapping[str, Any]) -> np.ndarray:
    return 100 * np.array(sample["counts"]) / sample["count"]


def _fill(axes: Axes, edges: list[float], sample: Mapping[str, Any], color: str) -> None:
    axes.stairs(_percent(sample), edges, fill=True, color=color)


def _outline(
    axes: Axes, edges: list[float], sample: Mapping[str, Any], color: str, label: str
) -> None:
    axes.stairs(_percent(sample), edges, color=color, linewidth=1.6, label=label)
