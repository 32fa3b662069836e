"""The tables of docs/scaling.md, from the cost model and the measured growth.

    python -m replication.report.scaling

rewrites what stands between the document's markers. Text by hand stands outside of them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from grace.errors import InputError
from replication.base.command import command
from replication.base.files import ROOT, read_json, write_text_atomic
from replication.base.scales import FULL_SCALE
from replication.measure.growth import AXES, OUT
from replication.paper import load_tables
from replication.plan.costs import (
    OPTIMIZERS,
    WRAPPERS,
    Precision,
    rank_memory,
    step_flops,
    teacher_outputs_bytes,
    traffic_bytes,
)
from replication.plan.needs import (
    checkpoint_bytes,
    make_plan,
    shape_of,
    sources,
    training_load,
)
from replication.plan.resources import Resources, load_resources
from replication.settings.checks import parse_params
from replication.settings.scales import scale_params
from replication.settings.schema import Params, section

DOCUMENT = ROOT / "docs" / "scaling.md"
DEVICE = "A100"
NAMES = ("tables", "inputs", "operations", "memory", "logits", "growth")


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f}"


def tables(params: Params, resources: Resources) -> str:
    """Cost of every table: downloads, runs, device-hours, days on as many devices as the
    parameters say."""
    plan = make_plan(params, load_tables(), resources, resources.device(DEVICE))
    rows = []
    for table in (*plan.tables.values(), plan.total):
        train, asked = table.train_seconds or 0.0, table.evaluate_seconds or 0.0
        runs = sum(model.copies for model in table.models if model.trained)
        rows.append(
            (
                table.name,
                str(len(table.models)),
                str(runs),
                _gigabytes(table.download_bytes),
                f"{train / 3600:,.0f}",
                f"{asked / 3600:,.0f}",
                f"{(train + asked) / 86400 / params.train.devices:,.1f}",
            )
        )
    head = ("table", "models", "trained", "download, GB", "training, h", "evaluation, h", "days")
    return _markdown(head, rows)


def inputs(params: Params, resources: Resources) -> str:
    """What the downloads are made of, and where each size is from."""
    rows = []
    for source in sources(params):
        weights = shape_of(source).parameters
        size = _gigabytes(checkpoint_bytes(source, resources))
        rows.append((source, size, f"computed: {weights:,} weights in bfloat16"))
    corpus = resources.corpus[section(params.data, "data").training.repository or ""]
    rows.append(("conversations", _gigabytes(corpus.bytes), corpus.source))
    for kind, entries in (("images", corpus.images), ("benchmark", resources.benchmarks)):
        for name, entry in entries.items():
            start = "estimated: " if entry.estimated else ""
            rows.append((f"{kind} {name}", _gigabytes(entry.bytes), start + entry.source))
    return _markdown(("download", "GB", "from"), rows)


def _dearest(params: Params, family: str) -> tuple[Any, Any, Any]:
    student = shape_of(params.baseline[family].source or "")
    return student, shape_of(params.teacher[family].source or ""), family


def operations(params: Params, resources: Resources) -> str:
    """Where a sample's time goes on DEVICE under GRACE at 4 bits, in milliseconds by part."""
    device, rows = resources.device(DEVICE), []
    for family in params.families:
        student, teacher, _ = _dearest(params, family)
        load = training_load(params, family, resources)
        flops = step_flops(
            student, load, teacher=teacher, relational=True, quantized=True, checkpointing=True
        )
        moved = traffic_bytes(student, load, teacher=teacher, quantized=True, checkpointing=True)
        times = {name: device.seconds(count) for name, count in flops.items()}
        times |= {name: device.seconds(0, count) for name, count in moved.items()}
        parts = ("forward", "backward", "recompute", "teacher", "fake_quant", "vocabulary")
        cells = [f"{1e3 * times[part] / load.sequences:,.0f}" for part in parts]
        alone = device.seconds(0, moved["fake_quant"]) / device.seconds(sum(flops.values()))
        rows.append((student.name, f"{load.tokens:.0f}", *cells, f"{100 * alone:.0f} %"))
    head = ("student", "tokens", "forward", "backward", "recompute", "teacher",
            "fake quantization", "vocabulary", "fake quantization / products")  # fmt: skip
    return _markdown(head, rows)


