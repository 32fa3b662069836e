"""The quantizer's arithmetic against closed forms in float64 and against PyTorch's own operator."""

import itertools
import re

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from storages import LiveBytes

from grace.errors import InputError
from grace.quantization import (
    QuantSpec,
    deployed_scales,
    dequantize,
    fake_quantize,
    fake_quantized_linear,
    initial_scales,
    primitives,
    quantize,
)

few = settings(deadline=None, max_examples=15)
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
GROUPS = [32, 64, 128, "row"]


@st.composite
def problems(draw, group_sizes=tuple(GROUPS), scale_dtypes=tuple(DTYPES), bits=(2, 3, 4, 8)):
    """A spec, a weight, log scales and an upstream gradient: (spec, W, theta, G)."""
    spec = QuantSpec(
        bits=draw(st.sampled_from(bits)),
        group_size=draw(st.sampled_from(group_sizes)),
        scale_dtype=draw(st.sampled_from(scale_dtypes)),
        gradient_factor=draw(st.booleans()),
    )
    rows = draw(st.integers(1, 3))
    width = 48 if spec.group_size == "row" else spec.group_size
    groups = 1 if spec.group_size == "row" else draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    magnitude = 10.0 ** draw(st.integers(-3, 2))
    weight = torch.randn(rows, groups * width, generator=generator) * magnitude
    # Scales from far too small (nearly all clipped) to far too large (nearly all rounded to 0).
    spread = torch.rand(rows, groups, generator=generator) * 4 - 2
    theta = torch.log(torch.tensor(2.0 * magnitude / spec.qmax)) + spread
    # A few elements are drawn one by one, so that zeros and extremes shrink into view.
    drawn = draw(
        hnp.arrays(
            np.float32,
            8,
            elements=st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-30, -1e-30, 1e30, -1e30]),
        )
    )
    weight[0, :8] = torch.from_numpy(drawn)
    upstream = torch.randn(weight.shape, generator=generator)
    return spec, weight, theta, upstream


def rounded_scales(theta, spec):
    """exp(theta) in the stored dtype, as float64: the definition, not the code under test."""
    return theta.exp().to(DTYPES[spec.scale_dtype]).double().numpy()


def closed_form(weight, scales, theta, upstream, spec):
    """Eq. 14 and LSQ's gradients, element by element in float64 numpy."""
    groups = scales.shape[1]
    width = weight.shape[1] // groups
    low, high = -(2 ** (spec.bits - 1)), 2 ** (spec.bits - 1) - 1
    s = np.repeat(scales, width, axis=1)
    v = weight.double().numpy() / s
    inside = (v >= low) & (v <= high)
    q = np.round(np.clip(v, low, high))
    g = upstream.double().numpy()
    d_scale = np.where(v < low, low, np.where(v > high, high, q - v))
    grad_scale = (g * d_scale).reshape(len(g), groups, width).sum(-1)
    if spec.gradient_factor:
        grad_scale = grad_scale / np.sqrt(width * high)
    return q, s * q, g * inside, grad_scale * np.exp(theta.double().numpy()), v


def off_ties(v):
    """True where float32 and float64 must agree about rounding and clipping."""
    return np.abs(v - np.floor(v) - 0.5) > 1e-4 * np.maximum(1, np.minimum(np.abs(v), 1000))


def gradients(function, *tensors):
    leaves = [t.clone().requires_grad_() for t in tensors]
    return function(*leaves), leaves


@few
@given(problems())
def test_values_and_gradients_equal_the_closed_form(problem):
    spec, weight, theta, upstream = problem
    scales = rounded_scales(theta, spec)
    groups = scales.shape[1]
    width = weight.shape[1] // groups
    # Elements within float32 rounding of a tie or of a clipping edge may go either way: move them.
    v = weight.double().numpy() / np.repeat(scales, width, axis=1)
    edge = np.isclose(v, spec.qmax, atol=1e-4) | np.isclose(v, spec.qmin, atol=1e-4)
    weight[torch.from_numpy(edge | ~off_ties(v))] = 0.0
    q, quantized, grad_weight, grad_theta, _ = closed_form(weight, scales, theta, upstream, spec)

    out, (w, t) = gradients(lambda w, t: fake_quantize(w, t, spec), weight, theta)
    out.backward(upstream)
    codes = quantize(weight, deployed_scales(theta, spec), spec)
    np.testing.assert_array_equal(codes.numpy(), q)
    np.testing.assert_allclose(out.detach().numpy(), quantized, rtol=1e-6)
    np.testing.assert_allclose(w.grad.numpy(), grad_weight, rtol=1e-6)
    # Sums of `width` terms that may cancel: measured against the sum of their magnitudes.
    slack = 2e-6 * width * (2**spec.bits) * np.exp(theta.numpy())
    assert np.all(np.abs(t.grad.numpy() - grad_theta) <= slack + 1e-5 * np.abs(grad_theta))


