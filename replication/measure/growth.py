"""How time and memory of GRACE's training step grow: measured at small sizes, on this machine.

The length of a sequence, the vocabulary and the student's width vary, one at a time, around one
step of `replication.measure.step`. Every point has the median time of a step (processor seconds of
one thread), the peak of the bytes alive (`LiveBytes`), and what `replication.plan.costs` predicts
for both.

    <out>/parts/<axis>=<value>.json    one point; a run that is interrupted goes on after it
    <out>/scaling.json                 all of them, with provenance
"""

import argparse
import dataclasses
import itertools
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from replication.base import provenance
from replication.base.files import write_json_atomic
from replication.measure.clock import Clock
from replication.measure.harness import Benchmark, Part
from replication.measure.printing import ResultTable
from replication.measure.step import Trial, live_bytes, trial_trainer
from replication.plan.costs import Precision, Shape, rank_memory, step_flops

HELP = "growth of the time and memory of a training step with its sizes"
OUT = Path("results/scaling/scaling.json")
CENTRE = Trial(text_tokens=112, supervised=64, sequences=2, vocabulary=4096, width=256, layers=2)
AXES: dict[str, tuple[int, ...]] = {
    "text_tokens": (112, 240, 496, 1008),
    "vocabulary": (1024, 4096, 16384, 65536),
    "width": (128, 256, 512, 1024),
}
STEPS = 5


def run(
    out: str | Path,
    *,
    axes: Mapping[str, Sequence[int]] = AXES,
    centre: Trial = CENTRE,
    steps: int = STEPS,
    command: str,
) -> dict[str, Any]:
    """Measure the points that are missing, and write the report.

    Args:
        out: folder of points and report.
        axes: values by the field of `Trial` that varies.
        centre: the step around which it varies.
        steps: optimizer steps that are timed at each point.
        command: for the provenance.

    Returns:
        The content of <out>/scaling.json.

    Raises:
        InputError: where a point fails.
    """
    sizes = dataclasses.asdict(centre)
    settings = {"centre": sizes, "steps": steps, "axes": dict(axes)}
    parts = [
        Part(
            f"{axis}={value}",
            "replication.measure.growth",
            {"trial": {**sizes, axis: value}, "steps": steps},
        )
        for axis, values in axes.items()
        for value in values
    ]
    benchmark = Benchmark(provenance.device_description())
    report = {
        "points": benchmark.run(parts, Path(out) / "parts"),
        "settings": settings,
        "provenance": benchmark.provenance(parts, settings, 0, command),
    }
    write_json_atomic(Path(out) / OUT.name, report)
    return report


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--out", default=str(OUT.parent), help="folder (default: %(default)s)")


def run_options(options: argparse.Namespace, command: str) -> dict[str, Any]:
    """`run` with the options of `add_options`."""
    return run(options.out, command=command)


def tables(report: Mapping[str, Any]) -> list[ResultTable]:
    """Every point beside its prediction of memory."""
    rows = [
        (
            name,
            f"{point['seconds']:.3f} [{point['least']:.3f}, {point['greatest']:.3f}]",
            f"{point['peak_bytes']:,}",
            f"{point['predicted_peak_bytes']:,.0f}",
        )
        for name, point in report["points"].items()
    ]
    header = ("point", "seconds of a step", "peak bytes", "predicted")
    return [ResultTable("Growth of a training step", header, rows)]


def measure_part(trial: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Seconds and peak bytes of a trial's optimizer steps, and what the formulas predict.

    Args:
        trial: the fields of a `Trial`.
        steps: optimizer steps that are timed.
    """
    step = Trial(**trial)
    seconds = step_seconds(step, steps)
    operations, memory = predicted(step)
    return {
        "seconds": statistics.median(seconds),
        "least": min(seconds),
        "greatest": max(seconds),
        "peak_bytes": peak_bytes(step),
        "predicted_operations": operations,
        "predicted_peak_bytes": memory,
    }


class _Ends(TrainerCallback):
    """When training began and every optimizer step ended; a step includes the teacher's forward."""

    def __init__(self) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.clock = Clock(device, processor=True)
        self.moments: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.moments.append(self.clock.now())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.moments.append(self.clock.now())


def step_seconds(trial: Trial, steps: int = STEPS) -> list[float]:
    """Seconds of `steps` optimizer steps on one thread; one before them is not counted."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # waiting threads would count as work
    try:
        with tempfile.TemporaryDirectory() as folder:
            trainer = trial_trainer(trial, folder, steps=steps + 1)
            ends = _Ends()
            trainer.add_callback(ends)
            trainer.train()
    finally:
        torch.set_num_threads(threads)
    return [after - before for before, after in itertools.pairwise(ends.moments)][1:]


def peak_bytes(trial: Trial) -> int:
    """The most bytes alive in two optimizer steps; moments are there from the second on."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = trial_trainer(trial, folder, steps=2)
        counter = live_bytes(trainer)
        with counter:
            trainer.train()
    return counter.peak


def predicted(trial: Trial) -> tuple[float, float]:
    """Operations of an optimizer step and its peak bytes, from the formulas."""
    student = Shape.of(trial.shape().meta_model)
    method, spec = trial.configuration(), trial.quantization()
    common: dict[str, Any] = {
        "teacher": Shape.of(trial.shape(teacher=True).meta_model) if method.needs_teacher else None,
        "relational": method.relational,
        "quantized": spec is not None,
        "checkpointing": trial.checkpointing,
        "attention": "eager" if trial.attention == "eager" else "fused",
    }
    flops = step_flops(student, trial.load(), **common)
    memory = rank_memory(
        student,
        trial.load(),
        group_size=spec.group_size if spec else "row",
        accumulation=trial.accumulation,
        precision=Precision(
            autocast=trial.autocast, teacher_dtype_bytes=2 if trial.autocast else 4
        ),
        **common,
    )
    return trial.accumulation * sum(flops.values()), memory["peak"]
