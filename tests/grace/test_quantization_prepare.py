"""prepare is all or nothing; bake keeps the function and hands out the exact codes."""

import pytest
import torch
from blocks import Block
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from grace.errors import InputError
from grace.quantization import FakeQuantLinear, QuantSpec, bake, fake_quant_layers, prepare

few = settings(deadline=None, max_examples=8)
SPEC = QuantSpec(group_size=32)
NAMES = ["blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down", "head"]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(64, 10)
        self.odd = nn.Linear(10, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def make(seed):
    generator = torch.Generator().manual_seed(seed)
    model = Model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model, torch.randn(5, 64, generator=generator)


def snapshot(model):
    modules = [(name, id(module)) for name, module in model.named_modules()]
    values = {name: (id(p), p.detach().clone()) for name, p in model.named_parameters()}
    return modules, values


def assert_untouched(model, before):
    modules, values = before
    assert [(name, id(module)) for name, module in model.named_modules()] == modules
    now = dict(model.named_parameters())
    assert list(now) == list(values)
    for name, (identity, value) in values.items():
        assert id(now[name]) == identity
        assert torch.equal(now[name].nan_to_num(), value.nan_to_num())


@few
@given(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
def test_wraps_exactly_the_names_given(names):
    model, x = make(0)
    parameters = dict(model.named_parameters())
    assert prepare(model, SPEC, names) == names
    assert sorted(name for name, _ in fake_quant_layers(model)) == sorted(names)
    for name, layer in fake_quant_layers(model):
        assert layer.weight is parameters[f"{name}.weight"]
        assert (layer.name, layer.spec) == (name, SPEC)
    plain = [n for n, m in model.named_modules() if type(m) is nn.Linear]
    assert sorted([*plain, *names]) == sorted([*NAMES, "odd"])
    assert torch.isfinite(model(x)).all()


def test_prepared_model_keeps_the_keys_of_the_plain_one():
    model, _ = make(0)
    keys = set(model.state_dict())
    names = prepare(model, SPEC, NAMES)
    assert set(model.state_dict()) == keys | {f"{name}.log_scale" for name in names}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["blocks.0.up", "blocks.2.up"], "no submodule 'blocks.2.up'"),
        (["blocks.0.up", "blocks.0.norm"], "blocks.0.norm is a LayerNorm"),
        (["blocks.0.up", "blocks.0"], "blocks.0 is a Block"),
        (["blocks.0.up", "odd"], "odd: group size 32 does not divide its 10 input features"),
        (["blocks.0.up", "head", "blocks.0.up"], "blocks.0.up is named twice"),
        (["blocks.0.up", ""], "no submodule ''"),
        ([], "no linear is named"),
    ],
)
def test_refused_names_leave_the_model_untouched(names, said):
    model, _ = make(0)
    before = snapshot(model)
    with pytest.raises(InputError, match=said):
        prepare(model, SPEC, names)
    assert_untouched(model, before)


def test_non_finite_weight_in_the_last_layer_leaves_the_model_untouched():
    model, _ = make(0)
    with torch.no_grad():
        model.head.weight[3, 5] = float("nan")
    before = snapshot(model)
    with pytest.raises(InputError, match="head: weight has NaN"):
        prepare(model, SPEC, NAMES)
    assert_untouched(model, before)


def test_preparing_twice_is_refused_and_changes_nothing():
    model, _ = make(0)
    prepare(model, SPEC, ["head"])
    before = snapshot(model)
    with pytest.raises(InputError, match="head is prepared already"):
        prepare(model, SPEC, ["blocks.0.up", "head"])
    assert_untouched(model, before)


def test_subclass_of_linear_is_refused():
    model, _ = make(0)
    model.head = nn.modules.linear.NonDynamicallyQuantizableLinear(64, 10)
    with pytest.raises(InputError, match="head is a NonDynamicallyQuantizableLinear"):
        prepare(model, SPEC, ["head"])


@pytest.mark.parametrize(("spec", "names"), [({"bits": 4}, ["head"]), (SPEC, "head")])
def test_arguments_of_a_wrong_type_are_programming_errors(spec, names):
    model, _ = make(0)
    with pytest.raises(AssertionError):
        prepare(model, spec, names)


def test_one_module_under_two_names_stays_one():
    model, x = make(0)
    model.alias = model.head
    prepare(model, SPEC, ["head", "alias"])
    assert model.alias is model.head
    before = model(x)
    exact = bake(model)
    assert model.alias is model.head and type(model.head) is nn.Linear
    assert set(exact) == {"head", "alias"}
    torch.testing.assert_close(model(x), before)


