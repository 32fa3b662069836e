"""Decoupled KD, plain KD and the confidence gate against definitions written out in float64."""

import math

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from grace.distillation import confidence_gate, decoupled_kd, distillation_sums, kd, teacher_entropy
from grace.errors import InputError

SETTINGS = settings(deadline=None, max_examples=25)
TEMPERATURES = st.sampled_from([0.5, 1.0, 2.0, 3.7])


@st.composite
def tokens(draw, bound=12.0, models=2):
    """(logits per model, ..., targets) of a few tokens over a few classes, float64."""
    n, v = draw(st.integers(1, 5)), draw(st.integers(2, 7))
    elements = st.floats(-bound, bound, width=32)
    logits = [draw(hnp.arrays(np.float64, (n, v), elements=elements)) for _ in range(models)]
    target = draw(hnp.arrays(np.int64, (n,), elements=st.integers(0, v - 1)))
    return *logits, target


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p, q):
    return float(np.sum(p * (np.log(p) - np.log(q))))


def dkd_from_definition(student, teacher, target, temperature, alpha, beta):
    """Eq. 1-3, one token at a time, with plain softmaxes and plain 1 - p."""
    out = []
    for s, t, y in zip(student, teacher, target, strict=True):
        p, q = softmax(t / temperature), softmax(s / temperature)
        rest = np.arange(len(p)) != y
        tckd = kl(np.array([p[y], p[rest].sum()]), np.array([q[y], q[rest].sum()]))
        nckd = kl(p[rest] / p[rest].sum(), q[rest] / q[rest].sum())
        out.append(temperature**2 * (alpha * tckd + beta * nckd))
    return np.array(out)


def kd_from_definition(student, teacher, temperature):
    return np.array(
        [
            temperature**2 * kl(softmax(t / temperature), softmax(s / temperature))
            for s, t in zip(student, teacher, strict=True)
        ]
    )


def both(student, teacher, target, **options):
    """The term of each token from the readable and from the chunked implementation."""
    student, teacher, target = map(torch.as_tensor, (student, teacher, target))
    decoupled = options.pop("decoupled", True)
    readable = (
        decoupled_kd(student, teacher, target, **options)
        if decoupled
        else kd(student, teacher, options.get("temperature", 2.0))
    )
    chunked = torch.stack(
        [
            distillation_sums(
                student[i : i + 1],
                teacher[i : i + 1],
                target[i : i + 1],
                kappa=0.0,
                decoupled=decoupled,
                **options,
            ).loss_sum
            for i in range(len(target))
        ]
    )
    return readable, chunked


@SETTINGS
@given(tokens(), TEMPERATURES, st.floats(0, 3), st.floats(0, 8))
def test_dkd_is_its_definition_in_both_directions(data, temperature, alpha, beta):
    a, b, target = data
    options = {"temperature": temperature, "alpha": alpha, "beta": beta}
    for student, teacher in ((a, b), (b, a)):  # swapped as KL predicts, not symmetric
        expected = dkd_from_definition(student, teacher, target, temperature, alpha, beta)
        for ours in both(student, teacher, target, **options):
            np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-9, atol=1e-9)


@SETTINGS
@given(tokens(), TEMPERATURES)
def test_kd_is_its_definition_in_both_directions(data, temperature):
    a, b, target = data
    for student, teacher in ((a, b), (b, a)):
        expected = kd_from_definition(student, teacher, temperature)
        for ours in both(student, teacher, target, temperature=temperature, decoupled=False):
            np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-9, atol=1e-9)


def test_teacher_and_student_are_not_interchangeable():
    a, b = torch.tensor([[8.0, 0.0, -1.0]]), torch.tensor([[0.0, 0.5, 0.0]])
    y = torch.tensor([0])
    assert not torch.isclose(decoupled_kd(a, b, y), decoupled_kd(b, a, y), rtol=0.05)
    assert not torch.isclose(kd(a, b), kd(b, a), rtol=0.05)


@SETTINGS
@given(tokens(), TEMPERATURES)
def test_dkd_with_the_teachers_own_weight_is_the_full_divergence(data, temperature):
    student, teacher, target = data
    weight = 1 - softmax(teacher / temperature)[np.arange(len(target)), target]
    for i in range(len(target)):
        one = slice(i, i + 1)
        options = {"temperature": temperature, "alpha": 1.0, "beta": float(weight[i])}
        full = kd(*map(torch.as_tensor, (student[one], teacher[one])), temperature)
        for ours in both(student[one], teacher[one], target[one], **options):
            torch.testing.assert_close(ours, full, rtol=1e-9, atol=1e-9)


