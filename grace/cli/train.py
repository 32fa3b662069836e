"""grace train: a student in INT4 under a teacher."""

import argparse
from typing import Any

from grace.cli.models import add_device, add_overwrite, check_free, positive, processor_of

DESCRIPTION = """\
Train a vision-language model with fake-quantized weights under a larger teacher of its family
(GRACE), or without: naive distillation (kd), quantization-aware training alone (qat), plain
fine-tuning (sft). The vision tower is frozen; the linears of the decoder layers are quantized.

DATA is a parquet file of conversations in the LLaVA schema: id, image (bytes and path; null for
none) and conversations (turns of "human" and "gpt"; the first human turn has <image>). All images
have to come to the same size after processing.

Written to --out: the trained model (weights on the integer grid), its codes and scales
(quantized.safetensors), the processor, and training.json with settings and log. Checkpoints lie in
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
        "--bits", type=int, help="of a weight, 2 to 8, or 16 for none (default: 4; sft: 16)"
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
        "--batch-size", type=positive, default=4, help="of one pass (default: %(default)s)"
    )
    parser.add_argument(
        "--accumulation",
        type=positive,
        default=1,
        help="passes in an optimizer step (default: %(default)s)",
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


def run(given: argparse.Namespace) -> None:
    from pathlib import Path

    import torch
    from transformers import TrainingArguments
    from transformers.trainer_utils import get_last_checkpoint

    from grace.arithmetic import native_dtype
    from grace.cli.models import device_of
    from grace.data import Collator, ConversationDataset
    from grace.errors import InputError
    from grace.models import family_of, load_model
    from grace.training import GraceTrainer, LiveTeacher, prepare_student

    method = _method(given)
    check_free(given.out, given.overwrite)
    if method.needs_teacher != (given.teacher is not None):
        wanted = "needs" if method.needs_teacher else "takes no"
        raise InputError(f"--method {given.method} {wanted} --teacher")
    scratch = Path(f"{given.out}.checkpoints")
    last = get_last_checkpoint(str(scratch)) if scratch.is_dir() else None
    if given.resume and last is None:
        raise InputError(f"--resume: {scratch} holds no checkpoint; leave --resume out")
    if last is not None and not given.resume:
        raise InputError(f"{scratch} holds a checkpoint: go on with --resume, or remove it")
    device = device_of(given.device)
    torch.manual_seed(given.seed)
    student: Any = load_model(given.model)
    processor = processor_of(given.model)
    family = family_of(student.config.model_type)
    prepare_student(student, method)
    data = ConversationDataset(given.data, processor, student.config)
    collate = Collator(family, student.config.image_token_id, processor.tokenizer.pad_token_id)
    teacher = None
    if given.teacher is not None:
        model = load_model(given.teacher, dtype=native_dtype(device)).to(device)
        teacher = LiveTeacher(
            model,
            family,
            relational=method.relational,
            tokenizer=processor_of(given.teacher).tokenizer,
        )
    arguments = TrainingArguments(
        str(scratch),
        learning_rate=given.learning_rate,
        num_train_epochs=given.epochs,
        max_steps=given.steps or -1,
        per_device_train_batch_size=given.batch_size,
        gradient_accumulation_steps=given.accumulation,
        warmup_steps=0.03,
        lr_scheduler_type="cosine",
        bf16=native_dtype(device) == torch.bfloat16,
        gradient_checkpointing=given.gradient_checkpointing,
        seed=given.seed,
        data_seed=given.seed,
        logging_steps=10,
        save_steps=500,
        save_total_limit=1,
        use_cpu=device == "cpu",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        report_to=[],
    )
    trainer = GraceTrainer(student, arguments, data, collate, method=method, teacher=teacher)
    trainer.train(resume_from_checkpoint=last if given.resume else None)
    history = trainer.state.log_history
    _write(given, student, processor, method=method, history=history, scratch=scratch)


def _method(given: argparse.Namespace) -> Any:
    """The method that the arguments describe. Raises InputError for what does not go together."""
    from grace.distillation import DistillationConfig
    from grace.errors import InputError
    from grace.quantization import QuantSpec
    from grace.training import NAIVE_KD, TEACHER_METHODS, MethodConfig

    bits = given.bits if given.bits is not None else (16 if given.method == "sft" else 4)
    size = given.group_size
    spec = None
    if bits != 16:
        spec = QuantSpec(bits=bits, group_size=int(size) if size.isdigit() else size)
    distillation = None
    if given.method in TEACHER_METHODS:
        chosen = NAIVE_KD if given.method == "kd" else {}
        distillation = DistillationConfig.from_dict({**chosen, **_settings(given.set)})
    elif given.set:
        raise InputError(f"--set {given.set[0]}: --method {given.method} does not distil")
    return MethodConfig(given.method, bits, spec, distillation)


def _settings(pairs: list[str]) -> dict[str, Any]:
    import json

    from grace.errors import InputError

    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        try:
            found[name] = json.loads(value)
        except ValueError:
            equals = ""
        if not equals:
            raise InputError(f"--set {pair!r}: give NAME=VALUE with a number, true or false")
    return found


def _write(
    given: argparse.Namespace,
    student: Any,
    processor: Any,
    *,
    method: Any,
    history: list[dict[str, Any]],
    scratch: Any,
) -> None:
    """The trained model as a directory, then the checkpoints go."""
    import shutil

    from grace.files import write_json
    from grace.training import save_student

    settings = {name: value for name, value in vars(given).items() if name != "command"}
    report = {"settings": settings, "method": repr(method), "history": history}
    exact = save_student(
        student,
        processor,
        given.out,
        method,
        overwrite=given.overwrite,
        also=lambda directory: write_json(directory / "training.json", report),
    )
    shutil.rmtree(scratch, ignore_errors=True)
    grid = f", {len(exact)} linears on the {method.bits}-bit grid" if exact else ""
    print(f"trained {given.out}{grid}")
