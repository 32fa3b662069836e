"""Relational alignment: CKA against HSIC from its definition, invariances, degenerate images."""

import contextlib
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.utils.flop_counter import FlopCounterMode
from waits import HostWaits

from grace.distillation import (
    centered_gram,
    cka,
    cka_from_gram,
    rcka,
    rcka_loss,
    rcka_sums,
    visual_token_count,
    visual_tokens,
)

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
    """(n - 1)² HSIC = tr(K H M H), with the centering matrices written out."""
    h = np.eye(len(k)) - np.ones_like(k) / len(k)
    return np.trace(k @ h @ m @ h)


def cka_from_definition(x, y):
    k, m = (unit_rows(z.numpy()) @ unit_rows(z.numpy()).T for z in (x, y))
    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


@SETTINGS
@given(features())
def test_equals_hsic_from_its_definition(pair):
    """From features and from a Gram matrix; n is below, at and above the widths."""
    x, y = pair
    expected = cka_from_definition(x, y)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        a, b = x.to(dtype), y.to(dtype)
        for value in (cka(a, b), cka_from_gram(centered_gram(a), b)):
            assert value.dtype == dtype
            assert value.item() == pytest.approx(expected, abs=tolerance)


def test_gradient_is_that_of_the_definition():
    """Derivatives of Eq. 10-13 written with full matrices, by autograd in float64."""
    for n, d in ((9, 2), (4, 7)):
        x, y = normal(n, n, d).requires_grad_(), normal(d, n, d + 1)
        h = torch.eye(n, dtype=torch.float64) - torch.full((n, n), 1 / n, dtype=torch.float64)
        unit = [z / z.norm(dim=1, keepdim=True) for z in (x, y)]
        k, m = (h @ z @ z.T @ h for z in unit)
        value = torch.trace(k @ m) / torch.sqrt(torch.trace(k @ k) * torch.trace(m @ m))
        (expected,) = torch.autograd.grad(value, x)
        for ours in (cka(x, y), cka(y, x), cka_from_gram(centered_gram(y), x)):
            (gradient,) = torch.autograd.grad(ours, x)
            torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("n", [2, 3, 8, 13, 40])
@pytest.mark.parametrize(("d1", "d2"), [(2, 3), (3, 2), (8, 8), (5, 30), (40, 2), (1, 9)])
def test_the_cheaper_form_is_taken(n, d1, d2):
    """Counted: three Gram matrices of widths, or two of tokens."""
    x, y = normal(0, n, d1), normal(1, n, d2)
    with FlopCounterMode(display=False) as counter:
        cka(x, y)
    of_widths = 2 * n * (d1 * d1 + d1 * d2 + d2 * d2)
    of_tokens = 2 * n * n * (d1 + d2)
    assert counter.get_total_flops() == min(of_widths, of_tokens)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stays_in_its_range_where_rounding_would_leave_it(dtype):
    for seed in range(30):
        x = normal(seed, 9, 1 + seed % 12).to(dtype)
        for same in (cka(x, x), cka_from_gram(centered_gram(x), x)):
            assert same <= 1
    # Tokens that differ along some patterns in x and along orthogonal ones in y: no alignment, and
    # a sum of products that comes out on either side of zero.
    patterns = torch.tensor(scipy.linalg.hadamard(8), dtype=torch.float64)
    for seed in range(10):
        x, y = (
            torch.cat([patterns[:, :1], patterns[:, own] * normal(seed + k, 1, 3).exp()], 1)
            @ torch.linalg.qr(normal(seed, 12, 12))[0][:4]
            for k, own in ((1, slice(1, 4)), (2, slice(4, 7)))
        )
        for none in (
            cka(x.to(dtype), y.to(dtype)),
            cka_from_gram(centered_gram(x.to(dtype)), y.to(dtype)),
        ):
            assert 0 <= none <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("spread", "told_apart"), [(99, False), (100, False), (100.5, True)])