@few
@given(st.data())
def test_gradient_edges_by_hand(data):
    """W/s in units of s = 1/4: on, just inside and just outside both clipping edges."""
    bits = data.draw(st.sampled_from([2, 3, 4, 8]))
    spec = QuantSpec(bits=bits, group_size="row")
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    v = [low - 0.25, low, low + 0.25, 0.0, 0.25, -0.25, high - 0.25, high, high + 0.25, high + 3]
    inside = [0, 1, 1, 1, 1, 1, 1, 1, 0, 0]
    d_scale = [low, 0.0, -0.25, 0.0, -0.25, 0.25, 0.25, 0.0, high, high]
    upstream = data.draw(
        hnp.arrays(np.float32, 10, elements=st.integers(-8, 8).map(float)), label="upstream"
    )
    theta = torch.full((1, 1), 0.25).log()
    out, (w, t) = gradients(
        lambda w, t: fake_quantize(w, t, spec), 0.25 * torch.tensor([v], dtype=torch.float32), theta
    )
    out.backward(torch.from_numpy(upstream)[None])
    np.testing.assert_array_equal(w.grad[0].numpy(), upstream * np.array(inside))
    assert t.grad.item() == pytest.approx(0.25 * float(upstream @ np.array(d_scale)), abs=1e-4)


@few
@given(problems(group_sizes=("row",), scale_dtypes=("float32",)))
def test_gradients_equal_pytorchs_learnable_fake_quantize(problem):
    """One scale per row is PyTorch's per-channel operator with zero point 0.

    PyTorch rounds before it judges what is clipped, so between an edge and half a step beyond it
    its weight gradient is 1 where LSQ's is 0. Weights in those two half steps are moved.
    """
    spec, weight, theta, upstream = problem
    scales = deployed_scales(theta, spec)
    v = (weight / scales).numpy()
    disputed = (np.abs(v - spec.qmax) <= 0.51) | (np.abs(v - spec.qmin) <= 0.51) | ~off_ties(v)
    weight[torch.from_numpy(disputed)] = 0.0
    weight.clamp_(-1e6, 1e6)
    factor = (weight.shape[1] * spec.qmax) ** -0.5 if spec.gradient_factor else 1.0

    expected_weight = weight.clone().requires_grad_()
    expected_scale = scales[:, 0].clone().requires_grad_()
    zero = torch.zeros(len(weight))
    expected = torch._fake_quantize_learnable_per_channel_affine(
        expected_weight, expected_scale, zero, 0, spec.qmin, spec.qmax, factor
    )
    expected.backward(upstream)

    out, (w, t) = gradients(lambda w, t: fake_quantize(w, t, spec), weight, theta)
    out.backward(upstream)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(w.grad, expected_weight.grad, rtol=1e-6, atol=0)
    slack = 1e-5 * factor * 2**spec.bits * weight.shape[1]
    difference = t.grad[:, 0] / theta.exp()[:, 0] - expected_scale.grad
    assert difference.abs().max() <= slack


