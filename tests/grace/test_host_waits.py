"""No step of training makes the host wait for the device, but to log."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TrainerCallback, TrainingArguments
from waits import HostWaits

import grace
from grace.data import Collator, ConversationDataset
from grace.distillation import DistillationConfig, gated_decoupled_kd
from grace.models import FAMILIES, family_of
from grace.quantization import QuantSpec
from grace.training import (
    CachedTeacher,
    GraceTrainer,
    LiveTeacher,
    MethodConfig,
    prepare_student,
    write_teacher_outputs,
)

PACKAGE = Path(grace.__file__).parent


@pytest.mark.parametrize(
    ("call", "operation"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: float(x.sum()), "_local_scalar_dense"),
        (lambda x: 1 if x.any() else 0, "_local_scalar_dense"),
        (lambda x: (x > 0).nonzero(), "nonzero"),
        (lambda x: torch.where(x > 0), "nonzero"),
        (lambda x: x[x > 0], "by a mask"),
        (lambda x: x.masked_select(x > 0), "masked_select"),
        (lambda x: x.tolist(), "tolist"),
        (np.asarray, "__array__"),
        (lambda x: x.cpu(), "cpu"),
        (lambda x: torch.equal(x, x), "equal"),
    ],
)
def test_a_wait_is_seen_where_it_is_asked_for(call, operation):
    with HostWaits() as waits:
        call(torch.arange(3.0))
    assert any(operation in wait.operation for wait in waits.found)
    assert {wait.file for wait in waits.found} == {__file__}


def test_what_does_not_wait_is_not_seen():
    x = torch.arange(6.0).requires_grad_()
    with HostWaits() as waits:
        torch.where(x > 0, x[torch.tensor([0, 2, 4, 4, 1, 0])], 0.0).sum().backward()
        x.detach().masked_fill_(x.detach() > 3, 0.0)
    assert waits.found == []


def test_the_form_that_selects_in_the_loss_waits_once():
    student, teacher = torch.randn(1, 3, 5), torch.randn(1, 3, 5)
    with HostWaits() as waits:
        gated_decoupled_kd(student, teacher, torch.tensor([[-100, 1, 2]]))
    assert [wait.function for wait in waits.found] == ["gated_decoupled_kd"]


def ours(wait):
    """Of the package, and not where a batch is put together on the host."""
    file = Path(wait.file)
    on_host = PACKAGE / "data" in file.parents or wait.function == "image_spans"
    return PACKAGE in file.parents and not on_host


class BySteps(TrainerCallback):
    """Keeps the waits of every optimizer step on its own; what comes after is logging."""

    def __init__(self, waits):
        self.waits, self.steps = waits, []

    def on_train_begin(self, *_, **__):
        self.waits.found.clear()

    def on_step_end(self, *_, **__):
        self.steps.append(list(self.waits.found))
        self.waits.found.clear()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "model_type", "answers"),
    [
        ("qat", "llava", None),
        ("kd", "llava", "live"),
        ("grace", "llava", "cached"),
        *[("grace", name, "live") for name in sorted(FAMILIES)],
    ],
)
def test_training_waits_nowhere(
    tmp_path, monkeypatch, family, conversations, name, model_type, answers
):
    """Teacher, student, all terms, both passes, the controller, the optimizer; two micro-batches.

    Inside the vision towers and masks of the library there are waits of its own.
    """
    small = family(model_type)
    model = small.model(1)
    data = ConversationDataset(conversations, small.processor, model.config)
    distillation = DistillationConfig() if answers else None
    method = MethodConfig(name, 4, QuantSpec(bits=4), distillation)
    prepare_student(model, method)
    adapter = family_of(model_type)
    collate = Collator(adapter, model.config.image_token_id, small.processor.tokenizer.pad_token_id)
    teacher = None
    if answers:
        teacher = LiveTeacher(small.model(2), adapter, relational=method.relational)
    if answers == "cached":
        batches = (collate([data[index]]) for index in range(len(data)))
        write_teacher_outputs(teacher, batches, tmp_path / "outputs", lengths=data.supervised)
        teacher = CachedTeacher(tmp_path / "outputs", samples=len(data))
    waits = HostWaits()
    seen = BySteps(waits)
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        logging_steps=1000,
        save_strategy="no",
        bf16=True,
        optim="adamw_torch",
        report_to=[],
        remove_unused_columns=False,
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = GraceTrainer(
        model,
        arguments,
        data,
        collate,
        method=method,
        teacher=teacher,
        callbacks=[seen],
    )
    # On a CPU the cross-entropy is looked at after every step, which elsewhere is left to logging.
    monkeypatch.setattr(trainer, "_check_finite", lambda: None)
    with waits:
        trainer.train()
    assert len(seen.steps) == 2
    assert [wait for step in seen.steps for wait in step if ours(wait)] == []
