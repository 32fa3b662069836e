"""How figures look: one colour and one marker a method, text that is read on a phone, equal bytes.

The colours are those of Okabe and Ito, told apart under every common colour blindness. On white the
light ones are darkened until their contrast is 3 to 1; no two methods share a marker, so that none
is known by its colour alone. A figure is drawn some 5 inches wide with letters of 9 points: on 360
pixels they are 9 high.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.figure
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

WIDTH = 5.0  # inches
DPI = 200
INK, GREY, FAINT = "#000000", "#5A5A5A", "#D9D9D9"
SMALL = 9.0  # points, of everything but titles
SEQUENTIAL = "cividis"

COLORS = {
    "teacher": "#000000",
    "baseline": "#666666",
    "sft": "#CC79A7",
    "qat": "#0072B2",
    "kd": "#009E73",
    "grace": "#D55E00",
    "rtn": "#B37C00",
    "awq": "#3A94CC",
    "gptq": "#8A3F6A",
    "nf4": "#8C8400",
}
MARKERS = {
    "teacher": "*",
    "baseline": "D",
    "sft": "P",
    "qat": "s",
    "kd": "^",
    "grace": "o",
    "rtn": "v",
    "awq": "<",
    "gptq": ">",
    "nf4": "X",
}
LABELS = {
    "teacher": "teacher",
    "baseline": "baseline",
    "sft": "SFT",
    "qat": "QAT",
    "kd": "naive KD",
    "grace": "GRACE",
    "rtn": "RTN",
    "awq": "AWQ",
    "gptq": "GPTQ",
    "nf4": "NF4",
}

_SETTINGS: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": SMALL,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.06,
    "figure.dpi": 100.0,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": SMALL,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 6.0,
    "svg.fonttype": "path",
    "xtick.color": INK,
    "xtick.labelsize": SMALL,
    "ytick.color": INK,
    "ytick.labelsize": SMALL,
}


def canvas(width_in: float = WIDTH, height_in: float = 3.0) -> matplotlib.figure.Figure:
    """An empty figure in this style, laid out so that nothing overlaps; sizes in inches.

    The user's own matplotlibrc changes nothing of it.
    """
    matplotlib.rcdefaults()
    matplotlib.rcParams.update(_SETTINGS)
    figure = matplotlib.figure.Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: matplotlib.figure.Figure, path: Path, kind: str, salt: str) -> None:
    """Write a figure as "svg" or "png": the same drawing gives the same bytes.

    salt: from which an SVG's ids are made; different figures of one page need different ones.
    """
    metadata: dict[str, Any] = {"Software": None}
    if kind == "svg":
        metadata = {"Date": None, "Creator": None}
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "path"}):
        figure.savefig(path, format=kind, dpi=DPI, metadata=metadata)


def method_of(run: str) -> str:
    """The method that a run's name begins with: grace_int4 is grace."""
    return run.partition("_")[0]


def marks(method: str) -> dict[str, Any]:
    """Colour and marker of a method, for `Axes.plot` and `Axes.errorbar`."""
    return {
        "color": COLORS[method],
        "marker": MARKERS[method],
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
    }


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels that stand at least `gap` apart within [low, high], near those wanted.

    They keep the order of `wanted`. Where there is not enough room they stand evenly, closer.
    """
    count = len(wanted)
    order = sorted(range(count), key=lambda index: wanted[index])
    gap = min(gap, (high - low) / max(1, count - 1))
    up, down = [wanted[index] for index in order], [wanted[index] for index in order]
    for index in range(1, count):
        up[index] = max(up[index], up[index - 1] + gap)
        down[-1 - index] = min(down[-1 - index], down[-index] - gap)
    found = [0.0] * count
    for place, index in enumerate(order):  # a mean of two spreads is one, and so is a clamped one
        centre = (up[place] + down[place]) / 2
        found[index] = min(max(centre, low + place * gap), high - (count - 1 - place) * gap)
    return found


def heading(axes: Axes, text: str, beside: str = "") -> None:
    """A panel's title, and in plain letters behind it what it rests on."""
    axes.set_title(text)
    if beside:
        axes.set_title(beside, loc="right", fontsize=SMALL, fontweight="normal")
