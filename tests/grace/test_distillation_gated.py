"""The chunked, gated loss: values, gradients, sums over parts, vocabularies, dropped batches."""

import contextlib
import itertools
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.utils._python_dispatch import TorchDispatchMode

from grace.distillation import (
    _common,
    confidence_gate,
    decoupled_kd,
    distillation_sums,
    gate,
    gate_sum,
    gated,
    gated_decoupled_kd,
    kd,
    shared_vocabulary,
)
from grace.errors import InputError

SETTINGS = settings(deadline=None, max_examples=25)


class Watch(TorchDispatchMode):
    """Fails on an operation that makes the host wait, and records the widest tensor produced."""

    waits = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal.default")

    def __init__(self):
        super().__init__()
        self.widest = 0
        self.scaled = []  # elements of each tensor multiplied in place by another

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(name in str(func) for name in self.waits), f"{func} waits for the device"
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mul_.Tensor:
            self.scaled.append(result.numel())
        owner = getattr(result, "untyped_storage", None)
        inputs = [a for a in args if isinstance(a, torch.Tensor)]
        if owner and all(owner().data_ptr() != a.untyped_storage().data_ptr() for a in inputs):
            self.widest = max(self.widest, result.numel() * result.element_size())
        return result


@st.composite
def selected(draw, bound=10.0, wider=0):
    """student (N, V + extra), teacher (N, V + extra), targets (N,), float64."""
    n, v = draw(st.integers(1, 7)), draw(st.integers(2, 6))
    extra = [draw(st.integers(0, wider)) for _ in range(2)]
    elements = st.floats(-bound, bound, width=32)
    student, teacher = (
        torch.tensor(draw(hnp.arrays(np.float64, (n, v + e), elements=elements))) for e in extra
    )
    return (
        student,
        teacher,
        torch.tensor(draw(hnp.arrays(np.int64, n, elements=st.integers(0, v - 1)))),
    )


@st.composite
def options(draw):
    return {
        "temperature": draw(st.sampled_from([0.5, 1.0, 2.0, 4.0])),
        "alpha": draw(st.sampled_from([0.0, 1.0, 2.5])),
        "beta": draw(st.sampled_from([0.0, 4.0, 8.0])),
        "kappa": draw(st.sampled_from([-1.0, 0.0, 1.0, 3.0])),
        "decoupled": draw(st.booleans()),
    }


def readable(student, teacher, targets, *, temperature, alpha, beta, kappa, decoupled):
    """Gates and terms per token over the shared columns, differentiable by autograd."""
    shared = min(student.shape[1], teacher.shape[1])
    student, teacher = student[:, :shared], teacher[:, :shared]
    terms = (
        decoupled_kd(student, teacher, targets, temperature, alpha, beta)
        if decoupled
        else kd(student, teacher, temperature)
    )
    return confidence_gate(teacher, kappa), terms


@SETTINGS
@given(selected(wider=3), options(), st.integers(1, 8), st.floats(-3, 3))
def test_value_and_gradient_are_those_of_the_readable_form(data, chosen, chunk_size, factor):
    student, teacher, targets = data
    student.requires_grad_()
    gates, terms = readable(student, teacher, targets, **chosen)
    (expected,) = torch.autograd.grad(factor * (gates * terms).sum(), student)
    sums = distillation_sums(student, teacher, targets, chunk_size=chunk_size, **chosen)
    (gradient,) = torch.autograd.grad(factor * sums.loss_sum, student)
    assert sums.finite
    torch.testing.assert_close(sums.loss_sum, (gates * terms).sum(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(sums.gate_sum, gates.sum())
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-10)
    shared = min(student.shape[1], teacher.shape[1])
    assert (gradient[:, shared:] == 0).all()
    torch.testing.assert_close(
        gate_sum(teacher, chosen["kappa"], shared, chunk_size), sums.gate_sum
    )
    assert not sums.gate_sum.requires_grad


@SETTINGS
@given(selected(bound=6.0, wider=2), options(), st.data())
def test_gradient_agrees_with_finite_differences(data, chosen, draw):
    """Central differences of the chunked value itself, along a drawn direction."""
    student, teacher, targets = data
    elements = st.floats(-1, 1, width=32)
    direction = draw.draw(hnp.arrays(np.float64, tuple(student.shape), elements=elements))
    direction = torch.tensor(direction)

    def value(step):
        moved = student + step * direction
        return distillation_sums(moved, teacher, targets, **chosen).loss_sum

    step = 1e-5
    slope = (value(step) - value(-step)) / (2 * step)
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(value(0.0), student)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-6)


