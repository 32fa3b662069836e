"""The method's losses and a training step on a device."""

import sys
import warnings
from pathlib import Path

import pytest
import torch
from small_llava import IMAGE, Samples, small_llava
from transformers import TrainerCallback, TrainingArguments

import grace
from grace.data import Collator
from grace.distillation import (
    DistillationConfig,
    cka,
    distillation_sums,
    gated_decoupled_kd,
)
from grace.models import family_of
from grace.quantization import FakeQuantLinear, QuantSpec
from grace.training import GraceTrainer, LiveTeacher, MethodConfig, prepare_student

pytest_plugins = ["devices"]

PACKAGE, TORCH = Path(grace.__file__).parent, Path(torch.__file__).parent


def by_definition(student, teacher, labels, temperature, alpha, beta, kappa):
    """Eq. 1 to 6 in float64, one token at a time."""
    numerator = denominator = torch.zeros((), dtype=torch.float64)
    for row in range(labels.shape[0]):
        for place in range(labels.shape[1] - 1):
            label = int(labels[row, place + 1])
            if label == -100:
                continue
            p, q = (
                torch.softmax(logits[row, place].double() / temperature, -1)
                for logits in (teacher, student)
            )
            plain = torch.softmax(teacher[row, place].double(), -1)
            entropy = -(plain * plain.log()).sum() / torch.log(torch.tensor(plain.numel()))
            gate = torch.exp(-kappa * entropy).detach()
            binary = sum(
                a * torch.log(a / b)
                for a, b in ((p[label], q[label]), (1 - p[label], 1 - q[label]))
            )
            others = torch.arange(p.numel()) != label
            p_rest, q_rest = p[others] / p[others].sum(), q[others] / q[others].sum()
            rest = (p_rest * (p_rest / q_rest).log()).sum()
            numerator = numerator + gate * temperature**2 * (alpha * binary + beta * rest)
            denominator = denominator + gate
    return numerator / denominator


@pytest.mark.parametrize("beta", [0.0, 4.0])
def test_gated_distillation_and_its_gradient_are_those_of_the_definition(device, beta):
    generator = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(2, 9, 50, generator=generator) * 2 for _ in "st")
    labels = torch.randint(0, 50, (2, 9), generator=generator)
    labels[:, :3] = -100
    exact = student.double().requires_grad_()
    expected = by_definition(exact, teacher, labels, 2.0, 1.0, beta, 1.0)
    (gradient,) = torch.autograd.grad(expected, exact)
    here = student.to(device).requires_grad_()
    loss = gated_decoupled_kd(here, teacher.to(device), labels.to(device), beta=beta)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (here.grad.cpu().double() - gradient).norm() <= 1e-5 * gradient.norm()


def test_chunks_of_the_loss_change_nothing(device):
    """At a vocabulary of which one chunk does not hold all tokens."""
    generator = torch.Generator(device).manual_seed(5)
    shape = (70, 32_000)
    student, teacher = (torch.randn(shape, generator=generator, device=device) for _ in "st")
    targets = torch.randint(0, shape[1], shape[:1], generator=generator, device=device)
    whole = distillation_sums(student, teacher, targets, chunk_size=70)
    parts = distillation_sums(student, teacher, targets, chunk_size=16)
    assert torch.allclose(whole.loss_sum, parts.loss_sum, rtol=1e-5)
    assert torch.allclose(whole.gate_sum, parts.gate_sum, rtol=1e-5)


