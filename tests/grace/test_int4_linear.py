"""Packed layers as modules: dtypes, dispatch by rows, state, moves, refusals."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from grace.errors import InputError
from grace.int4 import BACKENDS, Int4Linear, Int8Linear
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
    reference, *_ = make(0, "reference")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(reference(x.float()), reference(x))


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
    for text in ("bits=4", "group_size=64", "backend=cpu (the kernel for cpu)", "up to 4 rows"):
        assert text in repr(layer)
    with pytest.warns(UserWarning, match=r"layers\.0\.up"):
        layer, *_ = make(0, inputs=48)
    assert "backend=reference (cpu cannot: groups of 24 are no multiple of 32)" in repr(layer)
    assert layer.product(1) == "dense"


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
    with pytest.raises(RuntimeError, match=r"Missing key.*packed"):
        layer.load_state_dict({k: v for k, v in state.items() if k != "packed"})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*weight"):
        layer.load_state_dict({**state, "weight": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r"packed is torch\.uint8 \(48, 32\)"):
        layer.load_state_dict({**state, "packed": state["packed"][:, :32]})
    broken = state["scales"].clone()
    broken[3, 1] = float("nan")
    with pytest.raises(RuntimeError, match=r"layers\.0\.up: scales hold nan \(row 3, group 1\)"):
        layer.load_state_dict({**state, "scales": broken})
    eight, *_ = make(0, bits=8)
    with pytest.raises(RuntimeError, match=r"packed is torch\.uint8"):
        eight.load_state_dict(state)
    assert torch.equal(layer.codes(), codes)  # as before


@pytest.mark.parametrize("how", ["float", "half", "double", "bfloat16"])
def test_casts_leave_the_packed_weight_alone(how):
    layer, codes, scales, _, x = make(0)
    before, y = {k: v.clone() for k, v in layer.packed_tensors().items()}, layer(x)
    getattr(nn.Sequential(layer), how)()
    for name, tensor in layer.packed_tensors().items():
        assert tensor.dtype == before[name].dtype and torch.equal(tensor, before[name])
    assert layer.bias.dtype == getattr(torch, how)
    assert torch.equal(layer(x), y) and layer.mismatches(codes, scales) == 0
    with pytest.raises(InputError, match="cannot be put on meta"):
        layer.to("meta")
    assert torch.equal(layer(x), y)


def test_a_move_packs_anew_for_the_device(monkeypatch):
    """As `.to("cuda")` would; here the device stays and its back end changes."""
    layer, *_ = make(0)
    moved = []

    def put(self, *weight):
        moved.append([tensor.device.type for tensor in weight])

    monkeypatch.setattr(Int4Linear, "_put", put)

    class Elsewhere:
        """A device that a function of `Module._apply` could name."""

        type = "elsewhere"

    class Probe:
        device = Elsewhere()

    def fn(tensor):
        return Probe() if tensor.numel() == 0 else tensor

    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_, **__: self)
    layer._apply(fn)
    assert moved == [["cpu", "cpu"]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_move_to_cuda_and_back():
    layer, codes, scales, _, x = make(0)
    y = layer(x)
    layer.cuda()
    assert layer.backend == "cuda" and layer.mismatches(codes.cuda(), scales.cuda()) == 0
    assert (layer(x.cuda()).cpu().double() - y).norm() <= 2.0**-6 * y.double().norm()
    layer.cpu()
    assert layer.backend == "cpu" and torch.equal(layer(x), y)


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


def test_bad_input_is_refused_by_name():
    layer, codes, scales, offset, x = make(0)
    with pytest.raises(InputError, match=r"layers\.0\.up: input has shape \(2, 3, 64\)"):
        layer(x[..., :64])
    with pytest.raises(InputError, match=r"dtype torch\.int64"):
        layer(x.long())
    with pytest.raises(InputError, match=r"layers\.0\.up: a packed layer has no gradients"):
        layer(x.clone().requires_grad_())
    with torch.no_grad():
        layer(x.clone().requires_grad_())
    for bias, message in [
        (offset[:5], r"bias has shape \(5,\)"),
        (offset.long(), "dtype torch.int64"),
        (offset * float("nan"), "bias has NaN"),
        (offset.to("meta"), "bias is on meta"),
    ]:
        with pytest.raises(InputError, match=message):
            Int4Linear.from_codes(codes, scales, bias)
    for crossover in (-1, 2.0, True):
        with pytest.raises(InputError, match="crossover is"):
            Int4Linear.from_codes(codes, scales, crossover=crossover)
    with pytest.raises(InputError, match="Int8Linear"):
        Int4Linear.from_codes(codes * 2, scales)
    assert Int8Linear.from_codes(codes * 2, scales).shape == WeightShape(48, 128, 2, 8)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_results_do_not_depend_on_the_rows_beside(backend):
    """Within one product, a row's result is the row's alone."""
    layer, *_, x = make(3, backend, crossover=64)
    rows = x.reshape(-1, 128)
    together = layer(rows)
    for index, row in enumerate(rows):
        assert torch.equal(layer(row), together[index])
