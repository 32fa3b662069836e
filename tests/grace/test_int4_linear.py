"""Packed layers as modules: dtypes, dispatch by rows, state, moves, refusals."""

import copy
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from grace.errors import InputError
from grace.int4 import BACKENDS, Int4Linear, Int8Linear
from grace.int4 import linear as linear_module
from grace.int4.backends.cpu import native_layout
from grace.int4.crossover import Crossover, forget
from grace.int4.layouts import WeightShape

few = settings(deadline=None, max_examples=10)
seeds = st.integers(0, 2**32 - 1)
CLASSES = {4: Int4Linear, 8: Int8Linear}


def draw(seed, *, bits=4, outputs=48, inputs=128, groups=2, bias=True):
    generator = torch.Generator().manual_seed(seed)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    codes = torch.randint(low, high, (outputs, inputs), generator=generator, dtype=torch.int8)
    scales = torch.rand(outputs, groups, generator=generator).mul_(0.1).add_(0.01).bfloat16()
    offset = torch.randn(outputs, generator=generator).bfloat16() if bias else None
    x = torch.randn(2, 3, inputs, generator=generator).bfloat16()
    return codes, scales, offset, x


def exact_weight(codes, scales):
    return codes.double() * scales.double().repeat_interleave(codes.shape[1] // scales.shape[1], 1)


def make(seed, backend="auto", crossover=4, **sizes):
    codes, scales, offset, x = draw(seed, **sizes)
    layer = CLASSES[sizes.get("bits", 4)].from_codes(
        codes, scales, offset, backend, crossover=crossover, name="layers.0.up"
    )
    return layer, codes, scales, offset, x


@few
@given(
    seeds,
    st.sampled_from([4, 8]),
    st.sampled_from([(32, 1), (64, 2), (128, 4), (128, 1), (256, 1), (512, 2)]),
    st.integers(1, 6),
    st.booleans(),
    st.sampled_from(["cpu", "reference"]),
)
def test_from_codes_keeps_every_code_and_scale(seed, bits, sides, sixteens, bias, backend):
    inputs, groups = sides
    layer, codes, scales, offset, x = make(
        seed, backend, bits=bits, outputs=16 * sixteens, inputs=inputs, groups=groups, bias=bias
    )
    assert torch.equal(layer.codes(), codes)
    assert torch.equal(layer.scales(), scales.float())
    assert (layer.codes().dtype, layer.scales().dtype) == (torch.int8, torch.float32)
    assert layer.mismatches(codes, scales) == 0
    assert (layer.backend, layer.reason) == (backend, "asked for by name")
    expected = x.double() @ exact_weight(codes, scales).t() + (0 if offset is None else offset)
    y = layer(x)
    assert (y.shape, y.dtype) == ((2, 3, 16 * sixteens), torch.bfloat16)
    assert (y.double() - expected).norm() <= 2.0**-7 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_kernels_take_bfloat16_and_give_the_inputs_dtype(dtype):
    layer, *_, x = make(0)
    y = layer(x.to(dtype))
    assert y.dtype == dtype
    assert torch.equal(y, layer(x).to(dtype))  # x is exact in bfloat16
    fine = x.to(dtype) * 1.001
    assert torch.equal(layer(fine), layer(fine.bfloat16()).to(dtype))


def test_autocast_decides_the_results_dtype():
    layer, *_, x = make(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x.float()), layer(x)) and layer(x.float()).dtype == torch.bfloat16
    reference, codes, scales, offset, _ = make(0, "reference")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = reference(x.float())
        assert torch.equal(result, reference(x)) and result.dtype == torch.bfloat16
    # the product itself is not autocast's: rounded once
    exact = x.double() @ exact_weight(codes, scales).t() + offset.double()
    torch.testing.assert_close(result.double(), exact, rtol=2.0**-8 * 1.001, atol=1e-5)


