"""How alike visual tokens are, in teacher and students (the paper's Figure 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from replication.report.figures import observed, style
from replication.report.figures.figure import Figure
from replication.report.figures.reading import Inputs
from replication.stats.verdict import Interval

ORDER = ("baseline", "sft_bf16", "kd_bf16", "grace_bf16", "qat_int4", "kd_int4", "grace_int4")

_EDGE, _LEFT, _TILE, _GAP, _ROW = 0.06, 0.72, 1.05, 0.08, 0.22  # inches


def draw(inputs: Inputs) -> Figure:
    """One column a scene: the image, then the cosine similarity of one of its visual tokens with
    all of them in teacher, baseline and INT4 GRACE. Below, the CKA of every student's visual tokens
    with the teacher's.

    Raises:
        NotRun: where nothing was measured inside the family's models.
    """
    measured = observed.read(inputs)
    scenes, values = measured.data["scenes"], measured.values
    alike = {name: values[f"cka.{name}"] for name in ORDER if f"cka.{name}" in values}
    gains = {name: values[f"cka_gain.{name}"] for name in alike if f"cka_gain.{name}" in values}
    labels = {name: observed.label(name) for name in alike}
    return inputs.figure(
        families=[inputs.family],
        name="similarity",
        title="How alike visual tokens are",
        caption=(
            "Top: cosine similarity of one visual token (outlined) with every visual token of the "
            "image, hidden states at the penultimate decoder layer, "
            f"{inputs.named(inputs.family)}; darker where the image is. The token is the one whose "
            "part of the image varies most; "
            "the scenes are the first that were drawn by a fixed seed, not chosen. Bottom: linear "
            "CKA of the visual tokens of a student and the teacher, what the relational loss of "
            "GRACE raises, 1 being the same relations; mean over images, with its 95 % interval "
            "(bootstrap over images, and over seeds where there are several). "
            + observed.verdict(gains[observed.SHOWN[-1]], "CKA")
            + " A CKA that is higher shows that a loss was learned, not that answers are better. "
            + inputs.reservations(True)
        ),
        alt=(
            f"Maps of cosine similarity for {len(scenes)} scenes, and a dot plot of CKA with the "
            f"teacher: {'; '.join(f'{labels[name]} {alike[name].point:.2f}' for name in alike)}."
        ),
        n=(
            f"{len(scenes)} scenes shown; CKA over {measured.n['questions']} images of "
            f"{observed.benchmark(measured)}*, seeds: "
            + ", ".join(f"{labels[name]} {measured.data['seeds'][name]}" for name in alike)
        ),
        units="cosine similarity; CKA from 0 to 1",
        sources=(observed.source_of(inputs),),
        paper="Figure 5",
        data={
            "family": inputs.family,
            "scenes": [
                {
                    "question_id": scene["question_id"],
                    "anchor": scene["anchor"],
                    "cosine": {name: _map(scene, name).tolist() for name in observed.SHOWN},
                }
                for scene in scenes
            ],
            "cka": {name: observed.numbers(cka) for name, cka in alike.items()},
            "cka_gain": {name: observed.numbers(gain) for name, gain in gains.items()},
        },
        canvas=_canvas(scenes, alike),
    )


def _map(scene: Mapping[str, Any], name: str) -> np.ndarray:
    """The similarity of a scene's visual tokens (rows, columns) with its outlined token."""
    return np.array(scene["models"][name]["cosine"]).reshape(scene["grid"])


def _canvas(scenes: Sequence[dict[str, Any]], alike: Mapping[str, Interval]) -> Canvas:
    low = min(float(_map(scene, name).min()) for scene in scenes for name in observed.SHOWN)
    colours = observed.colours(low, 1.0)
    maps_end = _EDGE + _TILE * (1 + len(observed.SHOWN))
    forest = maps_end + 0.85
    width = max(style.WIDTH, _LEFT + _TILE * len(scenes) + _EDGE)
    sheet = observed.Sheet(width, forest + _ROW * len(alike) + 0.5)
    for line, name in enumerate(("image", *observed.SHOWN)):
        y = _EDGE + _TILE * line
        label = name if name == "image" else observed.label(name).replace(" ", "\n")
        sheet.text(_EDGE, y + _TILE / 2, label, va="center")
        for place, scene in enumerate(scenes):
            axes = sheet.axes(_LEFT + _TILE * place, y, _TILE - _GAP, _TILE - _GAP)
            image = observed.image_of(scene)
            if name == "image":
                observed.show_image(axes, image)
            else:
                observed.show_map(axes, image, _map(scene, name), colours)
            _outline(axes, scene["anchor"], scene["grid"], image.size)
    bar = sheet.axes(_LEFT, maps_end + 0.08, width - _LEFT - _EDGE - 0.1, 0.12)
    sheet.canvas.colorbar(colours, cax=bar, orientation="horizontal")
    bar.set_xlabel("cosine similarity with the outlined token")
    names = 1.15  # inches that they take
    _draw_alike(sheet.axes(names, forest, width - names - 0.2, _ROW * len(alike)), alike)
    return sheet.canvas


def _outline(axes: Axes, token: int, grid: list[int], size: tuple[int, int]) -> None:
    row, column = divmod(token, grid[1])
    width, height = size[0] / grid[1], size[1] / grid[0]
    corner = (column * width - 0.5, row * height - 0.5)
    color = style.COLORS["grace"]
    axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=color, linewidth=1.8))


def _draw_alike(axes: Axes, alike: Mapping[str, Interval]) -> None:
    for place, (name, cka) in enumerate(alike.items()):
        look = style.marks(style.method_of(name))
        style.interval(
            axes, cka.point, place, cka.low, cka.high, capsize=2.5, linestyle="none", **look
        )
    style.rows(axes, [observed.label(name) for name in alike])
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("CKA with the teacher's visual tokens")
