"""One training run: from data, a model and a method to a directory, resumable in between."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from grace.data import Collator, ConversationDataset
from grace.training import GraceTrainer, MethodConfig, Teacher
from replication.io import write_json_atomic


def fit(
    model: Any,
    data: ConversationDataset,
    method: MethodConfig,
    settings: dict[str, Any],
    *,
    teacher: Teacher | None,
    scratch: Path,
    log: Path,
) -> GraceTrainer:
    """Train ``model`` in place; an interrupted run goes on from its last complete checkpoint.

    Args:
        settings: steps, batch_size, learning_rate, seed and the optional rest of the
            corresponding section of ``params.yaml``.
        scratch: folder for checkpoints, removed when training is complete.
        log: JSON file for the logged values.
    """
    arguments = TrainingArguments(
        output_dir=str(scratch),
        max_steps=settings["steps"],
        per_device_train_batch_size=settings["batch_size"],
        gradient_accumulation_steps=settings.get("accumulation", 1),
        learning_rate=settings["learning_rate"],
        weight_decay=settings.get("weight_decay", 0.0),
        max_grad_norm=settings.get("max_grad_norm", 1.0),
        warmup_steps=settings.get("warmup_ratio", 0.03),
        lr_scheduler_type="cosine",
        optim="adamw_torch_fused",
        bf16=settings.get("bf16", False),
        gradient_checkpointing=settings.get("gradient_checkpointing", False),
        seed=settings["seed"],
        data_seed=settings["seed"],
        logging_steps=settings.get("logging_steps", 50),
        save_steps=settings.get("save_steps", 500),
        save_total_limit=1,
        report_to=[],
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=False,
    )
    collator = Collator(
        data.family, model.config.image_token_id, data.processor.tokenizer.pad_token_id
    )
    trainer = GraceTrainer(model, arguments, data, collator, method=method, teacher=teacher)
    last = get_last_checkpoint(str(scratch)) if scratch.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    write_json_atomic(log, {"history": trainer.state.log_history[:-1]})
    shutil.rmtree(scratch, ignore_errors=True)
    return trainer


def save_model(model: Any, processor: Any, path: Path) -> None:
    """Write a model directory under a temporary name, then rename it into place."""
    temporary = path.with_name(path.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    processor.save_pretrained(temporary)
    shutil.rmtree(path, ignore_errors=True)
    temporary.rename(path)
