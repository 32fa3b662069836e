"""How gates, weights and scales are distributed, and what training makes of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from replication.report.figures import observed, style
from replication.report.figures.figure import Figure
from replication.report.figures.reading import Inputs


def draw(inputs: Inputs) -> Figure:
    """Four histograms: the confidence gate; decoder weights and scales, before and after
    quantization-aware training; and how much each scale changes.

    Raises:
        NotRun: where nothing was measured inside the family's models.
    """
    measured = observed.read(inputs)
    parts, kappa = measured.data["distributions"], measured.data["kappa"]
    gate, weights, scales = parts["gates"]["gate"], parts["weights"], parts["scales"]
    lowest, sharpness = math.exp(-kappa), "" if kappa == 1 else f"{kappa:g}·"
    return inputs.figure(
        families=[inputs.family],
        name="distributions",
        title="Gates, weights and scales",
        caption=(
            f"{inputs.named(inputs.family)}. Gate: g = exp(−{sharpness}h) of Eq. 5 at the "
            f"supervised tokens of training conversations, which can lie between {lowest:.2f} and "
            f"1; logarithmic axis. Its median is {gate['median']:.3f}, and 99 % of it lies above "
            f"{gate['percentile_1']:.2f}: a gate near 1 everywhere weighs tokens almost alike. "
            "Weights: of all linears of the decoder, in the baseline, and in "
            f"INT{measured.data['bits']} GRACE as its checkpoint holds them, on the grid s·q. "
            "Scales: of all groups, as the least squared error finds them in the baseline, and as "
            "trained. The median scale changes by a factor of "
            f"{parts['scale_ratio']['ratio']['median']:.3f}. One seed. " + inputs.reservations(True)
        ),
        alt=(
            f"Four histograms. The gate's median is {gate['median']:.3f}. Weights have a standard "
            f"deviation of {weights['before']['standard_deviation']:.3g} before and "
            f"{weights['after']['standard_deviation']:.3g} after training; the median scale is "
            f"{scales['before']['median']:.3g} before and {scales['after']['median']:.3g} after."
        ),
        n=(
            f"{gate['count']:,} tokens of {measured.n['conversations']:,} conversations; "
            f"{weights['before']['count']:,} weights; {scales['before']['count']:,} scales"
        ),
        units="percent of tokens, weights or scales in a bin; gate, weight and scale have no unit",
        sources=(observed.source_of(inputs),),
        claims=("R09",),
        data={"family": inputs.family, **parts},
        canvas=_canvas(parts),
    )


def _canvas(parts: Mapping[str, Any]) -> Canvas:
    canvas = style.canvas(style.WIDTH, 4.2)
    (gates, weights), (scales, ratios) = canvas.subplots(2, 2)
    _stairs(gates, parts["gates"], "gate", color=style.COLORS["teacher"], fill=True)
    gates.set_yscale("log")
    gates.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    for axes, name in ((weights, "weights"), (scales, "scales")):
        for sample, method in (("before", "baseline"), ("after", "grace")):
            look = {"color": style.COLORS[method], "linewidth": 1.6, "label": sample}
            _stairs(axes, parts[name], sample, **look)
    _stairs(ratios, parts["scale_ratio"], "ratio", color=style.COLORS["grace"], fill=True)
    ratios.axvline(1, color=style.INK, linewidth=1)
    for axes, title, x, y in (
        (gates, "Gate", "gate $g$ of a token", "tokens, %"),
        (weights, "Weights", "decoder weight", "weights, %"),
        (scales, "Scales", "scale $s$ of a group", "scales, %"),
        (ratios, "Change of scales", "$s$ after / $s$ before", "scales, %"),
    ):
        axes.set_title(title)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
    style.legend(canvas, [weights])
    return canvas


def _stairs(axes: Axes, part: Mapping[str, Any], sample: str, **look: Any) -> None:
    """A histogram in percent of the sample."""
    counts = np.array(part[sample]["counts"])
    axes.stairs(100 * counts / part[sample]["count"], part["edges"], **look)