@SETTINGS
@given(selected(), options(), st.data())
def test_sums_over_any_parts_give_the_global_quotient(data, chosen, draw):
    """Accumulation steps and ranks: values and gradients add up, whatever the split."""
    student, teacher, targets = data
    cuts = draw.draw(st.lists(st.integers(0, len(targets)), max_size=3).map(sorted))
    student.requires_grad_()
    gates, terms = readable(student, teacher, targets, **chosen)
    whole = (gates * terms).sum() / gates.sum()
    (expected,) = torch.autograd.grad(whole, student)
    bounds = [0, *cuts, len(targets)]
    parts = [slice(a, b) for a, b in itertools.pairwise(bounds)]
    total = sum(gate_sum(teacher[p], chosen["kappa"]) for p in parts)
    loss = torch.zeros((), dtype=torch.float64)
    gradient = torch.zeros_like(student)
    for p in parts:
        part = distillation_sums(student[p], teacher[p], targets[p], **chosen).loss_sum / total
        gradient = gradient + torch.autograd.grad(part, student)[0]
        loss = loss + part.detach()
    torch.testing.assert_close(loss, whole.detach(), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-10)


@SETTINGS
@given(selected(), options(), st.data())
def test_tokens_of_a_chunk_may_lie_any_distance_apart(data, chosen, draw):
    """A constant added to all logits of a token changes no probability of it, nor of the others."""
    student, teacher, targets = data
    offsets = st.lists(st.sampled_from([-900.0, 0.0, 900.0]), min_size=7, max_size=7)
    moved = [z + torch.tensor(draw.draw(offsets))[: len(z), None] for z in (student, teacher)]
    here = distillation_sums(student.requires_grad_(), teacher, targets, **chosen)
    (gradient,) = torch.autograd.grad(here.loss_sum, student)
    moved[0].requires_grad_()
    there = distillation_sums(*moved, targets, **chosen)
    torch.testing.assert_close(tuple(there), tuple(here), rtol=1e-9, atol=1e-9)
    (other,) = torch.autograd.grad(there.loss_sum, moved[0])
    torch.testing.assert_close(other, gradient, rtol=1e-9, atol=1e-9)


@st.composite
def batches(draw):
    """student (B, S, V), teacher (B, S, V), labels (B, S) with ignored positions."""
    b, s, v = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(2, 5))
    elements = st.floats(-10, 10, width=32)
    logits = [
        torch.tensor(draw(hnp.arrays(np.float64, (b, s, v), elements=elements))) for _ in "ab"
    ]
    ids = st.one_of(st.just(-100), st.integers(0, v - 1))
    return *logits, torch.tensor(draw(hnp.arrays(np.int64, (b, s), elements=ids)))


def valid_tokens(student, teacher, labels, ignore_index=-100):
    """The supervised tokens, found one by one: position s predicts the label at s + 1."""
    places = [
        (b, s)
        for b in range(labels.shape[0])
        for s in range(labels.shape[1] - 1)
        if labels[b, s + 1] != ignore_index
    ]
    return (
        [student[p] for p in places],
        [teacher[p] for p in places],
        [labels[b, s + 1] for b, s in places],
    )


@SETTINGS
@given(batches(), options())
def test_gated_loss_is_the_weighted_mean_over_shifted_tokens(data, chosen):
    student, teacher, labels = data
    student.requires_grad_()
    loss = gated_decoupled_kd(student, teacher, labels, **chosen)
    (gradient,) = torch.autograd.grad(loss, student)
    ours, theirs, targets = valid_tokens(student, teacher, labels)
    if not targets:
        assert loss == 0 and (gradient == 0).all()
        return
    gates, terms = readable(torch.stack(ours), torch.stack(theirs), torch.stack(targets), **chosen)
    expected = (gates * terms).sum() / gates.sum()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(
        gradient, torch.autograd.grad(expected, student)[0], rtol=1e-9, atol=1e-10
    )