def test_rows_decide_the_product(monkeypatch):
    layer, *_ = make(0, "cpu", crossover=4)
    backend, called = BACKENDS["cpu"], []
    for name in ("packed", "dense"):
        monkeypatch.setattr(
            backend,
            name,
            lambda x, *rest, name=name: called.append((name, len(x))) or x.new_zeros(len(x), 48),
        )
    for shape in [(1, 128), (4, 128), (2, 2, 128), (5, 128), (1, 9, 128), (128,), (0, 128)]:
        y = layer(torch.zeros(shape, dtype=torch.bfloat16))
        assert y.shape == (*shape[:-1], 48)
    assert called == [
        ("packed", 1),
        ("packed", 4),
        ("packed", 4),
        ("dense", 5),
        ("dense", 9),
        ("packed", 1),
    ]
    assert layer.product(4) == "packed" and layer.product(5) == "dense"
    assert make(0, "cpu", crossover=0)[0].product(1) == "dense"
    assert make(0, "reference")[0].product(1) == "dense"


def test_the_environment_decides_where_no_argument_does(monkeypatch):
    monkeypatch.setenv("GRACE_INT4_CROSSOVER", "7")
    layer, *_ = make(0, crossover=None)
    assert layer.crossover_rows() == 7
    assert make(0, crossover=2)[0].crossover_rows() == 2
    assert make(0, "reference", crossover=None)[0].crossover_rows() is None
    monkeypatch.setenv("GRACE_INT4_CROSSOVER", "many")
    with pytest.raises(InputError, match="GRACE_INT4_CROSSOVER is 'many'"):
        make(0, crossover=None)


def test_it_says_what_it_runs():
    layer, *_ = make(0)
    assert repr(layer) == (
        "Int4Linear(in_features=128, out_features=48, bias=True, bits=4, group_size=64, "
        "backend=cpu (the kernel for cpu), packed up to 4 rows)"
    )
    with pytest.warns(UserWarning, match=r"^linears of 48 x 48, 8 bits"):
        layer, *_ = make(0, bits=8, inputs=48, bias=False)
    assert repr(layer) == (
        "Int8Linear(in_features=48, out_features=48, bias=False, bits=8, group_size=24, "
        "backend=reference (cpu cannot: groups of 24 are no multiple of 32))"
    )
    assert layer.product(1) == "dense"
    assert layer.arithmetic == "float32 product of the exact weight"


def test_another_weight_is_measured_anew(monkeypatch):
    """Asked again after a weight was loaded, or where there are other threads."""
    rows, asked = iter([24, 8, 16]), []

    def crossover(backend, buffers, shape, up_to):
        asked.append((backend, buffers, shape))
        return Crossover(next(rows), 512)

    monkeypatch.delenv("GRACE_INT4_CROSSOVER", raising=False)
    monkeypatch.setattr(linear_module, "crossover", crossover)
    layer, *_ = make(0, "cpu", crossover=None)
    assert layer.product(0) == layer.product(1) == "packed" and "rows" not in repr(layer)
    assert not asked
    assert layer.product(2) == "packed" and layer.crossover_rows() == 24
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert layer.crossover_rows(measure=False) is None
    assert layer.crossover_rows() == 8 == layer.crossover_rows(measure=False)
    layer.load_state_dict(make(1, groups=1)[0].state_dict())
    assert layer.crossover_rows(measure=False) is None
    assert layer.crossover_rows() == 16
    shapes = [WeightShape(48, 128, groups, 4) for groups in (2, 2, 1)]
    assert [shape for *_, shape in asked] == shapes
    for backend, buffers, _ in asked:
        assert backend is BACKENDS["cpu"] and set(buffers) == {"packed", "scales_and_zeros"}
    assert all(asked[-1][1][key] is value for key, value in layer.packed_tensors().items())


