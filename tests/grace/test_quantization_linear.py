"""FakeQuantLinear as a module: sharing, dtypes, gradients, autocast, checkpointing, state."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from grace.errors import InputError
from grace.quantization import FakeQuantLinear, QuantSpec

few = settings(deadline=None, max_examples=8)
seeds = st.integers(0, 2**32 - 1)


def make(seed, *, bias=True, dtype=torch.float32, inputs=64, outputs=6, **fields):
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    linear.to(dtype)
    spec = QuantSpec(**{"group_size": 32, **fields})
    x = torch.randn(2, 3, inputs, generator=generator).to(dtype)
    return linear, FakeQuantLinear.from_linear(linear, spec, "layers.0.q_proj"), x


def reference_weight(layer):
    """s * clip(round(W / s)) in float64, from the parameters alone."""
    stored = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
    s = layer.log_scale.detach().exp().to(stored[layer.spec.scale_dtype]).double()
    s = s.repeat_interleave(layer.in_features // s.shape[1], 1)
    return s * (layer.weight.detach().double() / s).round().clamp(layer.spec.qmin, layer.spec.qmax)


@few
@given(seeds, st.booleans(), st.sampled_from([2, 4, 8]), st.sampled_from([32, 64, "row"]))
def test_forward_is_the_linear_of_the_quantized_weight(seed, bias, bits, group_size):
    _, layer, x = make(seed, bias=bias, bits=bits, group_size=group_size)
    weight = reference_weight(layer)
    expected = x.double() @ weight.T + (layer.bias.double() if bias else 0)
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.dequantized().double(), weight, rtol=1e-6, atol=0)
    s = layer.scales().double().repeat_interleave(64 // layer.scales().shape[1], 1)
    assert torch.equal(layer.codes().double() * s, layer.dequantized(torch.float64))


@pytest.mark.parametrize("bias", [True, False])
def test_parameters_are_shared_not_copied(bias):
    linear, layer, _ = make(0, bias=bias)
    assert layer.weight is linear.weight
    assert layer.weight.data_ptr() == linear.weight.data_ptr()
    assert layer.bias is linear.bias
    names = [name for name, _ in layer.named_parameters()]
    assert names == (["weight", "bias", "log_scale"] if bias else ["weight", "log_scale"])
    assert list(layer.state_dict()) == names


@pytest.mark.parametrize(
    ("group_size", "groups"), [(32, 8), (64, 4), (128, 2), (256, 1), ("row", 1)]
)
def test_shapes(group_size, groups):
    _, layer, _ = make(0, inputs=256, outputs=5, group_size=group_size)
    assert layer.log_scale.shape == layer.scales().shape == (5, groups)
    assert layer.codes().shape == layer.dequantized().shape == (5, 256)
    assert (layer.codes().dtype, layer.scales().dtype) == (torch.int8, torch.float32)
    assert f"group_size={group_size}" in repr(layer) and "bits=4" in repr(layer)


@few
@given(seeds, st.sampled_from(["bfloat16", "half", "double", "to", "parent"]))
def test_log_scale_stays_float32_and_keeps_its_bits(seed, how):
    _, layer, x = make(seed)
    with torch.no_grad():
        layer.log_scale += 1e-4  # below bfloat16's resolution
    before, parameter = layer.log_scale.detach().clone(), layer.log_scale
    layer(x).sum().backward()
    gradient = layer.log_scale.grad.clone()
    parent = nn.Sequential(layer)
    match how:
        case "bfloat16":
            layer.bfloat16()
        case "half":
            layer.half()
        case "double":
            layer.double()
        case "to":
            layer.to("cpu", torch.bfloat16)
        case "parent":
            parent.to(torch.bfloat16)
    assert layer.weight.dtype == layer.bias.dtype != torch.float32
    assert layer.log_scale.dtype == layer.log_scale.grad.dtype == torch.float32
    assert layer.log_scale is parameter
    assert torch.equal(layer.log_scale, before)
    assert torch.equal(layer.log_scale.grad, gradient)
    assert layer(x.to(layer.weight.dtype)).dtype == layer.weight.dtype


def test_log_scale_moves_between_devices():
    _, layer, _ = make(0)
    layer.to("meta", torch.bfloat16)
    assert layer.log_scale.is_meta and layer.weight.is_meta
    assert (layer.log_scale.dtype, layer.weight.dtype) == (torch.float32, torch.bfloat16)
    layer.to_empty(device="cpu")
    assert not layer.log_scale.is_meta and layer.log_scale.dtype == torch.float32


def test_log_scale_cast_behind_the_modules_back_is_refused():
    _, layer, x = make(0)
    layer.log_scale.data = layer.log_scale.data.bfloat16()
    with pytest.raises(AssertionError, match="log_scale must stay float32"):
        layer(x)


@few
@given(seeds, st.booleans(), st.booleans())
def test_gradients_by_value(seed, bias, gradient_factor):
    """Input, weight, scale and bias gradients against the chain rule in float64 numpy."""
    _, layer, x = make(seed, bias=bias, gradient_factor=gradient_factor)
    with torch.no_grad():
        layer.log_scale -= 0.5  # so that some weights are clipped
    x.requires_grad_()
    upstream = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(seed ^ 1))
    layer(x).backward(upstream)

    gy = upstream.double().numpy().reshape(6, 6)
    xs = x.detach().double().numpy().reshape(6, 64)
    s = np.repeat(layer.log_scale.detach().exp().bfloat16().double().numpy(), 32, 1)
    v = layer.weight.detach().double().numpy() / s
    q = np.round(np.clip(v, -8, 7))
    outer = gy.T @ xs
    inside = (v >= -8) & (v <= 7)
    assert not inside.all()
    np.testing.assert_allclose(x.grad.numpy().reshape(6, 64), gy @ (s * q), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(layer.weight.grad.numpy(), outer * inside, rtol=1e-4, atol=1e-4)
    by_scale = (outer * np.where(inside, q - v, q)).reshape(6, 2, 32).sum(-1)
    factor = (32 * 7) ** -0.5 if gradient_factor else 1.0
    expected = by_scale * np.exp(layer.log_scale.detach().double().numpy()) * factor
    np.testing.assert_allclose(layer.log_scale.grad.numpy(), expected, rtol=1e-4, atol=1e-3)
    if bias:
        np.testing.assert_allclose(layer.bias.grad.numpy(), gy.sum(0), rtol=1e-4, atol=1e-5)


@few
@given(seeds, st.booleans())
def test_autocast_computes_in_bfloat16_and_keeps_float32_gradients(seed, backward_inside):
    _, layer, x = make(seed)
    x.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        if backward_inside:
            y.float().square().sum().backward()
    if not backward_inside:
        y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    # The plain linear under autocast, on the same quantized weight, is the same computation.
    plain = nn.Linear(64, 6)
    with torch.no_grad():
        plain.weight.copy_(layer.dequantized())
        plain.bias.copy_(layer.bias)
    z = x.detach().clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = plain(z)
    expected.float().square().sum().backward()
    assert torch.equal(y, expected)
    assert torch.equal(x.grad, z.grad)
    for parameter in (layer.weight, layer.bias, layer.log_scale):
        assert parameter.grad.dtype == torch.float32
    torch.testing.assert_close(layer.bias.grad, plain.bias.grad)
    s = layer.scales().repeat_interleave(32, 1)
    inside = (layer.weight / s >= -8) & (layer.weight / s <= 7)
    assert torch.equal(layer.weight.grad, plain.weight.grad * inside)


@few
@given(seeds)
def test_bfloat16_module_equals_bfloat16_linear_on_quantized_weight(seed):
    _, layer, x = make(seed, dtype=torch.bfloat16)
    plain = nn.Linear(64, 6, dtype=torch.bfloat16)
    with torch.no_grad():
        plain.weight.copy_(reference_weight(layer).float())
        plain.bias.copy_(layer.bias)
    assert torch.equal(layer(x), plain(x))
    layer(x).sum().backward()
    assert layer.weight.grad.dtype == torch.bfloat16
    assert layer.log_scale.grad.dtype == torch.float32


@few
@given(seeds, st.booleans(), st.booleans())
def test_gradient_checkpointing_changes_nothing(seed, reentrant, autocast):
    _, layer, x = make(seed)
    actual = []
    for checkpointed in (False, True):
        layer.zero_grad()
        z = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            y = checkpoint(layer, z, use_reentrant=reentrant) if checkpointed else layer(z)
        y.float().square().sum().backward()
        actual.append([y.detach(), z.grad, *(p.grad.clone() for p in layer.parameters())])
    for once, again in zip(*actual, strict=True):
        assert torch.equal(once, again)


def test_nothing_weight_sized_is_kept_for_backward():
    _, layer, x = make(0, inputs=512, outputs=256, bias=False)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x.clone().requires_grad_())
    large = [t for t in kept if t.numel() >= layer.weight.numel()]
    assert len(large) == 1 and large[0].data_ptr() == layer.weight.data_ptr()


@few
@given(seeds, seeds)
def test_state_dict_round_trip(seed, other):
    _, source, x = make(seed)
    _, target, _ = make(other)
    assert set(source.state_dict()) == {"weight", "bias", "log_scale"}
    target.load_state_dict(source.state_dict())
    assert torch.equal(source.codes(), target.codes())
    assert torch.equal(source.scales(), target.scales())
    assert torch.equal(source(x), target(x))


@settings(deadline=None, max_examples=5)
@given(seeds)
def test_training_lowers_the_loss_through_both_parameters(seed):
    """SGD on theta alone, then on W alone, each reaches below where it began."""
    for chosen in ("log_scale", "weight"):
        _, layer, x = make(seed, bits=2, init="max")
        target = nn.functional.linear(x, layer.weight.detach(), layer.bias.detach())
        parameter = getattr(layer, chosen)
        losses = []
        for _ in range(30):
            layer.zero_grad()
            loss = (layer(x) - target).square().mean()
            loss.backward()
            losses.append(loss.item())
            with torch.no_grad():
                step = parameter.grad / parameter.grad.norm()
                parameter -= (0.05 if chosen == "log_scale" else 0.3) * step
        assert min(losses) < 0.95 * losses[0]


def test_mixed_dtypes_are_refused_as_by_a_plain_linear():
    linear, layer, x = make(0, dtype=torch.bfloat16)
    for module in (linear, layer):
        with pytest.raises(RuntimeError):
            module(x.float())
    for name, called in (("layers.0.q_proj", "layers.0.q_proj"), ("", "linear")):
        layer.name = name
        with pytest.raises(RuntimeError, match=f"^{called}: input is torch.float32 and weight is"):
            layer(x.float())


def test_group_size_that_does_not_divide_names_the_layer():
    with pytest.raises(InputError) as raised:
        FakeQuantLinear.from_linear(nn.Linear(96, 4), QuantSpec(), "layers.7.down_proj")
    for part in ("layers.7.down_proj", "128", "96", "32"):
        assert part in str(raised.value)


def test_wrapping_keeps_the_training_mode():
    assert not FakeQuantLinear.from_linear(nn.Linear(128, 4).eval(), QuantSpec()).training
    assert FakeQuantLinear.from_linear(nn.Linear(128, 4), QuantSpec()).training


def test_a_layer_made_without_a_name_has_none():
    layer = FakeQuantLinear.from_linear(nn.Linear(128, 4), QuantSpec())
    assert layer.name == ""
    copy = FakeQuantLinear(layer.weight, layer.bias, layer.log_scale, layer.spec)
    assert copy.name == ""
    assert copy.spec is layer.spec
    assert (copy.in_features, copy.out_features) == (128, 4)


@pytest.mark.parametrize("bias", [True, False])
def test_repr_names_what_the_layer_is(bias):
    _, layer, _ = make(0, bias=bias, bits=3)
    assert repr(layer) == (
        f"FakeQuantLinear(in_features=64, out_features=6, bias={bias}, bits=3, group_size=32)"
    )


def test_scales_codes_and_the_quantized_weight_are_data():
    """Deploying needs no graph: none of the three hangs on to one."""
    _, layer, _ = make(0)
    for tensor in (layer.scales(), layer.codes(), layer.dequantized()):
        assert not tensor.requires_grad


def test_the_quantized_weight_has_the_dtype_asked_for():
    _, layer, _ = make(0, dtype=torch.bfloat16)
    assert layer.dequantized().dtype == torch.bfloat16
    assert layer.dequantized(torch.float32).dtype == torch.float32
    assert torch.equal(layer.dequantized(), layer.dequantized(torch.float32).bfloat16())