@SETTINGS
@given(selected())
def test_theorem_3_1_holds_as_an_identity(data):
    """GDKD = mean(DKD) + N Cov(w, DKD), w_i = g_i / sum g, population covariance (Eq. 8)."""
    student, teacher, targets = data
    logits = [torch.cat([z, z[-1:]])[None] for z in (student, teacher)]  # a last, unread position
    labels = torch.cat([torch.tensor([-100]), targets])[None]
    gdkd = gated_decoupled_kd(*logits, labels).item()
    dkd = decoupled_kd(student, teacher, targets).numpy()
    gates = confidence_gate(teacher).numpy()
    weights = gates / gates.sum()
    covariance = np.mean((weights - weights.mean()) * (dkd - dkd.mean()))
    assert gdkd == pytest.approx(dkd.mean() + len(dkd) * covariance, rel=1e-9, abs=1e-9)


def test_the_gate_moves_the_loss_towards_confident_tokens():
    teacher = torch.tensor([[9.0, 0.0, 0.0], [0.1, 0.0, 0.0]])
    student = torch.zeros(2, 3)
    y = torch.tensor([0, 0])
    quotient = {}
    for kappa in (-1.0, 0.0, 1.0):
        sums = distillation_sums(student, teacher, y, kappa=kappa)
        quotient[kappa] = sums.loss_sum / sums.gate_sum
    assert quotient[-1.0] < quotient[0.0] < quotient[1.0]  # the confident token has the loss


def test_all_labels_masked_gives_zero_and_a_working_backward():
    student = torch.randn(2, 4, 5, requires_grad=True)
    labels = torch.full((2, 4), 7)
    loss = gated_decoupled_kd(student, torch.randn(2, 4, 5), labels, ignore_index=7)
    loss.backward()
    assert loss == 0 and (student.grad == 0).all()
    # A label in the first position is nobody's next token.
    labels[:, 0] = 1
    assert gated_decoupled_kd(student, torch.randn(2, 4, 5), labels, ignore_index=7) == 0


def test_no_token_gives_zero_and_a_working_backward():
    student = torch.zeros(0, 5, requires_grad=True)
    sums = distillation_sums(student, torch.zeros(0, 5), torch.zeros(0, dtype=torch.long))
    sums.loss_sum.backward()
    assert sums.loss_sum == 0 and sums.gate_sum == 0 and sums.finite
    assert student.grad.shape == (0, 5)