@few
@given(seeds, st.sampled_from([4, 8]), st.booleans(), st.permutations(["cpu", "reference"]))
def test_state_dict_round_trip_from_one_back_end_to_another(seed, bits, bias, order):
    source, codes, scales, offset, x = make(seed, order[0], bits=bits, bias=bias)
    target, *_ = make(seed ^ 1, order[1], bits=bits, bias=bias)
    state = source.state_dict()
    assert set(state) == {"packed", "scales"} | ({"bias"} if bias else set())
    assert state["scales"].dtype == torch.bfloat16
    assert state["packed"].numel() == codes.numel() * bits // 8
    target.load_state_dict(state)
    assert torch.equal(target.codes(), codes) and torch.equal(target.scales(), scales.float())
    assert not bias or torch.equal(target.bias, offset)
    again, *_ = make(seed, order[1], bits=bits, bias=bias)
    assert torch.equal(target(x), again(x))
    # and within a parent, to another group size
    coarse = nn.Sequential(make(seed ^ 2, order[1], bits=bits, bias=bias, groups=1)[0])
    coarse.load_state_dict(nn.Sequential(source).state_dict())
    assert torch.equal(coarse[0].scales(), scales.float())
    assert coarse[0].shape.groups == 2


def test_a_state_dict_that_does_not_fit_is_refused():
    layer, codes, *_ = make(0)
    state = layer.state_dict()

    def refused(layer, state, message):
        with pytest.raises(RuntimeError, match=message):
            layer.load_state_dict(state)

    for absent in (["packed"], ["scales"], ["packed", "scales"]):
        names = ", ".join(f'"{name}"' for name in absent)
        rest = {k: v for k, v in state.items() if k not in absent}
        refused(layer, rest, rf"Missing key\(s\) in state_dict: {names}\.")
    refused(layer, {**state, "weight": torch.zeros(1)}, r'Unexpected key\(s\).*"weight"')
    held = r"and the layer needs torch\.uint8 \(48, 64\)"
    for packed in (state["packed"][:, :32], state["packed"].to(torch.int8)):
        what = re.escape(f"layers.0.up: packed is {packed.dtype} {tuple(packed.shape)} ")
        refused(layer, {**state, "packed": packed}, what + held)
    broken = state["scales"].clone()
    broken[3, 1] = float("nan")
    refused(layer, {**state, "scales": broken}, r"up: scales hold nan \(row 3, group 1\)")
    refused(make(0, bits=8)[0], state, r"uint8 \(48, 64\) .* torch\.int8 \(48, 128\)")
    nameless = Int4Linear.from_codes(codes, layer.scales())
    cut = {"packed": state["packed"][:, :32], "scales": state["scales"]}
    refused(nameless, cut, r"\tlinear: packed is torch\.uint8 \(48, 32\)")
    assert torch.equal(layer.codes(), codes)  # as before


def test_an_odd_number_of_inputs_is_saved_and_loaded():
    codes, scales, *_ = draw(0, inputs=129, groups=3)
    layer, other = (
        Int4Linear.from_codes(c, scales, None, "reference") for c in (codes, -1 - codes)
    )
    state = layer.state_dict()
    assert state["packed"].shape == (48, 65)
    other.load_state_dict(state)
    assert torch.equal(other.codes(), codes)


def test_a_parent_saves_and_loads_by_name():
    layer, codes, _, offset, _ = make(0)
    state = nn.ModuleDict({"up": layer}).state_dict()
    assert set(state) == {"up.packed", "up.scales", "up.bias"}
    assert not state["up.bias"].is_set_to(torch.empty(0)) and state["up.bias"] is not layer.bias
    assert layer.state_dict(keep_vars=True)["bias"] is layer.bias
    other = nn.ModuleDict({"up": make(1)[0]})
    other.load_state_dict(state)
    assert torch.equal(other["up"].codes(), codes) and torch.equal(other["up"].bias, offset)
    result = other.load_state_dict({**state, "up.weight": offset}, strict=False)
    assert result.unexpected_keys == ["up.weight"] and result.missing_keys == []
    state.pop("up.bias")
    assert other.load_state_dict(state, strict=False).missing_keys == ["up.bias"]
    with pytest.raises(RuntimeError, match=r"size mismatch for up\.bias"):
        other.load_state_dict({**state, "up.bias": offset[:-1]})


