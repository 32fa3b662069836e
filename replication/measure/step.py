"""One training step of the real classes at any size, on random weights and random tokens.

    trainer = trial_trainer(Trial(vocabulary=4096, text_tokens=200), folder)
    trainer.train()

For measurements: what a step costs does not depend on the values. Everything but the samples is
what a training run uses.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, TrainingArguments

from grace.data import Collator
from grace.distillation import DistillationConfig
from grace.models import family_of
from grace.quantization import QuantSpec
from grace.training import TEACHER_METHODS, GraceTrainer, LiveTeacher, MethodConfig, prepare_student
from replication.measure.memory import LiveBytes
from replication.plan.architectures import Architecture, architecture
from replication.plan.costs import Load

PUBLISHED = {"llava": "llava-1.5-7b", "qwen2_vl": "qwen2-vl-2b", "qwen3_vl": "qwen3-vl-2b"}
"""The published architecture of each family that a trial is a small instance of."""
_HEAD = 32
_TOWERS: dict[str, dict[str, Any]] = {
    "llava": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "projection_dim": 32,
    },
    "qwen2_vl": {"depth": 2, "embed_dim": 32, "num_heads": 2},
    "qwen3_vl": {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    },
}
_ROPE: dict[str, dict[str, Any]] = {
    "llava": {},
    "qwen2_vl": {"mrope_section": [4, 6, 6]},
    "qwen3_vl": {"mrope_section": [6, 5, 5], "mrope_interleaved": True},
}


@dataclass(frozen=True)
class Trial:
    """A training step to try out.

    Every sequence has one image of 16 visual tokens and words around it.

    Attributes:
        family: name of the model's family.
        method: of `grace.training.MethodConfig`.
        bits: of the student's weights; 16 leaves them as they are.
        vocabulary: number of tokens.
        width: the student's hidden size; the teacher's is twice it.
        layers: of either decoder.
        text_tokens: words of a sequence.
        supervised: number of words, at the end of a sequence, that are targets.
        sequences: of a micro-batch.
        accumulation: micro-batches of an optimizer step.
        autocast: products in bfloat16.
        checkpointing: decoder layers are computed again in the backward pass.
        attention: transformers' name of the implementation.
    """

    family: str = "qwen2_vl"
    method: str = "grace"
    bits: int = 4
    vocabulary: int = 1024
    width: int = 128
    layers: int = 2
    text_tokens: int = 64
    supervised: int = 32
    sequences: int = 2
    accumulation: int = 1
    autocast: bool = True
    checkpointing: bool = False
    attention: str = "eager"

    def shape(self, *, teacher: bool = False) -> Architecture:
        """The student's or the teacher's architecture."""
        published = architecture(PUBLISHED[self.family])
        values: dict[str, Any] = copy.deepcopy(dict(published.values))
        width = self.width * (2 if teacher else 1)
        values["text_config"].update(
            vocab_size=self.vocabulary,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=self.layers,
            num_attention_heads=width // _HEAD,
            num_key_value_heads=max(1, width // _HEAD // 2),
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                **_ROPE[self.family],
            },
        )
        if "head_dim" in values["text_config"]:
            values["text_config"]["head_dim"] = _HEAD
        values["vision_config"].update(_TOWERS[self.family])
        outer = "out_hidden_size" if self.family == "qwen3_vl" else "hidden_size"
        if self.family != "llava":
            values["vision_config"][outer] = width
        ids = [name for name in values if name.endswith(("token_id", "token_index"))]
        values.update({name: self.vocabulary - 1 - at for at, name in enumerate(ids)})
        image = {"height": 56, "width": 56} if self.family == "llava" else {"grid": 8}
        return Architecture("teacher" if teacher else "student", "", 0, image, values)

    def load(self) -> Load:
        """The micro-batch."""
        return Load(self.sequences, 16 + self.text_tokens, 16, self.supervised)

    def quantization(self) -> QuantSpec | None:
        return QuantSpec(bits=self.bits, group_size=_HEAD) if self.bits < 16 else None

    def configuration(self) -> MethodConfig:
        """The method, with the released settings."""
        distillation = DistillationConfig() if self.method in TEACHER_METHODS else None
        return MethodConfig(self.method, self.bits, self.quantization(), distillation)


class _Samples(torch.utils.data.Dataset):
    """As many random samples as an optimizer step takes, all of one length."""

    def __init__(self, trial: Trial, shape: Architecture, steps: int) -> None:
        self.family = family_of(trial.family)
        self.processor = SimpleNamespace(tokenizer=None)
        self.trial, self.shape = trial, shape
        self.size = trial.sequences * trial.accumulation * steps
        self.lengths = [int(trial.load().tokens)] * self.size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        prompt = self.shape.prompt(index, dtype=torch.float32, text_tokens=self.trial.text_tokens)
        ids = prompt["input_ids"][0]
        labels = torch.full_like(ids, -100)
        labels[-self.trial.supervised :] = ids[-self.trial.supervised :]
        images = {name: prompt[name] for name in self.family.image_inputs}
        return {"index": index, "input_ids": ids.numpy(), "labels": labels.numpy(), **images}


def trial_trainer(trial: Trial, folder: str | Path, *, steps: int = 1) -> GraceTrainer:
    """A trainer of a random student, under a random teacher where the method has one."""
    method, family = trial.configuration(), family_of(trial.family)
    models = {}
    for teacher in (False, True):
        shape = trial.shape(teacher=teacher)
        torch.manual_seed(7 + teacher)
        model = AutoModelForImageTextToText.from_config(shape.config(), dtype=torch.float32)
        model.set_attn_implementation(trial.attention)
        models[teacher] = model
    prepare_student(models[False], method)
    teacher_model = None
    if method.needs_teacher:
        dtype = torch.bfloat16 if trial.autocast else torch.float32
        teacher_model = LiveTeacher(models[True].to(dtype), family, relational=method.relational)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=trial.sequences,
        gradient_accumulation_steps=trial.accumulation,
        learning_rate=1e-5,
        optim="adamw_torch_fused",
        bf16=trial.autocast,
        gradient_checkpointing=trial.checkpointing,
        seed=0,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
    )
    shape = trial.shape()
    image_token = models[False].config.image_token_id
    return GraceTrainer(
        models[False],
        arguments,
        _Samples(trial, shape, steps),  # type: ignore[arg-type]
        Collator(family, image_token, 0),
        method=method,
        teacher=teacher_model,
    )


def live_bytes(trainer: GraceTrainer) -> LiveBytes:
    """A counter that knows a trainer's models."""
    models = [trainer.model, getattr(trainer.teacher, "model", None)]
    return LiveBytes(
        tensor
        for model in models
        if model is not None
        for tensor in [*model.parameters(), *model.buffers()]
    )