@few
@given(
    st.integers(0, 2**32 - 1), st.sampled_from([2, 4, 8]), st.sampled_from(["bfloat16", "float16"])
)
def test_bake_in_float32_is_exact(seed, bits, scale_dtype):
    model, x = make(seed)
    plain = {name: p.detach().clone() for name, p in model.named_parameters()}
    spec = QuantSpec(bits=bits, group_size=32, scale_dtype=scale_dtype)
    names = prepare(model, spec, NAMES)
    before = model(x)
    exact = bake(model)
    assert list(fake_quant_layers(model)) == []
    assert torch.equal(model(x), before)
    assert list(exact) == names
    for name, (codes, scales) in exact.items():
        linear = model.get_submodule(name)
        assert type(linear) is nn.Linear
        assert codes.dtype == torch.int8 and scales.dtype == torch.float32
        assert spec.qmin <= int(codes.min()) and int(codes.max()) <= spec.qmax
        product = codes.double() * scales.double().repeat_interleave(32, 1)
        assert torch.equal(linear.weight.double(), product)
        # No weight is further from where it was than its own group's worst case.
        largest = plain[f"{name}.weight"].unflatten(1, (-1, 32)).abs().amax(-1)
        error = (product - plain[f"{name}.weight"]).unflatten(1, (-1, 32)).abs().amax(-1)
        assert (error <= largest).all()
    assert set(model.state_dict()) == set(plain)


@few
@given(st.integers(0, 2**32 - 1), st.sampled_from([torch.bfloat16, torch.float32]))
def test_bake_of_a_bfloat16_model(seed, dtype):
    model, x = make(seed)
    model.bfloat16()
    prepare(model, SPEC, NAMES)
    before = model(x.bfloat16())
    bias = model.head.bias.detach().clone()
    exact = bake(model, dtype)
    assert model.head.weight.dtype == model.head.bias.dtype == dtype
    assert torch.equal(model.head.bias, bias.to(dtype))
    codes, scales = exact["head"]
    product = codes.double() * scales.double().repeat_interleave(32, 1)
    assert torch.equal(model.head.weight, product.to(dtype))
    if dtype == torch.bfloat16:
        assert torch.equal(model(x.bfloat16()), before)


def test_bake_keeps_frozen_parameters_and_mode():
    model, _ = make(0)
    model.head.requires_grad_(False)
    model.eval()
    prepare(model, SPEC, NAMES)
    bake(model)
    assert not model.head.weight.requires_grad and not model.head.bias.requires_grad
    assert model.blocks[0].up.weight.requires_grad
    assert not model.head.training


def test_bake_without_fake_quantization_is_refused():
    model, _ = make(0)
    for refused, said in (
        (model, "no fake-quantized layer"),
        (FakeQuantLinear.from_linear(model.head, SPEC), "the model itself is a FakeQuantLinear"),
    ):
        with pytest.raises(InputError, match=said):
            bake(refused)


def test_default_names_come_from_the_model_adapter(monkeypatch):
    models = pytest.importorskip("grace.models")
    model, _ = make(0)
    names = {model: ["blocks.0.up", "blocks.1.down"]}
    monkeypatch.setattr(models, "decoder_linears", names.__getitem__)
    assert prepare(model, SPEC) == ["blocks.0.up", "blocks.1.down"]
    assert [name for name, _ in fake_quant_layers(model)] == ["blocks.0.up", "blocks.1.down"]


def test_names_may_come_from_any_sequence_and_are_returned_as_a_list():
    model, _ = make(0)
    assert prepare(model, SPEC, ("head", "blocks.0.up")) == ["head", "blocks.0.up"]
    with pytest.raises(InputError, match="no linear is named"):
        prepare(model, SPEC, ())


def test_baked_layers_keep_shape_bias_and_device():
    model, _ = make(0)
    model.blocks[0].up.bias = None
    prepare(model, SPEC, NAMES)
    bake(model)
    assert model.blocks[0].up.bias is None
    assert (model.head.in_features, model.head.out_features) == (64, 10)
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert not any(p.requires_grad and p.grad_fn for p in model.parameters())
    assert model.head.training and model.blocks[1].down.bias is not None


def test_baking_draws_nothing_at_random():
    """No new layer is initialised: the random numbers of whoever bakes stay the same."""
    model, _ = make(0)
    prepare(model, SPEC, NAMES)
    before = torch.get_rng_state()
    bake(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_baking_leaves_no_graph_and_no_gradient_behind():
    """The scales and codes handed out are data: nothing of the training hangs on to them."""
    model, _ = make(0)
    prepare(model, SPEC, NAMES)
    exact = bake(model)
    for codes, scales in exact.values():
        assert not codes.requires_grad and not scales.requires_grad