@few
@given(problems(), st.sampled_from(list(DTYPES.values())), st.sampled_from(list(DTYPES.values())))
def test_fake_quantize_is_exactly_dequantize_of_quantize(problem, stored, computed):
    spec, weight, theta, _ = problem
    weight = weight.to(stored).nan_to_num()
    scales = deployed_scales(theta, spec)
    expected = dequantize(quantize(weight, scales, spec), scales, spec, computed)
    actual = fake_quantize(weight, theta, spec, computed)
    assert actual.dtype == computed
    assert torch.equal(actual, expected)
    # and bfloat16 results are the exact products, rounded once
    codes = quantize(weight, scales, spec).double()
    product = codes * scales.double().repeat_interleave(weight.shape[1] // scales.shape[1], 1)
    assert torch.equal(actual, product.float().to(computed))


@few
@given(problems(), st.sampled_from([torch.bfloat16, torch.float32]))
def test_idempotent(problem, dtype):
    spec, weight, theta, _ = problem
    once = fake_quantize(weight, theta, spec, dtype)
    assert torch.equal(fake_quantize(once, theta, spec, dtype), once)


@few
@given(hnp.arrays(np.float32, (2, 3), elements=st.floats(-200, 200, width=32)))
def test_deployed_scales_are_finite_positive_and_stored_exactly(theta):
    theta = torch.from_numpy(theta)
    before = theta.clone()
    for name, dtype in DTYPES.items():
        scales = deployed_scales(theta, QuantSpec(scale_dtype=name))
        assert scales.dtype == torch.float32
        assert torch.isfinite(scales).all() and (scales > 0).all()
        assert torch.equal(scales.to(dtype).float(), scales)
        exact = theta.double().exp()
        normal = (exact > torch.finfo(dtype).tiny) & (exact < torch.finfo(dtype).max)
        error = ((scales.double() - exact).abs() / exact)[normal]
        assert (error <= torch.finfo(dtype).eps / 2 + 1e-5).all()
    assert torch.equal(theta, before)


@few
@given(st.integers(0, 2**32 - 1), st.sampled_from([(5, 96), (64, 32), (3, 160)]))
def test_block_boundaries_change_nothing(seed, shape):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    upstream = torch.randn(shape, generator=generator)
    spec = QuantSpec(group_size=32)

    def everything():
        scales = initial_scales(weight, spec)
        out, (w, t) = gradients(lambda w, t: fake_quantize(w, t, spec), weight, scales.log())
        out.backward(upstream)
        return scales, quantize(weight, scales, spec), out.detach(), w.grad, t.grad

    whole = everything()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(primitives, "_CPU_BLOCK", 2 * shape[1])
        blocks = everything()
    for a, b in zip(whole, blocks, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@few
@given(problems(group_sizes=(32, "row")), st.sampled_from([(), (3,), (2, 3)]), st.booleans())
def test_linear_equals_linear_on_the_fake_quantized_weight(problem, batch, with_bias):
    """Value and all four gradients against autograd through `F.linear`, in float64."""
    spec, weight, theta, upstream = problem
    weight = weight.double().clamp(-100, 100)
    theta = theta.double()
    x = upstream.double()[0].expand(*batch, -1) * torch.arange(1, 1 + (batch or (1,))[-1])[:, None]
    x = x if batch else x[0]
    bias = upstream.double()[:, 0] if with_bias else None

    def fused(x, w, t, *b):
        return fake_quantized_linear(x, w, t, b[0] if b else None, spec)

    def composed(x, w, t, *b):
        return torch.nn.functional.linear(x, fake_quantize(w, t, spec), b[0] if b else None)

    results = []
    for function in (fused, composed):
        leaves = [x, weight, theta] + ([bias] if with_bias else [])
        out, leaves = gradients(function, *leaves)
        (out.square().sum() + out.sum()).backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("needed", list(itertools.product([True, False], repeat=4))[:-1])
def test_linear_makes_the_gradients_needed_and_no_other(needed):
    spec = QuantSpec(group_size=32)

    def leaves(needed):
        tensors = (
            torch.linspace(-1, 1, 64).reshape(2, 32),
            torch.linspace(-2, 2, 96).reshape(3, 32),
            torch.full((3, 1), -1.0),
            torch.ones(3),
        )
        return [tensor.requires_grad_(need) for tensor, need in zip(tensors, needed, strict=True)]

    actual, full = leaves(needed), leaves([True] * 4)
    fake_quantized_linear(*actual, spec).square().sum().backward()
    x, weight, theta, bias = full
    torch.nn.functional.linear(
        x, fake_quantize(weight, theta, spec), bias
    ).square().sum().backward()
    for leaf, expected, need in zip(actual, full, needed, strict=True):
        assert (leaf.grad is not None) == need
        if need:
            torch.testing.assert_close(leaf.grad, expected.grad, rtol=1e-5, atol=1e-5)


def brute_force(weight, width, spec):
    """(candidates, errors), each (20, rows, groups): the search in float64, one by one."""
    groups = weight.double().numpy().reshape(len(weight), -1, width)
    largest = np.abs(groups).max(-1)
    scales, errors = [], []
    for fraction in np.linspace(0.3, 1.2, 20):
        s = torch.from_numpy(largest * fraction / spec.qmax).to(DTYPES[spec.scale_dtype])
        s = s.double().numpy()
        q = np.clip(np.round(groups / s[..., None]), spec.qmin, spec.qmax)
        scales.append(s)
        errors.append(((groups - s[..., None] * q) ** 2).sum(-1))
    return np.stack(scales), np.stack(errors)


@few
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(GROUPS),
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from(list(DTYPES)),
    st.sampled_from(["normal", "heavy", "uniform", "one-sided"]),
)
def test_mse_search_equals_brute_force(seed, group_size, bits, scale_dtype, shape):
    spec = QuantSpec(bits=bits, group_size=group_size, scale_dtype=scale_dtype)
    width = 96 if group_size == "row" else group_size
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 2 * width if group_size != "row" else width, generator=generator)
    if shape == "heavy":
        weight = weight**3
    elif shape == "uniform":
        weight = torch.rand(weight.shape, generator=generator) - 0.5
    elif shape == "one-sided":
        weight = -weight.abs()
    if seed % 2:
        weight = weight.bfloat16()
    actual = initial_scales(weight, spec).double().numpy()
    candidates, errors = brute_force(weight, width, spec)
    # The found scale is a candidate, and no candidate is better by more than float32 can tell.
    nearest = np.abs(candidates - actual).argmin(0)[None]
    np.testing.assert_allclose(np.take_along_axis(candidates, nearest, 0)[0], actual, rtol=1e-6)
    chosen = np.take_along_axis(errors, nearest, 0)[0]
    assert np.all(chosen <= errors.min(0) * (1 + 1e-4))
    clear = np.sort(errors, axis=0)[1] > errors.min(0) * (1 + 1e-3)
    best = np.take_along_axis(candidates, errors.argmin(0)[None], 0)[0]
    np.testing.assert_allclose(actual[clear], best[clear], rtol=1e-6)


