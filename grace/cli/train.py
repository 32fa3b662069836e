"""grace train: a student in INT4 under a teacher."""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from grace.cli.models import add_device, add_overwrite, check_free, positive, processor_of
from grace.errors import InputError

DESCRIPTION = """\
Train a vision-language model with fake-quantized weights under a larger teacher of its family
(GRACE), or without: naive distillation (kd), quantization-aware training alone (qat), plain
fine-tuning (sft). The vision tower is frozen; the linears of the decoder layers are quantized.

DATA is a parquet file of conversations in the LLaVA schema: id, image (bytes and path; null for
none) and conversations (turns of "human" and "gpt"; the first human turn has <image>). All images
have to have the same size after processing.

Written to --out: the trained model (weights on the integer grid), its codes and scales
(quantized.safetensors), the processor, and training.json with settings and log. Checkpoints are in
OUT.checkpoints until training is complete; --resume goes on from the last one.
"""
EXAMPLES = """\
  grace train Qwen/Qwen2-VL-2B-Instruct --teacher Qwen/Qwen2-VL-7B-Instruct \\
      --data train.parquet --out student
  grace train Qwen/Qwen2-VL-2B-Instruct --method qat --data train.parquet --out student-qat
  grace train ... --set tau=0.2 --set beta_dkd=1.0 --set rcka_weight=0
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="student: a directory or hub name")
    parser.add_argument("--teacher", help="larger model of the same family; for grace and kd")
    parser.add_argument("--data", required=True, help="parquet file of conversations")
    parser.add_argument("--out", required=True, help="directory to write")
    parser.add_argument(
        "--method",
        choices=("grace", "kd", "qat", "sft"),
        default="grace",
        help="what is trained (default: %(default)s)",
    )
    parser.add_argument(
        "--bits",
        type=int,
        help="bits of a weight: 2 to 8, or 16 for no quantization (default: 4; sft: 16)",
    )
    parser.add_argument(
        "--group-size",
        default="128",
        help="weights that share a scale: 32, 64, 128, 256 or row (default: %(default)s)",
    )
    parser.add_argument("--learning-rate", type=float, default=1e-5, help="default: %(default)s")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=float, default=1.0, help="default: %(default)s")
    length.add_argument("--steps", type=positive, help="optimizer steps, instead of epochs")
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=4,
        help="samples in a forward pass (default: %(default)s)",
    )
    parser.add_argument(
        "--accumulation",
        type=positive,
        default=1,
        help="forward passes in an optimizer step (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a field of grace.distillation.DistillationConfig, such as tau=0.2; may be repeated",
    )
    parser.add_argument(
        "--gradient-checkpointing", action="store_true", help="less memory, a third more time"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    add_device(parser)
    add_overwrite(parser)


def run(arguments: argparse.Namespace) -> None:
    """Train, write the model, and remove the checkpoints."""
    import torch

    from grace.cli.models import device_of
    from grace.data import Collator, ConversationDataset
    from grace.models import load_model
    from grace.training import GraceTrainer, prepare_student

    method = _method(arguments)
    check_free(arguments.out, arguments.overwrite)
    if method.needs_teacher != (arguments.teacher is not None):
        needs = "needs" if method.needs_teacher else "takes no"
        raise InputError(f"--method {arguments.method} {needs} --teacher")
    checkpoints = Path(f"{arguments.out}.checkpoints")
    checkpoint = _checkpoint(checkpoints, arguments.resume)
    device = device_of(arguments.device)
    torch.manual_seed(arguments.seed)
    student: Any = load_model(arguments.model)
    processor = processor_of(arguments.model)
    prepare_student(student, method)
    data = ConversationDataset(arguments.data, processor, student.config)
    collate = Collator(data.family, student.config.image_token_id, processor.tokenizer.pad_token_id)
    teacher = None
    if arguments.teacher is not None:
        teacher = _teacher(arguments.teacher, data.family, method, device)
    settings = _training_arguments(arguments, checkpoints, device)
    trainer = GraceTrainer(student, settings, data, collate, method=method, teacher=teacher)
    trainer.train(resume_from_checkpoint=checkpoint)
    _write(arguments, student, processor, method, trainer.state.log_history)
    shutil.rmtree(checkpoints, ignore_errors=True)


def _checkpoint(checkpoints: Path, resume: bool) -> str | None:
    """The checkpoint to go on from. Raises InputError where --resume does not fit what is there."""
    from transformers.trainer_utils import get_last_checkpoint

    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    if resume and last is None:
        raise InputError(f"--resume: {checkpoints} holds no checkpoint; leave --resume out")
    if last is not None and not resume:
        raise InputError(f"{checkpoints} holds a checkpoint: go on with --resume, or remove it")
    return last


def _teacher(path: str, family: Any, method: Any, device: str) -> Any:
    from grace.arithmetic import native_dtype
    from grace.models import load_model
    from grace.training import LiveTeacher

    model = load_model(path, dtype=native_dtype(device)).to(device)
    tokenizer = processor_of(path).tokenizer
    return LiveTeacher(model, family, relational=method.relational, tokenizer=tokenizer)


def _training_arguments(arguments: argparse.Namespace, checkpoints: Path, device: str) -> Any:
    import torch
    from transformers import TrainingArguments

    from grace.arithmetic import native_dtype

    return TrainingArguments(
        str(checkpoints),
        learning_rate=arguments.learning_rate,
        num_train_epochs=arguments.epochs,
        max_steps=arguments.steps or -1,
        per_device_train_batch_size=arguments.batch_size,
        gradient_accumulation_steps=arguments.accumulation,
        warmup_steps=0.03,
        lr_scheduler_type="cosine",
        bf16=native_dtype(device) == torch.bfloat16,
        gradient_checkpointing=arguments.gradient_checkpointing,
        seed=arguments.seed,
        data_seed=arguments.seed,
        logging_steps=10,
        save_steps=500,
        save_total_limit=1,
        use_cpu=device == "cpu",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        report_to=[],
    )


def _method(arguments: argparse.Namespace) -> Any:
    """The method that the arguments describe. Raises InputError for what does not go together."""
    from grace.distillation import DistillationConfig
    from grace.quantization import QuantSpec
    from grace.training import NAIVE_KD, TEACHER_METHODS, MethodConfig

    name, bits, size = arguments.method, arguments.bits, arguments.group_size
    if bits is None:
        bits = 16 if name == "sft" else 4
    spec = None
    if bits != 16:
        spec = QuantSpec(bits=bits, group_size=int(size) if size.isdigit() else size)
    distillation = None
    if name in TEACHER_METHODS:
        shared = NAIVE_KD if name == "kd" else {}
        distillation = DistillationConfig.from_dict({**shared, **_settings(arguments.set)})
    elif arguments.set:
        raise InputError(f"--set {arguments.set[0]}: --method {name} does not distil")
    return MethodConfig(name, bits, spec, distillation)


def _settings(pairs: list[str]) -> dict[str, Any]:
    """The values of --set by name. Raises InputError for anything but NAME=VALUE."""
    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            equals = ""
        if not equals:
            raise InputError(f"--set {pair!r}: give NAME=VALUE with a number, true or false")
    return settings


def _write(
    arguments: argparse.Namespace,
    student: Any,
    processor: Any,
    method: Any,
    history: list[dict[str, Any]],
) -> None:
    """Write the trained model as a directory, with settings and log."""
    from grace.files import write_json
    from grace.training import save_student

    settings = {name: value for name, value in vars(arguments).items() if name != "command"}
    report = {"settings": settings, "method": repr(method), "history": history}
    exact = save_student(
        student,
        processor,
        arguments.out,
        method,
        overwrite=arguments.overwrite,
        also=lambda directory: write_json(directory / "training.json", report),
    )
    grid = f", {len(exact)} linears on the {method.bits}-bit grid" if exact else ""
    print(f"trained {arguments.out}{grid}")
