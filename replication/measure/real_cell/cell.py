"""The whole cell, from texts to the result file and its table."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from replication.base.files import read_json, write_json_atomic, write_text_atomic
from replication.measure.real_cell import checkpoint
from replication.measure.real_cell.record import Kept, result
from replication.measure.real_cell.scores import TokenScores, teacher_tokens
from replication.measure.real_cell.settings import Settings
from replication.measure.real_cell.table import table_text
from replication.measure.real_cell.teaching import HeadTeacher, write_hidden
from replication.measure.real_cell.texts import Texts, documentation, own_texts
from replication.measure.real_cell.training import (
    Bench,
    own_teacher,
    recovered,
    remove_checkpoints,
    train_run,
)
from replication.results.real_cell import RESULT, RealCell, read_real_cell

WORK = Path("models") / "real_cell"
"""The folder of what is kept between calls."""
SECONDS_FILE = "seconds.json"


def measure(
    settings: Settings,
    *,
    model: Path = checkpoint.FOLDER,
    work: Path = WORK,
    results: Path = Path("results"),
    command: str = "python -m replication.real_cell",
) -> RealCell:
    """Make the cell; what is there already and follows from the same is kept.

    The result is written whenever one more seed of every run is done.

    Args:
        settings: of the cell.
        model: the folder of the published model.
        work: the folder of what is kept between calls.
        results: the folder of all results.
        command: what was typed, for the provenance.

    Raises:
        InputError: the model is not there, or settings do not fit it.
    """
    clock = _Clock(work / SECONDS_FILE)
    teacher, tokenizer = checkpoint.load(model)
    bench, texts, teachers = _prepared(settings, teacher, tokenizer, work, clock)
    with clock.part("recovery"):
        student = recovered(bench)
    with clock.part("levels"):
        truncated = bench.scores(checkpoint.first_layers(teacher, settings.layers))
        levels = {
            "teacher": bench.scores(teacher),
            "truncated": truncated,
            "recovered": bench.scores(student),
        }
        _say_levels(levels)
        own = own_teacher(bench, student)
        teacher_on = {
            name: teacher_tokens(texts[name], taught, batch_size=settings.batch_size)
            for name, taught in teachers.items()
        }
    shared = {"teacher": teachers["methods"], "own": own}
    runs: dict[str, dict[int, Path]] = {name: {} for name in settings.runs}
    done = 0
    for seed in settings.seeds:
        for name in settings.runs:
            done += 1
            _say(f"run {done} of {len(settings.runs) * len(settings.seeds)}: {name}, seed {seed}")
            with clock.part(f"{name}, seed {seed}"):
                runs[name][seed] = train_run(bench, name, seed, recovered(bench), shared)
            clock.say_left(len(settings.runs) * len(settings.seeds) - done)
        kept = Kept(
            replace(settings, seeds=settings.seeds[: settings.seeds.index(seed) + 1]),
            teacher,
            student,
            {name: part.summary() for name, part in texts.items()},
            levels,
            teacher_on,
            runs,
            clock.seconds,
        )
        cell = _write(result(kept, command), results)
    remove_checkpoints(work)
    return cell


def _prepared(
    settings: Settings, teacher: Any, tokenizer: Any, work: Path, clock: "_Clock"
) -> tuple[Bench, dict[str, Texts], dict[str, HeadTeacher]]:
    """The texts, the teacher's hidden states on them, and what the trainings share."""
    with clock.part("texts"):
        training, held_out = own_texts(teacher, tokenizer, settings, work)
    texts = {
        "training": training,
        "methods": training.first(settings.methods),
        "held_out": held_out,
        "documentation": documentation(tokenizer, settings),
    }
    teachers = {}
    with clock.part("teacher"):
        for name in ("methods", "held_out", "documentation"):
            file = work / "hidden" / f"{name}-{texts[name].sha256[:12]}.safetensors"
            hidden = write_hidden(teacher, texts[name], file, batch_size=settings.batch_size)
            teachers[name] = HeadTeacher(teacher.lm_head.weight, hidden, texts[name])
    bench = Bench(
        settings,
        work,
        teacher,
        training,
        texts["methods"],
        held_out,
        teachers["methods"],
        teachers["held_out"],
    )
    return bench, texts, teachers


def _write(content: dict[str, Any], results: Path) -> RealCell:
    file = results / RESULT
    write_json_atomic(file, content)
    cell = read_real_cell(results)
    assert cell is not None
    write_text_atomic(file.with_suffix(".md"), table_text(cell))
    _say(f"wrote {file}")
    return cell


class _Clock:
    """Seconds of every part, over all calls that it took."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.seconds: dict[str, float] = read_json(file) if file.is_file() else {}
        self._runs: list[float] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time of a block to its part; a block that only looks adds next to nothing."""
        started = time.monotonic()
        try:
            yield
        finally:
            took = time.monotonic() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + took
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomic(self._file, self.seconds)
            self._runs.append(took)

    def say_left(self, runs: int) -> None:
        """How long so many runs will take, by the last one that was trained."""
        minutes = self._runs[-1] * runs / 60
        if runs:
            _say(f"{runs} runs to come, about {minutes:.0f} minutes")


def _say_levels(levels: dict[str, TokenScores]) -> None:
    said = (f"{name} {math.exp(one.by_text()['nll'].mean()):.2f}" for name, one in levels.items())
    _say(f"perplexity on held-out text: {', '.join(said)}")


def _say(text: str) -> None:
    print(f"real cell: {text}", file=sys.stderr, flush=True)
