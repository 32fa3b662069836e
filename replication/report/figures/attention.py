"""Where the answer looks: its attention over the image, layer by layer (the paper's Figure 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure as Canvas

from replication.report.figures import observed, style
from replication.report.figures.figure import Figure
from replication.report.figures.reading import Inputs
from replication.stats.verdict import Interval

_MOST = 4  # layers of a model that are shown
_EDGE, _TILE, _GAP, _LINE, _BARS = 0.06, 0.5, 0.13, 0.17, 1.1  # inches

Scene = Mapping[str, Any]
Layers = Mapping[str, Sequence[int]]
"""The layers shown of each model, from 0."""
Shares = Mapping[str, Sequence[Interval]]
"""The share of attention on the image, by model and layer shown."""


def draw(inputs: Inputs) -> Figure:
    """One row a scene: the image, then a map a layer for teacher, baseline and INT4 GRACE; below,
    how much of its attention each layer spends on images at all.

    Raises:
        NotRun: where nothing was measured inside the family's models.
    """
    measured = observed.read(inputs)
    scenes, values = measured.data["scenes"], measured.values
    counts = {name: len(scenes[0]["models"][name]["attention"]) for name in observed.SHOWN}
    layers = {name: _chosen(count) for name, count in counts.items()}
    shares = {
        name: [values[f"visual_share.{name}.{layer + 1}"] for layer in chosen]
        for name, chosen in layers.items()
    }
    overlaps = {name: values[f"overlap.{name}"] for name in observed.SHOWN[1:]}
    gain = values[f"overlap_gain.{observed.SHOWN[-1]}"]
    whole = all(len(layers[name]) == count for name, count in counts.items())
    return inputs.figure(
        families=[inputs.family],
        name="attention",
        title="Where the answer looks",
        caption=_caption(inputs, len(scenes), whole, overlaps, gain),
        alt=(
            f"{len(scenes)} scenes with heat maps of attention by decoder layer. Share of "
            f"attention on the image: {'; '.join(_shares_in_words(layers, shares))}."
        ),
        n=(
            f"{len(scenes)} scenes shown; bars and overlap over {measured.n['questions']} "
            f"questions of {observed.benchmark(measured)}* and {measured.n['seeds']} seed(s) of "
            "INT4 GRACE"
        ),
        units="percent of attention",
        sources=(observed.source_of(inputs),),
        paper="Figure 3",
        data={
            "family": inputs.family,
            "layers": {name: [layer + 1 for layer in chosen] for name, chosen in layers.items()},
            "scenes": [_record(scene, layers) for scene in scenes],
            "visual_share": {
                name: list(map(observed.numbers, intervals)) for name, intervals in shares.items()
            },
            "overlap": {name: observed.numbers(value) for name, value in overlaps.items()},
            "overlap_gain": observed.numbers(gain),
        },
        canvas=_canvas(scenes, layers, shares),
    )


def _caption(
    inputs: Inputs, scenes: int, whole: bool, overlaps: Mapping[str, Interval], gain: Interval
) -> str:
    similar = (
        f"{observed.span(value, 3)} ({observed.label(name)})" for name, value in overlaps.items()
    )
    return (
        "Attention from the position that predicts the answer's first token to the visual "
        f"tokens, mean over heads, {inputs.named(inputs.family)}, in "
        f"{'every decoder layer' if whole else 'some of the decoder layers'}. Maps: what each "
        "visual token gets of all attention, on one scale, darker where the image is; the "
        "rest goes to text. The scenes are the first that were drawn by a fixed seed, not "
        "chosen; the answer that is asked for stands behind the question, each model's under "
        "its maps. Bars: what the whole image gets, with its 95 % interval (bootstrap over "
        "questions, and over seeds where there are several). "
        f"{scenes} scenes prove nothing; over all questions the maps, averaged over "
        f"layers, overlap with the teacher's by {' and '.join(similar)}, 1 being the same map. "
        f"{observed.verdict(gain, 'overlap')} Attention shows where values are read, not why "
        f"an answer is given. {inputs.reservations(True)}"
    )


def _chosen(count: int) -> list[int]:
    """The layers shown, from 0: all, or a few that are evenly apart, the last among them."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, _MOST))})


def _maps(scene: Scene, name: str, layers: Sequence[int]) -> list[np.ndarray]:
    """What each visual token gets of a layer's attention, (rows, columns), from 0 to 1."""
    attention = np.array(scene["models"][name]["attention"])[list(layers)]
    return list(attention.reshape(len(layers), *scene["grid"]))


def _answer(scene: Scene, name: str) -> str:
    """What a model says, the option in place of its letter."""
    answer = scene["models"][name]["answer"]
    return scene["options"].get(answer, answer)


