"""Speed and memory of the published architectures (the paper's Figure 7; C09, C10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from replication.paper import load_tables
from replication.report.figures import style
from replication.report.figures.figure import Figure, NotRun, command_of
from replication.report.figures.reading import (
    MODELS,
    STUDENTS,
    built,
    counted,
    deployment_source,
    deployments,
    listed,
)
from replication.report.tables.deployments import bandwidths, deployment_reports, floor_seconds
from replication.results.deployment import BASELINE, peak, ratios

COMPARED = "llava-1.5-7b"  # whose ratios C09 and C10 hold against the reported ones
OURS = "int4"
_GIB = 2**30
_MEASURED, _BANDWIDTH = "measured", "bandwidth floor"
_REPORTED = "reported ratio × BF16 here"
_HEIGHT = 0.165  # inches of one row at one batch size
_APART = 0.3  # of the distance between two rows: that of two batch sizes


def draw(results: Path, scale: str, family: str) -> Figure:
    """For each family's student: tokens a second by batch size, the time to the first token, and
    memory. `family` changes nothing: all students are drawn.

    Raises NotRun where none was measured."""
    found = deployments(results, scale, list(STUDENTS.values()))
    best = bandwidths(deployment_reports(results, scale))
    if not found:
        raise NotRun("no architecture was measured at this scale: run the stage deploy")
    printed = load_tables().deployment
    heights = []
    for _, variants in found.values():
        rows = len(variants) * max(1, len(_batches(variants)))
        heights += [rows * _HEIGHT + 0.75, len(variants) * 0.2 + 0.75]
    canvas = style.canvas(style.WIDTH, sum(heights) + 0.6)
    grid = canvas.add_gridspec(len(heights), 2, height_ratios=heights)
    for index, (model, (report, variants)) in enumerate(found.items()):
        decoding = canvas.add_subplot(grid[2 * index, :])
        first = canvas.add_subplot(grid[2 * index + 1, 0])
        memory = canvas.add_subplot(grid[2 * index + 1, 1])
        reference = printed if model == COMPARED and report["settings"]["layers"] is None else None
        _decoding(decoding, variants, reference, best[report["device"]])
        _first_token(first, variants)
        _memory(memory, variants, reference)
        style.heading(decoding, built(model, report))
    handles: dict[str, Any] = {}
    for axes in canvas.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    shown = [label for label in (_MEASURED, _BANDWIDTH, _REPORTED) if label in handles]
    canvas.legend([handles[label] for label in shown], shown, loc="outside upper center", ncols=2)

    devices = sorted({report["device"] for report, _ in found.values()})
    repeats = [
        len(part["decode"][batch]["tokens_per_second"]["values"])
        for _, variants in found.values()
        for part in variants.values()
        for batch in _batches({"": part})
    ]
    prompts = [
        len(part["time_to_first_token"]["values"])
        for _, variants in found.values()
        for part in variants.values()
    ]
    return Figure(
        name="deployment",
        title="Speed and memory when deployed",
        caption=(
            f"Published architectures with random weights on {listed(devices)}; by the format of "
            "the decoder's weights. Above: decoded tokens a second at the batch size that stands "
            "beside the point (the axis is logarithmic); bars are the least and greatest of the "
            "repeats, upright marks the memory-bandwidth floor: a step in the time in which the "
            "machine copies the bytes that it has to read, at the best rate seen. Below: time to "
            "the first token of a prompt of one image and 64 words, and peak memory of the "
            "process, in which the dark part is the weights. Diamonds: what the reported ratios of "
            f"{MODELS[COMPARED]}, "
            f"{printed['throughput_ratio_int4_over_bf16']:g} times the throughput and "
            f"{printed['memory_reduction_percent']} % less memory, make of the BF16 measured here; "
            "they were measured on an A100 with other kernels. Speed and memory do not depend on "
            "the values of weights."
        ),
        alt="Dot and bar charts of speed and memory. "
        + " ".join(
            _in_words(built(model, report), variants) for model, (report, variants) in found.items()
        ),
        n=f"{counted(repeats, 'run')} of tokens a point; {counted(prompts, 'prompt')} a bar",
        units="tokens per second; seconds; GiB",
        sources=tuple(deployment_source(results, scale, model) for model in found),
        command=command_of(scale),
        paper="Figure 7",
        claims=("C09", "C10"),
        data={
            model: {
                "device": report["device"],
                "layers": report["settings"]["layers"],
                "variants": {
                    name: _record(part, best[report["device"]]) for name, part in variants.items()
                },
            }
            for model, (report, variants) in found.items()
        },
        canvas=canvas,
    )


def _batches(variants: Mapping[str, Any]) -> list[str]:
    """Batch sizes at which any variant decoded, ascending."""
    found = {
        batch
        for part in variants.values()
        for batch, one in part["decode"].items()
        if "not_run" not in one
    }
    return sorted(found, key=int)


def _color(name: str) -> str:
    """BF16 as the baseline is, this project's formats as its method, peers as post-training
    quantization."""
    if name == BASELINE:
        return style.COLORS["baseline"]
    return style.COLORS["grace"] if name in ("int4", "int8") else style.COLORS["awq"]


def _light(name: str) -> tuple[float, ...]:
    return tuple(1 - 0.45 * (1 - part) for part in to_rgb(_color(name)))


def _names(axes: Axes, variants: Mapping[str, Any], *, shown: bool = True) -> None:
    axes.set_yticks(
        range(len(variants)), [part["label"] if shown else "" for part in variants.values()]
    )
    axes.set_ylim(len(variants) - 0.45, -0.55)
    axes.grid(axis="y", visible=False)


def _diamond(axes: Axes, x: float, y: float) -> None:
    axes.plot(
        x, y, marker="D", markersize=6, markerfacecolor="white", markeredgecolor=style.INK,
        linestyle="none", zorder=5, label=_REPORTED,
    )  # fmt: skip


def _floor(batch: str, one: Mapping[str, Any], bandwidth: float) -> float:
    """Tokens a second of steps that last as long as the floor."""
    return int(batch) / floor_seconds(one, bandwidth)


def _decoding(
    axes: Axes,
    variants: Mapping[str, Any],
    reference: Mapping[str, Any] | None,
    bandwidth: float,
) -> None:
    batches = _batches(variants)
    axes.set_xscale("log")
    base = variants.get(BASELINE, {"decode": {}})["decode"].get("1", {"not_run": ""})
    lows, highs = [], []
    for row, (name, part) in enumerate(variants.items()):
        for place, batch in enumerate(batches):
            one = part["decode"].get(batch, {"not_run": ""})
            if "not_run" in one:
                continue
            y = row + (place - (len(batches) - 1) / 2) * _APART
            speed, floor = one["tokens_per_second"], _floor(batch, one, bandwidth)
            median = speed["median"]
            axes.errorbar(
                median,
                y,
                xerr=[[median - speed["low"]], [speed["high"] - median]],
                color=_color(name),
                marker="o",
                markersize=4.5,
                capsize=2,
                linestyle="none",
                elinewidth=1.2,
                label=_MEASURED if name == BASELINE else "_",
            )
            axes.plot(
                floor, y, marker="|", markersize=8, markeredgewidth=1.8, color=_color(name),
                linestyle="none", label=_BANDWIDTH if name == BASELINE else "_",
            )  # fmt: skip
            left = speed["low"]
            if (name, batch) == (OURS, "1") and reference is not None and "not_run" not in base:
                ratio = reference["throughput_ratio_int4_over_bf16"]
                expected = ratio * base["tokens_per_second"]["median"]
                _diamond(axes, expected, y)
                left = min(left, expected / 1.03)
            axes.annotate(
                batch, (left, y), xytext=(-5, 0), textcoords="offset points",
                ha="right", va="center",
            )  # fmt: skip
            lows.append(left)
            highs.append(max(floor, speed["high"]))
    _names(axes, variants)
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


def _first_token(axes: Axes, variants: Mapping[str, Any]) -> None:
    for row, (name, part) in enumerate(variants.items()):
        time = part["time_to_first_token"]
        reach = [[time["median"] - time["low"]], [time["high"] - time["median"]]]
        axes.barh(row, time["median"], color=_light(name), height=0.7)
        axes.errorbar(time["median"], row, xerr=reach, color=style.INK, capsize=2, elinewidth=1.2)
    _names(axes, variants)
    axes.set_xlabel("first token, s")


def _memory(axes: Axes, variants: Mapping[str, Any], reference: Mapping[str, Any] | None) -> None:
    for row, (name, part) in enumerate(variants.items()):
        most = peak(part)
        if most is not None:
            axes.barh(row, most / _GIB, color=_light(name), height=0.7)
        axes.barh(row, part["weight_bytes"] / _GIB, color=_color(name), height=0.7)
    base = peak(variants[BASELINE]) if BASELINE in variants else None
    if reference is not None and OURS in variants and base is not None:
        left = 1 - reference["memory_reduction_percent"] / 100
        _diamond(axes, left * base / _GIB, list(variants).index(OURS))
    _names(axes, variants, shown=False)
    axes.set_xlabel("peak memory, GiB")


def _record(part: Mapping[str, Any], bandwidth: float) -> dict[str, Any]:
    return {
        "label": part["label"],
        "peak_bytes": peak(part),
        "weight_bytes": part["weight_bytes"],
        "time_to_first_token": _spread(part["time_to_first_token"]),
        "tokens_per_second": {
            batch: {**_spread(one["tokens_per_second"]), "floor": _floor(batch, one, bandwidth)}
            for batch, one in part["decode"].items()
            if "not_run" not in one
        },
    }


def _spread(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: values[name] for name in ("median", "low", "high")}


def _in_words(model: str, variants: Mapping[str, Any]) -> str:
    """INT4 against BF16 in one sentence, or what was measured where one of them was not."""
    found = ratios(variants, OURS)
    if "throughput" not in found:
        labels: Sequence[str] = [part["label"] for part in variants.values()]
        return f"{model}: {listed(labels)}."
    base, ours = (variants[name] for name in (BASELINE, OURS))
    return (
        f"{model}: at batch 1 BF16 decodes "
        f"{base['decode']['1']['tokens_per_second']['median']:.1f} tokens per second and INT4 "
        f"{ours['decode']['1']['tokens_per_second']['median']:.1f}, "
        f"{found['throughput'].point:.2f} times as many, with "
        f"{found['memory_reduction'].point:.0f} percent less peak memory."
    )
