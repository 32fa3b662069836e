"""Relational alignment: CKA against HSIC from its definition, invariances, degenerate images."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.utils._python_dispatch import TorchDispatchMode

from grace.distillation import centered_gram, cka, cka_from_gram, rcka_loss, rcka_sums
from grace.errors import InputError

SETTINGS = settings(deadline=None, max_examples=25)
SEEDS = st.integers(0, 2**31 - 1)


def normal(seed, *shape):
    return torch.tensor(np.random.default_rng(seed).normal(size=shape))


@st.composite
def features(draw):
    """x (n, d1) and y (n, d2) in float64, well away from degenerate; n below, at and above d."""
    n, d1, d2 = draw(st.integers(3, 12)), draw(st.integers(2, 9)), draw(st.integers(2, 9))
    return normal(draw(SEEDS), n, d1), normal(draw(SEEDS), n, d2)


def unit_rows(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def hsic(k, m):
    """(n - 1)² HSIC = tr(K H M H), as plain sums over tokens."""
    n = len(k)
    cross = sum(k[i, j] * m[i, j] for i in range(n) for j in range(n))
    rows = sum(k[i, j] * m[i, q] for i in range(n) for j in range(n) for q in range(n))
    totals = sum(k[i, j] for i in range(n) for j in range(n)) * m.sum()
    return cross - 2 * rows / n + totals / n**2


def cka_from_definition(x, y):
    k, m = (unit_rows(z.numpy()) @ unit_rows(z.numpy()).T for z in (x, y))
    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


@settings(deadline=None, max_examples=15)
@given(features())
def test_equals_hsic_from_its_definition(pair):
    x, y = pair
    assert cka(x, y).item() == pytest.approx(cka_from_definition(x, y), abs=1e-10)


@SETTINGS
@given(features())
def test_feature_form_equals_gram_form(pair):
    x, y = pair
    expected = (centered_gram(x) * centered_gram(y)).sum() / (
        centered_gram(x).norm() * centered_gram(y).norm()
    )
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        for value in (
            cka(x.to(dtype), y.to(dtype)),
            cka_from_gram(centered_gram(x.to(dtype)), y.to(dtype)),
        ):
            assert value.dtype == dtype
            assert value.item() == pytest.approx(expected.item(), abs=tolerance)


@pytest.mark.parametrize(("n", "d"), [(40, 3), (3, 40)])
@given(seed=SEEDS)
@settings(deadline=None, max_examples=5)
def test_both_forms_are_reached_and_agree(n, d, seed):
    x, y = normal(seed, n, d), normal(seed + 1, n, d + 1)
    assert cka(x, y).item() == pytest.approx(cka_from_definition(x, y), abs=1e-9)


@SETTINGS
@given(features(), st.floats(-5, 5), SEEDS)
def test_centering(pair, constant, seed):
    """Centering again, or adding constants to rows and columns first, changes nothing."""
    x, _ = pair
    n = len(x)
    gram, h = centered_gram(x), torch.eye(n, dtype=torch.float64) - 1 / n
    torch.testing.assert_close(h @ gram @ h, gram, rtol=0, atol=1e-12)
    plain = torch.tensor(unit_rows(x.numpy()) @ unit_rows(x.numpy()).T)
    shift = normal(seed, n) * constant
    moved = plain + shift[:, None] + shift[None, :] + constant
    torch.testing.assert_close(h @ moved @ h, gram, rtol=0, atol=1e-10)
    torch.testing.assert_close(gram.sum(0), torch.zeros(n, dtype=torch.float64))


@SETTINGS
@given(
    features(),
    st.sampled_from([1e-30, 1e-3, 0.5, 7.0, 1e4, 1e30]),
    SEEDS,
    st.sampled_from([torch.float64, torch.float32]),
)
def test_invariances(pair, scale, seed, dtype):
    x, y = (z.to(dtype) for z in pair)
    value, tolerance = cka(x, y).item(), 1e-10 if dtype == torch.float64 else 2e-5
    order = torch.tensor(np.random.default_rng(seed).permutation(len(x)))
    orthogonal = torch.linalg.qr(normal(seed, x.shape[1], x.shape[1]))[0].to(dtype)
    near = pytest.approx(value, abs=tolerance)
    assert 0 <= value <= 1
    assert cka(x * scale, y).item() == near
    assert cka(x, y * scale).item() == near
    assert cka(x @ orthogonal, y).item() == near
    assert cka(x[order], y[order]).item() == near
    assert cka(y, x).item() == near
    assert cka(x, x).item() == pytest.approx(1, abs=tolerance)
    assert cka(x, (x @ orthogonal) * scale).item() == pytest.approx(1, abs=tolerance)


@SETTINGS
@given(
    hnp.arrays(
        np.float32, (4, 3), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    ),
    hnp.arrays(np.float32, (4, 2), elements=st.floats(-1, 1, width=32)),
)
def test_any_finite_features_give_a_value_and_gradient(x, y):
    """Zero rows, equal rows, subnormal and huge entries: in [0, 1], never NaN."""
    x, y = torch.tensor(x, requires_grad=True), torch.tensor(y, requires_grad=True)
    value = cka(x, y)
    assert 0 <= value <= 1
    value.backward()
    assert not x.grad.isnan().any() and not y.grad.isnan().any()


@settings(deadline=None, max_examples=8)
@given(features())
def test_gradient_agrees_with_finite_differences(pair):
    x, y = pair
    direction = torch.cos(torch.arange(x.numel(), dtype=torch.float64)).view_as(x)
    gram = centered_gram(y)
    for function in (lambda z: cka(z, y), lambda z: cka(y, z), lambda z: cka_from_gram(gram, z)):
        step = 1e-5
        slope = (function(x + step * direction) - function(x - step * direction)) / (2 * step)
        z = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(z), z)
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-6)


@st.composite
def pages(draw):
    """Hidden states (B, S, d) of both models and disjoint image spans of at least 3 tokens."""
    batch, spans = draw(st.integers(1, 3)), []
    for index in range(batch):
        position = 0
        for _ in range(draw(st.integers(0, 3))):
            start = position + draw(st.integers(0, 2))
            position = start + draw(st.integers(3, 6))
            spans.append((index, start, position))
    length = max([stop for *_, stop in spans], default=2) + draw(st.integers(1, 3))
    seed = draw(SEEDS)
    return normal(seed, batch, length, 4), normal(seed + 1, batch, length, 5), spans


@SETTINGS
@given(pages(), st.data())
def test_loss_is_the_mean_over_images_and_ignores_text(page, draw):
    student, teacher, spans = page
    student.requires_grad_()
    loss = rcka_loss(student, teacher, draw.draw(st.permutations(spans)))
    (gradient,) = torch.autograd.grad(loss, student)
    each = [1 - cka_from_definition(student[b, i:j].detach(), teacher[b, i:j]) for b, i, j in spans]
    assert loss.item() == pytest.approx(np.mean(each) if each else 0.0, abs=1e-9)
    text = torch.ones(student.shape[:2], dtype=torch.bool)
    for b, i, j in spans:
        text[b, i:j] = False
    assert (gradient[text] == 0).all()
    with torch.no_grad():  # not even undefined text tokens matter
        student[text], teacher[text] = math.nan, math.inf
    assert rcka_loss(student, teacher, spans).item() == pytest.approx(loss.item(), abs=1e-12)


@SETTINGS
@given(pages())
def test_cached_gram_matrices_replace_the_teacher(page):
    student, teacher, spans = page
    grams = [centered_gram(teacher[b, i:j]) for b, i, j in spans]
    live, cached = rcka_sums(student, teacher, spans), rcka_sums(student, grams, spans)
    torch.testing.assert_close(tuple(live), tuple(cached), rtol=1e-10, atol=1e-10)
    assert live.image_count == len(spans) and live.degenerate_count == 0 and live.finite


@SETTINGS
@given(
    pages(),
    st.sampled_from(["zero", "equal rows", "one direction", "single token", "no token"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_degenerate_images_contribute_nothing(page, kind, in_teacher, cached, dtype):
    student, teacher, spans = page
    student, teacher = (torch.cat([z, z[:1]]).to(dtype) for z in (student, teacher))
    last, width = student.shape[0] - 1, student.shape[1]
    side = teacher if in_teacher else student
    bad = (last, 0, width)
    if kind == "zero":
        side[last] = 0
    elif kind == "equal rows":
        side[last] = side[last, :1].clone()
    elif kind == "one direction":
        side[last] = side[last, :1] * 2.0 ** torch.arange(width)[:, None].to(dtype)
    else:
        bad = (last, 0, 1) if kind == "single token" else (last, 0, 0)
    student.requires_grad_()
    given_teacher = teacher
    if cached:
        given_teacher = [centered_gram(teacher[b, i:j]) for b, i, j in [*spans, bad]]
    sums = rcka_sums(student, given_teacher, [*spans, bad])
    (gradient,) = torch.autograd.grad(sums.loss_sum, student)
    without = rcka_sums(student, teacher, spans)
    assert sums.finite and sums.degenerate_count == 1 and sums.image_count == len(spans)
    torch.testing.assert_close(sums.loss_sum, without.loss_sum, rtol=1e-5, atol=1e-5)
    assert gradient.isfinite().all() and (gradient[last] == 0).all()


@SETTINGS
@given(pages(), st.sampled_from([math.nan, math.inf, -math.inf]), st.booleans(), st.booleans())
def test_a_non_finite_visual_token_drops_the_call(page, bad, in_teacher, cached):
    student, teacher, spans = page
    spans = [*spans, (0, 0, student.shape[1])]
    (teacher if in_teacher else student)[0, 0, 0] = bad
    student.requires_grad_()
    grams = [centered_gram(teacher[b, i:j]) for b, i, j in spans] if cached else teacher
    sums = rcka_sums(student, grams, spans)
    (gradient,) = torch.autograd.grad(sums.loss_sum, student)
    assert not sums.finite and sums.loss_sum == 0 and (gradient == 0).all()
    assert sums.image_count == 0 and sums.degenerate_count == 0
    assert rcka_loss(student, teacher, spans) == 0


def test_no_image_gives_zero_and_a_working_backward():
    student = torch.full((2, 3, 4), math.nan, requires_grad=True)
    loss = rcka_loss(student, torch.zeros(2, 3, 5), [])
    loss.backward()
    assert loss == 0 and (student.grad == 0).all()


@SETTINGS
@given(pages())
def test_half_precision_under_autocast_is_computed_in_single(page):
    student, teacher, spans = (page[0].bfloat16(), page[1].bfloat16(), page[2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = rcka_sums(student, teacher, spans).loss_sum
    full = rcka_sums(student.double(), teacher.double(), spans).loss_sum
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), full, rtol=1e-4, atol=1e-5)


class NoWaiting(TorchDispatchMode):
    """Fails on an operation that makes the host wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        names = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal.default")
        assert not any(name in str(func) for name in names), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@given(SEEDS)