@few
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 4, 8]))
def test_candidates_are_rounded_twice_from_float64_and_no_more(seed, bits):
    """The grid in float64, rounded to float32, times max|W| in float32: the same on any device."""
    spec = QuantSpec(bits=bits, group_size=32, scale_dtype="float32")
    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(seed))
    grid = np.array([0.3 + 0.9 * k / 19 for k in range(20)]) / (2 ** (bits - 1) - 1)
    largest = weight.abs().amax(1, keepdim=True).numpy()
    actual = initial_scales(weight, spec).numpy()
    candidates = largest * grid.astype(np.float32)
    assert (candidates == actual).any(1).all()


def test_the_search_is_made_where_its_input_is():
    block, largest = torch.empty(4, 2, 32, device="meta"), torch.empty(4, 2, device="meta")
    actual = primitives._least_squares_scales(block, largest, QuantSpec(), torch.empty_like(block))
    assert actual.is_meta and actual.shape == (4, 2)


@few
@given(
    hnp.arrays(np.float32, (3, 128), elements=st.floats(-10, 10, width=16)),
    st.sampled_from([0.0625, 1.0]),
    st.sampled_from(GROUPS),
    st.sampled_from([2, 4, 8]),
    st.sampled_from(["percentile", "max"]),
)
def test_percentile_and_max_init_equal_numpy(weight, size, group_size, bits, init):
    weight = weight * np.float32(size)
    spec = QuantSpec(bits=bits, group_size=group_size, init=init, scale_dtype="float32")
    width = 128 if group_size == "row" else group_size
    magnitude = np.abs(weight.astype(np.float64)).reshape(3, -1, width)
    largest = magnitude.max(-1)
    expected = np.percentile(magnitude, 99, axis=-1) if init == "percentile" else largest
    expected = np.where(expected > 0, expected, largest) / spec.qmax
    expected = np.where(largest == 0, 2.0**-14, expected)
    actual = initial_scales(torch.from_numpy(weight), spec).numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@few
@given(
    st.sampled_from(["mse", "percentile", "max"]),
    st.sampled_from(list(DTYPES)),
    st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_zero_groups_get_the_documented_scale_and_zero_codes(init, scale_dtype, zero):
    spec = QuantSpec(group_size=32, init=init, scale_dtype=scale_dtype)
    weight = torch.linspace(-1, 1, 128).reshape(1, 128).clone()
    mask = torch.tensor(zero)
    weight.unflatten(1, (4, 32))[0, mask] = 0
    scales = initial_scales(weight, spec)
    assert (scales[0, mask] == 2.0**-14).all()
    assert (scales[0, ~mask] > 2.0**-14).all()
    codes = quantize(weight, scales, spec).unflatten(1, (4, 32))
    assert (codes[0, mask] == 0).all()
    assert all(codes[0, g].any() for g in range(4) if not zero[g])


@few
@given(
    st.sampled_from(["mse", "percentile", "max"]),
    st.sampled_from(list(DTYPES)),
    st.sampled_from([1e-38, 1e-20, 1e-6, 1e20, 3e38]),
)
def test_extreme_weights_give_usable_scales(init, scale_dtype, size):
    spec = QuantSpec(group_size=32, init=init, scale_dtype=scale_dtype)
    weight = torch.linspace(-1, 1, 64).reshape(2, 32) * size
    scales = initial_scales(weight, spec)
    assert torch.isfinite(scales).all() and (scales > 0).all()
    assert torch.equal(scales.to(DTYPES[scale_dtype]).float(), scales)
    if scale_dtype != "float16" and size > 1e-38:  # within the scale's range: a normal result
        error = dequantize(quantize(weight, scales, spec), scales, spec) / size - weight / size
        assert error.abs().max() < 0.5


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("init", ["mse", "percentile", "max"])
@pytest.mark.parametrize(("rows", "block"), [("0 to 3", None), ("2 to 3", 2)])
def test_non_finite_weights_name_the_layer_and_the_rows(monkeypatch, bad, init, rows, block):
    if block:
        monkeypatch.setattr(primitives, "_CPU_BLOCK", block * 64)
    weight = torch.ones(4, 64)
    weight[2, 40] = bad
    for name, called in (("layers.3.q_proj", "layers.3.q_proj"), ("", "linear")):
        said = rf"^{called}: weight has NaN or infinite values \(rows {rows}\)"
        with pytest.raises(InputError, match=said):
            initial_scales(weight, QuantSpec(group_size=32, init=init), name)


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (torch.empty(2, 128, device="meta"), "weight is on the meta device"),
        (
            torch.ones(2, 128, dtype=torch.int64),
            r"weight has shape \(2, 128\) and dtype torch.int64",
        ),
        (torch.ones(128), r"weight has shape \(128,\) and dtype torch.float32"),
        (torch.ones(2, 96), "group size 128 does not divide its 96 input features"),
    ],
)
def test_weights_that_cannot_be_searched_are_refused(weight, said):
    for name, label in (((), "linear"), (("layer9",), "layer9")):
        with pytest.raises(InputError, match=f"^{label}: {said}"):
            initial_scales(weight, QuantSpec(), *name)


