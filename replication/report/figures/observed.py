"""What the stage ``internals`` measured, read for the figures that show it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure as Canvas
from PIL import Image

from replication.benchmarks import PRINTED
from replication.report.figures import style
from replication.report.figures.figure import NotRun
from replication.report.figures.reading import Inputs
from replication.results.measurements import Measurement, read_measurement
from replication.stats.verdict import Interval

_DARK = 0.6  # of a colour that is left over a black pixel

SHOWN = ("teacher", "baseline", "grace_int4")
"""Models of which scenes are shown."""


def read(inputs: Inputs) -> Measurement:
    """What was seen in a family's models.

    Raises:
        NotRun: where the stage was not run.
        InputError: for a file that is no measurement.
    """
    name = f"internals-{inputs.family}"
    measured = read_measurement(inputs.results, inputs.scale, name)
    if measured is None:
        raise NotRun(
            f"nothing was measured inside models of {inputs.family}: run the stage internals"
        )
    return measured


def source_of(inputs: Inputs) -> str:
    return inputs.source(f"measurements/internals-{inputs.family}.json")


def label(run: str) -> str:
    """A run's printed name: 'teacher', 'INT4 GRACE'."""
    method, _, width = run.partition("_")
    return f"{width.upper()} {style.LABELS[method]}".strip()


def benchmark(measured: Measurement) -> str:
    return PRINTED[measured.data["benchmark"]]


def image_of(scene: Mapping[str, Any]) -> Image.Image:
    """The image of a scene."""
    with Image.open(io.BytesIO(base64.b64decode(scene["image"]))) as opened:
        return opened.convert("RGB")


def show_image(axes: Axes, image: Image.Image) -> None:
    """An image as it is, its pixels seen."""
    axes.imshow(np.asarray(image), interpolation="nearest")
    frame(axes)


def show_map(axes: Axes, image: Image.Image, values: np.ndarray, colours: ScalarMappable) -> None:
    """A map of visual tokens (rows, columns): its colours, darker where the image is dark."""
    tinted = Image.fromarray(colours.to_rgba(values, bytes=True)[..., :3])
    tinted = tinted.resize(image.size, Image.Resampling.NEAREST)
    shade = _DARK + (1 - _DARK) * np.asarray(image.convert("L"), dtype=float)[..., None] / 255
    axes.imshow((np.asarray(tinted) * shade).astype(np.uint8), interpolation="nearest")
    frame(axes)


def colours(low: float, high: float) -> ScalarMappable:
    """The colours of a map's values."""
    return ScalarMappable(Normalize(low, high), style.SEQUENTIAL)


def frame(axes: Axes) -> None:
    """No ticks, and a thin line around."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_linewidth(0.6)


class Sheet:
    """A figure with everything at a place of its own, in inches from the upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.canvas: Canvas = style.canvas(width, height)
        self.canvas.set_layout_engine("none")

    def text(self, x: float, y: float, text: str, **options: Any) -> None:
        """Text whose upper left corner is (x, y), unless the options say otherwise."""
        look: dict[str, Any] = {"va": "top", "fontsize": style.SMALL} | options
        self.canvas.text(x / self.width, 1 - y / self.height, text, **look)

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Axes that fill this box."""
        low = 1 - (y + height) / self.height
        box = (x / self.width, low, width / self.width, height / self.height)
        return self.canvas.add_axes(box)


def span(interval: Interval, digits: int) -> str:
    """'0.41 [0.39, 0.44]'."""
    point, low, high = (
        f"{value:.{digits}f}" for value in (interval.point, interval.low, interval.high)
    )
    return f"{point} [{low}, {high}]"


def verdict(gain: Interval, what: str) -> str:
    """What may be said of a difference from the baseline."""
    difference = span(gain, 3)
    if gain.low <= 0 <= gain.high:
        return (
            f"INT4 GRACE's {what} does not differ from the baseline's (difference {difference}): "
            "whatever differs in the scenes shown, nothing more may be inferred from it."
        )
    side = "higher" if gain.low > 0 else "lower"
    return f"INT4 GRACE's {what} is {side} than the baseline's (difference {difference})."


def numbers(interval: Interval) -> dict[str, float]:
    """An interval as a figure's data."""
    return {"point": interval.point, "low": interval.low, "high": interval.high}
