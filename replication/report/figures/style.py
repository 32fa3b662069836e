"""How figures look: one colour and one marker a method, text that is read on a phone, equal bytes.

The colours are those of Okabe and Ito, distinct under every common colour blindness. On white the
light ones are darkened until their contrast is 3 to 1; no two methods share a marker, so that none
is known by its colour alone. A figure is drawn some 5 inches wide with letters of 9 points: on 360
pixels they are 9 high.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.figure
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox
from PIL import Image

WIDTH = 5.0  # inches
DPI = 200
INK, GREY, FAINT = "#000000", "#5A5A5A", "#D9D9D9"
SMALL = 9.0  # points, of everything but titles
SEQUENTIAL = "cividis"
_LETTERS = 14.4  # of the size SMALL in an inch
_LINE = SMALL * 1.2 * 1.17 / 72  # inches that a line of such letters takes
_EDGE = 0.1  # inches

_LOOKS = {
    "teacher": ("#000000", "*", "teacher"),
    "baseline": ("#666666", "D", "baseline"),
    "sft": ("#CC79A7", "P", "SFT"),
    "qat": ("#0072B2", "s", "QAT"),
    "kd": ("#009E73", "^", "naive KD"),
    "grace": ("#D55E00", "o", "GRACE"),
    "rtn": ("#B37C00", "v", "RTN"),
    "awq": ("#3A94CC", "<", "AWQ"),
    "gptq": ("#8A3F6A", ">", "GPTQ"),
    "qad": ("#7A5195", "h", "QAD"),
    "nf4": ("#8C8400", "X", "NF4"),
}
COLORS = {method: color for method, (color, _, _) in _LOOKS.items()}
MARKERS = {method: marker for method, (_, marker, _) in _LOOKS.items()}
LABELS = {method: label for method, (_, _, label) in _LOOKS.items()}

DARK = {
    "#ffffff": "#1e2125",  # the ground
    INK: "#e7e7e3",
    GREY: "#aab0b8",
    FAINT: "#3b4048",
    "#666666": "#a3a9b1",
    "#bababa": "#6b717a",  # the light parts of bars
    "#ecb78c": "#8a5a34",
    "#a6cfe8": "#4a7a98",
    "#0072B2": "#4ba3dd",
    "#009E73": "#2fc496",
    "#D55E00": "#f07a2c",
    "#B37C00": "#d9a020",
    "#3A94CC": "#9ad2f3",
    "#8A3F6A": "#c273a0",
    "#7A5195": "#b08fd0",
    "#6E3000": "#ffb27a",
    "#DCEBF7": "#1b3a52",  # the grounds of the map of regimes
    "#EDF4FA": "#1d2f3f",
    "#E3F2EC": "#1c3d30",
    "#F3F1E4": "#3d3517",
    "#FBE3D3": "#4a2b18",
    "#F2F2F2": "#2a2e33",
}
"""What a colour becomes where a reader asks for a dark page; the others are seen on both."""

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


def save(
    figure: matplotlib.figure.Figure, path: Path, kind: str, salt: str, foot: Sequence[str] = ()
) -> None:
    """Write a figure as "svg" or "png": the same drawing gives the same bytes.

    Args:
        figure: The drawing.
        path: Of the file.
        kind: "svg" or "png".
        salt: From which an SVG's ids are made; different figures of one page need different ones.
        foot: Lines that stand in a strip of their own under the drawing.
    """
    width, height = figure.get_size_inches()
    lines = [part for line in foot for part in textwrap.wrap(line, int(width * _LETTERS))]
    strip = len(lines) * _LINE + (_EDGE if lines else 0.0)
    note = figure.text(
        _EDGE / width, -0.5 * _EDGE / height, "\n".join(lines), va="top", color=GREY,
        fontsize=SMALL, linespacing=1.2,
    )  # fmt: skip
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    drawn = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "path"}):
        whole = Bbox([[0.0, -strip], [width, height]])
        figure.savefig(drawn, format=kind, dpi=DPI, bbox_inches=whole, metadata=metadata)
    note.remove()
    if kind == "svg":
        unindented = re.sub(r"\n +", "\n", drawn.getvalue().decode())
        path.write_text(_with_dark(unindented), encoding="utf-8")
    else:  # 256 colours: half the bytes or less
        with Image.open(drawn) as picture:
            few = picture.convert("RGB").quantize(dither=Image.Dither.NONE)
            few.save(path, format="PNG", optimize=True, dpi=(DPI, DPI))


def _with_dark(drawing: str) -> str:
    """An SVG that follows the reader's colour scheme; black text has no colour of its own there."""
    rules = [
        f'[style*="{what}: {light.lower()}"]{{{what}:{dark}!important}}'
        for light, dark in DARK.items()
        for what in ("fill", "stroke")
        if f"{what}: {light.lower()}" in drawing
    ]
    dark = f"@media (prefers-color-scheme:dark){{svg{{fill:{DARK[INK]}}}{''.join(rules)}}}"
    return drawing.replace("<defs>", f"<style>{dark}</style>\n <defs>", 1)


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


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels that stand at least ``gap`` apart within [low, high], near their values.

    They keep the order of the values. Where there is not enough room they stand evenly, closer.
    """
    count = len(values)
    order = sorted(range(count), key=lambda index: values[index])
    gap = min(gap, (high - low) / max(1, count - 1))
    up, down = [values[index] for index in order], [values[index] for index in order]
    for index in range(1, count):
        up[index] = max(up[index], up[index - 1] + gap)
        down[-1 - index] = min(down[-1 - index], down[-index] - gap)
    places = [0.0] * count
    for rank, index in enumerate(order):  # a mean of two spreads is one, and so is a clamped one
        centre = (up[rank] + down[rank]) / 2
        places[index] = min(max(centre, low + rank * gap), high - (count - 1 - rank) * gap)
    return places


def heading(axes: Axes, text: str, beside: str = "") -> None:
    """A panel's title, and in plain letters behind it what it rests on."""
    axes.set_title(text)
    if beside:
        axes.set_title(beside, loc="right", fontsize=SMALL, fontweight="normal")


def reach(point: float, low: float, high: float) -> tuple[float, float]:
    """How far an interval goes below and above its point, which it may not include."""
    return max(0.0, point - low), max(0.0, high - point)


def interval(axes: Axes, x: float, y: float, low: float, high: float, **look: Any) -> None:
    """A point with its interval, which lies across."""
    below, above = reach(x, low, high)
    axes.errorbar(x, y, xerr=[[below], [above]], **look)


def rows(axes: Axes, labels: Sequence[str], room: float = 0.5) -> None:
    """Name the rows of a panel, the first on top, with ``room`` around the outer ones."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 1 + room, -room)
    axes.grid(axis="y", visible=False)


def legend(
    canvas: matplotlib.figure.Figure,
    panels: Sequence[Axes],
    labels: Sequence[str] = (),
    columns: int = 2,
) -> None:
    """One legend above all panels, with the handle of each label's first appearance.

    Args:
        canvas: The figure.
        panels: Whose handles are shown.
        labels: The labels that are shown where they appear, in this order; default: all.
        columns: How many stand side by side.
    """
    handles: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    shown = [label for label in labels or handles if label in handles]
    canvas.legend(
        [handles[label] for label in shown], shown, loc="outside upper center", ncols=columns
    )