def test_a_weight_that_only_the_reference_takes_changes_the_back_end():
    """Nothing of the one before stays."""
    layer, *_ = make(0)
    fine, codes, scales, _, _ = make(1, "reference", groups=8)  # of 16 inputs
    with pytest.warns(UserWarning, match="groups of 16"):
        layer.load_state_dict(fine.state_dict())
    assert layer.backend == "reference" and set(layer.packed_tensors()) == {"packed", "scale"}
    assert {name for name, _ in layer.named_buffers()} == {"packed", "scale"}
    assert layer.mismatches(codes, scales) == 0


@pytest.mark.parametrize("how", ["float", "half", "double", "bfloat16"])
def test_casts_leave_the_packed_weight_alone(how):
    layer, codes, scales, _, x = make(0)
    before, y = {k: v.clone() for k, v in layer.packed_tensors().items()}, layer(x)
    getattr(nn.Sequential(layer), how)()
    for name, tensor in layer.packed_tensors().items():
        assert tensor.dtype == before[name].dtype and torch.equal(tensor, before[name])
    assert layer.bias.dtype == getattr(torch, how)
    assert torch.equal(layer(x), y) and layer.mismatches(codes, scales) == 0
    for name, label in (("layers.0.up", "layers.0.up"), ("", "linear")):
        layer.name = name
        with pytest.raises(InputError, match=rf"^{label}: packed codes cannot be put on meta$"):
            layer.to("meta")
    assert torch.equal(layer(x), y)


class Elsewhere:
    """A device that a function of `Module._apply` could name."""

    type = "elsewhere"

    def __str__(self):
        return self.type


def to_elsewhere(tensor):
    """The device of tensors without elements is asked for; others stay where they are."""
    assert tensor.device.type == "cpu"
    return type("Probe", (), {"device": Elsewhere()}) if tensor.numel() == 0 else tensor


def test_a_move_packs_anew_for_the_device(monkeypatch):
    """As `.to("cuda")` would; here the device stays and its back end changes."""
    layer, codes, scales, _, x = make(0)
    y, moved, targets = layer(x), [], []
    put, to = layer._put, torch.Tensor.to

    def move(tensor, target):
        if not isinstance(target, Elsewhere):
            return to(tensor, target)
        targets.append(target)
        return tensor

    with monkeypatch.context() as patch:
        patch.setattr(Int4Linear, "_put", lambda self, *weight: moved.append(weight))
        patch.setattr(torch.Tensor, "to", move)
        assert layer._apply(to_elsewhere) is layer
    ((new_codes, new_scales),) = moved
    assert torch.equal(new_codes, codes) and torch.equal(new_scales, scales.float())
    assert len(targets) == 2
    put(new_codes, new_scales)
    assert torch.equal(layer(x), y)


@pytest.mark.parametrize("outputs", [48, 128])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_default_device_concerns_no_layer(backend, outputs, monkeypatch, tmp_path):
    """Codes, scales and inputs say where it is, whatever `torch.set_default_device` says."""
    monkeypatch.setenv("GRACE_CACHE", str(tmp_path))
    layer, codes, scales, offset, x = make(0, backend, crossover=0, outputs=outputs)
    y = layer(x)
    native_layout.cache_clear()
    forget()
    with torch.device("meta"):
        assert layer.float() is layer and torch.equal(layer(x), y)
        other = Int4Linear.from_codes(codes, scales, offset, backend)
        assert other.mismatches(codes, scales) == 0
        other.load_state_dict(layer.state_dict())
        other(x)  # measured
    fixed = Int4Linear.from_codes(codes, scales, offset, backend, crossover=0)
    assert torch.equal(fixed(x), y)


