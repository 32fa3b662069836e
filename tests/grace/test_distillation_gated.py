"""The chunked, gated loss: values, gradients, sums over parts, vocabularies, dropped batches."""

import itertools
import math

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
    gate_sum,
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

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(name in str(func) for name in self.waits), f"{func} waits for the device"
        result = func(*args, **(kwargs or {}))
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
@given(selected(), options(), st.integers(1, 9))
def test_chunking_changes_nothing(data, chosen, chunk_size):
    student, teacher, targets = (data[0].float(), data[1].float(), data[2])
    one = distillation_sums(student, teacher, targets, chunk_size=100, **chosen)
    other = distillation_sums(student, teacher, targets, chunk_size=chunk_size, **chosen)
    torch.testing.assert_close(tuple(one), tuple(other), rtol=1e-6, atol=1e-6)


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
    (gradient,) = torch.autograd.grad(
        distillation_sums(student, teacher, targets, chunk_size=2, **chosen).loss_sum, student
    )
    assert (gradient == 0).all()
    assert gate_sum(teacher, 1.0).isfinite()


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
    (one,) = torch.autograd.grad(distillation_sums(student, teacher, y).loss_sum, student)
    factor = 1 + 2.0**-9  # halfway between two bf16 numbers; rounds to 1
    tiny = 2.0**-20 * factor
    sums = distillation_sums(student, teacher, y)
    (scaled,) = torch.autograd.grad(sums.loss_sum * tiny, student)
    assert torch.equal(scaled, (one.float() * tiny).bfloat16())


def test_nothing_waits_for_the_device_and_the_workspace_is_bounded(monkeypatch):
    tokens, vocab = 12, 1000
    monkeypatch.setattr(_common, "WORKSPACE_BYTES", 3 * 4 * vocab * 4)  # 4 tokens at a time
    student = torch.zeros(tokens, vocab, dtype=torch.bfloat16).requires_grad_()
    teacher = torch.ones(tokens, vocab, dtype=torch.bfloat16)
    targets = torch.arange(tokens)
    with Watch() as watch, torch.no_grad():
        distillation_sums(student, teacher, targets)
        gate_sum(teacher)
    assert watch.widest <= _common.WORKSPACE_BYTES // 2  # one of the buffers; no gradient is made
    with Watch() as watch:
        distillation_sums(student, teacher, targets).loss_sum.backward()
    assert watch.widest == tokens * vocab * 2  # the gradient itself, in the student's dtype


def test_default_chunks_respect_the_documented_bound():
    sizes = (2048, 151_936, torch.float32, 3, None)
    size = _common.rows_per_chunk(*sizes, device=torch.device("meta"))
    assert size > 1 and size * 3 * 4 * 151_936 <= _common.WORKSPACE_BYTES
    assert _common.WORKSPACE_BYTES < 0.1 * 2048 * 151_936 * 2
    size = _common.rows_per_chunk(*sizes, device=torch.device("cpu"))
    assert size > 1 and size * 3 * 4 * 151_936 <= _common.CACHED_BYTES
    # what fits at once is one chunk everywhere
    sizes = (5_000, 512, torch.float32, 3, None)
    assert _common.rows_per_chunk(*sizes, device=torch.device("cpu")) == 5_000


def test_a_second_backward_is_refused():
    student = torch.randn(2, 3, requires_grad=True)
    loss = distillation_sums(student, torch.randn(2, 3), torch.tensor([0, 1])).loss_sum
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        loss.backward()


def test_shared_vocabulary():
    assert shared_vocabulary(151_936, 152_064, 151_665, 151_665) == 151_936
    assert shared_vocabulary(152_064, 151_936, 151_665, 151_665) == 151_936
    with pytest.raises(InputError, match=r"32000.*151665"):
        shared_vocabulary(151_936, 152_064, 32_000, 151_665)
    with pytest.raises(InputError, match=r"teacher.*100 rows.*120"):
        shared_vocabulary(128, 100, 120, 120)


Z, Y = torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: distillation_sums(Z, Z, Y[:1]), ["2, 2, 1 rows"]),
        (lambda: distillation_sums(Z[None], Z, Y), ["(1, 2, 3)"]),
        (lambda: distillation_sums(Z[:, :1], Z, Y), ["1 and 3 classes"]),
        (lambda: distillation_sums(Z, Z, Y, temperature=0.0), ["temperature", "0.0"]),
        (lambda: distillation_sums(Z, Z, Y, alpha=-1.0), ["alpha", "-1.0"]),
        (lambda: distillation_sums(Z, Z, Y, beta=math.inf), ["beta", "inf"]),
        (lambda: distillation_sums(Z, Z, Y, kappa=math.nan), ["kappa", "nan"]),
        (lambda: distillation_sums(Z, Z, Y, chunk_size=0), ["chunk_size", "0"]),
        (lambda: distillation_sums(Z.half(), Z, Y, beta=1e5), ["100000.0", "float16"]),
        (lambda: gated_decoupled_kd(Z, Z, Y), ["(2, 3)"]),
        (lambda: gated_decoupled_kd(Z[None], Z[None], Y[None, :1]), ["(1, 1)"]),
        (lambda: gate_sum(Z, 1.0, 4), ["vocab_size", "4"]),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(InputError) as caught:
        call()
    assert all(word in str(caught.value) for word in words)