@pytest.mark.parametrize("shape", [(2, 1), (4, 2), (8,), (2, 2, 1)])
def test_scales_of_the_wrong_shape_are_refused(shape):
    spec, weight, scales = QuantSpec(), torch.ones(2, 256), torch.ones(shape)
    said = rf"scales have shape {re.escape(str(shape))}: a weight 2 x 256 .* needs \(2, 2\)"
    for call in (
        lambda: quantize(weight, scales, spec),
        lambda: dequantize(weight.to(torch.int8), scales, spec),
        lambda: fake_quantize(weight, scales, spec),
        lambda: fake_quantized_linear(weight, weight, scales, None, spec),
    ):
        with pytest.raises(InputError, match=said):
            call()
    with pytest.raises(InputError, match=r"weight has shape \(2, 2, 128\)"):
        quantize(torch.ones(2, 2, 128), torch.ones(2, 2), spec)
    with pytest.raises(InputError, match=r"^weight: group size 128 does not divide its 96"):
        quantize(torch.ones(2, 96), torch.ones(2, 1), spec)


# --- dtypes, devices, blocks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_results_have_the_weights_dtype_unless_another_is_requested(dtype):
    spec, weight = QuantSpec(group_size=32), torch.linspace(-1, 1, 64).reshape(2, 32).to(dtype)
    theta = initial_scales(weight, spec).log()
    x = torch.ones(1, 32, dtype=dtype)
    assert initial_scales(weight, spec).dtype == torch.float32
    assert quantize(weight, theta.exp(), spec).dtype == torch.int8
    assert fake_quantize(weight, theta, spec).dtype == dtype
    assert fake_quantized_linear(x, weight, theta, None, spec).dtype == dtype
    codes = quantize(weight, theta.exp(), spec)
    assert dequantize(codes, theta.exp(), spec).dtype == torch.float32
    for other in (torch.bfloat16, torch.float32):
        assert fake_quantize(weight, theta, spec, other).dtype == other
        assert fake_quantized_linear(x, weight, theta, None, spec, dtype=other).dtype == other


def test_float64_weights_are_quantized_in_float64():
    """A weight a hair below a tie rounds down; in float32 it would be the tie, and round up."""
    spec, scales = QuantSpec(group_size=32, scale_dtype="float32"), torch.ones(1, 1)
    weight = torch.full((1, 32), 1.5, dtype=torch.float64) - 1e-12
    assert (quantize(weight, scales, spec) == 1).all()
    assert (quantize(weight.float(), scales, spec) == 2).all()
    assert (fake_quantize(weight, scales.log(), spec) == 1).all()
    theta = scales.log().requires_grad_()
    weight.requires_grad_()
    fake_quantize(weight, theta, spec).sum().backward()
    assert theta.grad.item() == pytest.approx(-32 * (0.5 - 1e-12), abs=1e-6)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("upstream_dtype", [torch.bfloat16, torch.float32])
def test_gradients_of_narrow_weights_are_float32_sums_rounded_once(stored, upstream_dtype):
    spec = QuantSpec(group_size=128)
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(3, 256, generator=generator).to(stored)
    theta = initial_scales(weight, spec).log()
    upstream = torch.randn(3, 256, generator=generator).to(upstream_dtype)
    out, (w, t) = gradients(lambda w, t: fake_quantize(w, t, spec, upstream_dtype), weight, theta)
    out.backward(upstream)
    scales = rounded_scales(theta, spec)
    *_, grad_weight, grad_theta, _ = closed_form(weight, scales, theta, upstream, spec)
    assert (w.grad.dtype, t.grad.dtype) == (stored, torch.float32)
    assert torch.equal(w.grad.double(), torch.from_numpy(grad_weight).to(stored).double())
    np.testing.assert_allclose(t.grad.numpy(), grad_theta, rtol=1e-4, atol=1e-4)


@few
@given(problems(group_sizes=(32, "row"), scale_dtypes=("float32", "float16")))
def test_gradients_of_float64_weights_are_float64(problem):
    spec, weight, theta, upstream = problem
    weight, theta, upstream = (tensor.double() for tensor in (weight, theta, upstream))
    scales = deployed_scales(theta, spec).double().numpy()
    *_, grad_weight, grad_theta, _ = closed_form(weight, scales, theta, upstream, spec)
    out, (w, t) = gradients(lambda w, t: fake_quantize(w, t, spec), weight, theta)
    out.backward(upstream)
    np.testing.assert_array_equal(w.grad.numpy(), grad_weight)
    size = np.exp(theta.numpy()) * 2**spec.bits * weight.shape[1]
    np.testing.assert_allclose(t.grad.numpy() / size, grad_theta / size, atol=1e-13)


