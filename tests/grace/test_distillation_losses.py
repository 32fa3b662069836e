"""Decoupled KD, plain KD and the confidence gate against definitions written out in float64."""

import contextlib
import math

import mpmath
import numpy as np
import pytest
import scipy.special
import scipy.stats
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
    kd,
    teacher_entropy,
)
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


@pytest.mark.filterwarnings("error")  # torch warns where it has to guess a dimension
@SETTINGS
@given(tokens(bound=40.0), TEMPERATURES)
def test_terms_agree_with_scipy(data, temperature):
    """Relative entropies of SciPy's softmaxes; DKD with one of its two weights at a time."""
    student, teacher, target = data
    p, q = (scipy.special.softmax(z / temperature, axis=1) for z in (teacher, student))
    mine = np.arange(p.shape[1]) == target[:, None]
    rest_p, rest_q = (
        scipy.special.softmax(np.where(mine, -np.inf, z / temperature), axis=1)
        for z in (teacher, student)
    )
    full = scipy.special.rel_entr(p, q).sum(1)
    rest = scipy.special.rel_entr(rest_p, rest_q).sum(1)
    # Full = TCKD + (1 - p_T(y)) NCKD, so TCKD needs no 1 - p of the student.
    binary = full - (1 - p[mine]) * rest
    for expected, options in (
        (full, {"decoupled": False}),
        (rest, {"alpha": 0.0, "beta": 1.0}),
        (binary, {"alpha": 1.0, "beta": 0.0}),
    ):
        for ours in both(student, teacher, target, temperature=temperature, **options):
            np.testing.assert_allclose(
                ours.numpy(), temperature**2 * expected, rtol=1e-9, atol=1e-9
            )


def test_released_options_are_the_defaults():
    student, teacher = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).double()
    y = torch.tensor([4, 0, 2])
    dkd = torch.tensor(
        dkd_from_definition(student.numpy(), teacher.numpy(), y.numpy(), 2.0, 1.0, 4.0)
    )
    full = torch.tensor(kd_from_definition(student.numpy(), teacher.numpy(), 2.0))
    gates = torch.tensor(
        np.exp(-scipy.stats.entropy(softmax(teacher.numpy()), axis=1) / math.log(5))
    )
    torch.testing.assert_close(decoupled_kd(student, teacher, y), dkd)
    torch.testing.assert_close(kd(student, teacher), full)
    torch.testing.assert_close(confidence_gate(teacher), gates)
    sums = distillation_sums(student, teacher, y)
    torch.testing.assert_close(sums.loss_sum, (gates * dkd).sum())
    torch.testing.assert_close(sums.gate_sum, gates.sum())


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("wide", [0, 1])
def test_one_float64_side_is_enough_for_float64(wide, decoupled):
    pair = list(torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1)))
    double = both(*[z.double() for z in pair], torch.tensor([4, 0, 2]), decoupled=decoupled)
    pair[wide] = pair[wide].double()
    for ours, expected in zip(
        both(*pair, torch.tensor([4, 0, 2]), decoupled=decoupled), double, strict=True
    ):
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours, expected, rtol=1e-14, atol=0)


@SETTINGS
@given(tokens(), TEMPERATURES)
def test_dkd_with_the_teachers_own_weight_is_the_full_divergence(data, temperature):
    student, teacher, target = data
    weight = 1 - softmax(teacher / temperature)[np.arange(len(target)), target]
    for i in range(len(target)):
        token = slice(i, i + 1)
        options = {"temperature": temperature, "alpha": 1.0, "beta": float(weight[i])}
        full = kd(*map(torch.as_tensor, (student[token], teacher[token])), temperature)
        for ours in both(student[token], teacher[token], target[token], **options):
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


def exact(values):
    return [mpmath.mpf(float(x)) for x in values]


def exact_dkd(student, teacher, y, temperature, alpha, beta):
    """DKD of one token in mpmath's precision, from plain softmaxes."""

    def split(logits):
        e = [mpmath.exp(x / temperature) for x in logits]
        return e[y], [x for j, x in enumerate(e) if j != y]

    (pt, pr), (qt, qr) = split(teacher), split(student)
    sp, sq = mpmath.fsum(pr), mpmath.fsum(qr)
    p, q, np_, nq = pt / (pt + sp), qt / (qt + sq), sp / (pt + sp), sq / (qt + sq)
    tckd = p * mpmath.log(p / q) + np_ * mpmath.log(np_ / nq)
    nckd = mpmath.fsum(
        a / sp * mpmath.log((a / sp) / (b / sq)) for a, b in zip(pr, qr, strict=True)
    )
    return temperature**2 * (alpha * tckd + beta * nckd)


def exact_kd(student, teacher, temperature):
    p, q = ([mpmath.exp(x / temperature) for x in z] for z in (teacher, student))
    sp, sq = mpmath.fsum(p), mpmath.fsum(q)
    terms = (a / sp * mpmath.log((a / sp) / (b / sq)) for a, b in zip(p, q, strict=True))
    return temperature**2 * mpmath.fsum(terms)


