"""Accuracy against throughput, a bubble for memory (the paper's Figure 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from replication.report.figures import reading, style
from replication.report.figures.figure import Figure, NotRun
from replication.report.figures.reading import Accuracy, Inputs
from replication.results.deployment import peak

TABLES = {
    "llava": ("table2", "table1"),
    "qwen2_vl": ("table4", "bits"),
    "qwen3_vl": ("qwen3vl",),
}
"""Where a family's averages stand; all tables of a family average the same benchmarks."""
_LAUNCHER = "launcher"  # GRACE with the coefficients of the released launcher
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

    @property
    def method(self) -> str:
        return style.method_of(self.accuracy.run)

    @property
    def label(self) -> str:
        return _LAUNCHER if f"_{_LAUNCHER}" in self.accuracy.run else style.LABELS[self.method]

    @property
    def x(self) -> float:
        """Tokens a second."""
        return float(self.speed["median"])

    @property
    def y(self) -> float:
        """Percent."""
        return self.accuracy.accuracy

    def record(self) -> dict[str, Any]:
        return {
            **vars(self.accuracy),
            "variant": self.variant,
            "tokens_per_second": self.speed["median"],
            "tokens_per_second_low": self.speed["low"],
            "tokens_per_second_high": self.speed["high"],
            "peak_bytes": self.memory,
        }


@dataclass(frozen=True)
class _Panel:
    """A family: its points, the model deployed, and what its averages are of."""

    family: str
    group: str
    points: list[_Point]
    model: str
    device: str
    benchmarks: list[str]
    standin: bool
    sources: list[str]


def draw(inputs: Inputs) -> Figure:
    """One panel a family whose student's architecture was measured and whose runs have scores.

    Raises:
        NotRun: where there is no such family.
    """
    deployed = inputs.deployments([reading.STUDENTS[name] for name in inputs.families])
    if not deployed:
        models = reading.listed([reading.STUDENTS[name] for name in inputs.families])
        raise NotRun(f"neither {models} was deployed at this scale: run the stage deploy")
    missing: list[str] = []
    families = [name for name in inputs.families if reading.STUDENTS[name] in deployed]
    panels = [_panel(inputs, name, *deployed[reading.STUDENTS[name]], missing) for name in families]
    panels = [panel for panel in panels if panel.points]
    if not panels:
        raise NotRun("; ".join(missing) or "no run of a deployed family has scores at this scale")
    standin = any(panel.standin for panel in panels)
    devices = reading.listed(sorted({panel.device for panel in panels}))
    whose = "small stand-ins of the same classes" if standin else "the trained models"
    averages = "; ".join(f"{reading.listed(p.benchmarks)} ({p.group})" for p in panels)
    return inputs.figure(
        families=[panel.family for panel in panels],
        name="pareto",
        title="Accuracy against throughput and memory",
        caption=(
            f"Each point combines two measurements{' of two different models' if standin else ''}. "
            "Across: decoded tokens a second at batch 1 of "
            f"{reading.listed([panel.model for panel in panels])} with random weights ({devices}), "
            "by the format of the decoder's weights; the area of a bubble is the process's peak "
            f"memory. Up: the average accuracy of {whose} on {averages}. RTN, AWQ, GPTQ, QAT, "
            "naive KD and GRACE are stored alike at equal bits; hollow: GRACE with the "
            "coefficients of the released launcher. Bars up: the 95 % interval of the "
            "difference from the baseline; bars across, below the points: a format's least and "
            f"greatest of the repeats. {inputs.reservations(standin)}"
        ),
        alt="Bubble chart. " + " ".join(map(_in_words, panels)),
        n="; ".join(f"{panel.group}: {_counts(panel)}" for panel in panels),
        units="tokens per second; percent; GiB of peak memory",
        sources=tuple(dict.fromkeys(source for panel in panels for source in panel.sources)),
        paper="Figure 1",
        claims=("C03", "C09", "C10"),
        data={
            panel.family: {
                "model": reading.STUDENTS[panel.family],
                "device": panel.device,
                "points": [point.record() for point in panel.points],
            }
            for panel in panels
        },
        canvas=_canvas(panels, standin),
    )


def _panel(
    inputs: Inputs,
    family: str,
    report: Mapping[str, Any],
    variants: Mapping[str, Any],
    missing: list[str],
) -> _Panel:
    """A family's runs by the speed of their format; tables that are not there go to ``missing``."""
    runs: dict[str, Accuracy] = {}
    benchmarks: list[str] = []
    sources, standin = [], False
    for name in TABLES[family]:
        try:
            table = inputs.table(name)
        except NotRun as reason:
            missing.append(str(reason))
            continue
        here, names = reading.accuracies(table), reading.averaged(table)
        if here and names == (benchmarks := benchmarks or names):
            runs = {**here, **runs}
            standin = standin or reading.is_standin(table)
            sources.append(inputs.source(f"tables/{name}.json"))
    return _Panel(
        family,
        inputs.named(family),
        _points(runs, variants),
        reading.built(reading.STUDENTS[family], report),
        report["device"],
        benchmarks,
        standin,
        [*sources, inputs.deployment_source(reading.STUDENTS[family])],
    )


def _variant(accuracy: Accuracy) -> str | None:
    """The deployed format of a run's weights; None where none was measured."""
    method = style.method_of(accuracy.run)
    if method not in style.COLORS or method == "teacher":
        return None
    if method == "nf4":
        return "nf4"
    return {16: "bf16", 8: "int8", 4: "int4"}.get(accuracy.bits)