def memory(params: Params, resources: Resources) -> str:
    """Peak of a rank in GB under every wrapper, for GRACE at 4 bits, and two ways to need less, of
    which FSDP2 has one (`replication.train.launch.read_launch_config`)."""
    rows = []
    for family in params.families:
        student, teacher, _ = _dearest(params, family)
        load = training_load(params, family, resources)
        for wrapper in WRAPPERS:
            ranks = 1 if wrapper == "single" else params.train.devices
            cells = []
            whole, small = OPTIMIZERS
            if wrapper == "fsdp2":
                small = whole
            for optimizer, bits in ((whole, 16), (small, 4)):
                found = rank_memory(
                    student,
                    load,
                    quantized=True,
                    teacher=teacher,
                    relational=True,
                    checkpointing=params.train.gradient_checkpointing,
                    accumulation=params.train.accumulation,
                    wrapper=wrapper,
                    ranks=ranks,
                    precision=Precision(optimizer=optimizer, teacher_bits=bits),
                )
                if bits == 16:
                    parts = ("weights", "gradients", "optimizer", "communication", "teacher")
                    cells += [_gigabytes(found[part]) for part in parts]
                    step = found["activations"] + found["casts"] + found["vocabulary"]
                    cells.append(_gigabytes(step + found["teacher_outputs"]))
                cells.append(_gigabytes(found["peak"]))
            rows.append((student.name, wrapper, str(ranks), *cells))
    head = ("student", "wrapper", "ranks", "weights", "gradients", "optimizer", "gathered, buckets",
            "teacher", "activations, logits", "peak", "peak, 8-bit, 4-bit teacher")  # fmt: skip
    return _markdown(head, rows)


def logits(params: Params, resources: Resources) -> str:
    """The teacher's logits of an optimizer step on a rank, and at how many supervised tokens they
    are as large as the checkpointed activations of a micro-batch and as the student's weights."""
    rows = []
    for family in params.families:
        student, teacher, _ = _dearest(params, family)
        load = training_load(params, family, resources)
        accumulation = params.train.accumulation
        outputs = teacher_outputs_bytes(teacher, load, accumulation=accumulation, relational=True)
        found = rank_memory(
            student, load, quantized=True, teacher=teacher, relational=True, checkpointing=True
        )
        row = 2 * teacher.vocabulary
        rows.append(
            (
                student.name,
                f"{teacher.vocabulary:,}",
                f"{load.targets * accumulation:,.0f}",
                f"{outputs['logits'] / 1e9:.2f}",
                f"{outputs['hidden'] / 1e9:.2f}",
                f"{found['activations'] / row:,.0f}",
                f"{2 * student.parameters / row:,.0f}",
            )
        )
    head = ("student", "V", "supervised tokens a step and rank", "logits, GB", "hidden states, GB",
            "tokens: as much as the activations", "tokens: as much as BF16 weights")  # fmt: skip
    return _markdown(head, rows)


def growth(measured: Mapping[str, Any]) -> str:
    """Measured time and memory of a step, each beside the formula's."""
    rows = []
    for axis, values in AXES.items():
        first: Mapping[str, Any] | None = None
        for value in values:
            point = measured["points"].get(f"{axis}={value}")
            if point is None:
                raise InputError(
                    f"{OUT} lacks the point {axis}={value}; run python -m replication.bench growth"
                )
            first = first or point
            flops, peak = "predicted_operations", "predicted_peak_bytes"
            rows.append(
                (
                    axis.replace("_", " "),
                    f"{value:,}",
                    f"{point['seconds']:.2f} [{point['least']:.2f}, {point['greatest']:.2f}]",
                    f"{point['seconds'] / first['seconds']:.1f}",
                    f"{point[flops] / first[flops]:.1f}",
                    f"{point['peak_bytes'] / 1e6:,.0f}",
                    f"{point[peak] / 1e6:,.0f}",
                )
            )
    head = ("varied", "value", "s a step", "x first", "operations x first", "peak, MB",
            "formula, MB")  # fmt: skip
    device = measured["provenance"]["device"]
    how = f"median of {measured['settings']['steps']} steps [least, greatest]"
    return f"{_markdown(head, rows)}\n\nOn {device}, processor seconds of one thread: {how}."


def contents(measured: Mapping[str, Any]) -> dict[str, str]:
    """Every table by its name."""
    params = parse_params(scale_params(FULL_SCALE))
    resources = load_resources()
    return {
        "tables": tables(params, resources),
        "inputs": inputs(params, resources),
        "operations": operations(params, resources),
        "memory": memory(params, resources),
        "logits": logits(params, resources),
        "growth": growth(measured),
    }


def fill(text: str, found: Mapping[str, str]) -> str:
    """The document with its tables replaced. Raises InputError for a marker that is missing."""
    for name in NAMES:
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise InputError(f"{DOCUMENT.name} needs the lines {begin} and {end}, once, in order")
        before, rest = text.split(begin)
        text = f"{before}{begin}\n\n{found[name]}\n\n{end}{rest.split(end)[1]}"
    return text


@command
def main() -> None:
    measured = read_json(ROOT / OUT)
    document = fill(DOCUMENT.read_text(encoding="utf-8"), contents(measured))
    write_text_atomic(DOCUMENT, document)


if __name__ == "__main__":
    sys.exit(main())
