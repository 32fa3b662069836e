"""The options of `grace train` that are not transformers' own, and our defaults of those that are.

Nothing here imports torch or transformers, so that the command's help is quick. Every class is one
section of the help; :class:`grace.training.arguments.GraceArguments` adds all other fields of
``TrainingArguments``.
"""

# ruff: noqa: RUF009  # option() makes dataclass fields
from dataclasses import MISSING, dataclass, field
from typing import Any, Literal


def option(default: Any, help: str, *aliases: str, **more: Any) -> Any:
    """A dataclass field that ``HfArgumentParser`` shows with a help text and further names."""
    dashed = [alias.replace("_", "-") for alias in aliases if alias.count("_")]
    metadata = {"help": help, "aliases": [*aliases, *dashed], **more}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def default_of(entry: Any) -> Any:
    """The default of a field; an empty list or mapping where a factory makes it."""
    return entry.default_factory() if entry.default is MISSING else entry.default


@dataclass
class ModelOptions:
    """Which models.

    Attributes:
        model: The student.
        teacher: Another directory or hub name.
        teacher_bits: Bits of the frozen teacher's decoder linears.
        teacher_sharded: Whether every process holds a share of the teacher.
        teacher_outputs: Directory of the teacher's answers, computed once.
    """

    _argument_group_name = "models"

    model: str | None = option(None, "student: a directory or hub name (or the first argument)")
    teacher: str | None = option(
        None, "a larger model with the same tokens: a directory or hub name; for grace and kd"
    )
    teacher_bits: int = option(
        16, "16 (bfloat16), or 8 or 4 for the teacher's decoder linears (bitsandbytes)"
    )
    teacher_sharded: bool = option(False, "shard the teacher over all processes (with FSDP2)")
    teacher_outputs: str | None = option(
        None, "directory of the teacher's outputs: computed once, then read in every epoch"
    )


@dataclass
class DataOptions:
    """Which conversations.

    Attributes:
        data: Files, folders or hub names.
        eval_data: The same, to evaluate on.
        split: Split of data that have several.
        eval_split: The same, of the data to evaluate on.
        eval_share: Share of the data that is kept for evaluation.
        image_folder: Where relative image paths begin.
        max_length: Most tokens of a sample.
        on_bad_record: What happens to a record that cannot be used.
        max_bad_share: Most of the records that may be left out.
    """

    _argument_group_name = "data"

    data: list[str] = option(
        [],
        "conversations: parquet, JSON, JSONL or Arrow files, folders of them, or a hub name",
        metavar="DATA",
    )
    eval_data: list[str] = option([], "conversations to evaluate on, as --data", metavar="DATA")
    split: str = option("train", "split of --data, where it has several")
    eval_split: str = option("validation", "split of --eval_data, where it has several")
    eval_share: float = option(
        0.0, "share of --data that is kept for evaluation, drawn by the seed, such as 0.02"
    )
    image_folder: str | None = option(None, "folder in which relative image paths begin")
    max_length: int | None = option(
        None, "most tokens of a sample; a longer one is cut at an answer (the model's positions)"
    )
    on_bad_record: Literal["error", "skip"] = option(
        "error", "refuse the data for a record that cannot be used, or skip the record"
    )
    max_bad_share: float = option(0.01, "most of the records that may be skipped")


@dataclass
class MethodOptions:
    """What is trained, and under which loss.

    Attributes:
        method: One of `grace.training.METHODS`.
        bits: Of a weight.
        group_size: Weights that share a scale.
        scale_lr_multiplier: Learning rate of the scales relative to the weights'.
        quantization: Further fields of ``grace.quantization.QuantSpec``.
        distillation: Fields of ``grace.distillation.DistillationConfig``.
    """

    _argument_group_name = "method"

    method: Literal["grace", "kd", "qad", "qat", "sft"] = option(
        "grace",
        "grace; kd: naive distillation; qad: the teacher is the student's own unquantized weights, "
        "and the divergence from it the whole loss; qat: quantization-aware training without a "
        "teacher; sft: plain fine-tuning",
    )
    bits: int | None = option(
        None, "bits of a weight: 2 to 8, or 16 for no quantization (4; sft: 16)"
    )
    group_size: str = option("128", "weights that share a scale: 32, 64, 128, 256 or row")
    scale_lr_multiplier: float = option(
        10.0, "learning rate of the scales, relative to the weights'"
    )
    quantization: dict[str, Any] | str | None = option(
        None, "further fields of grace.quantization.QuantSpec, such as {init: max}"
    )
    distillation: dict[str, Any] | str | None = option(
        None, "fields of grace.distillation.DistillationConfig, such as {tau: 0.2}"
    )