@SETTINGS
@given(tokens(bound=8.0), st.data())
def test_proposition_3_2_bounds_the_students_information(data, draw):
    """I(Z_S; Y_T) >= I(X; Y_T) - E[KL(P_T || P_S)] (Eq. 9), over a finite X.

    What the student sees of x is z(x), and P_S depends on it alone. Equality where P_S is what z
    tells of the teacher's answer.
    """
    logits, teacher, _ = data
    count = len(teacher)
    seen = np.array(draw.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)))
    weight = np.array(draw.draw(st.lists(st.integers(1, 9), min_size=count, max_size=count)))
    share = weight / weight.sum()
    said = np.stack([softmax(row) for row in teacher])

    def information(groups):
        """Between the group of x and the teacher's answer."""
        total = 0.0
        for group in set(groups):
            inside = groups == group
            mass = share[inside].sum()
            total += mass * kl(share[inside] @ said[inside] / mass, share @ said)
        return total

    whole, kept = information(np.arange(count)), information(seen)

    def bound(student):
        divergence = kd(torch.as_tensor(student), torch.as_tensor(teacher), temperature=1.0)
        return whole - float(share @ divergence.numpy())

    first = [np.flatnonzero(seen == group)[0] for group in seen]
    assert kept >= bound(logits[first]) - 1e-9
    best = [share[seen == g] @ said[seen == g] / share[seen == g].sum() for g in seen]
    assert kept == pytest.approx(bound(np.log(np.stack(best))), abs=1e-9)


@SETTINGS
@given(tokens(bound=100.0), TEMPERATURES, st.booleans())
def test_never_negative_and_zero_at_the_teacher(data, temperature, decoupled):
    student, teacher, target = data
    options = {"temperature": temperature, "decoupled": decoupled}
    for ours in both(student, teacher, target, **options):
        assert (ours >= -1e-10).all()
    # Adding a constant to all logits of a token changes no probability.
    for ours in both(teacher + 0.5, teacher, target, **options):
        assert ours.abs().max() < 1e-10


@SETTINGS
@given(tokens(), st.booleans())
def test_the_gradient_vanishes_at_the_teacher(data, decoupled):
    teacher, _, target = data
    student = torch.tensor(teacher, requires_grad=True)
    for ours in both(student, teacher, target, decoupled=decoupled):
        (gradient,) = torch.autograd.grad(ours.sum(), student)
        assert gradient.abs().max() < 1e-12


def exact_gradient(student, teacher, y, temperature, alpha, beta):
    """Gradient of DKD of one token by differences in 120 digits, from plain softmaxes."""
    with mpmath.workdps(120):

        def split(logits):
            e = [mpmath.exp(x / temperature) for x in logits]
            return e[y], [x for j, x in enumerate(e) if j != y]

        def loss(z):
            (pt, pr), (qt, qr) = split([mpmath.mpf(float(x)) for x in teacher]), split(z)
            sp, sq = mpmath.fsum(pr), mpmath.fsum(qr)
            p, q, np_, nq = pt / (pt + sp), qt / (qt + sq), sp / (pt + sp), sq / (qt + sq)
            tckd = p * mpmath.log(p / q) + np_ * mpmath.log(np_ / nq)
            nckd = mpmath.fsum(
                a / sp * mpmath.log((a / sp) / (b / sq)) for a, b in zip(pr, qr, strict=True)
            )
            return temperature**2 * (alpha * tckd + beta * nckd)

        z = [mpmath.mpf(float(x)) for x in student]
        h = mpmath.mpf(10) ** -40
        out = []
        for j in range(len(z)):
            up, down = list(z), list(z)
            up[j] += h
            down[j] -= h
            out.append(float((loss(up) - loss(down)) / (2 * h)))
        return np.array(out)


