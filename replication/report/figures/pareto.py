"""Accuracy against throughput, a bubble for memory (the paper's Figure 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from replication.report.figures import style
from replication.report.figures.figure import Figure, NotRun, command_of
from replication.report.figures.reading import (
    STUDENTS,
    Accuracy,
    accuracies,
    averaged,
    built,
    counted,
    deployment_source,
    deployments,
    is_standin,
    listed,
    read_table,
    source,
    standins,
    table_path,
)
from replication.report.names import FAMILIES
from replication.results.deployment import peak

TABLES = {
    "llava": ("table2", "table1"),
    "qwen2_vl": ("table4", "bits"),
    "qwen3_vl": ("qwen3vl",),
}
"""Where a family's averages stand; all tables of a family average the same benchmarks."""
_GIB = 2**30
_LARGEST = 420.0  # points², the bubble of the largest memory
_TOGETHER = 0.2  # of the panel's width: bubbles that near have their labels in one column
_LINE = 1.3  # height of a line of text, in letters


@dataclass(frozen=True)
class _Point:
    """A run's accuracy with the speed and memory of its weights' format."""

    accuracy: Accuracy
    variant: str
    speed: Mapping[str, Any]
    memory: int | None
    label: str

    @property
    def method(self) -> str:
        return style.method_of(self.accuracy.run)

    def record(self) -> dict[str, Any]:
        return {
            **self.accuracy.record(),
            "variant": self.variant,
            "tokens_per_second": self.speed["median"],
            "tokens_per_second_low": self.speed["low"],
            "tokens_per_second_high": self.speed["high"],
            "peak_bytes": self.memory,
        }


def _variant(one: Accuracy) -> str | None:
    """The deployed format of a run's weights; None where none was measured."""
    method = style.method_of(one.run)
    if method not in style.COLORS or method == "teacher":
        return None
    if method == "nf4":
        return "nf4"
    return {16: "bf16", 8: "int8", 4: "int4"}.get(one.bits)


def _points(found: Mapping[str, Accuracy], variants: Mapping[str, Any]) -> list[_Point]:
    """The runs whose weights' format was measured at batch 1."""
    points = []
    for one in found.values():
        part = variants.get(_variant(one) or "")
        step: Any = {"not_run": ""} if part is None else part["decode"].get("1", {"not_run": ""})
        if part is not None and "not_run" not in step:
            label = style.LABELS[style.method_of(one.run)]
            points.append(
                _Point(one, _variant(one) or "", step["tokens_per_second"], peak(part), label)
            )
    return points


def draw(results: Path, scale: str, family: str) -> Figure:
    """One panel a family whose student's architecture was measured and whose runs have scores;
    `family` comes first.

    Raises NotRun where there is no such family."""
    order = [family, *(name for name in FAMILIES if name != family)]
    deployed = deployments(results, scale, [STUDENTS[name] for name in order])
    panels: dict[str, list[_Point]] = {}
    sources: list[str] = []
    said: list[str] = []
    asked: dict[str, list[str]] = {}
    standin = False
    for name in order:
        if STUDENTS[name] not in deployed:
            continue
        found: dict[str, Accuracy] = {}
        for table_name in TABLES[name]:
            try:
                table = read_table(results, scale, table_name)
            except NotRun as missing:
                said.append(str(missing))
                continue
            here = accuracies(table)
            if here and asked.setdefault(name, averaged(table)) == averaged(table):
                found = {**here, **found}
                standin = standin or is_standin(table)
                sources.append(source(results, table_path(results, scale, table_name)))
        _, variants = deployed[STUDENTS[name]]
        points = _points(found, variants)
        if points:
            panels[name] = points
            sources.append(deployment_source(results, scale, STUDENTS[name]))
    if not deployed:
        models = listed([STUDENTS[name] for name in order])
        raise NotRun(f"neither {models} was deployed at this scale: run the stage deploy")
    if not panels:
        raise NotRun("; ".join(said) or "no run of a deployed family has scores at this scale")

    canvas = style.canvas(style.WIDTH, 3.5 * len(panels))
    all_axes = canvas.subplots(len(panels), 1, squeeze=False)[:, 0]
    names = {name: built(STUDENTS[name], deployed[STUDENTS[name]][0]) for name in panels}
    largest = max((p.memory or 0) for points in panels.values() for p in points)
    for axes, (name, points) in zip(all_axes, panels.items(), strict=True):
        _marks(axes, points, largest)
        style.heading(axes, names[name])
        axes.set_xlabel("tokens/s at batch 1, random weights")
        model = "small model on stand-ins" if standin else "trained model"
        axes.set_ylabel(f"accuracy, %,\nof the {model}")
    canvas.draw_without_rendering()  # where labels stand depends on the room that is left
    canvas.set_layout_engine("none")
    for axes, (_, points) in zip(all_axes, panels.items(), strict=True):
        _label(axes, points)

    devices = sorted({deployed[STUDENTS[name]][0]["device"] for name in panels})
    whose = "the small models that stand for the architecture" if standin else "the trained models"
    return Figure(
        name="pareto",
        title="Accuracy against throughput and memory",
        caption=(
            "Each point combines two measurements"
            + (" of two different models" if standin else "")
            + ". Across: decoded tokens a second at batch 1 of "
            f"{listed(list(names.values()))} with random weights ({listed(devices)}), by the "
            "format of the decoder's weights; the area of a bubble is the process's peak memory. "
            f"Up: the average accuracy of {whose} on "
            + "; ".join(f"{listed(asked[name])} ({FAMILIES[name]})" for name in panels)
            + ". RTN, AWQ, GPTQ, QAT, naive KD and GRACE are stored alike at equal bits. Bars up: "
            "the 95 % interval of the difference from the baseline; bars across, below the "
            "points: a format's least and greatest of the repeats. " + standins(scale, standin)
        ),
        alt=(
            "Bubble chart. "
            + " ".join(_in_words(names[name], points) for name, points in panels.items())
        ),
        n="; ".join(
            f"{FAMILIES[name]}: {points[0].accuracy.n:,} questions, "
            f"{counted((p.accuracy.seeds for p in points), 'seed')}; "
            f"{counted((len(p.speed['values']) for p in points), 'run')} of tokens"
            for name, points in panels.items()
        ),
        units="tokens per second; percent; GiB of peak memory",
        sources=tuple(dict.fromkeys(sources)),
        command=command_of(scale),
        paper="Figure 1",
        claims=("C03", "C09", "C10"),
        data={
            name: {
                "model": STUDENTS[name],
                "device": deployed[STUDENTS[name]][0]["device"],
                "points": [point.record() for point in points],
            }
            for name, points in panels.items()
        },
        canvas=canvas,
    )