@SETTINGS
@given(
    selected(),
    options(),
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.booleans(),
    st.integers(0, 10**6),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_a_non_finite_logit_drops_the_call(data, chosen, bad, in_teacher, place, dtype):
    student, teacher, targets = (data[0].to(dtype), data[1].to(dtype), data[2])
    side = teacher if in_teacher else student
    side.view(-1)[place % side.numel()] = bad
    student.requires_grad_()
    sums = distillation_sums(student, teacher, targets, chunk_size=2, **chosen)
    (3 * sums.loss_sum + student.sum() * 0).nan_to_num().backward()
    assert not sums.finite
    assert sums.loss_sum == 0 and sums.gate_sum == 0
    assert not student.grad.any()
    (gradient,) = torch.autograd.grad(
        distillation_sums(student, teacher, targets, chunk_size=2, **chosen).loss_sum, student
    )
    assert (gradient == 0).all()
    assert (gate_sum(teacher) == 0) == in_teacher


@SETTINGS
@given(selected(bound=30.0), options())
def test_bf16_gradient_is_the_rounded_single_precision_one(data, chosen):
    student, teacher, targets = (data[0].bfloat16(), data[1].bfloat16(), data[2])
    student.requires_grad_()
    single = student.detach().float().requires_grad_()
    factor = 1 / 3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = distillation_sums(student, teacher, targets, **chosen)
        (factor * half.loss_sum).backward()
    full = distillation_sums(single, teacher.float(), targets, **chosen)
    (factor * full.loss_sum).backward()
    assert half.loss_sum.dtype == torch.float32 and student.grad.dtype == torch.bfloat16
    torch.testing.assert_close(half.loss_sum, full.loss_sum)
    # Rounded twice, once when stored and once when scaled: at most 2 * 2^-8 relative.
    torch.testing.assert_close(student.grad.float(), single.grad, rtol=2.0**-7, atol=1e-30)


def test_the_incoming_gradient_is_not_rounded_to_half_precision():
    student = torch.tensor([[1.0, 2.0, -1.0]], dtype=torch.bfloat16, requires_grad=True)
    teacher, y = torch.tensor([[0.0, 1.0, 3.0]], dtype=torch.float16), torch.tensor([1])
    (unscaled,) = torch.autograd.grad(distillation_sums(student, teacher, y).loss_sum, student)
    factor = 1 + 2.0**-9  # halfway between two bf16 numbers; rounds to 1
    tiny = 2.0**-20 * factor
    sums = distillation_sums(student, teacher, y)
    (scaled,) = torch.autograd.grad(sums.loss_sum * tiny, student)
    assert torch.equal(scaled, (unscaled.float() * tiny).bfloat16())


def test_nothing_waits_for_the_device_and_the_workspace_is_bounded(monkeypatch):
    tokens, vocab = 12, 1000
    monkeypatch.setattr(_common, "WORKSPACE_BYTES", 3 * 4 * vocab * 4)  # 4 tokens at a time
    student = torch.zeros(tokens, vocab, dtype=torch.bfloat16).requires_grad_()
    teacher = torch.ones(tokens, vocab, dtype=torch.bfloat16)
    targets = torch.arange(tokens)
    with Watch() as watch, torch.no_grad():
        distillation_sums(student, teacher, targets)
    assert watch.widest == 4 * vocab * 4  # one of the three buffers; no gradient is made
    with Watch() as watch:
        distillation_sums(student.detach(), teacher, targets)
    assert watch.widest == 4 * vocab * 4
    with Watch() as watch:
        gate_sum(teacher)
    assert watch.widest == 6 * vocab * 4  # two buffers
    for call in (distillation_sums, lambda _, *given, **chosen: gate_sum(given[0], **chosen)):
        with Watch() as watch:
            call(student.detach(), teacher, targets, chunk_size=5)
        assert watch.widest == 5 * 4 * vocab
    with Watch() as watch:
        distillation_sums(student, teacher, targets).loss_sum.backward()
    assert watch.widest == tokens * vocab * 2  # the gradient itself, in the student's dtype


@pytest.mark.parametrize(
    ("tokens", "vocab", "chunk_size", "device", "rows"),
    [
        (2048, 151_936, None, "meta", 2**25 // (3 * 4 * 151_936)),  # 18
        (2048, 151_936, None, "cpu", 2**23 // (3 * 4 * 151_936)),  # 4
        (2048, 2**30, None, "meta", 1),  # at least one, whatever it takes
        (2048, 2**22, None, "cpu", 1),
        # What fits at once is one chunk everywhere, and only just.
        (2**25 // 6144, 512, None, "cpu", 2**25 // 6144),
        (2**25 // 6144 + 1, 512, None, "cpu", 2**23 // 6144),
        (2**25 // 6144 + 1, 512, None, "meta", 2**25 // 6144),
        (9, 5, 1, "cpu", 1),
        (9, 5, 4, "meta", 4),
        (9, 5, 100, "cpu", 9),
        (0, 5, None, "cpu", 1),
    ],
)
def test_rows_of_a_chunk(tokens, vocab, chunk_size, device, rows):
    """Three float32 buffers in 32 MiB; in 8 MiB on a CPU, where one chunk does not hold all."""
    shape = (tokens, vocab, torch.float32, 3, chunk_size)
    parts = _common.chunks(*shape, device=torch.device(device))
    assert [(part.start, part.stop) for part in parts] == _ranges(tokens, rows)


def test_the_workspace_is_a_small_part_of_the_logits():
    assert _common.WORKSPACE_BYTES < 0.06 * 2048 * 151_936 * 2


@pytest.mark.parametrize(("cached", "rows"), [(35, 3), (30, 3), (29, 2), (5, 1)])
def test_on_a_cpu_the_gradient_is_scaled_in_parts_that_stay_in_its_cache(monkeypatch, cached, rows):
    monkeypatch.setattr(gated, "_CACHED", cached)
    student = torch.zeros(8, 10, requires_grad=True)
    loss = distillation_sums(student, torch.eye(8, 10), torch.arange(8)).loss_sum
    with Watch() as watch:
        loss.backward()
    assert watch.scaled == [10 * (stop - start) for start, stop in _ranges(8, rows)]


def _ranges(count, size):
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def test_everything_happens_where_the_logits_are(monkeypatch):
    """On the device `meta`, where no value exists that a host could read (nor any autocast)."""
    for module in (gate, gated):
        monkeypatch.setattr(module, "full_precision", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(_common, "WORKSPACE_BYTES", 3 * 4 * 9 * 4)  # 4 tokens at a time
    student = torch.empty(7, 9, dtype=torch.bfloat16, device="meta", requires_grad=True)
    teacher = torch.empty(7, 11, device="meta")
    targets = torch.empty(7, dtype=torch.long, device="meta")
    sums = distillation_sums(student, teacher, targets)
    assert [tensor.device.type for tensor in sums] == ["meta"] * 3
    assert [tensor.dtype for tensor in sums] == [torch.float32, torch.float32, torch.bool]
    with Watch() as watch:
        sums.loss_sum.backward()
    assert watch.scaled == [4 * 9, 3 * 9]
    assert student.grad.device.type == "meta"
    assert gate_sum(teacher, vocab_size=9).device.type == "meta"


@contextlib.contextmanager
def undefined_memory_is_nan():
    """Memory that was not written to holds NaN, instead of what was there."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@SETTINGS
@given(selected(wider=2), options(), st.integers(1, 8))
def test_all_that_is_returned_was_written(data, chosen, chunk_size):
    student, teacher, targets = data
    student.requires_grad_()
    batch = [student[None], teacher[None], torch.full((1, len(targets)), -100)]
    if len(targets) > 1:
        batch[2][0, 1] = targets[0]  # one row of many, and a gradient of them all
    with undefined_memory_is_nan():
        assert torch.empty(3).isnan().all()
        sums = distillation_sums(student, teacher, targets, chunk_size=chunk_size, **chosen)
        assert sums.finite
        (gradient,) = torch.autograd.grad(sums.loss_sum, student)
        assert gradient.isfinite().all()
        loss = gated_decoupled_kd(*batch, chunk_size=chunk_size, **chosen)
        (gradient,) = torch.autograd.grad(loss, student)
        assert gradient.isfinite().all() and not gradient[1:].any()


@SETTINGS
@given(
    selected(wider=2), options(), st.sampled_from([torch.float64, torch.float32, torch.bfloat16])
)
def test_the_logits_are_left_as_they_were(data, chosen, dtype):
    student, teacher, targets = (data[0].to(dtype), data[1].to(dtype), data[2])
    before = [tensor.clone() for tensor in (student, teacher, targets)]
    distillation_sums(student.requires_grad_(), teacher, targets, **chosen).loss_sum.backward()
    gate_sum(teacher, 1.0, 2)
    for now, then in zip((student.detach(), teacher, targets), before, strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
@pytest.mark.parametrize("teacher_dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_gradient_has_the_students_dtype(dtype, teacher_dtype):
    seed = torch.Generator().manual_seed(2)
    student, teacher = (
        torch.randn(4, 6, generator=seed).bfloat16().to(each) for each in (dtype, teacher_dtype)
    )
    y = torch.tensor([5, 0, 3, 3])
    exact = student.double().requires_grad_()
    gates, terms = readable(
        exact, teacher.double(), y, temperature=2.0, alpha=1.0, beta=4.0, kappa=1.0, decoupled=True
    )
    (expected,) = torch.autograd.grad((gates * terms).sum(), exact)
    sums = distillation_sums(student.requires_grad_(), teacher, y)
    wide = torch.float64 if torch.float64 in {dtype, teacher_dtype} else torch.float32
    assert (sums.loss_sum.dtype, sums.gate_sum.dtype) == (wide, wide)
    near = {"rtol": 100 * torch.finfo(wide).eps, "atol": 0.0}
    torch.testing.assert_close(sums.loss_sum.double(), (gates * terms).sum(), **near)
    sums.loss_sum.backward()
    assert student.grad.dtype == dtype
    eps = max(torch.finfo(dtype).eps, 100 * torch.finfo(wide).eps)
    torch.testing.assert_close(student.grad.double(), expected, rtol=eps, atol=eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(st.floats(0.01, 100) | st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 3.7]))
@settings(deadline=None, max_examples=50)
def test_division_by_the_temperature_is_exact(dtype, temperature):
    """A product with the inverse would be off by a rounding, except at powers of two."""
    x = torch.randn(50, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(gated._divide(x.clone(), temperature), x / temperature)


@SETTINGS
@given(selected(bound=100.0), options())
def test_no_gradient_exceeds_the_bound_that_options_are_checked_against(data, chosen):
    student, teacher, targets = data
    student.requires_grad_()
    sums = distillation_sums(student, teacher, targets, **chosen)
    (gradient,) = torch.autograd.grad(sums.loss_sum, student)
    widest = max(chosen["alpha"] + 2 * chosen["beta"], 2.0) * max(1.0, math.exp(-chosen["kappa"]))
    assert gradient.abs().max() <= chosen["temperature"] * widest


@pytest.mark.parametrize(
    ("legal", "illegal"),
    [
        # 65,504 is the largest float16: temperature * (alpha + 2 beta), 2 of which KL takes
        ((2.0, 0.0, 16376.0, 0.0), (2.0, 0.0, 16377.0, 0.0)),
        ((1.0, 65504.0, 0.0, 0.0), (1.0, 65505.0, 0.0, 0.0)),
        ((1.0, 504.0, 32500.0, 0.0), (1.0, 505.0, 32500.0, 0.0)),
        ((32752.0, 0.0, 0.0, 0.0), (32753.0, 0.0, 0.0, 0.0)),
        # a gate above 1 counts, one below does not
        ((2.0, 0.0, 16376.0, 3.0), (2.0, 0.0, 16377.0, 3.0)),
        ((1.0, 0.0, 0.0, -10.0), (1.0, 0.0, 0.0, -11.0)),
    ],
)
def test_options_whose_gradients_could_overflow_are_refused(legal, illegal):
    names = ("temperature", "alpha", "beta", "kappa")
    student = torch.zeros(1, 3, dtype=torch.float16, requires_grad=True)
    teacher, y = torch.tensor([[9.0, -9.0, 0.0]]), torch.tensor([1])
    distillation_sums(student, teacher, y, **dict(zip(names, legal, strict=True)))
    distillation_sums(student.bfloat16(), teacher, y, **dict(zip(names, illegal, strict=True)))
    batch = (student[None], teacher[None], torch.tensor([[1]]))
    gated_decoupled_kd(*batch, *legal)
    for call in (
        lambda: distillation_sums(student, teacher, y, **dict(zip(names, illegal, strict=True))),
        lambda: gated_decoupled_kd(*batch, *illegal),
    ):
        with pytest.raises(InputError, match=r"beyond torch\.float16; choose smaller values"):
            call()


def test_the_published_options_are_the_defaults():
    seed = torch.Generator().manual_seed(4)
    student, teacher = torch.randn(2, 3, 4, 6, generator=seed).double()
    labels = torch.tensor([[3, -100, 5, 1], [0, 0, -100, 2], [-100, -100, -100, 4]])
    ours, theirs, targets = (
        torch.stack(tensor) for tensor in valid_tokens(student, teacher, labels)
    )
    gates, terms = confidence_gate(theirs, 1.0), decoupled_kd(ours, theirs, targets, 2.0, 1.0, 4.0)
    expected = (gates * terms).sum() / gates.sum()
    torch.testing.assert_close(gated_decoupled_kd(student, teacher, labels), expected)
    torch.testing.assert_close(gate_sum(theirs), gates.sum())


def test_a_second_backward_is_refused():
    student = torch.randn(2, 3, requires_grad=True)
    loss = distillation_sums(student, torch.randn(2, 3), torch.tensor([0, 1])).loss_sum
    loss.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="differentiated twice"):
        loss.backward()


def test_shared_vocabulary():
    assert shared_vocabulary(151_936, 152_064, 151_665, 151_665) == 151_936
    assert shared_vocabulary(152_064, 151_936, 151_665, 151_665) == 151_936
    assert shared_vocabulary(7, 9, 7, 7) == shared_vocabulary(9, 7, 7, 7) == 7  # without padding


Z, Y = torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((151_936, 152_064, 32_000, 151_665), "has 32000 tokens and the teacher's 151665"),
        ((128, 100, 120, 120), "the teacher's output layer has 100 rows for 120 tokens"),
        ((119, 128, 120, 120), "the student's output layer has 119 rows for 120 tokens"),
    ],
)
def test_vocabularies_that_cannot_be_compared_are_refused(sizes, message):
    with pytest.raises(InputError, match=message):
        shared_vocabulary(*sizes)


@pytest.mark.parametrize(
    ("option", "value", "legal"),
    [
        ("temperature", 0.0, "a finite number in (0, inf]"),
        ("alpha", -1.0, "a finite number in [0, inf]"),
        ("beta", math.inf, "a finite number in [0, inf]"),
        ("beta", -1.0, "a finite number in [0, inf]"),
        ("kappa", math.nan, "a finite number in [-50, 50]"),
        ("kappa", 50.5, "a finite number in [-50, 50]"),
        ("kappa", -50.5, "a finite number in [-50, 50]"),
        ("chunk_size", 0, "an integer of at least 1"),
    ],
)
def test_illegal_options_are_refused(option, value, legal):
    message = re.escape(f"{option} is {value!r}; give {legal}")
    with pytest.raises(InputError, match=message):
        distillation_sums(Z, Z, Y, **{option: value})
    with pytest.raises(InputError, match=message):
        gated_decoupled_kd(Z[None], Z[None], Y[None], **{option: value})


@pytest.mark.parametrize(
    "call",
    [
        lambda: distillation_sums(Z, Z, Y[:1]),
        lambda: distillation_sums(Z, Z[:1], Y),
        lambda: distillation_sums(Z[:1], Z, Y),
        lambda: distillation_sums(Z[:, :, None], Z, Y),
        lambda: distillation_sums(Z, Z[:, :, None], Y),
        lambda: distillation_sums(Z, Z, Y[:, None]),
        lambda: distillation_sums(Z[:, :1], Z, Y),
        lambda: distillation_sums(Z, Z[:, :1], Y),
        lambda: gated_decoupled_kd(Z, Z, Y),
        lambda: gated_decoupled_kd(Z[None], Z[None], Y[None, :1]),
        lambda: gated_decoupled_kd(Z[None], Z[None, :1], Y[None]),
        lambda: gated_decoupled_kd(Z[None, :, 0], Z[None], Y[None]),
        lambda: gated_decoupled_kd(Z[None], Z[None, :, 0], Y[None]),
        lambda: gate_sum(Z, chunk_size=0),
        lambda: gate_sum(Z, 1.0, 4),
        lambda: gate_sum(Z, 1.0, 1),
        lambda: gate_sum(Z[None], 1.0, 2),
    ],
)
def test_tensors_that_do_not_fit_are_programming_errors(call):
    with pytest.raises(AssertionError):
        call()


@pytest.mark.parametrize("chosen", [{"kappa": 50}, {"kappa": -50}, {"alpha": 0, "beta": 0}])
def test_ends_of_the_legal_ranges_are_legal(chosen):
    assert distillation_sums(Z, Z, Y, **chosen).finite
    assert gate_sum(Z, 1.0, 3) == gate_sum(Z) and gate_sum(Z, 1.0, 2).isfinite()