@SETTINGS
@given(
    hnp.arrays(np.float64, (2, 4), elements=st.floats(-900, 900, width=16)),
    st.integers(0, 3),
    TEMPERATURES,
    st.sampled_from([torch.float64, torch.float32]),
)
def test_values_where_probabilities_underflow(logits, y, temperature, dtype):
    """Gaps of hundreds: exp of them is 0 even in float64, and the divergence is in the hundreds."""
    student, teacher = logits
    with mpmath.workdps(1000):
        chosen = exact(student), exact(teacher)
        decoupled = float(exact_dkd(*chosen, y, temperature, 1.0, 4.0))
        full = float(exact_kd(*chosen, temperature))
    pair = [torch.tensor(z)[None].to(dtype) for z in logits]
    # A rounding of the largest logit is one of every probability of the readable form, which does
    # not take the maximum out first; and of a term, where both take a difference of logits.
    eps = torch.finfo(dtype).eps
    tolerances = 4 * eps * max(1.0, np.abs(logits).max() / temperature), 20 * eps
    for expected, options in ((decoupled, {}), (full, {"decoupled": False})):
        terms = both(*pair, torch.tensor([y]), temperature=temperature, **options)
        for ours, rtol in zip(terms, tolerances, strict=True):
            assert ours.dtype == dtype
            np.testing.assert_allclose(ours.double().numpy(), [expected], rtol=rtol, atol=1e5 * eps)


def exact_gradient(student, teacher, y, temperature, alpha, beta):
    """Gradient of DKD of one token by differences in 120 digits."""
    with mpmath.workdps(120):

        def loss(z):
            return exact_dkd(z, exact(teacher), y, temperature, alpha, beta)

        z = exact(student)
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
    expected = exact_gradient(student[0].double(), teacher[0].double(), 1, temperature, 1.0, beta)
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
            np.testing.assert_allclose(gradient[1], expected[1], rtol=tolerance)
        np.testing.assert_allclose(gradient, expected, rtol=tolerance, atol=2e-6)


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
    gates = confidence_gate(logits)
    assert (gates >= 1 / math.e - 1e-12).all() and (gates <= 1).all()
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
    assert (teacher_entropy(logits).diff() < 0).all()
    assert (confidence_gate(logits).diff() > 0).all()
    assert (confidence_gate(logits, -1.0).diff() < 0).all()


def test_entropy_stays_within_its_range_where_rounding_would_leave_it():
    """Nearly flat and nearly certain rows in float32: h never above 1, so no gate below 1/e."""
    seed = torch.Generator().manual_seed(0)
    for vocab in (2, 3, 7, 100, 1000):
        noise = torch.randn(200, vocab, generator=seed)
        for logits in (noise * 1e-4, noise * 1e4):
            entropy = teacher_entropy(logits)
            assert (entropy >= 0).all()
            assert (entropy <= torch.tensor(math.log(vocab), dtype=torch.float32)).all()


def test_chunks_of_the_entropy_fill_the_workspace_and_spare_the_logits(monkeypatch):
    monkeypatch.setattr(_common, "WORKSPACE_BYTES", 2 * 3 * 50 * 4)  # two buffers of three tokens
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.randn(8, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
        before = logits.clone()
        with Sizes() as sizes:
            entropy = teacher_entropy(logits)
        assert torch.equal(logits, before)
        assert sizes.largest == 3 * 50
        with Sizes() as sizes:
            confidence_gate(logits, chunk_size=1)
        assert sizes.largest == 50
        torch.testing.assert_close(entropy, teacher_entropy(logits, chunk_size=100))
        np.testing.assert_allclose(
            entropy.numpy(),
            scipy.stats.entropy(softmax(logits.double().numpy()), axis=1),
            rtol=1e-5,
        )


class Sizes(TorchDispatchMode):
    """Records how many elements the largest tensor computed has."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.exp.out:
            self.largest = max(self.largest, result.numel())
        return result


def test_entropy_is_computed_where_the_logits_are(monkeypatch):
    """On the device `meta`, where no value exists that a host could read (nor any autocast)."""
    monkeypatch.setattr(gate, "full_precision", lambda _: contextlib.nullcontext())
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        gates = confidence_gate(torch.empty(4, 9, dtype=dtype, device="meta"))
        assert (gates.shape, gates.dtype, gates.device.type) == ((4,), expected, "meta")


def test_gate_of_an_undefined_row():
    logits = torch.tensor([[0.0, math.nan], [0.0, 0.0]])
    assert teacher_entropy(logits).isnan().tolist() == [True, False]
    assert confidence_gate(logits).isnan().tolist() == [True, False]
    # Without a gate nothing looks at the entropy.
    assert confidence_gate(logits, 0.0).tolist() == [1.0, 1.0]


def test_gate_ends():
    flat, sure = torch.zeros(1, 9), torch.tensor([[500.0] + [0.0] * 8])
    assert confidence_gate(flat).item() == pytest.approx(1 / math.e, abs=1e-7)
    assert confidence_gate(sure).item() == 1.0
    assert not confidence_gate(flat.requires_grad_()).requires_grad


Z, Y = torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: decoupled_kd(Z, Z, Y, temperature=0.0), "temperature is 0.0; give a finite"),
        (lambda: kd(Z, Z, temperature=-1.0), "temperature is -1.0; give a finite"),
        (lambda: confidence_gate(Z, kappa=math.nan), "^kappa is nan; give a finite number$"),
        (lambda: confidence_gate(Z, kappa=True), "kappa is True; give a finite"),
    ],
)
def test_illegal_options_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: decoupled_kd(Z, Z[:, :2], Y),
        lambda: decoupled_kd(Z[None], Z[None], Y),
        lambda: kd(Z[0], Z[0]),
        lambda: decoupled_kd(Z, Z, Y[:1]),
        lambda: kd(Z[:, :1], Z[:, :1]),
        lambda: teacher_entropy(Z[:, :1]),
        lambda: teacher_entropy(Z[None]),
        lambda: teacher_entropy(Z, chunk_size=0),
        lambda: confidence_gate(Z, chunk_size=0),
    ],
)
def test_tensors_that_do_not_fit_are_programming_errors(call):
    with pytest.raises(AssertionError):
        call()
