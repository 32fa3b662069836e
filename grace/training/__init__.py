"""Training of a student under a frozen teacher, with the Hugging Face ``Trainer``.

Everything is imported when it is first used: the command's help does not wait for torch, and a
process that only describes a method (:class:`MethodConfig`) not for the trainer's libraries.
"""

from typing import TYPE_CHECKING

from grace.lazy import lazy

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

__getattr__ = lazy(
    __name__,
    {
        "grace.training.arguments": ("GraceArguments", "read_options"),
        "grace.training.cached_teacher": ("CachedTeacher", "write_teacher_outputs"),
        "grace.training.callbacks": ("Objective",),
        "grace.training.distributed": ("check_deepspeed", "shard_frozen"),
        "grace.training.forward": ("SupervisedForward",),
        "grace.training.method": (
            "METHODS",
            "NAIVE_KD",
            "QAD",
            "TEACHER_METHODS",
            "MethodConfig",
            "prepare_student",
            "save_student",
        ),
        "grace.training.teacher": (
            "Identity",
            "LiveTeacher",
            "Teacher",
            "TeacherOutputs",
            "check_teacher",
            "load_frozen",
            "load_teacher",
        ),
        "grace.training.trainer": ("GraceTrainer",),
    },
)