@dataclass
class RunOptions:
    """Where it runs and what it writes.

    Attributes:
        out: The directory to write.
        overwrite: Whether a model directory there may be replaced.
        resume: Whether to go on from the last checkpoint.
        device: "auto", "cpu" or "cuda".
    """

    _argument_group_name = "run"

    out: str | None = option(
        None,
        "directory to write; checkpoints are in OUT.checkpoints",
        "--output_dir",
        "--output-dir",
    )
    overwrite: bool = option(
        False, "replace a model directory at --out, once the new one is complete"
    )
    resume: bool = option(False, "go on from the last checkpoint")
    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", "where it runs: cuda where there is one, else cpu"
    )


@dataclass
class TrainerOptions:
    """The most used of transformers' ``TrainingArguments``, with the defaults of `grace train`.

    Attributes:
        learning_rate: Peak rate of the weights.
        num_train_epochs: Passes over the data.
        max_steps: Optimizer steps, instead of epochs.
        per_device_train_batch_size: Samples in a forward pass of one process.
        gradient_accumulation_steps: Forward passes in an optimizer step.
        per_device_eval_batch_size: Samples in a forward pass of evaluation.
        lr_scheduler_type: Course of the learning rate.
        warmup_steps: Steps over which it rises, or their share of all.
        weight_decay: AdamW's.
        max_grad_norm: Largest norm of a gradient.
        optim: The optimizer.
        bf16: Arithmetic in bfloat16; None: where the device multiplies it natively.
        gradient_checkpointing: Less memory for more time.
        seed: Of everything random.
        logging_steps: Steps between lines of the log.
        eval_strategy: When to evaluate; None: by steps where there is something to evaluate on.
        eval_steps: Steps between evaluations, or their share of all.
        save_steps: Steps between checkpoints, or their share of all.
        save_total_limit: Checkpoints that are kept.
        report_to: Where the log goes beside the screen.
        dataloader_num_workers: Processes that prepare batches; None: by the machine.
        push_to_hub: Upload the result to the hub.
        hub_model_id: Its name there.
    """

    _argument_group_name = "most used training arguments"

    learning_rate: float = option(1e-5, "peak learning rate of the weights")
    num_train_epochs: float = option(1.0, "passes over the data", "--epochs")
    max_steps: int = option(-1, "optimizer steps, instead of epochs", "--steps")
    per_device_train_batch_size: int = option(
        4, "samples in a forward pass of a process", "--batch_size"
    )
    gradient_accumulation_steps: int = option(
        1, "forward passes in an optimizer step", "--accumulation"
    )
    per_device_eval_batch_size: int = option(4, "samples in a forward pass of evaluation")
    lr_scheduler_type: str = option("cosine", "course of the learning rate")
    warmup_steps: float = option(0.03, "steps over which it rises, or their share of all")
    weight_decay: float = option(0.0, "weight decay; scales, biases and norms have none")
    max_grad_norm: float = option(1.0, "largest norm of a gradient; 0: no limit")
    optim: str = option("adamw_torch_fused", "such as adamw_torch_fused or adamw_8bit")
    bf16: bool | None = option(
        None, "compute in bfloat16 (where the device multiplies it)", nargs="?", const=True
    )
    gradient_checkpointing: bool = option(False, "less memory, a third more time")
    seed: int = option(0, "of everything random")
    logging_steps: float = option(10, "steps between lines of the log")
    eval_strategy: str | None = option(
        None, "no, steps or epoch (steps, where there are data to evaluate on)"
    )
    eval_steps: float | None = option(0.1, "steps between evaluations, or their share of all")
    save_steps: float = option(0.1, "steps between checkpoints, or their share of all")
    save_total_limit: int | None = option(1, "checkpoints that are kept")
    report_to: list[str] = option(["none"], "tensorboard, wandb, ... or none", metavar="NAME")
    dataloader_num_workers: int | None = option(
        None, "processes that prepare batches (by the machine; 0 on a CPU)"
    )
    push_to_hub: bool = option(False, "upload the result, its model card included")
    hub_model_id: str | None = option(None, "its name there")


SECTIONS = (ModelOptions, DataOptions, MethodOptions, RunOptions, TrainerOptions)
