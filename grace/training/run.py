"""One run of `grace train`, from its options to the directory that it writes."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils.logging import disable_progress_bar

from grace.data import Collator
from grace.errors import InputError, Stopped, one_line
from grace.files import check_free
from grace.models import load_model
from grace.training import hub
from grace.training.arguments import Options
from grace.training.checks import (
    Source,
    check_libraries,
    check_structure,
    say,
)
from grace.training.conversations import Conversations, read_conversations
from grace.training.distributed import load_weights, whole_model
from grace.training.manifest import check_resume, manifest, write_manifest
from grace.training.method import MethodConfig, method_of, prepare_student, save_student
from grace.training.report import Run, write_report
from grace.training.signals import StopOnSignal
from grace.training.teaching import (
    check_outputs,
    check_teacher_options,
    make_teacher,
    outputs_manifest,
    read_teacher,
    teacher_identity,
)
from grace.training.trainer import GraceTrainer


def train(options: Options) -> None:
    """Train a student and write it.

    ::

        train(read_options(["recipe.yaml", "--learning_rate", "2e-5"]))

    Everything that can be refused is refused before weights are loaded. In several processes each
    of them calls this, and the first one writes.

    Raises:
        InputError: For what cannot be trained or written; checkpoints stay where they are.
        Stopped: At SIGINT or SIGTERM; a step in progress is finished and saved first.
    """
    if not sys.stderr.isatty():
        disable_progress_bar()
    stop = StopOnSignal()
    with stop.watching():
        plan = prepare(options)
        trainer, student = _trained(plan, stop)
        if stop.signal is not None:
            step = trainer.state.global_step
            if not trainer.is_world_process_zero():
                raise SystemExit(128 + stop.signal)  # the first process says it
            raise Stopped(
                f"interrupted: step {step} of {trainer.state.max_steps} is saved in "
                f"{plan.checkpoints}; go on with --resume",
                128 + stop.signal,
            )
        _write(plan, trainer, student)
        trainer.accelerator.wait_for_everyone()


@dataclass
class Plan:
    """A run that passed every check that needs no weights.

    Attributes:
        options: As given.
        method: The method.
        student: The student's configuration and processor.
        teacher: The teacher's; None without one.
        data: The conversations.
        made_with: What the checkpoints are made with.
        checkpoint: The checkpoint to go on from.
        repository: Name on the hub; None unless the result is uploaded.
    """

    options: Options
    method: MethodConfig
    student: Source
    teacher: Source | None
    data: Conversations
    made_with: dict[str, Any]
    checkpoint: Path | None
    repository: str | None

    @property
    def out(self) -> Path:
        """The directory that is written."""
        assert self.options.run.out is not None
        return Path(self.options.run.out)

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return Path(str(self.options.trainer.output_dir))


def prepare(options: Options) -> Plan:
    """Check everything that needs no weights: options, configurations, processors, data.

    Raises:
        InputError: What cannot be trained.
    """
    method = method_of(options.method)
    name = _required(options.model.model, "a model: grace train MODEL ...")
    _required(options.data.data or None, "--data")
    out = Path(_required(options.run.out, "--out, a directory to write"))
    check_teacher_options(options, method)
    check_free(out, overwrite=options.run.overwrite)
    checkpoint = _checkpoint(options)
    check_libraries(options.trainer, method)
    say(f"reading the configuration and processor of {name}")
    student = Source.read(name)
    check_structure(student, method)
    teacher = read_teacher(options, student)
    for source in filter(None, (student, teacher)):
        if out.resolve() == source.directory.resolve():
            raise InputError(f"--out {out} is the directory of {source.name}; name another")
    data = read_conversations(options, student)
    identity = teacher_identity(options, teacher)
    made_with = manifest(
        method,
        options.trainer,
        model=student.directory,
        teacher=identity,
        data=data.identity,
    )
    check_outputs(options, outputs_manifest(identity, data, method))
    if checkpoint is not None:
        for line in check_resume(checkpoint.parent, made_with):
            say(f"note: {line}")
    repository = hub.repository(options.trainer, out)
    return Plan(options, method, student, teacher, data, made_with, checkpoint, repository)


def _required(value: Any, what: str) -> Any:
    if value is None:
        raise InputError(f"give {what}; `grace train --help` lists the options")
    return value


def _checkpoint(options: Options) -> Path | None:
    """The checkpoint to go on from. Raises InputError where --resume does not fit what is there."""
    folder = str(options.trainer.output_dir)
    chosen = options.trainer.resume_from_checkpoint
    if chosen is not None:
        if not (Path(chosen) / "trainer_state.json").is_file():
            raise InputError(f"--resume_from_checkpoint {chosen}: no checkpoint is there")
        return Path(chosen)
    last = get_last_checkpoint(folder) if Path(folder).is_dir() else None
    if options.run.resume and last is None:
        raise InputError(f"--resume: {folder} holds no checkpoint; leave --resume out")
    if last is not None and not options.run.resume:
        raise InputError(f"{folder} holds a checkpoint: go on with --resume, or remove it")
    return None if last is None else Path(last)


# -- training ---------------------------------------------------------------------------------


def _student(plan: Plan) -> Any:
    torch.manual_seed(plan.options.trainer.seed)
    model: Any = load_model(plan.student.name)
    prepare_student(model, plan.method)
    return model


def _trained(plan: Plan, stop: StopOnSignal) -> tuple[GraceTrainer, Any]:
    """The trainer after training, and the whole trained model in the first process."""
    say(f"loading the student {plan.student.name}")
    student = _student(plan)
    arguments, processor = plan.options.trainer, plan.student.processor
    family = plan.student.family
    collate = Collator(
        family, family.image_token_id(student.config), processor.tokenizer.pad_token_id
    )
    teacher = make_teacher(plan.options, plan.teacher, plan.method, plan.data, collate)
    trainer = GraceTrainer(
        student,
        arguments,
        plan.data.train,
        collate,
        method=plan.method,
        teacher=teacher,
        eval_dataset=plan.data.evaluation,
        callbacks=[stop],
    )
    trainer.accelerator.wait_for_everyone()  # all have looked before the first one writes
    if trainer.is_world_process_zero():
        write_manifest(plan.checkpoints, plan.made_with)
    finished = _finished(plan.checkpoint)
    if finished is not None:
        say(f"training was complete: writing {plan.out} from {plan.checkpoint}")
        best = finished.get("best_model_checkpoint")
        chosen = best if arguments.load_best_model_at_end and best else str(plan.checkpoint)
        load_weights(student, Path(chosen))
        trainer.state.log_history = finished["log_history"]
        return trainer, student if trainer.is_world_process_zero() else None
    _fit(trainer, plan)
    if stop.signal is not None:
        return trainer, None
    return trainer, whole_model(trainer, partial(_student, plan))


def _fit(trainer: GraceTrainer, plan: Plan) -> None:
    arguments = plan.options.trainer
    size = arguments.train_batch_size * arguments.gradient_accumulation_steps
    say(
        f"training: {len(plan.data.train)} samples, {size * arguments.world_size} a step, on "
        f"{arguments.world_size} x {arguments.device.type}"
    )
    try:
        with _one_line(plan):
            start = None if plan.checkpoint is None else str(plan.checkpoint)
            trainer.train(resume_from_checkpoint=start)
    finally:
        for callback in trainer.callback_handler.callbacks:
            bar = getattr(callback, "training_bar", None)
            if bar is not None:  # what follows begins a line
                bar.close()


@contextmanager
def _one_line(plan: Plan) -> Iterator[None]:
    """What ends training early by no fault of the code, as one line."""
    try:
        yield
    except FloatingPointError as error:
        raise InputError(str(error)) from error
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"{plan.options.trainer.device}: out of memory ({one_line(error, 300)}); lower the "
            "batch size and raise the accumulation, or use gradient_checkpointing or fewer "
            "teacher_bits"
        ) from error
    except (OSError, SafetensorError) as error:
        raise _not_written(error, plan) from error
    except InputError as error:
        if not str(error).startswith("Caught InputError in DataLoader worker"):
            raise
        cause = str(error).rpartition("InputError: ")[2]  # after the worker's traceback
        raise InputError(cause) from error
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error):  # what torch.save says of a full disk
            raise
        raise _not_written(error, plan) from error


def _finished(checkpoint: Path | None) -> dict[str, Any] | None:
    """The state of a checkpoint at the end of training; None before it."""
    if checkpoint is None:
        return None
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    return state if state["global_step"] >= state["max_steps"] else None


# -- result -----------------------------------------------------------------------------------


def _write(plan: Plan, trainer: GraceTrainer, student: Any) -> None:
    """Write the model, its report and card, and remove the checkpoints after that."""
    if student is None:
        return
    run = Run(
        options=plan.options,
        method=plan.method,
        student=plan.student,
        teacher=plan.teacher,
        made_with=plan.made_with,
        history=trainer.state.log_history,
        device=str(plan.options.trainer.device),
    )
    try:
        exact = save_student(
            student,
            plan.student.processor,
            plan.out,
            plan.method,
            overwrite=plan.options.run.overwrite,
            also=partial(write_report, run),
        )
    except (OSError, SafetensorError) as error:
        raise _not_written(error, plan) from error
    grid = f", {len(exact)} linears on the {plan.method.bits}-bit grid" if exact else ""
    print(f"trained {plan.out}{grid}")
    shutil.rmtree(plan.checkpoints, ignore_errors=True)
    if plan.repository is not None:
        hub.upload(plan.out, plan.repository, plan.options.trainer)


def _not_written(error: Exception, plan: Plan) -> InputError:
    return InputError(
        f"{plan.out} could not be written ({one_line(error, 300)}); the checkpoints in "
        f"{plan.checkpoints} are kept: mend that and run the same command with --resume"
    )
