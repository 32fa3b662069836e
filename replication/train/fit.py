"""One training run: from data, a model and a method to a directory, resumable in between."""

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainingArguments

from grace import models
from grace.data import Collator, ConversationDataset
from grace.errors import InputError
from grace.training import GraceTrainer, MethodConfig, Teacher, save_student
from grace.training.distributed import load_weights, under_deepspeed
from replication.base import provenance
from replication.base.files import write_json_atomic
from replication.settings.paths import Layout, needed, reading
from replication.settings.schema import Labels, Portion

ORIGIN_FILE = "origin.json"
_MULTIPLE = 8  # of the lengths of batches in bfloat16 on a CPU


def load_training_data(
    layout: Layout, tower: str, portion: Portion, processor: Any, config: Any
) -> ConversationDataset:
    """Training conversations of a world with the precomputed vision features.

    Args:
        layout: of the world.
        tower: the pair whose vision features they are.
        portion: which of the conversations, and with which labels.
        processor: the model's.
        config: the model's.

    Raises:
        InputError: when either is missing or they do not belong together.
    """
    source = conversations(needed(layout.conversations, "standins"), portion.labels)
    path = layout.features(tower)
    with reading(path, "features"):
        features = np.load(path, mmap_mode="c")
    rows = None if portion.records is None else range(*portion.records)
    return ConversationDataset(source, processor, config, records=rows, vision_features=features)


def conversations(path: Path, labels: Labels) -> Any:
    """What `ConversationDataset` reads: the file itself, or its column of noisy conversations in
    the place of the clean ones, beside the same images.

    Raises:
        InputError: when the file cannot be read, or has no noisy conversations.
    """
    if labels == "clean":
        return path
    import datasets
    import pyarrow.parquet as pq

    with reading(path, "standins"):
        if "noisy" not in pq.read_schema(path).names:
            raise InputError(
                f"{str(path)!r} has no column 'noisy', which labels: noisy asks for; run the stage "
                "standins again"
            )
        table = pq.read_table(path, columns=["id", "image", "noisy"])
        state = path.stat()
    mark = f"{path.resolve()} {state.st_size} {state.st_mtime_ns}"
    return datasets.Dataset(
        datasets.table.InMemoryTable(table.rename_columns(["id", "image", "conversations"])),
        fingerprint=hashlib.sha256(mark.encode()).hexdigest(),
    )


def fit(
    model: Any,
    data: ConversationDataset,
    method: MethodConfig,
    settings: dict[str, Any],
    *,
    teacher: Teacher | None,
    origin: dict[str, str],
    scratch: Path,
    log: Path,
    about: Mapping[str, Any] | None = None,
    finish: Callable[[GraceTrainer], None] | None = None,
) -> GraceTrainer:
    """Train ``model`` in place; an interrupted run goes on from its last complete checkpoint.

    Checkpoints of another origin are thrown away, not gone on from. In several processes each of
    them calls this, and ``model`` may be sharded afterwards: see
    :func:`grace.training.distributed.whole_model`.

    Args:
        model: The model, in float32.
        data: The training conversations.
        method: What is trained, and by which loss.
        settings: Steps or epochs, batch_size, learning_rate, seed, arithmetic (bfloat16 or
            float32) and the optional rest of the corresponding section of ``params.yaml``.
        teacher: Of a method that distills.
        origin: What the training follows from, see :func:`origin_of`.
        scratch: Folder for checkpoints, removed when training is complete.
        log: JSON file for the logged values (``history``), the number of all parameters, frozen
            ones among them (``parameters``), the controller's bounds, what of the published data
            did not fit (``data``), and what the training took (``cost``; None if it was
            interrupted).
        about: Further entries of the log; see ``replication.results.training_logs``.
        finish: Called when training is complete, while its last checkpoint is still there.

    Returns:
        The trainer.
    """
    slow = settings["arithmetic"] == "bfloat16" and not torch.cuda.is_available()
    if slow:  # on a CPU the fused kernel's backward in bfloat16 takes three times as long as this
        model.set_attn_implementation("eager")
    collator = Collator(
        data.family,
        data.family.image_token_id(model.config),
        data.processor.tokenizer.pad_token_id,
        multiple=_MULTIPLE if slow else 1,
    )
    arguments = training_arguments(settings, scratch)
    trainer = GraceTrainer(model, arguments, data, collator, method=method, teacher=teacher)
    record = _record(model, data, method, settings) | dict(about or {})
    last = _take_up(trainer, scratch, origin)
    if last is not None:
        state = json.loads((last / "trainer_state.json").read_text())
        if state["global_step"] >= state["max_steps"]:
            if trainer.is_world_process_zero():
                load_weights(model, last)
            _end(trainer, scratch, log, {**record, "history": state["log_history"]}, finish)
            return trainer
    cost = _train(trainer, last)
    record |= {"history": trainer.state.log_history[:-1], "cost": cost if last is None else None}
    _end(trainer, scratch, log, record, finish)
    return trainer