@settings(deadline=None, max_examples=3)
def test_nothing_waits_for_the_device(seed):
    student, teacher = normal(seed, 2, 9, 4).requires_grad_(), normal(seed + 1, 2, 9, 5)
    with NoWaiting():
        rcka_sums(student, teacher, [(0, 0, 5), (1, 1, 6), (1, 6, 9), (0, 5, 6)])[0].backward()
    assert student.grad.isfinite().all()


H = torch.zeros(2, 6, 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: cka(H, H), ["x", "(2, 6, 3)"]),
        (lambda: cka(H[0], H[0, :4]), ["6 rows", "4"]),
        (lambda: centered_gram(H), ["(2, 6, 3)"]),
        (lambda: cka_from_gram(torch.eye(4), H[0]), ["gram_t", "(4, 4)", "(6, 6)"]),
        (lambda: rcka_loss(H, H[:1], []), ["(1, 6, 3)", "(2, 6, 3)"]),
        (lambda: rcka_loss(H[0], H, []), ["student_hidden", "(6, 3)"]),
        (lambda: rcka_loss(H, H, [(0, 2, 7)]), ["(0, 2, 7)", "(2, 6, 3)"]),
        (lambda: rcka_loss(H, H, [(2, 0, 3)]), ["(2, 0, 3)"]),
        (lambda: rcka_loss(H, H, [(0, 3, 2)]), ["(0, 3, 2)"]),
        (lambda: rcka_sums(H, [], [(0, 0, 3)]), ["0 Gram matrices", "1 image spans"]),
        (lambda: rcka_sums(H, [torch.eye(4)], [(0, 0, 3)]), ["(4, 4)", "(3, 3)"]),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(InputError) as caught:
        call()
    assert all(word in str(caught.value) for word in words)