@pytest.mark.parametrize("needed", [(True, True, True, True), (True, False, False, False)])
def test_a_linear_computes_in_the_requested_dtype(needed):
    """As autocast: input, weight and bias in bfloat16, each gradient in its own dtype."""
    spec, generator = QuantSpec(group_size=32), torch.Generator().manual_seed(8)
    shapes = ((4, 64), (6, 64), (6, 2), (6,))
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    actual, expected = (
        [tensor.clone().requires_grad_(need) for tensor, need in zip(tensors, needed, strict=True)]
        for _ in range(2)
    )
    y = fake_quantized_linear(*actual, spec, dtype=torch.bfloat16)
    x, weight, theta, bias = expected
    weight = fake_quantize(weight, theta, spec, torch.bfloat16)
    z = torch.nn.functional.linear(x.bfloat16(), weight, bias.bfloat16())
    assert y.dtype == torch.bfloat16 and torch.equal(y, z)
    for out in (y, z):
        out.float().square().sum().backward()
    for leaf, other, need in zip(actual, expected, needed, strict=True):
        assert (leaf.grad is not None) == need
        if need:
            assert leaf.grad.dtype == torch.float32
            torch.testing.assert_close(leaf.grad, other.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_temporaries_are_four_blocks_and_the_weights_gradient_is_made_once(monkeypatch, dtype):
    """What the module promises of memory, counted tensor by tensor, on a weight of 20 blocks."""
    monkeypatch.setattr(primitives, "_CPU_BLOCK", 2 * 64)
    spec, generator = QuantSpec(group_size=32), torch.Generator().manual_seed(9)
    weight = torch.randn(40, 64, generator=generator).to(dtype)
    theta = initial_scales(weight, spec).log()
    x = torch.randn(1, 64, generator=generator).to(dtype)
    block, whole = 2 * 64 * 4, weight.nbytes

    def new_storages(call, *held):
        """Its result, and how many storages of a block's and of the weight's size it made."""
        live = LiveBytes()
        for tensor in held:
            live.count(tensor)
        del live.made[:]
        with live:
            result = call()
        blocks = sum(block <= size < whole for size in live.made)
        return result, (blocks, sum(size >= whole for size in live.made))

    def counted(function, *leaves):
        out, forward = new_storages(lambda: function(*leaves), *leaves)
        upstream, needed = torch.ones_like(out), [leaf for leaf in leaves if leaf.requires_grad]
        backward = new_storages(
            lambda: torch.autograd.grad(out, needed, upstream), *leaves, out, upstream
        )
        return [forward, backward[1]]

    narrow = int(dtype != torch.float32)  # a block in float32, where the result is narrower
    for wants_weight, wants_theta in ((True, True), (True, False), (False, True)):
        w, t = (
            weight.clone().requires_grad_(wants_weight),
            theta.clone().requires_grad_(wants_theta),
        )
        blocks = counted(lambda w, t: fake_quantize(w, t, spec), w, t)
        # In: What. Out: the weight's gradient, if it is wanted.
        assert blocks == [(narrow, 1), (4, int(wants_weight))]
    leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, theta)]
    blocks = counted(lambda x, w, t: fake_quantized_linear(x, w, t, None, spec), *leaves)
    # Out: What again, and its gradient, which becomes the weight's.
    assert blocks == [(narrow, 1), (4, 2)]


def test_scales_of_another_dtype_are_used_as_given():
    spec, weight = QuantSpec(group_size=32), torch.linspace(-1, 1, 96).reshape(3, 32)
    scales = torch.tensor([[0.1], [0.2], [0.3]], dtype=torch.bfloat16)
    expected = quantize(weight, scales.float(), spec)
    assert torch.equal(quantize(weight, scales, spec), expected)
    actual = dequantize(expected, scales, spec)
    assert torch.equal(actual.double(), expected.double() * scales.double())
    # float64 scales are rounded to float32 first, in which both compute
    exact = torch.tensor([[1 / 3], [2 / 3], [1 / 7]], dtype=torch.float64)
    codes = quantize(weight, exact, spec)
    assert torch.equal(codes, quantize(weight, exact.float(), spec))
    assert torch.equal(dequantize(codes, exact, spec), dequantize(codes, exact.float(), spec))
    almost_one = torch.full((1, 1), 1 + 2.0**-24 * 0.99, dtype=torch.float64)  # 1 in float32
    tie = torch.full((1, 32), 3.5)  # to even; in float64 a little below the tie
    assert (quantize(tie, almost_one, spec) == 4).all()


def test_scales_of_narrow_thetas_are_computed_in_float32():
    theta = torch.tensor([[-1.0], [0.5], [2.25]], dtype=torch.bfloat16)
    actual = deployed_scales(theta, QuantSpec(scale_dtype="float32"))
    assert actual.dtype == torch.float32
    assert torch.equal(actual, theta.float().exp())