def test_a_spread_of_a_hundred_roundings_is_none(dtype, spread, told_apart):
    """Rows (1, +-s) are of unit length; their centered Gram matrix is s² between any two."""
    s = spread * torch.finfo(dtype).eps
    for n in (4, 16):
        x = torch.ones(n, 2, dtype=dtype)
        x[:, 1] = s * (-1.0) ** torch.arange(n)
        for y in (x, normal(0, n, 3).to(dtype)):
            for a, b in ((x, y), (y, x)):
                for value in (cka(a, b), cka_from_gram(centered_gram(a), b)):
                    assert (value > 0) == told_apart
        spans = [(0, 0, n)]
        sums = rcka_sums(x[None], normal(0, 1, n, 3).to(dtype), spans)
        assert (sums.image_count, sums.degenerate_count) == (told_apart, not told_apart)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_undefined_similarity_is_zero_without_gradient(n):
    x, y = torch.ones(n, 4, requires_grad=True), normal(0, n, 5).float()
    for value in (cka(x, y), cka(y, x), cka_from_gram(centered_gram(y), x)):
        assert value == 0
        (gradient,) = torch.autograd.grad(value, x)
        assert not gradient.any()


def test_precision_is_that_of_the_wider_side():
    x, y = normal(0, 6, 4), normal(1, 6, 5)
    exact = cka(x.float().double(), y.float().double())
    for tensor, other in ((x.float().double(), y.float()), (x.float(), y.float().double())):
        for value in (cka(tensor, other), cka_from_gram(centered_gram(other.double()), tensor)):
            assert value.dtype == torch.float64
            torch.testing.assert_close(value, exact, rtol=1e-13, atol=0)
    cached = cka_from_gram(centered_gram(y.float()), x.float().double())
    assert cached.dtype == torch.float64
    torch.testing.assert_close(cached, exact, rtol=1e-5, atol=0)
    assert cka(x.bfloat16(), y.half()).dtype == centered_gram(x.bfloat16()).dtype == torch.float32
    assert centered_gram(x).dtype == torch.float64
    none = rcka_sums(x.bfloat16()[None], y.bfloat16()[None], [])
    assert none.loss_sum.dtype == torch.float32


def test_autocast_changes_nothing():
    x, y = normal(0, 6, 4).float(), normal(1, 6, 5).float()
    gram = centered_gram(x)
    for call in (lambda: cka(x, y), lambda: centered_gram(x), lambda: cka_from_gram(gram, y)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = call()
        assert torch.equal(inside, call())


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

        def slope_over(width, function=function):
            return (function(x + width * direction) - function(x - width * direction)) / (2 * width)

        slope = (4 * slope_over(step) - slope_over(2 * step)) / 3  # without the error of step²
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


def test_two_tokens_are_enough_and_a_shorter_image_holds_up_no_other():
    student, teacher = normal(0, 2, 9, 4), normal(1, 2, 9, 5)
    spans = [(0, 0, 1), (1, 3, 3), (0, 2, 4), (1, 4, 9), (0, 4, 6), (1, 0, 1)]
    for given_teacher in (teacher, [centered_gram(teacher[b, i:j]) for b, i, j in spans]):
        sums = rcka_sums(student, given_teacher, spans)
        assert (sums.image_count, sums.degenerate_count, sums.finite) == (3, 3, True)
        # Two tokens differ in one way only, so any two models agree on them.
        assert rcka_sums(student, teacher, [(0, 2, 4)]).loss_sum == pytest.approx(0, abs=1e-12)
        expected = 1 - cka_from_definition(student[1, 4:], teacher[1, 4:])
        assert sums.loss_sum.item() == pytest.approx(expected, abs=1e-12)
        assert sums.loss_sum.shape == sums.image_count.shape == sums.finite.shape == ()
        assert sums.image_count.dtype == sums.degenerate_count.dtype == torch.int64


def test_the_teacher_is_a_constant():
    student, teacher = normal(0, 1, 5, 4), normal(1, 1, 5, 3).requires_grad_()
    assert not rcka_loss(student, teacher, [(0, 0, 5)]).requires_grad
    gram = centered_gram(teacher[0])
    assert not rcka_sums(student, [gram], [(0, 0, 5)]).loss_sum.requires_grad
    assert rcka_loss(student.requires_grad_(), teacher, [(0, 0, 5)]).requires_grad


def test_everything_happens_where_the_students_hidden_states_are(monkeypatch):
    """On the device `meta`, where no value exists that a host could read (nor any autocast)."""
    monkeypatch.setattr(rcka, "full_precision", lambda _: contextlib.nullcontext())
    student = torch.empty(2, 9, 4, device="meta", requires_grad=True)
    spans = [(0, 0, 5), (1, 2, 4), (1, 2, 3)]
    kept = [torch.eye(stop - start) for _, start, stop in spans]  # on the host
    for teacher in (torch.empty(2, 9, 7, device="meta"), kept):
        sums = rcka_sums(student, teacher, spans)
        sums.loss_sum.backward()
        assert [tensor.device.type for tensor in sums] == ["meta"] * 4
    assert [tensor.device.type for tensor in rcka_sums(student, [], [])] == ["meta"] * 4


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


@SETTINGS
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=5), SEEDS)
def test_runs_of_one_image_are_its_tokens_in_order(runs, seed):
    """The same value and gradient as where nothing stands between them."""
    places, edges, at = [], [], 2
    for length, gap in runs:
        edges += [at, at + length]
        places += range(at, at + length)
        at += length + gap
    hidden, teacher = normal(seed, 2, at + 1, 5), normal(seed + 1, 2, at + 1, 3)
    values, gradients = [], []
    for span, chosen in (((1, *edges), slice(None)), ((1, 0, len(places)), places)):
        ours = hidden.clone().requires_grad_()
        sums = rcka_sums(ours[:, chosen], teacher[:, chosen], [span])
        sums.loss_sum.backward()
        values.append(torch.stack([sums.loss_sum.detach(), sums.image_count, visual(span)]))
        gradients.append(ours.grad)
    assert torch.equal(*values)
    assert torch.equal(*gradients)
    assert torch.equal(visual_tokens(hidden, (1, *edges)), hidden[1, places])