def test_a_failed_move_leaves_the_layer_as_it_was():
    layer, codes, *_, x = make(0)
    y = layer(x)

    def fails(tensor):
        if tensor.numel():
            raise RuntimeError("out of memory")
        return tensor

    with pytest.raises(RuntimeError, match="out of memory"):
        layer._apply(fails)
    assert torch.equal(layer.codes(), codes) and torch.equal(layer(x), y)


def test_copies_are_independent():
    layer, codes, _, _, x = make(0)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x))
    twin.load_state_dict(make(1)[0].state_dict())
    assert torch.equal(layer.codes(), codes) and not torch.equal(twin.codes(), codes)


def test_parameters_are_the_bias_alone_and_shared():
    codes, scales, offset, _ = draw(0)
    layer = Int4Linear.from_codes(codes, scales, offset)
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    assert layer.bias.data_ptr() == offset.data_ptr() and not layer.bias.requires_grad
    assert list(Int4Linear.from_codes(codes, scales).parameters()) == []


@pytest.mark.parametrize(("name", "label"), [("layers.0.up", "layers.0.up"), ("", "linear")])
def test_bad_input_is_refused_by_name(name, label):
    codes, scales, offset, x = draw(0)
    layer = Int4Linear.from_codes(codes, scales, offset, crossover=0, name=name)

    def refused(sentence, call, *given, **named):
        with pytest.raises(InputError, match=re.escape(f"{label}: {sentence}")):
            call(*given, **named)

    for wrong in (x[..., :64], x.long()):
        with pytest.raises(AssertionError):
            layer(wrong)
    refused("a packed layer has no gradients", layer, x.clone().requires_grad_())
    with torch.no_grad():
        layer(x.clone().requires_grad_())
    for bias, sentence in [
        (offset[:5], "bias has shape (5,) and dtype torch.bfloat16"),
        (offset.long(), "bias has shape (48,) and dtype torch.int64"),
        (offset * float("nan"), "bias has NaN or infinite values"),
        (offset * float("inf"), "bias has NaN or infinite values"),
        (offset.to("meta"), "bias is on meta, codes on cpu"),
    ]:
        refused(sentence, Int4Linear.from_codes, codes, scales, bias, name=name)
    for rows in (-1, 2.0, True):
        sentence = f"crossover is {rows!r}: give a number of rows, 0 or more"
        refused(sentence, Int4Linear.from_codes, codes, scales, crossover=rows, name=name)
    assert layer.crossover_rows() == 0
    worst = int((codes * 2).max()) if (codes * 2).min() >= -8 else int((codes * 2).min())
    sentence = f"codes hold {worst}, outside -8 .. 7: "
    refused(sentence, Int4Linear.from_codes, codes * 2, scales, name=name)
    assert Int8Linear.from_codes(codes * 2, scales).shape == WeightShape(48, 128, 2, 8)


@pytest.mark.parametrize("crossover", [0, 8], ids=["dense", "packed"])
def test_inputs_that_are_not_contiguous_and_inputs_of_no_rows(crossover):
    layer, *_, x = make(0, "cpu", crossover=crossover)
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(layer(turned), layer(x))
    for dtype in (torch.float32, torch.bfloat16):
        y = layer(torch.zeros(2, 0, 128, dtype=dtype))
        assert (y.shape, y.dtype, y.device.type) == ((2, 0, 48), dtype, "cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.zeros(0, 128)).dtype == torch.bfloat16


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_results_do_not_depend_on_the_rows_beside(backend):
    """Within one product, a row's result is the row's alone."""
    layer, *_, x = make(3, backend, crossover=64)
    rows = x.reshape(-1, 128)
    together = layer(rows)
    for index, row in enumerate(rows):
        assert torch.equal(layer(row), together[index])
