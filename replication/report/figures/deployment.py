"""Speed and memory of the published architectures (the paper's Figure 7; C09, C10)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from replication.paper import load_tables
from replication.report.figures import style
from replication.report.figures.figure import Figure, NotRun
from replication.report.figures.reading import MODELS, STUDENTS, Inputs, built, counted, listed
from replication.report.names import parameters_text
from replication.report.tables.deployments import (
    OWN,
    bandwidths,
    deployment_reports,
    floor_seconds,
)
from replication.results.deployment import BASELINE, peak, ratios

COMPARED = "llava-1.5-7b"  # whose ratios C09 and C10 hold against the reported ones
OURS = "int4"
_GIB = 2**30
_MEASURED, _BANDWIDTH = "measured", "bandwidth floor"
_REPORTED = "reported ratio × BF16 here"
_HEIGHT = 0.165  # inches of one row at one batch size
_APART = 0.3  # of the distance between two rows: that of two batch sizes

Data = Mapping[str, Any]
Deployed = Mapping[str, tuple[Data, Data]]
"""By model: its report, and the variants that ran."""


def draw(inputs: Inputs) -> Figure:
    """For each family's student: tokens a second by batch size, the time to the first token, and
    memory. All students are drawn.

    Raises:
        NotRun: where none was measured.
    """
    deployed = inputs.deployments(list(STUDENTS.values()))
    best = bandwidths(deployment_reports(inputs.results, inputs.scale))
    if not deployed:
        raise NotRun("no architecture was measured at this scale: run the stage deploy")
    printed = load_tables().deployment
    devices = sorted({report["device"] for report, _ in deployed.values()})
    parts = [part for _, variants in deployed.values() for part in variants.values()]
    repeats = [len(step["tokens_per_second"]["values"]) for p in parts for _, step in steps(p)]
    prompts = [len(part["time_to_first_token"]["values"]) for part in parts]
    return inputs.figure(
        name="deployment",
        title="Speed and memory when deployed",
        caption=(
            f"Published architectures with random weights on {listed(devices)}; by the format of "
            "the decoder's weights. Above: decoded tokens a second at the batch size that stands "
            "beside the point (the axis is logarithmic); bars are the least and greatest of the "
            "repeats, upright marks the memory-bandwidth floor: a step in the time in which the "
            "machine copies the bytes that it has to read, at the best rate seen. Below: time to "
            "the first token of a prompt of one image and 64 words, and peak memory of the "
            "process, in which the full colour is the weights. Diamonds: what the reported ratios "
            f"of {MODELS[COMPARED]}, {printed['throughput_ratio_int4_over_bf16']:g} times the "
            f"throughput and {printed['memory_reduction_percent']} % less memory, make of the BF16 "
            "measured here; they were measured on an A100 with other kernels. Speed and memory do "
            "not depend on the values of weights."
        ),
        alt="Dot and bar charts of speed and memory. "
        + " ".join(_in_words(built(model, report), v) for model, (report, v) in deployed.items()),
        n=f"{counted(repeats, 'run')} of tokens a point; {counted(prompts, 'prompt')} a bar",
        units="tokens per second; seconds; GiB",
        sources=tuple(map(inputs.deployment_source, deployed)),
        paper="Figure 7",
        claims=("C09", "C10"),
        data=records_of(deployed, best),
        models=built_models(deployed),
        canvas=_canvas(deployed, best, printed),
    )


def built_models(deployed: Deployed) -> tuple[str, ...]:
    """The models with their sizes, as they stand under the drawing."""
    return tuple(
        f"{built(model, report)}, {parameters_text(report['models'][model]['parameters'])}, "
        "random weights"
        for model, (report, _) in deployed.items()
    )


def steps(part: Data) -> Iterator[tuple[str, Data]]:
    """The decode steps of a variant that ran, by batch size."""
    return ((batch, step) for batch, step in part["decode"].items() if "not_run" not in step)


def batch_sizes(variants: Data) -> list[str]:
    """Batch sizes at which any variant decoded, ascending."""
    return sorted({batch for part in variants.values() for batch, _ in steps(part)}, key=int)


def _floor(batch: str, step: Data, bandwidth: float) -> float:
    """Tokens a second of steps that last as long as the floor."""
    return int(batch) / floor_seconds(step, bandwidth)


def records_of(deployed: Deployed, best: Mapping[str, float]) -> dict[str, Any]:
    """The numbers that are drawn, by model; best: the copy bandwidth of every device, bytes/s."""
    return {
        model: {
            "device": report["device"],
            "layers": report["settings"]["layers"],
            "variants": {
                name: _record(part, best[report["device"]]) for name, part in variants.items()
            },
        }
        for model, (report, variants) in deployed.items()
    }


def _record(part: Data, bandwidth: float) -> dict[str, Any]:
    return {
        "label": part["label"],
        "peak_bytes": peak(part),
        "weight_bytes": part["weight_bytes"],
        "time_to_first_token": _spread(part["time_to_first_token"]),
        "tokens_per_second": {
            batch: {**_spread(step["tokens_per_second"]), "floor": _floor(batch, step, bandwidth)}
            for batch, step in steps(part)
        },
    }


def _spread(values: Data) -> dict[str, float]:
    return {name: values[name] for name in ("median", "low", "high")}


def _in_words(model: str, variants: Data) -> str:
    """INT4 against BF16 in one sentence, or what was measured where one of them was not."""
    against = ratios(variants, OURS)
    if "throughput" not in against:
        labels: Sequence[str] = [part["label"] for part in variants.values()]
        return f"{model}: {listed(labels)}."
    base, ours = (
        variants[name]["decode"]["1"]["tokens_per_second"]["median"] for name in (BASELINE, OURS)
    )
    return (
        f"{model}: at batch 1 BF16 decodes {base:.1f} tokens per second and INT4 {ours:.1f}, "
        f"{against['throughput'].point:.2f} times as many, with "
        f"{against['memory_reduction'].point:.0f} percent less peak memory."
    )


# --- drawing --------------------------------------------------------------------------------------


def _canvas(deployed: Deployed, best: Mapping[str, float], printed: Data) -> Canvas:
    """For each model its speeds, and below them the first token and memory."""
    heights = []
    for _, variants in deployed.values():
        rows = len(variants) * max(1, len(batch_sizes(variants)))
        heights += [rows * _HEIGHT + 0.75, len(variants) * 0.2 + 0.75]
    canvas = style.canvas(style.WIDTH, sum(heights) + 0.6)
    grid = canvas.add_gridspec(len(heights), 2, height_ratios=heights)
    for index, (model, (report, variants)) in enumerate(deployed.items()):
        decoding = canvas.add_subplot(grid[2 * index, :])
        first = canvas.add_subplot(grid[2 * index + 1, 0])
        memory = canvas.add_subplot(grid[2 * index + 1, 1])
        whole = model == COMPARED and report["settings"]["layers"] is None
        reference = printed if whole else None
        _decoding(decoding, variants, reference, best[report["device"]])
        draw_first_token(first, variants)
        draw_memory(memory, variants, reference)
        style.heading(decoding, built(model, report))
    style.legend(canvas, canvas.axes, [_MEASURED, _BANDWIDTH, _REPORTED])
    return canvas


def _color(name: str) -> str:
    """16 and 32 bits as the baseline is, this project's formats as its method, peers as
    post-training quantization."""
    if name in (BASELINE, "float32", "vllm_bf16"):
        return style.COLORS["baseline"]
    return style.COLORS["grace" if name in OWN else "awq"]


def light(name: str) -> tuple[float, ...]:
    """A variant's colour for bars."""
    return tuple(1 - 0.45 * (1 - part) for part in to_rgb(_color(name)))