def visual(span):
    return torch.tensor(visual_token_count(span))


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


@given(SEEDS)
@settings(deadline=None, max_examples=3)
def test_nothing_waits_for_the_device(seed):
    student, teacher = normal(seed, 2, 9, 4).requires_grad_(), normal(seed + 1, 2, 9, 5)
    with HostWaits() as waits:
        rcka_sums(student, teacher, [(0, 0, 5), (1, 1, 6), (1, 6, 9), (0, 5, 6)])[0].backward()
    assert not waits.found
    assert student.grad.isfinite().all()


H = torch.zeros(2, 6, 3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: cka(H, H[0]),
        lambda: cka(H[0], H),
        lambda: cka(H[0], H[0, :4]),
        lambda: centered_gram(H),
        lambda: cka_from_gram(torch.eye(4), H[0]),
        lambda: cka_from_gram(torch.ones(6, 3), H[0]),
        lambda: cka_from_gram(torch.eye(6), H[0, 0]),
        lambda: rcka_loss(H, H[:1], []),
        lambda: rcka_loss(H, H[:, :5], []),
        lambda: rcka_loss(H, H[..., 0], []),
        lambda: rcka_loss(H[0], H, []),
        *(
            lambda span=span: rcka_loss(H, H, [span])
            for span in [(0, 2, 7), (2, 0, 3), (-1, 0, 3), (0, -1, 3), (0, 3, 2)]
        ),
        lambda: rcka_sums(H, [], [(0, 0, 3)]),
        lambda: rcka_sums(H, [torch.eye(3), torch.eye(4)], [(0, 0, 3), (1, 2, 5)]),
        lambda: rcka_sums(H, [torch.ones(3, 4)], [(0, 1, 4)]),
    ],
)
def test_tensors_and_spans_that_do_not_fit_are_programming_errors(call):
    with pytest.raises(AssertionError):
        call()


def test_whole_sequences_and_empty_spans_fit():
    sums = rcka_sums(H, H, [(0, 0, 6), (1, 6, 6), (1, 0, 0)])
    assert sums.degenerate_count == 3 and sums.loss_sum == 0
