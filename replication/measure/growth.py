"""How time and memory of GRACE's training step grow: measured at small sizes, on this machine.

    python -m replication.measure.growth [--out results/scaling/scaling.json]

Varies the length of a sequence, the vocabulary and the student's width, one at a time, around one
step of `replication.measure.step`. Every point has the median time of a step (processor seconds of
one
thread), the peak of the bytes alive (`LiveBytes`), and what `replication.plan.costs` says of both.
A
point that the file has already, from the same code, is kept: an interrupted run goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from replication.base import provenance
from replication.base.code import code_hash
from replication.base.command import command
from replication.base.files import read_json, write_json_atomic
from replication.measure.step import Trial, live_bytes, trial_trainer
from replication.plan.costs import Precision, Shape, rank_memory, step_flops

OUT = Path("results/scaling/scaling.json")
CENTRE = Trial(text_tokens=112, supervised=64, sequences=2, vocabulary=4096, width=256, layers=2)
AXES: dict[str, tuple[int, ...]] = {
    "text_tokens": (112, 240, 496, 1008),
    "vocabulary": (1024, 4096, 16384, 65536),
    "width": (128, 256, 512, 1024),
}
STEPS = 5


class _Clock(TrainerCallback):
    """Seconds of every optimizer step, the teacher's forward included: from one step's end to the
    next one's. On a CPU those of the processor, which other programs do not lengthen."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._note()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._note()

    def _note(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            self.ends.append(time.perf_counter())
        else:
            self.ends.append(time.process_time())

    @property
    def seconds(self) -> list[float]:
        return [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]


def step_seconds(trial: Trial, steps: int = STEPS) -> list[float]:
    """Seconds of `steps` optimizer steps on one thread; one before them is not counted."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # waiting threads would count as work
    try:
        with tempfile.TemporaryDirectory() as folder:
            trainer = trial_trainer(trial, folder, steps=steps + 1)
            clock = _Clock()
            trainer.add_callback(clock)
            trainer.train()
    finally:
        torch.set_num_threads(threads)
    return clock.seconds[1:]


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
    taught = trial.configuration().needs_teacher
    teacher = Shape.of(trial.shape(teacher=True).meta_model) if taught else None
    spec = trial.quantization()
    flops = step_flops(
        student,
        trial.load(),
        teacher=teacher,
        relational=trial.configuration().relational,
        quantized=spec is not None,
        checkpointing=trial.checkpointing,
        attention="eager" if trial.attention == "eager" else "fused",
    )
    memory = rank_memory(
        student,
        trial.load(),
        quantized=spec is not None,
        group_size=spec.group_size if spec else "row",
        teacher=teacher,
        relational=trial.configuration().relational,
        checkpointing=trial.checkpointing,
        accumulation=trial.accumulation,
        precision=Precision(
            autocast=trial.autocast, teacher_dtype_bytes=2 if trial.autocast else 4
        ),
        attention="eager" if trial.attention == "eager" else "fused",
    )
    return trial.accumulation * sum(flops.values()), memory["peak"]


def measure(trial: Trial) -> dict[str, Any]:
    """One point."""
    seconds = step_seconds(trial)
    operations, memory = predicted(trial)
    return {
        "seconds": statistics.median(seconds),
        "least": min(seconds),
        "greatest": max(seconds),
        "peak_bytes": peak_bytes(trial),
        "predicted_operations": operations,
        "predicted_peak_bytes": memory,
    }


def run(out: Path, say: Any = print, axes: dict[str, tuple[int, ...]] | None = None) -> dict:
    """Measure what `out` lacks, point by point, and return its content."""
    axes = AXES if axes is None else axes
    settings = {"centre": dataclasses.asdict(CENTRE), "steps": STEPS, "axes": axes}
    stamp = provenance.collect(
        settings,
        [0],
        "python -m replication.measure.growth",
        device=provenance.device_description(),
        extra={"code": code_hash("replication.measure.growth")},
    )
    points: dict[str, dict[str, Any]] = {}
    if out.is_file():
        known = read_json(out)
        same = ("code", "device", "params_hash")
        if all(known["provenance"][key] == stamp[key] for key in same):
            points = known["points"]
    content = {"provenance": stamp, "settings": settings, "points": points}
    for axis, values in axes.items():
        for value in values:
            name = f"{axis}={value}"
            if name in points:
                continue
            changed: dict[str, Any] = {axis: value}
            points[name] = measure(dataclasses.replace(CENTRE, **changed))
            write_json_atomic(out, content)
            say(f"{name}: {points[name]['seconds']:.3f} s, {points[name]['peak_bytes']:,} bytes")
    return content


@command
def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args(words)
    run(arguments.out)


if __name__ == "__main__":
    sys.exit(main())