def row_names(axes: Axes, variants: Data, *, shown: bool = True) -> None:
    """One row for each variant, with its label where that is shown."""
    style.rows(axes, [part["label"] if shown else "" for part in variants.values()], room=0.55)


def _diamond(axes: Axes, x: float, y: float) -> None:
    axes.plot(
        x, y, marker="D", markersize=6, markerfacecolor="white", markeredgecolor=style.INK,
        linestyle="none", zorder=5, label=_REPORTED,
    )  # fmt: skip


def _expected(variants: Data, reference: Data | None) -> float | None:
    """Tokens a second of INT4 at batch 1, by the reported ratio and BF16 as measured."""
    base = dict(steps(variants[BASELINE])).get("1") if BASELINE in variants else None
    if reference is None or base is None:
        return None
    speed: float = base["tokens_per_second"]["median"]
    return float(reference["throughput_ratio_int4_over_bf16"] * speed)


def _decoding(axes: Axes, variants: Data, reference: Data | None, bandwidth: float) -> None:
    batches, expected = batch_sizes(variants), _expected(variants, reference)
    axes.set_xscale("log")
    lows, highs = [], []
    for row, (name, part) in enumerate(variants.items()):
        for batch, step in sorted(steps(part), key=lambda step: int(step[0])):
            y = row + (batches.index(batch) - (len(batches) - 1) / 2) * _APART
            speed, floor = step["tokens_per_second"], _floor(batch, step, bandwidth)
            _rate(axes, y, speed, floor, _color(name), known=name == BASELINE)
            left = speed["low"]
            if (name, batch) == (OURS, "1") and expected is not None:
                _diamond(axes, expected, y)
                left = min(left, expected / 1.03)
            axes.annotate(
                batch, (left, y), xytext=(-5, 0), textcoords="offset points",
                ha="right", va="center",
            )  # fmt: skip
            lows.append(left)
            highs.append(max(floor, speed["high"]))
    row_names(axes, variants)
    ticks: tuple[int, ...] = (1, 2, 5)
    if lows:
        axes.set_xlim(min(lows) / 1.8, max(highs) * 1.25)
        if max(highs) > 200 * min(lows):
            ticks = (1,)  # no room for more
    axes.xaxis.set_major_locator(LogLocator(subs=ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    axes.set_xlabel("tokens/s, at the batch size beside the point")


def _rate(axes: Axes, y: float, speed: Data, floor: float, color: str, *, known: bool) -> None:
    """A speed with its repeats, and the floor; ``known`` where the legend takes it."""
    style.interval(
        axes, speed["median"], y, speed["low"], speed["high"], color=color, marker="o",
        markersize=4.5, capsize=2, linestyle="none", elinewidth=1.2,
        label=_MEASURED if known else "_",
    )  # fmt: skip
    axes.plot(
        floor, y, marker="|", markersize=8, markeredgewidth=1.8, color=color, linestyle="none",
        label=_BANDWIDTH if known else "_",
    )  # fmt: skip


def draw_bar(axes: Axes, row: int, name: str, values: Data) -> None:
    """A median as a bar, with the least and the greatest repeat."""
    axes.barh(row, values["median"], color=light(name), height=0.7)
    style.interval(
        axes, values["median"], row, values["low"], values["high"], color=style.INK, capsize=2,
        elinewidth=1.2,
    )  # fmt: skip


def draw_first_token(axes: Axes, variants: Data) -> None:
    """The time to the first token."""
    for row, (name, part) in enumerate(variants.items()):
        draw_bar(axes, row, name, part["time_to_first_token"])
    row_names(axes, variants)
    axes.set_xlabel("first token, s")


def draw_memory(axes: Axes, variants: Data, reference: Data | None = None) -> None:
    """Peak memory, the weights in full colour, and what a reported reduction makes of BF16's."""
    for row, (name, part) in enumerate(variants.items()):
        most = peak(part)
        if most is not None:
            axes.barh(row, most / _GIB, color=light(name), height=0.7)
        axes.barh(row, part["weight_bytes"] / _GIB, color=_color(name), height=0.7)
    base = peak(variants[BASELINE]) if BASELINE in variants else None
    if reference is not None and OURS in variants and base is not None:
        left = 1 - reference["memory_reduction_percent"] / 100
        _diamond(axes, left * base / _GIB, list(variants).index(OURS))
    row_names(axes, variants, shown=False)
    axes.set_xlabel("peak memory, GiB")