def test_alignment_is_that_of_float64(device):
    generator = torch.Generator().manual_seed(7)
    x, y = torch.randn(96, 40, generator=generator), torch.randn(96, 64, generator=generator)
    y[:, :40] += 2 * x

    def kernel(values):
        rows = values.double() / values.double().norm(dim=1, keepdim=True)
        centred = rows - rows.mean(0)
        return centred @ centred.t()

    k, m = kernel(x), kernel(y)
    expected = (k * m).sum() / (k.norm() * m.norm())
    assert cka(x.to(device), y.to(device)).item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_fake_quantized_linear_is_the_one_of_the_processor(device):
    """Learned step sizes: value and gradients of weight, scales and input."""
    torch.manual_seed(9)
    layer = FakeQuantLinear.from_linear(torch.nn.Linear(128, 48), QuantSpec(group_size=32), "up")
    x = torch.randn(6, 128)
    found = {}
    for where in ("cpu", device):
        moved = layer.to(where)
        moved.zero_grad()
        inputs = x.to(where).requires_grad_()
        y = moved(inputs)
        y.square().sum().backward()
        gradients = [parameter.grad for parameter in moved.parameters()]
        found[str(where)] = [one.detach().cpu() for one in (y, inputs.grad, *gradients)]
    for one, other in zip(found["cpu"], found[str(device)], strict=True):
        assert (one - other).norm() <= 1e-4 * one.norm()


class Waits:
    """Collects where the package makes the host wait for the device, by torch's own warnings."""

    def __init__(self):
        self.found = []

    def __call__(self, message, category, filename, lineno, file=None, line=None):
        if "synchronizing" not in str(message):
            return
        frame = sys._getframe(1)
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if PACKAGE in path.parents:
                self.found.append(f"{path.name}:{frame.f_lineno} {frame.f_code.co_name}")
                return
            if TORCH not in path.parents and path.suffix == ".py" and "warnings" not in path.name:
                return  # a library's own
            frame = frame.f_back


class Watched(TrainerCallback):
    """Looks at the second and third optimizer step: not at what is chosen once, nor at logging."""

    def __init__(self, waits):
        self.waits, self.steps = waits, []

    def on_step_begin(self, arguments, state, control, **_):
        self.waits.found.clear()
        if state.global_step and torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn")

    def on_step_end(self, arguments, state, control, **_):
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")
        self.steps.append(list(self.waits.found))


@pytest.mark.parametrize("method", ["qat", "grace"])
def test_training_learns_and_waits_nowhere(device, tmp_path, monkeypatch, method):
    """Teacher, student, all terms, the controller and the optimizer; two micro-batches a step."""
    family, student = family_of("llava"), small_llava(1)
    distillation = DistillationConfig() if method == "grace" else None
    chosen = MethodConfig(method, 4, QuantSpec(bits=4, group_size=64), distillation)
    prepare_student(student, chosen)
    teacher = None
    if distillation:
        teacher = LiveTeacher(small_llava(2, 192).to(device), family, relational=chosen.relational)
    waits = Waits()
    watched = Watched(waits)
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        logging_steps=1000,
        save_strategy="no",
        bf16=True,
        report_to=[],
        remove_unused_columns=False,
        use_cpu=device.type == "cpu",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = GraceTrainer(
        student,
        arguments,
        Samples(),
        Collator(family, IMAGE, 0),
        method=chosen,
        teacher=teacher,
        callbacks=[watched],
    )
    if device.type == "cpu":  # where a step's loss is looked at before the next begins
        monkeypatch.setattr(trainer, "_check_finite", lambda: None)
    before = [parameter.detach().clone() for parameter in student.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", waits)
        trainer.train()
    assert len(watched.steps) == 3
    assert [wait for step in watched.steps for wait in step] == []
    after = [parameter.detach().cpu() for parameter in student.parameters()]
    assert any(not torch.equal(one.cpu(), other) for one, other in zip(before, after, strict=True))
    assert all(torch.isfinite(parameter).all() for parameter in after)


def test_a_wait_of_the_package_is_seen(cuda, monkeypatch):
    """The form of the loss that selects by labels waits once, and says so."""
    waits = Waits()
    student, teacher = torch.randn(2, 1, 3, 5, device=cuda).unbind()
    labels = torch.tensor([[-100, 1, 2]], device=cuda)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", waits)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            gated_decoupled_kd(student, teacher, labels)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert any("gated_decoupled_kd" in wait for wait in waits.found)
