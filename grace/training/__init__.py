"""Training of a student under a frozen teacher, with the Hugging Face ``Trainer``.

:class:`GraceTrainer` and :class:`Objective` are imported when they are first used: a process that
only describes a method (:class:`MethodConfig`) does not wait seconds for the trainer's libraries.
"""

from typing import TYPE_CHECKING, Any

from grace.training.cached_teacher import CachedTeacher, write_teacher_outputs
from grace.training.distributed import check_deepspeed, shard_frozen
from grace.training.forward import SupervisedForward
from grace.training.method import (
    METHODS,
    NAIVE_KD,
    TEACHER_METHODS,
    MethodConfig,
    prepare_student,
    save_student,
)
from grace.training.teacher import (
    Identity,
    LiveTeacher,
    Teacher,
    TeacherOutputs,
    check_teacher,
    load_frozen,
)

if TYPE_CHECKING:
    from grace.training.callbacks import Objective
    from grace.training.trainer import GraceTrainer

__all__ = [
    "METHODS",
    "NAIVE_KD",
    "TEACHER_METHODS",
    "CachedTeacher",
    "GraceTrainer",
    "Identity",
    "LiveTeacher",
    "MethodConfig",
    "Objective",
    "SupervisedForward",
    "Teacher",
    "TeacherOutputs",
    "check_deepspeed",
    "check_teacher",
    "load_frozen",
    "prepare_student",
    "save_student",
    "shard_frozen",
    "write_teacher_outputs",
]


def __getattr__(name: str) -> Any:
    if name == "GraceTrainer":
        from grace.training.trainer import GraceTrainer

        return GraceTrainer
    if name == "Objective":
        from grace.training.callbacks import Objective

        return Objective
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