def _record(scene: Scene, layers: Layers) -> dict[str, Any]:
    maps = {name: _maps(scene, name, chosen) for name, chosen in layers.items()}
    return {
        "question_id": scene["question_id"],
        "question": scene["question"],
        "target": scene["options"][scene["target"]],
        "answers": {name: _answer(scene, name) for name in layers},
        "maps": {name: [values.tolist() for values in group] for name, group in maps.items()},
    }


def _shares_in_words(layers: Layers, shares: Shares) -> list[str]:
    return [
        f"{observed.label(name)} "
        + ", ".join(
            f"{100 * interval.point:.0f} percent in layer {layer + 1}"
            for layer, interval in zip(layers[name], intervals, strict=True)
        )
        for name, intervals in shares.items()
    ]


def _canvas(scenes: Sequence[Scene], layers: Layers, shares: Shares) -> Canvas:
    maps = [{name: _maps(scene, name, layers[name]) for name in layers} for scene in scenes]
    top = max(float(values.max()) for row in maps for group in row.values() for values in group)
    colours = observed.colours(0.0, 100 * top)
    page = _Page(layers, len(scenes))
    for index, (scene, row) in enumerate(zip(scenes, maps, strict=True)):
        image = observed.image_of(scene)
        page.write_question(index, scene)
        observed.show_image(page.image(index), image)
        for name, group in row.items():
            for place, values in enumerate(group):
                observed.show_map(page.tile(index, name, place), image, 100 * values, colours)
    page.draw_bars(shares)
    page.draw_scale(colours)
    return page.sheet.canvas


class _Page:
    """The layout: columns of tiles that the bars below stand under. Places in inches."""

    def __init__(self, layers: Layers, scenes: int) -> None:
        self.layers = layers
        self.left = {}
        x = _EDGE + _TILE + _GAP
        for name, chosen in layers.items():
            self.left[name] = x
            x += _TILE * len(chosen) + _GAP
        width = max(style.WIDTH, x - _GAP + _EDGE)
        self.row = _TILE + 2 * _LINE + 0.09
        self.head = 2 * _LINE + 0.03
        self.bars = self.head + self.row * scenes + 0.14
        self.sheet = observed.Sheet(width, self.bars + _BARS + 0.92)
        self.first = self.left[observed.SHOWN[0]]
        self.rest = width - self.first - _EDGE
        for name, chosen in layers.items():
            self.sheet.text(
                self._middle(name), 0.02, observed.label(name), weight="bold", ha="center"
            )
            for place, layer in enumerate(chosen):
                text = f"layer {layer + 1}" if place == 0 else f"{layer + 1}"
                x = self.left[name] + _TILE * (place + 0.5)
                self.sheet.text(x, _LINE + 0.02, text, ha="center")

    def _middle(self, name: str) -> float:
        return self.left[name] + _TILE * len(self.layers[name]) / 2

    def _top(self, index: int) -> float:
        return self.head + self.row * index + _LINE

    def write_question(self, index: int, scene: Scene) -> None:
        """The question above its row, and under each model's maps what it answers."""
        target, top = scene["options"][scene["target"]], self._top(index)
        self.sheet.text(_EDGE, top - _LINE, f"{scene['question']} ({target})")
        for name in self.layers:
            mark = "✓" if scene["models"][name]["answer"] == scene["target"] else "✗"
            text = f"{_answer(scene, name)} {mark}"
            self.sheet.text(self._middle(name), top + _TILE, text, ha="center")

    def image(self, index: int) -> Axes:
        return self.sheet.axes(_EDGE, self._top(index), _TILE - 0.03, _TILE - 0.03)

    def tile(self, index: int, name: str, place: int) -> Axes:
        x = self.left[name] + _TILE * place + 0.015
        return self.sheet.axes(x, self._top(index), _TILE - 0.03, _TILE - 0.03)

    def draw_bars(self, shares: Shares) -> None:
        """Share of attention on the image, each bar under its column."""
        axes = self.sheet.axes(self.first, self.bars, self.rest, _BARS)
        for name, intervals in shares.items():
            start = self.left[name] - self.first
            reaches = [style.reach(share.point, share.low, share.high) for share in intervals]
            axes.bar(
                [start + _TILE * (at + 0.5) for at in range(len(intervals))],
                [100 * share.point for share in intervals],
                width=0.6 * _TILE,
                yerr=np.array(reaches).T * 100,
                color=style.COLORS[style.method_of(name)],
                error_kw={"ecolor": style.INK, "elinewidth": 1.2, "capsize": 2},
            )
        axes.set_xlim(0, self.rest)
        axes.set_xticks([])
        axes.grid(axis="x", visible=False)
        axes.set_ylabel("on the image, %")

    def draw_scale(self, colours: ScalarMappable) -> None:
        """What the colours of the maps mean."""
        axes = self.sheet.axes(self.first, self.bars + _BARS + 0.24, self.rest, 0.12)
        self.sheet.canvas.colorbar(colours, cax=axes, orientation="horizontal")
        axes.set_xlabel("maps: attention on a visual token, %")
