"""What the cell is made of: texts, trainings, methods."""

from dataclasses import asdict
from typing import Annotated, Any

from pydantic import Field

from grace.distillation import DistillationConfig
from grace.errors import InputError
from grace.quantization import QuantSpec
from grace.training import NAIVE_KD, QAD, TEACHER_METHODS, MethodConfig
from replication.base.validation import Natural, Positive, record

_NO_IMAGES: dict[str, Any] = {"rcka_weight": 0.0}
LAUNCHER: dict[str, Any] = {"tau": 3.0, "eta": 0.003, "beta_min": 0.1, "beta_max": 1.0}
"""The coefficients of the authors' launcher that are not the code's defaults, without those of the
relational term."""
RUNS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "sft": ("sft", 16, {}),
    "qat_int4": ("qat", 4, {}),
    "qat_int3": ("qat", 3, {}),
    "kd": ("kd", 16, {}),
    "kd_int4": ("kd", 4, {}),
    "kd_int3": ("kd", 3, {}),
    "grace": ("grace", 16, {}),
    "grace_int4": ("grace", 4, {}),
    "grace_int3": ("grace", 3, {}),
    "grace_launcher": ("grace", 16, LAUNCHER),
    "grace_launcher_int4": ("grace", 4, LAUNCHER),
    "grace_launcher_int3": ("grace", 3, LAUNCHER),
    "grace_nckd1": ("grace", 16, {"beta_dkd": 1.0}),
    "grace_nckd1_int4": ("grace", 4, {"beta_dkd": 1.0}),
    "grace_nckd0": ("grace", 16, {"beta_dkd": 0.0}),
    "grace_nckd0_int4": ("grace", 4, {"beta_dkd": 0.0}),
    "qad_int4": ("qad", 4, {}),
    "qad_int3": ("qad", 3, {}),
}
"""Method, bits and coefficients of every run, by name; "grace" is without its relational term."""
COMPARISONS = (
    *(("kd", "sft"), ("grace", "sft"), ("grace", "kd"), ("grace_launcher", "kd")),
    *(("grace_launcher", "grace"), ("grace_nckd1", "grace"), ("grace_nckd0", "grace")),
    *(("kd_int4", "qat_int4"), ("qad_int4", "qat_int4"), ("kd_int4", "qad_int4")),
    *(("grace_int4", "qat_int4"), ("grace_int4", "kd_int4"), ("grace_int4", "qad_int4")),
    *(("grace_launcher_int4", "kd_int4"), ("grace_nckd1_int4", "kd_int4")),
    *(("kd_int3", "qat_int3"), ("qad_int3", "qat_int3"), ("grace_int3", "kd_int3")),
    *(("grace_int3", "qad_int3"), ("grace_launcher_int3", "kd_int3")),
)
"""Pairs of runs whose difference is given."""


@record
class Settings:
    """Sizes, steps and seeds.

    Attributes:
        layers: of the teacher's decoder, from the first, that make the student.
        tokens: of a text, at most.
        training: texts that the student's recovery trains on.
        methods: the first of them, which the methods train on.
        held_out: texts about other subjects, which everything is measured on.
        documentation: texts by people, which the teacher is measured on too.
        batch_size: texts a step, and a batch of evaluation.
        generated: texts that are generated together.
        recovery_steps: of the student's recovery, by cross-entropy.
        recovery_rate: its learning rate.
        steps: of every method.
        learning_rate: of every method.
        scale_lr_multiplier: learning rate of quantization scales relative to it.
        group_size: input channels that share a scale.
        logging_steps: between two values of a course.
        save_steps: between two checkpoints.
        seeds: of the methods' trainings.
        seed: of texts, recovery and resamples.
        resamples: of every interval.
        runs: names in `RUNS`.
    """

    layers: Positive = 10
    tokens: Positive = 128
    training: Positive = 1200
    methods: Positive = 480
    held_out: Positive = 96
    documentation: Positive = 96
    batch_size: Positive = 8
    generated: Positive = 48
    recovery_steps: Positive = 300
    recovery_rate: Annotated[float, Field(gt=0)] = 5e-4
    steps: Positive = 60
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    scale_lr_multiplier: Annotated[float, Field(gt=0)] = 10.0
    group_size: Positive = 64
    logging_steps: Positive = 5
    save_steps: Positive = 30
    seeds: tuple[Natural, ...] = (0, 1)
    seed: Natural = 0
    resamples: Positive = 10_000
    runs: tuple[str, ...] = tuple(RUNS)

    def __post_init__(self) -> None:
        if self.methods > self.training:
            raise ValueError(f"methods is {self.methods}; it must be at most {self.training}")

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON has them."""
        return {**asdict(self), "seeds": list(self.seeds), "runs": list(self.runs)}

    def training_settings(self, seed: int, arithmetic: str) -> dict[str, Any]:
        """Of `replication.train.fit.fit`, for one training of a method."""
        return {
            "steps": self.steps,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "logging_steps": self.logging_steps,
            "save_steps": self.save_steps,
            "seed": seed,
            "arithmetic": arithmetic,
        }


def own_coefficients(name: str) -> dict[str, Any]:
    """What a run sets of its distillation, beside the defaults of `DistillationConfig`."""
    method, _, coefficients = RUNS[name]
    shared = {"kd": NAIVE_KD, "qad": QAD, "grace": _NO_IMAGES}.get(method, {})
    return {**shared, **coefficients}


def method_of(name: str, settings: Settings) -> MethodConfig:
    """The method of a run.

    Raises:
        InputError: for a name that is not in `RUNS`.
    """
    if name not in RUNS:
        raise InputError(f"run {name!r} is unknown; choose of {', '.join(RUNS)}")
    method, bits, _ = RUNS[name]
    return MethodConfig(
        method,
        bits,
        None if bits == 16 else QuantSpec(bits=bits, group_size=settings.group_size),
        DistillationConfig.from_dict(own_coefficients(name)) if method in TEACHER_METHODS else None,
        settings.scale_lr_multiplier,
    )
