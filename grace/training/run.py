"""One run of `grace train`, from its options to the directory that it writes."""

import shutil
from pathlib import Path
from typing import Any

import torch

from grace.arithmetic import native_dtype
from grace.data import Collator, ConversationDataset
from grace.distillation import DistillationConfig
from grace.errors import InputError
from grace.files import check_target, write_json
from grace.models import family_of, load_model, load_processor
from grace.quantization import QuantSpec
from grace.training.arguments import Options
from grace.training.method import (
    NAIVE_KD,
    QAD,
    TEACHER_METHODS,
    MethodConfig,
    prepare_student,
    save_student,
)
from grace.training.options import MethodOptions
from grace.training.teacher import LiveTeacher
from grace.training.trainer import GraceTrainer


def train(options: Options) -> None:
    """Train, write the model, and remove the checkpoints.

    Raises:
        InputError: For what cannot be trained, before anything is.
    """
    path = _required(options.model.model, "a model: grace train MODEL ...")
    _required(options.data.data or None, "--data")
    method = method_of(options.method)
    out = _target(options)
    name, teacher_path = options.method.method, options.model.teacher
    if method.needs_teacher != (teacher_path is not None):
        needs = "needs" if method.needs_teacher else "takes no"
        raise InputError(f"--method {name} {needs} --teacher")
    checkpoints = Path(f"{out}.checkpoints")
    checkpoint = _checkpoint(checkpoints, options.run.resume)
    torch.manual_seed(options.trainer.seed)
    student: Any = load_model(path)
    processor = load_processor(path)
    prepare_student(student, method)
    data = ConversationDataset(options.data.data[0], processor, student.config)
    image = data.family.image_token_id(student.config)
    collate = Collator(data.family, image, processor.tokenizer.pad_token_id)
    teacher = None
    if teacher_path is not None:
        device = options.trainer.device
        model = load_model(teacher_path, dtype=native_dtype(device.type)).to(device)
        own = load_processor(teacher_path)
        teacher = LiveTeacher(
            model, family_of(model.config), relational=method.relational, tokenizer=own
        )
    trainer = GraceTrainer(student, options.trainer, data, collate, method=method, teacher=teacher)
    trainer.train(resume_from_checkpoint=checkpoint)
    report = {"method": repr(method), "history": trainer.state.log_history}
    exact = save_student(
        student,
        processor,
        out,
        method,
        overwrite=options.run.overwrite,
        also=lambda directory: write_json(directory / "training.json", report),
    )
    grid = f", {len(exact)} linears on the {method.bits}-bit grid" if exact else ""
    print(f"trained {out}{grid}")
    shutil.rmtree(checkpoints, ignore_errors=True)


def method_of(options: MethodOptions) -> MethodConfig:
    """The method that the options describe.

    Raises:
        InputError: What does not go together.
    """
    name, bits, size = options.method, options.bits, options.group_size
    if bits is None:
        bits = 16 if name == "sft" else 4
    assert isinstance(options.quantization, dict | None)
    assert isinstance(options.distillation, dict | None)
    spec = None
    if bits != 16:
        group_size = int(size) if size.isdigit() else size
        more = options.quantization or {}
        spec = QuantSpec.from_dict({"bits": bits, "group_size": group_size, **more})
    elif options.quantization:
        raise InputError(f"quantization is {options.quantization} at 16 bits; remove one")
    distillation = None
    chosen = options.distillation or {}
    if name in TEACHER_METHODS:
        shared = {"kd": NAIVE_KD, "qad": QAD}.get(name, {})
        distillation = DistillationConfig.from_dict({**shared, **chosen})
    elif chosen:
        raise InputError(f"{next(iter(chosen))} is set, but method {name} does not distil")
    return MethodConfig(name, bits, spec, distillation, options.scale_lr_multiplier)


def _required(value: Any, what: str) -> Any:
    if value is None:
        raise InputError(f"give {what}; `grace train --help` lists the options")
    return value


def _target(options: Options) -> Path:
    out = Path(_required(options.run.out, "--out, a directory to write"))
    try:
        check_target(out, overwrite=options.run.overwrite)
    except InputError as error:
        raise InputError(str(error).replace("pass overwrite=True", "pass --overwrite")) from error
    return out


def _checkpoint(checkpoints: Path, resume: bool) -> str | None:
    """The checkpoint to go on from. Raises InputError where --resume does not fit what is there."""
    from transformers.trainer_utils import get_last_checkpoint

    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    if resume and last is None:
        raise InputError(f"--resume: {checkpoints} holds no checkpoint; leave --resume out")
    if last is not None and not resume:
        raise InputError(f"{checkpoints} holds a checkpoint: go on with --resume, or remove it")
    return last