def training_arguments(settings: dict[str, Any], scratch: Path) -> TrainingArguments:
    """The trainer's own settings; see :func:`fit`."""
    launch = settings.get("launch") or {}
    steps = settings.get("steps") or 0
    return TrainingArguments(
        output_dir=str(scratch),
        max_steps=steps or -1,
        num_train_epochs=settings.get("epochs") or 1.0,
        per_device_train_batch_size=settings["batch_size"],
        gradient_accumulation_steps=settings.get("accumulation", 1),
        learning_rate=settings["learning_rate"],
        weight_decay=settings.get("weight_decay", 0.0),
        max_grad_norm=settings.get("max_grad_norm", 1.0),
        warmup_steps=settings.get("warmup_ratio", 0.03),
        lr_scheduler_type="cosine",
        optim=launch.get("optimizer", "adamw_torch_fused"),
        bf16=settings["arithmetic"] == "bfloat16" and not under_deepspeed(),
        gradient_checkpointing=settings.get("gradient_checkpointing", False),
        seed=settings["seed"],
        data_seed=settings["seed"],
        logging_steps=min(settings.get("logging_steps", 50), steps or 50),
        save_steps=settings.get("save_steps", 500),
        save_total_limit=1,
        report_to=[],
        remove_unused_columns=False,
        dataloader_num_workers=launch.get("workers", 0),
        dataloader_pin_memory=False,
        include_num_input_tokens_seen="non_padding",
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=False,
    )


def _record(
    model: Any, data: ConversationDataset, method: MethodConfig, settings: dict[str, Any]
) -> dict[str, Any]:
    """What a training log says beside its history and cost."""
    record: dict[str, Any] = {
        "family": model.config.model_type,
        "arithmetic": settings["arithmetic"],
        "parameters": sum(weight.numel() for weight in model.parameters()),
    }
    left_out = {
        "rejected": len(data.bad_records),
        "truncated": data.truncated,
        "dropped_images": data.dropped_images,
    }
    if any(left_out.values()):
        record["data"] = left_out
    if method.distillation is not None and method.distillation.adaptive:
        bounds = ("tau", "beta_min", "beta_max")
        record["controller"] = {name: getattr(method.distillation, name) for name in bounds}
    return record


def _take_up(trainer: GraceTrainer, scratch: Path, origin: dict[str, str]) -> Path | None:
    """The checkpoint to go on from; without one, an empty scratch folder of this origin."""
    first = trainer.is_world_process_zero()
    last = last_checkpoint(scratch, origin) if first else None
    [last] = broadcast_object_list([last])  # the others look only after it
    if first and last is None:
        shutil.rmtree(scratch, ignore_errors=True)
        write_json_atomic(scratch / ORIGIN_FILE, origin)
    trainer.accelerator.wait_for_everyone()
    return last