def _marks(axes: Axes, points: Sequence[_Point], largest: int) -> None:
    for point in points:
        x, y = point.speed["median"], point.accuracy.point
        color = style.COLORS[point.method]
        if point.memory and largest:
            axes.scatter(
                x, y, s=_LARGEST * point.memory / largest, facecolor=color, alpha=0.22,
                edgecolor="none", zorder=1,
            )  # fmt: skip
        below, above = point.accuracy.reach
        axes.errorbar(
            x,
            y,
            yerr=[[below], [above]],
            elinewidth=0.8,
            **{**style.marks(point.method), "markersize": 5.0},
        )
    xs = [point.speed["high"] for point in points]
    left = min(point.speed["low"] for point in points)
    axes.set_xlim(max(0.0, left - 0.12 * max(xs)), max(xs) * 1.32)
    low = min(point.accuracy.point - point.accuracy.reach[0] for point in points)
    high = max(point.accuracy.point + point.accuracy.reach[1] for point in points)
    span = max(high - low, 0.1)
    axes.set_ylim(low - 0.34 * span, high + 0.12 * span)


def _label(axes: Axes, points: Sequence[_Point]) -> None:
    """Names beside the points, in one column for those that are near each other, and below them
    what the formats are and need."""
    window = axes.get_window_extent()
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    letters = axes.figure.dpi / 72 * style.SMALL  # pixels
    line = _LINE * letters * (top - bottom) / window.height
    ordered = sorted(points, key=lambda point: point.speed["median"])
    columns: list[list[_Point]] = []
    for point in ordered:
        near = columns and (
            point.speed["median"] - columns[-1][-1].speed["median"] < _TOGETHER * (right - left)
        )
        if near:
            columns[-1].append(point)
        else:
            columns.append([point])
    for column in columns:
        formats = {point.variant: point for point in column}
        between = "\n" if len(formats) == 1 else " "
        text = "\n".join(
            f"{point.variant.upper()}{between}{point.memory / _GIB:.1f} GiB"
            if point.memory
            else point.variant.upper()
            for point in formats.values()
        )
        xs = [point.speed["median"] for point in column]
        axes.text(
            sum(xs) / len(xs), bottom + 0.3 * line, text, ha="center", va="bottom",
            color=style.GREY,
        )  # fmt: skip
        floor = bottom + (text.count("\n") + 2) * line  # of the labels; bars across lie on it
        places = style.spread(
            [point.accuracy.point for point in column], line, floor, top - 0.5 * line
        )
        x = max(xs) + 0.035 * (right - left)
        for row, point in enumerate(formats.values()):
            speed = point.speed
            axes.errorbar(
                speed["median"],
                floor + (row - 0.4) * 0.4 * line,
                xerr=[[speed["median"] - speed["low"]], [speed["high"] - speed["median"]]],
                color=style.GREY,
                elinewidth=1.2,
                capsize=2,
            )
        for point, place in zip(column, places, strict=True):
            axes.annotate(
                point.label,
                (point.speed["median"], point.accuracy.point),
                xytext=(x, place),
                va="center",
                color=style.INK,
                arrowprops={
                    "arrowstyle": "-",
                    "color": style.COLORS[point.method],
                    "linewidth": 0.7,
                    "shrinkA": 1,
                    "shrinkB": 2,
                },
            )


def _in_words(model: str, points: Sequence[_Point]) -> str:
    """The speeds of the formats, and the accuracies of the headline runs."""
    formats = {point.variant: point for point in points}
    speeds = [
        f"{name.upper()} {point.speed['median']:.1f} tokens per second"
        + (f" in {point.memory / _GIB:.1f} GiB" if point.memory else "")
        for name, point in sorted(formats.items())
    ]
    runs = {point.accuracy.run: point.accuracy.point for point in points}
    shown = [
        f"{run.replace('_', ' ')} {runs[run]:.1f} percent"
        for run in ("baseline", "qat_int4", "grace_int4")
        if run in runs
    ]
    return f"{model}: {', '.join(speeds)}; accuracy {', '.join(shown)}."
