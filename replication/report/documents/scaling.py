"""The tables of docs/scaling.md, from the cost model.

python -m replication.report.documents.scaling
"""

from __future__ import annotations

import sys
from functools import partial

from replication.base.command import command
from replication.base.files import ROOT, write_text_atomic
from replication.base.scales import FULL_SCALE
from replication.paper import load_tables
from replication.plan.costs import (
    OPTIMIZERS,
    WRAPPERS,
    Load,
    Precision,
    Shape,
    rank_memory,
    step_flops,
    teacher_outputs_bytes,
    traffic_bytes,
)
from replication.plan.needs import (
    make_plan,
    shape_of,
    training_load,
)
from replication.plan.resources import Resources, load_resources
from replication.report.documents import fill, markdown_table
from replication.settings.checks import parse_params
from replication.settings.scales import scale_params
from replication.settings.schema import Params

DOCUMENT = ROOT / "docs" / "scaling.md"
DEVICE = "A100"


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f}"


def tables(params: Params, resources: Resources) -> str:
    """Cost of every table: runs, device-hours, days on as many devices as the parameters say;
    and the size of all downloads."""
    plan = make_plan(params, load_tables(), resources, resources.device(DEVICE))
    rows = []
    for table in (*plan.tables.values(), plan.total):
        train, evaluation = table.train_seconds or 0.0, table.evaluate_seconds or 0.0
        rows.append(
            (
                table.name,
                f"{sum(model.copies for model in table.models if model.trained)}",
                f"{train / 3600:,.0f}",
                f"{evaluation / 3600:,.0f}",
                f"{(train + evaluation) / 86400 / params.train.devices:,.1f}",
            )
        )
    head = ("table", "runs trained", "training, h", "evaluation, h", "days")
    downloads = f"All downloads together: {_gigabytes(plan.total.download_bytes)} GB."
    return f"{markdown_table(head, rows)}\n\n{downloads}"


def _pairs(params: Params, resources: Resources) -> list[tuple[Shape, Shape, Load]]:
    """Student, teacher and training load of every family."""
    return [
        (
            shape_of(params.baseline[family].source or ""),
            shape_of(params.teacher[family].source or ""),
            training_load(params, family, resources),
        )
        for family in params.families
    ]


def operations(params: Params, resources: Resources) -> str:
    """Where a sample's time goes on DEVICE under GRACE at 4 bits, in milliseconds by part."""
    device, rows = resources.device(DEVICE), []
    for student, teacher, load in _pairs(params, resources):
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
    return markdown_table(head, rows)


def memory(params: Params, resources: Resources) -> str:
    """Peak of a rank in GB under every wrapper, for GRACE at 4 bits, and two ways to need less, of
    which FSDP2 has one (`replication.train.launch.read_launch_config`)."""
    rows = []
    for student, teacher, load in _pairs(params, resources):
        for wrapper in WRAPPERS:
            ranks = 1 if wrapper == "single" else params.train.devices
            rank = partial(
                rank_memory,
                student,
                load,
                quantized=True,
                teacher=teacher,
                relational=True,
                checkpointing=params.train.gradient_checkpointing,
                accumulation=params.train.accumulation,
                wrapper=wrapper,
                ranks=ranks,
            )
            whole, small = OPTIMIZERS
            small = whole if wrapper == "fsdp2" else small
            usual = rank(precision=Precision(optimizer=whole, teacher_bits=16))
            least = rank(precision=Precision(optimizer=small, teacher_bits=4))
            kept = usual["weights"] + usual["gradients"] + usual["optimizer"]
            step = usual["activations"] + usual["casts"] + usual["vocabulary"]
            step += usual["teacher_outputs"]
            sizes = (kept, usual["communication"], usual["teacher"], step, usual["peak"])
            rows.append((student.name, wrapper, *map(_gigabytes, (*sizes, least["peak"]))))
    head = ("student", "wrapper", "weights, gradients, optimizer", "gathered, buckets", "teacher",
            "activations, logits", "peak", "peak, 8-bit, 4-bit teacher")  # fmt: skip
    return markdown_table(head, rows)


def logits(params: Params, resources: Resources) -> str:
    """The teacher's logits of an optimizer step on a rank, and at how many supervised tokens they
    are as large as the checkpointed activations of a micro-batch and as the student's weights."""
    rows, accumulation = [], params.train.accumulation
    for student, teacher, load in _pairs(params, resources):
        outputs = teacher_outputs_bytes(teacher, load, accumulation=accumulation, relational=True)
        step = rank_memory(
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
                f"{step['activations'] / row:,.0f}",
                f"{2 * student.parameters / row:,.0f}",
            )
        )
    head = ("student", "V", "supervised tokens a step and rank", "logits, GB", "hidden states, GB",
            "tokens: as much as the activations", "tokens: as much as BF16 weights")  # fmt: skip
    return markdown_table(head, rows)


def contents() -> dict[str, str]:
    """Every table by its name."""
    params = parse_params(scale_params(FULL_SCALE))
    resources = load_resources()
    computed = (tables, operations, memory, logits)
    return {table.__name__: table(params, resources) for table in computed}


@command
def main() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    write_text_atomic(DOCUMENT, fill(text, contents(), DOCUMENT.relative_to(ROOT)))


if __name__ == "__main__":
    sys.exit(main())