def _train(trainer: GraceTrainer, last: Path | None) -> dict[str, Any]:
    """Train, and return what it took."""
    model = cast(Any, trainer.model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    _forget_peak_memory()
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    return {
        "seconds": round(time.monotonic() - started, 1),
        "steps": trainer.state.global_step,
        "tokens": int(trainer.state.num_input_tokens_seen),
        "peak_memory_bytes": _peak_memory(),
        "trained_parameters": trained,
        "threads": torch.get_num_threads(),
        "device": provenance.device_description(),
    }


def _end(
    trainer: GraceTrainer,
    scratch: Path,
    log: Path,
    record: dict[str, Any],
    finish: Callable[[GraceTrainer], None] | None,
) -> None:
    first = trainer.is_world_process_zero()
    if first:
        history = _history(record["history"])
        write_json_atomic(log, {"cost": None, **record, "history": history})
    if finish is not None:
        finish(trainer)
    if first:
        shutil.rmtree(scratch, ignore_errors=True)


def save_trained(
    model: Any, processor: Any, path: Path, method: MethodConfig, origin: dict[str, str]
) -> None:
    """Write a trained model, values on the grid, with the integer codes and scales beside them."""

    def write_origin(directory: Path) -> None:
        write_json_atomic(directory / ORIGIN_FILE, origin)

    _remove_unfinished(path)
    save_student(model, processor, path, method, overwrite=True, also=write_origin)


def _history(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The logged values without times: equal runs have equal histories."""
    times = ("train_runtime", "train_tokens_per_second")
    return [{k: v for k, v in entry.items() if k not in times} for entry in entries]


def _forget_peak_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):  # resets the high-water mark that the next function reads
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory() -> int:
    """Bytes at the highest: of this process, or of the accelerator's memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def read_origin(folder: Path) -> dict[str, str] | None:
    """What the content of a folder follows from; None where it does not say."""
    try:
        return json.loads((folder / ORIGIN_FILE).read_text())
    except (OSError, ValueError):
        return None


def last_checkpoint(scratch: Path, origin: dict[str, str]) -> Path | None:
    """The newest complete checkpoint in ``scratch``; None if there is none of this origin."""
    if read_origin(scratch) != origin:
        return None
    folders = {}
    for folder in scratch.glob("checkpoint-*"):
        number = folder.name.removeprefix("checkpoint-")
        if number.isdigit():
            folders[int(number)] = folder
    for _, folder in sorted(folders.items(), reverse=True):
        try:  # the library writes this file last
            if json.loads((folder / "trainer_state.json").read_text()):
                return folder
        except (OSError, ValueError):
            shutil.rmtree(folder, ignore_errors=True)
    return None


def origin_of(
    model: Any,
    data: ConversationDataset,
    method: MethodConfig,
    settings: dict[str, Any],
    teacher: Teacher | None,
    *,
    code: str,
) -> dict[str, str]:
    """What a training run follows from, as hashes and plain values.

    Args:
        code: hash of the code that decides its result.
    """
    weights = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        weights.update(name.encode())
        weights.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return {
        "code": code,
        "versions": json.dumps(provenance.library_versions(), sort_keys=True),
        "settings": json.dumps(settings, sort_keys=True, default=str),
        "method": repr(method),
        "teacher": repr([getattr(teacher, name, None) for name in ("identity", "sha256", "seed")]),
        "weights": weights.hexdigest(),
        "data": data.sha256,
    }


def save_model(
    model: Any, processor: Any, path: Path, *, also: Callable[[Path], None] | None = None
) -> None:
    """Write a model directory, whole or not at all, in place of what is there.

    Args:
        also: writes further files into the directory.
    """
    _remove_unfinished(path)
    models.save_model(model, processor, path, overwrite=True, also=also)


def _remove_unfinished(path: Path) -> None:
    """Remove the temporary directories that a killed process left beside a model directory."""
    for unfinished in path.parent.glob(f".{path.name}.*"):
        shutil.rmtree(unfinished, ignore_errors=True)