@pytest.mark.parametrize("group_size", [256, "row"])
def test_a_group_of_few_weights_and_zeros_starts_from_its_maximum(group_size):
    """One weight of 256: the 99th percentile is 0, which is no scale; max|W| / qmax is."""
    weight = torch.zeros(2, 256)
    weight[0, 17], weight[1, 5] = -0.75, 3.0
    actual = initial_scales(weight, QuantSpec(group_size=group_size, init="percentile"))
    assert torch.equal(actual, (torch.tensor([[0.75], [3.0]]) / 7).bfloat16().float())


def test_a_percentile_below_one_is_taken_as_it_is():
    """255 weights of 1/4 and one of 3: max|W| is for a percentile of zero alone."""
    weight = torch.full((1, 256), 0.25)
    weight[0, 9] = 3.0
    scales = initial_scales(weight, QuantSpec(group_size=256, init="percentile"))
    assert scales.item() == pytest.approx(0.25 / 7, rel=2.0**-8)


def test_codes_and_weights_of_trained_parameters_are_data():
    """quantize and dequantize are no part of a graph, whatever they are given."""
    spec = QuantSpec(group_size=32)
    weight = torch.linspace(-1, 1, 32)[None].requires_grad_()
    scales = torch.full((1, 1), 0.1, requires_grad=True)
    codes = quantize(weight, scales, spec)
    assert not codes.requires_grad and not dequantize(codes, scales, spec).requires_grad
    assert not deployed_scales(scales, spec).requires_grad
    assert not initial_scales(weight, spec).requires_grad


def test_everything_is_made_where_its_input_is():
    """On the meta device, which computes shapes only: no result is made on the CPU."""
    spec = QuantSpec(group_size=32, init="mse")
    weight, theta = torch.empty(4, 64, device="meta"), torch.empty(4, 2, device="meta")
    codes = torch.empty(4, 64, dtype=torch.int8, device="meta")
    x, bias = torch.empty(5, 64, device="meta"), torch.empty(4, device="meta")
    tensors = [
        deployed_scales(theta, spec),
        quantize(weight, theta, spec),
        dequantize(codes, theta, spec),
        fake_quantize(weight, theta, spec),
        fake_quantize(weight, theta, spec, torch.bfloat16),
        fake_quantized_linear(x, weight, theta, bias, spec),
    ]
    assert all(tensor.is_meta for tensor in tensors)
    for dtype in (None, torch.bfloat16):
        leaves = [tensor.clone().requires_grad_() for tensor in (weight, theta)]
        out = fake_quantize(*leaves, spec, dtype)
        out.backward(torch.empty_like(out))
        assert [leaf.grad.shape for leaf in leaves] == [leaf.shape for leaf in leaves]
        assert all(leaf.grad.is_meta for leaf in leaves)


@pytest.mark.parametrize("init", ["mse", "percentile", "max"])
def test_the_default_device_changes_nothing(init):
    """A default device that is not the weight's, as while a large model is made."""
    spec = QuantSpec(group_size=32, init=init)
    weight = torch.linspace(-1, 1, 256).reshape(4, 64)
    x, bias = torch.ones(3, 64), torch.ones(4)

    def everything():
        scales = initial_scales(weight, spec)
        codes = quantize(weight, scales, spec)
        leaves = [
            tensor.detach().clone().requires_grad_() for tensor in (x, weight, scales.log(), bias)
        ]
        outs = [fake_quantized_linear(*leaves, spec), fake_quantize(*leaves[1:3], spec)]
        narrow = fake_quantize(*leaves[1:3], spec, torch.bfloat16)
        (outs[0].sum() + outs[1].square().sum() + narrow.float().sum()).backward()
        grads = [leaf.grad for leaf in leaves]
        return [scales, codes, dequantize(codes, scales, spec), narrow, *outs, *grads]

    expected = everything()
    with torch.device("meta"):
        actual = everything()
    for tensor, other in zip(actual, expected, strict=True):
        assert tensor.device.type == "cpu" and torch.equal(tensor, other)


