"""Recovery of the student, and every method from it, with the project's own trainer."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from grace.arithmetic import arithmetic_name
from grace.files import atomic_path
from grace.quantization import bake
from grace.training import GraceTrainer, MethodConfig, prepare_student
from replication.base.code import code_hash
from replication.base.files import read_json, write_json_atomic
from replication.measure.real_cell.checkpoint import first_layers
from replication.measure.real_cell.decoder import decoders_are_trained
from replication.measure.real_cell.scores import TokenScores, token_scores
from replication.measure.real_cell.settings import Settings, method_of
from replication.measure.real_cell.teaching import HeadTeacher, write_hidden
from replication.measure.real_cell.texts import Texts
from replication.train.fit import fit, origin_of, read_origin


@dataclass(frozen=True)
class Bench:
    """What every training of the cell shares.

    Attributes:
        settings: of the cell.
        work: the folder of what is kept.
        teacher: the published model.
        training: texts of the recovery.
        methods: texts of the methods.
        held_out: texts that scores are of.
        teacher_on_methods: the teacher on ``methods``.
        teacher_on_held_out: the teacher on ``held_out``.
    """

    settings: Settings
    work: Path
    teacher: Any
    training: Texts
    methods: Texts
    held_out: Texts
    teacher_on_methods: HeadTeacher
    teacher_on_held_out: HeadTeacher

    def scores(self, model: Any) -> TokenScores:
        """A model's scores on held-out texts."""
        size = self.settings.batch_size
        return token_scores(model, self.held_out, self.teacher_on_held_out, batch_size=size)


def recovered(bench: Bench) -> Any:
    """The teacher's first layers after their recovery by cross-entropy, in float32."""
    settings = bench.settings
    torch.manual_seed(settings.seed)
    student = first_layers(bench.teacher, settings.layers)
    method = MethodConfig("sft")
    values = settings.training_settings(settings.seed, arithmetic_name()) | {
        "steps": settings.recovery_steps,
        "learning_rate": settings.recovery_rate,
    }
    origin = _origin(student, bench.training, method, values, None)
    folder = bench.work / "recovered"
    if read_origin(folder) != origin:
        _fit(student, bench.training, method, values, teacher=None, origin=origin, folder=folder)
        with atomic_path(folder / "model.safetensors") as temporary:
            save_file(_weights(student), temporary)
        write_json_atomic(folder / "origin.json", origin)
    student.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    student.tie_weights()
    return student.eval()


def _weights(model: Any) -> dict[str, torch.Tensor]:
    """The weights, of which a tied output layer's are the embeddings'."""
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    return state


def own_teacher(bench: Bench, student: Any) -> HeadTeacher:
    """The recovered student at 16 bits as the teacher of itself."""
    origin = read_json(bench.work / "recovered" / "origin.json")
    file = bench.work / "hidden" / f"own-{code_of(origin)}.safetensors"
    hidden = write_hidden(student, bench.methods, file, batch_size=bench.settings.batch_size)
    return HeadTeacher(student.lm_head.weight, hidden, bench.methods)


def code_of(origin: dict[str, str]) -> str:
    """A short name of what something follows from."""
    return hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:12]


def train_run(
    bench: Bench, name: str, seed: int, student: Any, teachers: dict[str, HeadTeacher]
) -> Path:
    """Train a run from the recovered student, if that is not done, and keep what it measured.

    Args:
        bench: what the trainings share.
        name: of the run.
        seed: of the training.
        student: the recovered student; it is trained in place, and its weights are lost.
        teachers: "teacher", and "own" for `qad`.

    Returns:
        The folder with ``log.json`` and ``tokens.npz``.
    """
    settings, method = bench.settings, method_of(name, bench.settings)
    torch.manual_seed(seed)
    with decoders_are_trained():
        prepare_student(student, method)
    teacher = teachers["own" if method.method == "qad" else "teacher"]
    given = teacher if method.needs_teacher else None
    values = settings.training_settings(seed, arithmetic_name())
    values["held_out"] = bench.held_out.sha256
    origin = _origin(student, bench.methods, method, values, given)
    folder = bench.work / "runs" / name / f"seed{seed}"
    if read_origin(folder) == origin:
        return folder

    def finish(_: GraceTrainer) -> None:
        if method.quantization is not None:
            bake(student)
        write_tokens(folder / "tokens.npz", bench.scores(student))

    _fit(
        student,
        bench.methods,
        method,
        values,
        teacher=given,
        origin=origin,
        folder=folder,
        finish=finish,
    )
    write_json_atomic(folder / "origin.json", origin)
    return folder


def _origin(
    student: Any, texts: Texts, method: MethodConfig, values: dict[str, Any], teacher: Any
) -> dict[str, str]:
    data: Any = texts
    return origin_of(student, data, method, values, teacher, code=_code())


@cache
def _code() -> str:
    return code_hash("replication.measure.real_cell.training")


def _fit(
    student: Any,
    texts: Texts,
    method: MethodConfig,
    values: dict[str, Any],
    *,
    teacher: HeadTeacher | None,
    origin: dict[str, str],
    folder: Path,
    finish: Callable[[GraceTrainer], None] | None = None,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "origin.json").unlink(missing_ok=True)
    with decoders_are_trained():
        data: Any = texts
        fit(
            student,
            data,
            method,
            values,
            teacher=teacher,
            origin=origin,
            scratch=folder / "checkpoints",
            log=folder / "log.json",
            finish=finish,
        )


def write_tokens(path: Path, scores: TokenScores) -> None:
    """Keep a model's scores at every token."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **asdict(scores))


def read_tokens(path: Path) -> TokenScores:
    """What `write_tokens` kept."""
    with np.load(path) as held:
        return TokenScores(**{name: held[name] for name in held.files})


def remove_checkpoints(work: Path) -> None:
    """Remove what interrupted trainings left."""
    for folder in work.glob("**/checkpoints"):
        shutil.rmtree(folder, ignore_errors=True)