@pytest.mark.parametrize(
    ("student_margin", "teacher_margin"),
    [
        (60, 30),
        (30, 60),
        (120, 60),
        (32, 30),
        (60, 0.25),
        (30, -60),
        (-60, 30),
        (-30, -60),
        (16, 5),
    ],
)
@settings(deadline=None, max_examples=6)
@given(
    rest=hnp.arrays(np.float64, (2, 3), elements=st.integers(-8, 8).map(lambda k: k / 4)),
    temperature=st.sampled_from([1.0, 2.0]),
    beta=st.sampled_from([0.0, 4.0]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_gradients_at_large_margins(student_margin, teacher_margin, rest, temperature, beta, dtype):
    """The target's gradient is as small as 1e-26 here and right to 4 digits: no float 1 - p."""
    margins = (student_margin, teacher_margin)
    logits = [np.insert(row, 1, m) for row, m in zip(rest, margins, strict=True)]
    student, teacher = (torch.tensor(z)[None].to(dtype) for z in logits)
    # The reference starts from the logits as the dtype stores them.
    exact = exact_gradient(student[0].double(), teacher[0].double(), 1, temperature, 1.0, beta)
    y = torch.tensor([1])
    student.requires_grad_()
    readable = decoupled_kd(student, teacher, y, temperature, 1.0, beta)
    chunked = distillation_sums(
        student, teacher, y, temperature=temperature, alpha=1.0, beta=beta, kappa=0.0
    ).loss_sum
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-4
    for loss in (readable, chunked):
        (gradient,) = torch.autograd.grad(loss.sum(), student)
        assert gradient.dtype == dtype
        gradient = gradient[0].double().numpy()
        if student_margin != teacher_margin:
            np.testing.assert_allclose(gradient[1], exact[1], rtol=tolerance)
        np.testing.assert_allclose(gradient, exact, rtol=tolerance, atol=2e-6)


@SETTINGS
@given(tokens(bound=30.0), st.booleans())
def test_half_precision_logits_are_computed_in_single(data, decoupled):
    student, teacher, target = data
    student, teacher = (torch.tensor(z).bfloat16() for z in (student, teacher))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        single = both(student, teacher, target, decoupled=decoupled)
    double = both(student.double(), teacher.double(), target, decoupled=decoupled)[0]
    for ours in single:
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), double, rtol=1e-5, atol=2e-4)


@SETTINGS
@given(tokens(bound=40.0, models=1))
def test_entropy_agrees_with_scipy(data):
    logits, _ = data
    expected = scipy.stats.entropy(softmax(logits), axis=1)
    ours = teacher_entropy(torch.tensor(logits), chunk_size=2)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-9, atol=1e-12)
    single = teacher_entropy(torch.tensor(logits).float())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), expected, rtol=1e-4, atol=1e-6)


@SETTINGS
@given(tokens(bound=1e4, models=1), st.floats(-3, 3))
def test_gate_is_between_its_ends_and_follows_the_formula(data, kappa):
    logits, _ = data
    logits = torch.tensor(logits)
    gate = confidence_gate(logits)
    assert (gate >= 1 / math.e - 1e-12).all() and (gate <= 1).all()
    h = scipy.stats.entropy(softmax(logits.numpy()), axis=1) / math.log(logits.shape[1])
    np.testing.assert_allclose(confidence_gate(logits, kappa).numpy(), np.exp(-kappa * h))
    assert (confidence_gate(logits, 0.0) == 1).all()


@SETTINGS
@given(
    hnp.arrays(np.float64, (5,), elements=st.integers(-20, 20).map(float)).filter(
        lambda z: (z == z.max()).sum() == 1
    ),
    st.lists(st.integers(1, 100), min_size=2, max_size=6, unique=True),
)
def test_gate_falls_strictly_as_entropy_rises(direction, scales):
    """Scaling logits up sharpens the distribution: entropy down, gate up, inverted gate down."""
    logits = torch.tensor(np.outer(sorted(scales), direction) / np.ptp(direction) / 10)
    entropy, gate = teacher_entropy(logits), confidence_gate(logits)
    assert (entropy.diff() < 0).all()
    assert (gate.diff() > 0).all()
    assert (confidence_gate(logits, -1.0).diff() < 0).all()


def test_gate_ends():
    flat, sure = torch.zeros(1, 9), torch.tensor([[500.0] + [0.0] * 8])
    assert confidence_gate(flat).item() == pytest.approx(1 / math.e, abs=1e-7)
    assert confidence_gate(sure).item() == 1.0
    assert not confidence_gate(flat.requires_grad_()).requires_grad


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda z, y: decoupled_kd(z, z[:, :2], y), ["student_logits", "(2, 3)", "(2, 2)"]),
        (lambda z, y: decoupled_kd(z, z, y[:1]), ["target", "(1,)"]),
        (lambda z, y: decoupled_kd(z, z, y, temperature=0.0), ["temperature", "0.0"]),
        (lambda z, y: kd(z, z, temperature=-1.0), ["temperature", "-1.0"]),
        (lambda z, y: kd(z[:, :1], z[:, :1]), ["1 classes", "at least 2"]),
        (lambda z, y: teacher_entropy(z[:, :1]), ["teacher_logits", "(2, 1)"]),
        (lambda z, y: confidence_gate(z, kappa=math.nan), ["kappa", "nan"]),
        (lambda z, y: teacher_entropy(z, chunk_size=0), ["chunk_size", "0"]),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(InputError) as caught:
        call(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))
    assert all(word in str(caught.value) for word in words)
