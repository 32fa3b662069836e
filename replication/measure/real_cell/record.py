"""From what the trainings kept to the result file."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grace.distillation import DistillationConfig
from grace.training import TEACHER_METHODS
from replication.base import provenance
from replication.base.files import read_json
from replication.measure.inside.agreement import mean_interval
from replication.measure.real_cell import checkpoint
from replication.measure.real_cell.scores import (
    SCORES,
    TeacherTokens,
    TokenScores,
    text_means,
)
from replication.measure.real_cell.settings import (
    COMPARISONS,
    RUNS,
    Settings,
    method_of,
    own_coefficients,
)
from replication.measure.real_cell.training import read_tokens
from replication.results import measurements
from replication.stats.bootstrap import generator
from replication.stats.verdict import Interval

GATED = ("grace", "grace_int4")
"""Runs whose students the covariance of gate and loss is measured on, beside the recovered one."""


@dataclass(frozen=True)
class Kept:
    """What the result file is made of.

    Attributes:
        settings: of the cell, with the seeds that are done.
        teacher: the published model.
        student: the recovered one.
        texts: summaries by name.
        levels: scores at every held-out token of "teacher", "truncated" and "recovered".
        teacher_on: the teacher's own numbers, by text.
        runs: folder of every run by name and seed.
        seconds: that each part took.
    """

    settings: Settings
    teacher: Any
    student: Any
    texts: Mapping[str, dict[str, Any]]
    levels: Mapping[str, TokenScores]
    teacher_on: Mapping[str, TeacherTokens]
    runs: Mapping[str, Mapping[int, Path]]
    seconds: Mapping[str, float]


def result(kept: Kept, command: str) -> dict[str, Any]:
    """The content of the result file; `replication.results.real_cell` describes it."""
    settings = kept.settings
    scores = {
        name: {seed: read_tokens(folder / "tokens.npz") for seed, folder in folders.items()}
        for name, folders in kept.runs.items()
    }
    arrays = {name: _stacked(list(by_seed.values())) for name, by_seed in scores.items()}
    levels = {name: _stacked([tokens]) for name, tokens in kept.levels.items()}
    own = _Intervals(settings)
    return {
        "teacher": _described(kept.teacher, checkpoint.NAME),
        "student": _described(kept.student, f"first layers of {checkpoint.NAME}, recovered"),
        "settings": settings.to_dict(),
        "texts": dict(kept.texts),
        "levels": {name: own.scores(name, values) for name, values in levels.items()},
        "runs": {
            name: _run(name, own, arrays[name], levels["recovered"], settings) for name in arrays
        },
        "comparisons": {
            f"{first} - {second}": own.scores(f"{first} - {second}", arrays[first], arrays[second])
            for first, second in COMPARISONS
            if first in arrays and second in arrays
        },
        "teacher_on": {n: own.teacher(n, tokens) for n, tokens in kept.teacher_on.items()},
        "courses": {
            name: {str(seed): course(name, settings, folder) for seed, folder in folders.items()}
            for name, folders in kept.runs.items()
            if RUNS[name][0] in TEACHER_METHODS
        },
        "gate_covariance": {
            name: own.covariance(name, tokens, kept.teacher_on["held_out"])
            for name, tokens in _gated(kept, scores).items()
        },
        "entropy_error": {n: own.error(n, tokens) for n, tokens in kept.teacher_on.items()},
        "seconds": {name: round(value, 1) for name, value in kept.seconds.items()},
        "provenance": _provenance(settings, command),
    }


def _described(model: Any, name: str) -> dict[str, Any]:
    config = model.config
    return {
        "name": name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "vocabulary": config.vocab_size,
    }


def _stacked(runs: list[TokenScores]) -> dict[str, np.ndarray]:
    """Means by text of each score, (seeds, texts)."""
    parts = [run.by_text() for run in runs]
    return {name: np.stack([part[name] for part in parts]) for name in SCORES}


def _run(
    name: str,
    own: "_Intervals",
    arrays: dict[str, np.ndarray],
    baseline: dict[str, np.ndarray],
    settings: Settings,
) -> dict[str, Any]:
    method, bits, _ = RUNS[name]
    return {
        "method": method,
        "bits": bits,
        "distillation": own_coefficients(name),
        "seeds": list(settings.seeds),
        "scores": own.scores(name, arrays),
        "effects": own.scores(f"{name} - recovered", arrays, baseline),
    }


def _gated(kept: Kept, scores: Mapping[str, Mapping[int, TokenScores]]) -> dict[str, TokenScores]:
    """Students whose gate and loss are compared: the recovered one, and the first seed of runs."""
    first = {name: next(iter(scores[name].values())) for name in GATED if name in scores}
    return {"recovered": kept.levels["recovered"], **first}


def course(name: str, settings: Settings, folder: Path) -> dict[str, Any]:
    """The loss terms over a training, from its log."""
    config = method_of(name, settings).distillation
    assert config is not None
    entries = [entry for entry in read_json(folder / "log.json")["history"] if "gdkd" in entry]
    entries = [entry for entry in entries if "loss" in entry]  # not the summary at the end
    columns = {
        key: [entry[key] for entry in entries if key in entry]
        for key in ("gdkd", "gate", "beta", "ema")
    }
    return {"steps": [entry["step"] for entry in entries], **columns, **_constraint(config)}


def _constraint(config: DistillationConfig) -> dict[str, Any]:
    if not config.adaptive:
        return {"tau": None, "bounds": None}
    return {"tau": config.tau, "bounds": [config.beta_min, config.beta_max]}


class _Intervals:
    """Makes intervals; the draws of each follow from the seed and its name."""

    def __init__(self, settings: Settings) -> None:
        self._seed, self._resamples = settings.seed, settings.resamples

    def _mean(
        self, name: str, values: np.ndarray, minus: np.ndarray | None = None
    ) -> dict[str, float]:
        rng = generator(self._seed, name)
        return asdict(mean_interval(values, rng, resamples=self._resamples, minus=minus))

    def scores(
        self,
        name: str,
        arrays: Mapping[str, np.ndarray],
        minus: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, dict[str, float]]:
        return {
            score: self._mean(name, arrays[score], None if minus is None else minus[score])
            for score in SCORES
        }

    def teacher(self, name: str, tokens: TeacherTokens) -> dict[str, Any]:
        values = {
            key: self._mean(name, text_means(getattr(tokens, key), tokens.text)[None])
            for key in ("entropy", "gate")
        }
        return {"n": _count(tokens.text), "values": values}

    def covariance(self, name: str, student: TokenScores, teacher: TeacherTokens) -> dict[str, Any]:
        measured = measurements.gate_covariance(
            teacher.gate,
            student.loss,
            generator(self._seed, name),
            clusters=teacher.text,
            resamples=self._resamples,
        )
        return _plain(measured)

    def error(self, name: str, tokens: TeacherTokens) -> dict[str, Any]:
        rng = generator(self._seed, name)
        measured = measurements.entropy_error(
            tokens.entropy, tokens.wrong, rng, clusters=tokens.text, resamples=self._resamples
        )
        return _plain(measured)


def _plain(measured: dict[str, Any]) -> dict[str, Any]:
    values = {
        name: asdict(value) if isinstance(value, Interval) else value
        for name, value in measured["values"].items()
    }
    return {**measured, "values": values}


def _count(text: np.ndarray) -> dict[str, int]:
    return {"tokens": len(text), "texts": len(np.unique(text))}


def _provenance(settings: Settings, command: str) -> dict[str, Any]:
    extra = {
        "model_file": {
            "package": checkpoint.PACKAGE,
            "name": checkpoint.GGUF,
            "sha256": checkpoint.SHA256,
            "format": checkpoint.FORMAT,
        },
        "threads": torch.get_num_threads(),
    }
    return provenance.collect(settings.to_dict(), settings.seeds, command, extra=extra)