@few
@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 200))
@example(rows=10, columns=1, limit=4)
@example(rows=10, columns=0, limit=4)
@example(rows=10, columns=7, limit=3)
def test_blocks_are_whole_rows_each_once_and_within_the_limit(rows, columns, limit):
    for device, name in (("cpu", "_CPU_BLOCK"), ("meta", "_DEVICE_BLOCK")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(primitives, name, limit)
            actual = list(primitives._row_blocks(torch.empty(rows, columns, device=device)))
        assert [row for part in actual for row in range(part.start, part.stop)] == list(range(rows))
        sizes = [part.stop - part.start for part in actual]
        # As many rows as fit, at least one, the same in all blocks but the last.
        assert all(size * columns <= limit or size == 1 for size in sizes)
        if len(sizes) > 1:
            assert (sizes[0] + 1) * max(1, columns) > limit
            assert set(sizes[:-1]) == {sizes[0]} and sizes[-1] <= sizes[0]


@pytest.mark.parametrize("shape", [(0, 64), (3, 64)])
def test_a_weight_of_no_rows_has_results_of_no_rows(shape):
    spec, weight = QuantSpec(group_size=32), torch.ones(shape)
    scales = initial_scales(weight, spec)
    assert scales.shape == (shape[0], 2)
    assert quantize(weight, scales, spec).shape == shape
    leaves = [weight.requires_grad_(), scales.log().requires_grad_()]
    out = fake_quantize(*leaves, spec)
    out.sum().backward()
    assert out.shape == leaves[0].grad.shape == shape


def test_upstream_gradients_are_not_overwritten():
    spec = QuantSpec(group_size=32)
    weight = torch.linspace(-3, 3, 64).reshape(2, 32)
    theta = torch.full((2, 1), -2.0)
    upstream = torch.linspace(-1, 1, 64).reshape(2, 32)
    before = upstream.clone()
    out, _ = gradients(lambda w, t: fake_quantize(w, t, spec), weight, theta)
    out.backward(upstream)
    assert torch.equal(upstream, before)


@pytest.mark.parametrize("needed", ["weight", "theta"])
def test_only_the_gradients_needed_are_made(needed):
    spec = QuantSpec(group_size=32)
    weight = torch.linspace(-3, 3, 64).reshape(2, 32).requires_grad_(needed == "weight")
    theta = torch.full((2, 1), -2.0).requires_grad_(needed == "theta")
    full = gradients(lambda w, t: fake_quantize(w, t, spec), weight.detach(), theta.detach())
    full[0].sum().backward()
    fake_quantize(weight, theta, spec).sum().backward()
    leaf, other, expected = (
        (weight, theta, full[1][0]) if needed == "weight" else (theta, weight, full[1][1])
    )
    assert other.grad is None
    assert torch.equal(leaf.grad, expected.grad)


def test_the_gradient_has_no_gradient_of_its_own():
    """Twice differentiated, the straight-through estimator would be wrong without a word."""
    spec, weight = QuantSpec(group_size=32), torch.linspace(-1, 1, 32)[None].requires_grad_()
    theta = torch.full((1, 1), -2.0, requires_grad=True)
    x = torch.ones(1, 32, requires_grad=True)
    for out in (
        fake_quantize(weight, theta, spec).square().sum(),
        fake_quantized_linear(x, weight, theta, None, spec).square().sum(),
    ):
        (first,) = torch.autograd.grad(out, weight, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.sum().backward()


@few
@given(st.integers(0, 2**32 - 1), st.sampled_from(list(DTYPES)))
def test_scales_at_the_ends_of_their_dtypes_range_pass_the_clamped_gradient(seed, scale_dtype):
    """exp(theta) in dWhat/dtheta is clamped as the scale is: finite, and no underflow to zero."""
    spec = QuantSpec(group_size=32, scale_dtype=scale_dtype)
    info = torch.finfo(DTYPES[scale_dtype])
    low = max(info.smallest_normal * info.eps, torch.finfo(torch.float32).tiny)
    if scale_dtype == "float16":
        assert low == 2.0**-24  # its subnormals are kept
    generator = torch.Generator().manual_seed(seed)
    upstream = torch.randn(1, 32, generator=generator) / 32
    for theta, exact in ((-200.0, low), (200.0, float(info.max))):
        leaf = torch.full((1, 1), theta, requires_grad=True)
        scale = deployed_scales(leaf, spec)
        assert scale.item() == pytest.approx(exact, rel=1e-6)
        # Weights of a third of a step each: q = 0, so q - W/s = -1/3.
        weight = torch.full((1, 32), 1 / 3) * scale
        fake_quantize(weight, leaf, spec).backward(upstream)
        expected = -(1 / 3) * upstream.double().sum().item() * exact
        assert leaf.grad.item() == pytest.approx(expected, rel=1e-3, abs=1e-5 * exact)


def test_a_tie_of_the_search_goes_to_the_smallest_scale():
    """One weight of a group alone: at 2 bits every candidate at or above max|W| errs the same way.

    -m is code -1 at s = m (error 0 at exactly 1.0, which is no candidate) and code -2 at s = m / 2;
    the errors of candidates c and of their mirror are compared in float64.
    """
    spec = QuantSpec(bits=2, group_size=32, scale_dtype="float32")
    weight = torch.zeros(1, 32)
    weight[0, 3] = 1.0
    candidates, errors = brute_force(weight, 32, spec)
    actual = initial_scales(weight, spec).item()
    best = errors[:, 0, 0].min()
    tied = candidates[np.isclose(errors[:, 0, 0], best, rtol=1e-5, atol=1e-12), 0, 0]
    assert actual == pytest.approx(tied.min(), rel=1e-6)