def _points(runs: Mapping[str, Accuracy], variants: Mapping[str, Any]) -> list[_Point]:
    """The runs whose weights' format was measured at batch 1."""
    points = []
    for accuracy in runs.values():
        variant = _variant(accuracy) or ""
        step = variants[variant]["decode"].get("1") if variant in variants else None
        if step is not None and "not_run" not in step:
            memory = peak(variants[variant])
            points.append(_Point(accuracy, variant, step["tokens_per_second"], memory))
    return points


def _counts(panel: _Panel) -> str:
    seeds = reading.counted((point.accuracy.seeds for point in panel.points), "seed")
    repeats = reading.counted((len(point.speed["values"]) for point in panel.points), "run")
    questions = f"{panel.points[0].accuracy.n:,} questions"
    return f"{questions}, {seeds}; {repeats} of tokens"


def _in_words(panel: _Panel) -> str:
    """The speeds of the formats, and the accuracies of the headline runs."""
    formats = {point.variant: point for point in panel.points}
    speeds = [
        f"{name.upper()} {point.x:.1f} tokens per second"
        + (f" in {point.memory / _GIB:.1f} GiB" if point.memory else "")
        for name, point in sorted(formats.items())
    ]
    runs = {point.accuracy.run: point.y for point in panel.points}
    headline = [
        f"{run.replace('_', ' ')} {runs[run]:.1f} percent"
        for run in ("baseline", "qat_int4", "grace_int4")
        if run in runs
    ]
    return f"{panel.model}: {', '.join(speeds)}; accuracy {', '.join(headline)}."


# --- drawing --------------------------------------------------------------------------------------


def _canvas(panels: Sequence[_Panel], standin: bool) -> Canvas:
    canvas = style.canvas(style.WIDTH, 3.5 * len(panels))
    all_axes = canvas.subplots(len(panels), 1, squeeze=False)[:, 0]
    largest = max((p.memory or 0) for panel in panels for p in panel.points)
    for axes, panel in zip(all_axes, panels, strict=True):
        _marks(axes, panel.points, largest)
        style.heading(axes, panel.group)
        axes.set_xlabel(f"tokens/s at batch 1 of {panel.model},\nrandom weights")
        model = "small stand-in" if standin else "trained model"
        axes.set_ylabel(f"accuracy, %,\nof the {model}")
    canvas.draw_without_rendering()  # where labels stand depends on the room that is left
    canvas.set_layout_engine("none")
    for axes, panel in zip(all_axes, panels, strict=True):
        _label(axes, panel.points)
    return canvas


def _marks(axes: Axes, points: Sequence[_Point], largest: int) -> None:
    for point in points:
        if point.memory and largest:
            axes.scatter(
                point.x, point.y, s=_LARGEST * point.memory / largest,
                facecolor=style.COLORS[point.method], alpha=0.22, edgecolor="none", zorder=1,
            )  # fmt: skip
        below, above = point.accuracy.reach
        look = {**style.marks(point.method), "markersize": 5.0, "elinewidth": 0.8}
        if point.label == _LAUNCHER:
            look |= {"markerfacecolor": "white", "markeredgecolor": style.COLORS[point.method]}
        axes.errorbar(point.x, point.y, yerr=[[below], [above]], **look)
    right = max(point.speed["high"] for point in points)
    left = min(point.speed["low"] for point in points)
    axes.set_xlim(max(0.0, left - 0.12 * right), right * 1.32)
    low = min(point.y - point.accuracy.reach[0] for point in points)
    high = max(point.y + point.accuracy.reach[1] for point in points)
    span = max(high - low, 0.1)
    axes.set_ylim(low - 0.34 * span, high + 0.12 * span)


def _label(axes: Axes, points: Sequence[_Point]) -> None:
    """Names beside the points, in one column for those that are near each other, and below them
    what the formats are and need."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    letters = axes.figure.dpi / 72 * style.SMALL  # pixels
    line = _LINE * letters * (top - bottom) / axes.get_window_extent().height
    columns: list[list[_Point]] = []
    for point in sorted(points, key=lambda point: point.x):
        if columns and point.x - columns[-1][-1].x < _TOGETHER * (right - left):
            columns[-1].append(point)
        else:
            columns.append([point])
    for column in columns:
        _label_column(axes, column, line)


def _label_column(axes: Axes, column: Sequence[_Point], line: float) -> None:
    """The labels of points that are near each other; ``line`` is a line's height in percent."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    formats = {point.variant: point for point in column}
    between = "\n" if len(formats) == 1 else " "
    text = "\n".join(
        f"{point.variant.upper()}{between}{point.memory / _GIB:.1f} GiB"
        if point.memory
        else point.variant.upper()
        for point in formats.values()
    )
    xs = [point.x for point in column]
    axes.text(
        sum(xs) / len(xs), bottom + 0.3 * line, text, ha="center", va="bottom", color=style.GREY
    )
    floor = bottom + (text.count("\n") + 2) * line  # of the labels; bars across lie on it
    places = style.spread([point.y for point in column], line, floor, top - 0.5 * line)
    look: dict[str, Any] = {"color": style.GREY, "elinewidth": 1.2, "capsize": 2}
    for row, point in enumerate(formats.values()):
        y = floor + (row - 0.4) * 0.4 * line
        style.interval(axes, point.x, y, point.speed["low"], point.speed["high"], **look)
    for point, place in zip(column, places, strict=True):
        axes.annotate(
            point.label,
            (point.x, point.y),
            xytext=(max(xs) + 0.035 * (right - left), place),
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
