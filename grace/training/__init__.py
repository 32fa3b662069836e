"""Training of a student under a frozen teacher, with the Hugging Face ``Trainer``.

Everything is imported when it is first used: the command's help does not wait for torch, and a
process that only describes a method (:class:`MethodConfig`) not for the trainer's libraries.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grace.training.arguments import GraceArguments, read_options
    from grace.training.cached_teacher import CachedTeacher, write_teacher_outputs
    from grace.training.callbacks import Objective
    from grace.training.distributed import check_deepspeed, shard_frozen
    from grace.training.forward import SupervisedForward
    from grace.training.method import (
        METHODS,
        NAIVE_KD,
        QAD,
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
        load_teacher,
    )
    from grace.training.trainer import GraceTrainer

__all__ = [
    "METHODS",
    "NAIVE_KD",
    "QAD",
    "TEACHER_METHODS",
    "CachedTeacher",
    "GraceArguments",
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
    "load_teacher",
    "prepare_student",
    "read_options",
    "save_student",
    "shard_frozen",
    "write_teacher_outputs",
]

_MODULES = {
    "arguments": ("GraceArguments", "read_options"),
    "cached_teacher": ("CachedTeacher", "write_teacher_outputs"),
    "callbacks": ("Objective",),
    "distributed": ("check_deepspeed", "shard_frozen"),
    "forward": ("SupervisedForward",),
    "method": (
        "METHODS",
        "NAIVE_KD",
        "QAD",
        "TEACHER_METHODS",
        "MethodConfig",
        "prepare_student",
        "save_student",
    ),
    "teacher": (
        "Identity",
        "LiveTeacher",
        "Teacher",
        "TeacherOutputs",
        "check_teacher",
        "load_frozen",
        "load_teacher",
    ),
    "trainer": ("GraceTrainer",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
