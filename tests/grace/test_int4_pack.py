"""Packing whole models: every family, exact codes, the function kept, memory, refusals."""

import copy
import dataclasses
import math
import re

import pytest
import torch
from blocks import Block
from safetensors.torch import load_file, save_file
from storages import LiveBytes
from torch import nn

from grace.errors import InputError
from grace.int4 import (
    BACKENDS,
    Int4Linear,
    Int8Linear,
    PackedLinear,
    effective_bits,
    pack,
)
from grace.int4 import linear as linear_module
from grace.int4.backends import cpu as cpu_module
from grace.models import decoder_linears
from grace.quantization import (
    CODES_FILE,
    CodesFile,
    FakeQuantLinear,
    QuantSpec,
    bake,
    fake_quant_layers,
    prepare,
    write_codes,
)

SPEC = QuantSpec(group_size=64)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


NAMES = ["blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down"]


def randomize(model, seed=0):
    """Biases and norms too: those of a fresh model are zero and one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def prepared(bits=4, dtype=torch.bfloat16, group_size=32):
    torch.manual_seed(0)
    model = randomize(Model()).to(dtype)
    prepare(model, QuantSpec(bits=bits, group_size=group_size), NAMES)
    return model


def exact_of(model):
    return {name: (layer.codes(), layer.scales()) for name, layer in fake_quant_layers(model)}


def in_float64(model):
    """The same function in float64: s * q exactly, everything else as stored."""
    twin = copy.deepcopy(model)
    bake(twin, torch.float64)
    return twin.double()


def tokens(small, rows=2, length=14):
    """A question per row about one image each, as the processor makes it."""
    from PIL import Image

    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (64, 64, 3), generator=generator, dtype=torch.uint8).numpy()
    processor = small.processor
    image = Image.fromarray(pixels)
    content = [{"type": "image"}, {"type": "text", "text": "Is there a red square?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    return processor(text=[text] * rows, images=[image] * rows, return_tensors="pt")


SIDES = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4}


@pytest.mark.parametrize("crossover", [0, 1024], ids=["dense", "packed"])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_packed_model_is_the_trained_function(small, bits, crossover):
    """Logits err at most twice as much as those of the bfloat16 model, against float64."""
    model = randomize(small.model(0)).bfloat16()
    names = prepare(model, QuantSpec(bits=bits, group_size=64))
    batch = tokens(small)
    batch16 = {k: v.bfloat16() if v.is_floating_point() else v for k, v in batch.items()}
    batch64 = {k: v.double() if v.is_floating_point() else v for k, v in batch16.items()}
    with torch.no_grad():
        exact = in_float64(model)(**batch64).logits
        fake = model(**batch16).logits.double()
        codes = exact_of(model)
        assert sorted(pack(model, crossover=crossover)) == sorted(names)
        packed = model(**batch16).logits.double()
    assert not list(fake_quant_layers(model))
    for name in names:
        layer = model.get_submodule(name)
        assert type(layer) is (Int4Linear if bits == 4 else Int8Linear)
        assert layer.backend == "cpu"
        assert torch.equal(layer.codes(), codes[name][0])
        assert torch.equal(layer.scales(), codes[name][1])
    own_error = (fake - exact).norm()
    assert 0 < own_error < 0.1 * exact.norm()
    assert (packed - exact).norm() <= 2 * own_error
    assert (packed - fake).norm() <= 2 * own_error


@pytest.mark.parametrize("group_size", [32, 64, 128, 256, "row"])
def test_every_group_size_and_biases(family, group_size):
    small = family("qwen2_vl")  # its query, key and value projections have biases
    model = randomize(small.model(0, **SIDES))
    prepare(model, QuantSpec(group_size=group_size))
    codes = exact_of(model)
    names = pack(model, backend="cpu")
    biases = [model.get_submodule(name).bias is not None for name in names]
    assert any(biases) and not all(biases)
    for name in names:
        layer = model.get_submodule(name)
        assert layer.mismatches(*codes[name]) == 0
        assert layer.shape.groups == codes[name][1].shape[1]


def test_a_float32_model_on_the_reference_is_the_same_function(small):
    model = randomize(small.model(0))
    prepare(model, SPEC)
    batch = tokens(small)
    with torch.no_grad():
        before = model(**batch).logits
        pack(model, backend="reference")
        torch.testing.assert_close(model(**batch).logits, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_codes_of_other_widths_go_into_the_next_container(bits):
    model = prepared(bits)
    codes = exact_of(model)
    pack(model)
    for name in NAMES:
        layer = model.get_submodule(name)
        assert type(layer) is (Int4Linear if bits <= 4 else Int8Linear)
        assert layer.mismatches(*codes[name]) == 0


def packed_in_eval():
    model = prepared().eval()
    pack(model)
    return model


def test_what_is_no_quantized_linear_stays():
    model = prepared()
    others = {n: p for n, p in model.named_parameters() if "head" in n or "norm" in n}
    biases = {n: p.data_ptr() for n, p in model.named_parameters() if n.endswith("down.bias")}
    model.train()
    assert pack(model) == NAMES
    assert type(model.head) is nn.Linear
    now = dict(model.named_parameters())
    assert set(now) == set(others) | set(biases)
    assert all(now[name] is parameter for name, parameter in others.items())
    assert all(now[name].data_ptr() == place for name, place in biases.items())
    assert not any(parameter.requires_grad for parameter in now.values())
    assert model.blocks[0].up.training
    assert not any(module.training for module in packed_in_eval().modules())
    model(torch.zeros(2, 64, dtype=torch.bfloat16))  # needs no torch.no_grad()


def test_one_module_under_two_names_stays_one():
    model = Model()
    model.blocks[1].up = model.blocks[0].up
    prepare(model, QuantSpec(group_size=32), ["blocks.0.up", "blocks.1.up"])
    assert pack(model) == ["blocks.0.up", "blocks.1.up"]
    assert model.blocks[0].up is model.blocks[1].up
    assert isinstance(model.blocks[0].up, Int4Linear)


def test_one_plain_module_under_two_names_takes_codes_of_both():
    model = Model()
    model.blocks[1].up = model.blocks[0].up
    names = ["blocks.0.up", "blocks.1.up"]
    prepare(model, QuantSpec(group_size=32), names)
    codes = next(iter(bake(model).values()))
    assert pack(model, dict.fromkeys(names, codes), bits=4) == names
    assert all(model.get_submodule(name).mismatches(*codes) == 0 for name in names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_a_plain_model_with_the_file_of_its_codes(tmp_path, small, dtype, bits):
    """What a training stage writes: baked weights, and the integers beside them."""
    model = randomize(small.model(0))
    prepare(model, QuantSpec(bits=bits, group_size=64))
    twin = copy.deepcopy(model)
    exact = bake(model)
    write_codes(tmp_path, exact, QuantSpec(bits=bits, group_size=64).to_dict())
    model = model.to(dtype)
    file = CodesFile(tmp_path / CODES_FILE)
    assert (file.bits, sorted(file)) == (bits, sorted(exact))
    assert pack(model, file, crossover=8) == list(exact)
    pack(twin, crossover=8)
    for name in exact:
        one, other = model.get_submodule(name), twin.get_submodule(name)
        assert type(one) is type(other)
        assert one.mismatches(other.codes(), other.scales()) == 0


def test_a_mapping_says_its_bits():
    model = prepared(8)
    exact = bake(model)
    with pytest.raises(InputError, match=r"outside -8 \.\. 7: quantize to 4 bits"):
        pack(model, exact)
    with pytest.raises(InputError, match="bits is 6: codes are packed in 4 or 8 bits"):
        pack(model, exact, bits=6)
    pack(model, exact, bits=8)
    assert isinstance(model.blocks[0].up, Int8Linear)
    model = prepared(4)
    pack(model, bake(model))
    assert isinstance(model.blocks[0].up, Int4Linear)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_layers_are_made_as_asked(given, backend):
    """With the back end and the crossover, under the layer's own name."""
    model = prepared()
    exact = bake(model) if given else None
    assert pack(model, exact, backend=backend, crossover=5) == NAMES
    for name in NAMES:
        layer = model.get_submodule(name)
        assert layer.name == name and layer.requested == backend
        assert layer.backend == ("cpu" if backend == "auto" else "reference")
        assert layer.crossover_rows() == (5 if backend == "auto" else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 8])
def test_memory_peaks_at_the_larger_of_the_two_models(dtype, bits):
    """Plus the codes and the packed form of one layer, of the smallest."""
    layers, side = 6, 1024
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(side, side) for _ in range(layers)]).to(dtype)
    prepare(model, QuantSpec(bits=bits, init="max"), [str(index) for index in range(layers)])
    live = LiveBytes()
    for tensor in model.state_dict(keep_vars=True).values():
        live.count(tensor)
    del tensor
    before = live.now
    with live:
        pack(model, backend="cpu")
    after = sum(
        tensor.untyped_storage().nbytes()
        for module in model
        for tensor in (*module.packed_tensors().values(), module.bias)
    )
    assert after < 0.6 * before
    assert live.now == after  # nothing of the larger model is left
    codes, form = side * side, side * side * bits // 8
    scratch = 12 * 2**18  # of packing a block, and scales
    assert live.most <= before + codes + form + scratch


def test_small_layers_go_first(monkeypatch):
    """So that what is above the larger model at the start is little."""
    model = nn.Sequential(*[nn.Linear(32 * inputs, 32) for inputs in (3, 1, 4, 2)])
    prepare(model, QuantSpec(group_size=32), ["0", "1", "2", "3"])
    order, make = [], Int4Linear.from_codes.__func__

    def record(cls, *weight, **options):
        order.append(options["name"])
        return make(cls, *weight, **options)

    monkeypatch.setattr(Int4Linear, "from_codes", classmethod(record))
    assert pack(model) == ["0", "1", "2", "3"]
    assert order == ["1", "3", "0", "2"]


@pytest.fixture
def torch_kernel(monkeypatch):
    """torch's kernel in every layer, on machines that compile their own too."""
    monkeypatch.setattr(cpu_module, "compiled", lambda: (None, "not asked for"))


def test_effective_bits_count_what_is_stored(torch_kernel):
    model = prepared(group_size=32)
    plain = effective_bits(model)
    assert [layer.name for layer in plain.layers] == [*NAMES, "head"]
    assert plain.bits == 16 and math.isnan(plain.packed_bits)
    fake, head, total = str(plain).splitlines()[-3:]
    assert fake.startswith(f"{NAMES[-1]}: FakeQuantLinear, 16.000 bits") and "to 4 bits" in fake
    assert head == "head: Linear, 16.000 bits, dense bfloat16"
    assert total == "5 linears: 16.000 bits a weight; 0 packed: nan bits a weight"
    pack(model, crossover=3)
    report = effective_bits(model)
    # 4 bits and, for every 32 weights, a scale and a zero point of 16
    assert [layer.bits for layer in report.layers] == [5.0] * 4 + [16.0]
    assert [layer.weights for layer in report.layers] == [64 * 96] * 4 + [640]
    assert [layer.stored_bytes for layer in report.layers] == [64 * 96 * 5 // 8] * 4 + [1280]
    assert [layer.backend for layer in report.layers] == ["cpu"] * 4 + [None]
    assert report.packed_bits == 5.0
    weights = 4 * 64 * 96
    mean = (5 * weights + 16 * 640) / (weights + 640)
    assert report.bits == pytest.approx(mean)
    assert report.of(iter(NAMES)).bits == 5.0
    assert [layer.name for layer in report.of(["head", NAMES[1]]).layers] == ["head", NAMES[1]]
    with pytest.raises(InputError, match=r"^effective bits: 'blocks' is no linear of the model$"):
        report.of(["blocks"])
    packed, _, total = str(report).splitlines()[-3:]
    assert packed.startswith(f"{NAMES[-1]}: Int4Linear, 5.000 bits, cpu (the kernel for cpu): ")
    assert packed.endswith("; packed product up to 3 rows")
    assert total == f"5 linears: {mean:.3f} bits a weight; 4 packed: 5.000 bits a weight"
    assert report.summary().splitlines() == [
        packed.replace(
            f"{NAMES[-1]}: Int4Linear, 5.000 bits", "4 x Int4Linear: 5.000 bits a weight"
        ),
        "1 x Linear: 16.000 bits a weight, dense bfloat16",
    ]
    for value in (report, report.layers[0]):
        with pytest.raises(dataclasses.FrozenInstanceError):
            value.layers = value.bits = ()


def test_a_report_measures_nothing(monkeypatch, torch_kernel):
    monkeypatch.delenv("GRACE_INT4_CROSSOVER", raising=False)
    monkeypatch.setattr(linear_module, "crossover", None)  # not asked
    model = prepared()
    pack(model)
    how = {layer.how for layer in effective_bits(model).of(NAMES).layers}
    arithmetic = "bfloat16 inputs, float32 accumulation (_weight_int4pack_mm_for_cpu)"
    assert how == {f"cpu (the kernel for cpu): {arithmetic}"}


def test_float32_linears_count_with_their_bits():
    (layer,) = effective_bits(nn.Sequential(nn.Linear(3, 5), nn.ReLU())).layers
    assert (layer.weights, layer.stored_bytes, layer.bits) == (15, 60, 32.0)
    assert (layer.kind, layer.backend, layer.how) == ("Linear", None, "dense float32")


@pytest.mark.parametrize(
    ("bits", "group_size", "backend", "expected"),
    [
        (4, 128, "cpu", 4 + 32 / 128),
        (4, "row", "cpu", 4 + 32 / 256),
        (8, 128, "cpu", 8 + 64 / 128),
        (4, 128, "reference", 4 + 16 / 128),
        (8, 64, "reference", 8 + 16 / 64),
    ],
)
def test_effective_bits_of_back_ends(bits, group_size, backend, expected):
    model = nn.Sequential(nn.Linear(256, 64))
    prepare(model, QuantSpec(bits=bits, group_size=group_size), ["0"])
    pack(model, backend=backend)
    (layer,) = effective_bits(model).layers
    assert (layer.backend, layer.bits) == (backend, expected)


def test_a_layer_that_fell_back_is_named():
    model = nn.Sequential(nn.Linear(64, 24), nn.Linear(64, 32))
    prepare(model, QuantSpec(group_size=32), ["0", "1"])
    with pytest.warns(UserWarning, match=r"linears of 24 x 64.* run on the slow reference"):
        pack(model)
    slow, fast = effective_bits(model).layers
    assert slow.backend == "reference" and "no multiple of 16" in slow.how
    assert fast.backend == "cpu"


def snapshot(model):
    return [(name, id(module)) for name, module in model.named_modules()]


def with_code(exact, name, value):
    codes = exact[name][0].clone()
    codes[1, 2] = value
    return {**exact, name: (codes, exact[name][1])}


def with_scale(exact, name, value):
    scales = exact[name][1].clone()
    scales[1, 0] = value
    return {**exact, name: (exact[name][0], scales)}


def test_bad_codes_leave_the_model_alone():
    model = prepared(dtype=torch.float32)
    exact = bake(model)
    name = NAMES[2]
    codes, scales = exact[name]
    weight = float(model.get_submodule(name).weight.detach()[1, 2])
    scale, code = float(scales[1, 0]), int(codes[1, 2])
    other_code = code + (-1 if code >= 0 else 1)
    unlike = f"{name}: its weight is"
    for wrong, message in [
        ({**exact, "blocks.2.up": exact[name]}, "blocks.2.up, which the model lacks"),
        ({**exact, "blocks.0.norm": exact[name]}, "blocks.0.norm, which is a LayerNorm"),
        ({}, "no codes are given"),
        (with_code(exact, name, 9), f"{name}: codes hold 9, outside -8 .. 7"),
        (
            with_code(exact, name, other_code),
            f"{unlike} {weight} at row 1, input 2, where codes and scales give "
            f"{other_code} x {scale}: ",
        ),
        (with_scale(exact, name, float("nan")), f"{name}: scales hold nan (row 1, group 0)"),
        (
            {**exact, name: exact["blocks.0.down"]},
            f"{name}: codes have shape (64, 96) and the layer's weight (96, 64)",
        ),
        (with_scale(exact, name, 2 * scale), unlike),
        ({**exact, name: (codes, scales[:, :1])}, unlike),
    ]:
        before = snapshot(model)
        with pytest.raises(InputError, match=re.escape(message)):
            pack(model, wrong)
        assert snapshot(model) == before
        assert all(parameter.requires_grad for parameter in model.head.parameters())
    with torch.no_grad():
        model.blocks[1].down.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"^blocks\.1\.down: its weight is nan at row 0, input 0,"):
        pack(model, exact)
    assert isinstance(model.blocks[0].up, nn.Linear)


@pytest.mark.parametrize("row", [0, 300])  # rows are compared by and by
def test_a_weight_may_differ_by_one_rounding_to_eight_bits(row):
    model = nn.Sequential(nn.Linear(1024, 301, bias=False))
    prepare(model, QuantSpec(group_size=256, init="max"), ["0"])
    exact = bake(model)
    codes, scales = exact["0"]
    column = int(codes[row, 512:768].ne(0).nonzero()[0]) + 512
    value = float(codes[row, column]) * float(scales[row, 2])

    weight = model[0].weight.detach()  # of the same memory

    def with_weight(factor):
        weight[row, column] = value * factor

    for sign in (-1, 1):
        with_weight(1 + sign * (2.0**-8 + 2.0**-20))
        with pytest.raises(InputError) as caught:
            pack(model, exact, backend="reference")
        assert str(caught.value).startswith(
            f"0: its weight is {float(weight[row, column])} at row {row}, input {column}, where "
            f"codes and scales give {int(codes[row, column])} x {float(scales[row, 2])}: "
        )
    with_weight(1 + 2.0**-8)  # exactly, in float32
    pack(model, exact, backend="reference")
    assert model[0].mismatches(codes, scales) == 0


def test_models_that_cannot_be_packed_are_left_alone(monkeypatch):
    def refused(message, model, *given, **named):
        with pytest.raises(InputError, match=message):
            pack(model, *given, **named)

    refused("^pack: the model has no fake-quantized layer", Model())
    for layer in (
        FakeQuantLinear.from_linear(nn.Linear(64, 32), QuantSpec(group_size=32)),
        nn.Linear(64, 32),
    ):
        refused("the model itself is a linear", layer)
    model = prepared()
    before = snapshot(model)
    exact, plain = exact_of(model), copy.deepcopy(model)
    bake(plain)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    unavailable = r"^blocks\.0\.up: back end 'cuda' is not available.*use 'cpu' or 'reference'"
    refused(unavailable, model, backend="cuda")
    refused(unavailable, plain, exact, backend="cuda")
    refused(r"^blocks\.0\.up: crossover is -1", model, crossover=-1)
    with pytest.raises(AssertionError):
        pack(model, bits=4)
    with torch.no_grad():
        model.blocks[1].up.log_scale[3, 1] = float("nan")
    refused(r"^blocks\.1\.up: scales hold nan \(row 3, group 1\)", model)
    assert snapshot(model) == before


def test_scales_that_no_kernel_stores_are_refused():
    model = Model()
    prepare(model, QuantSpec(group_size=32, scale_dtype="float32"), NAMES)
    with pytest.raises(InputError, match=r'not representable.*QuantSpec\(scale_dtype="bfloat16"\)'):
        pack(model)
    assert len(list(fake_quant_layers(model))) == 4


def test_a_back_end_that_mixes_up_codes_is_caught(monkeypatch):
    model, backend = prepared(), BACKENDS["cpu"]
    right = type(backend).pack

    def wrong(codes, scales, shape):
        codes = codes.clone()
        codes[0, 0] ^= 1
        return right(backend, codes, scales, shape)

    monkeypatch.setattr(backend, "pack", wrong)
    with pytest.raises(RuntimeError, match=r"^blocks\..*: 1 codes or scales differ .* for cpu"):
        pack(model)


def test_a_packed_model_is_saved_and_loaded(tmp_path):
    model = prepared()
    twin = copy.deepcopy(model)
    pack(model, crossover=4)
    save_file(model.state_dict(), tmp_path / "packed.safetensors")
    with torch.no_grad():
        for layer in (twin.blocks[0].up, twin.head):
            layer.weight.zero_()
    pack(twin, backend="reference")
    twin.load_state_dict(load_file(tmp_path / "packed.safetensors"))
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    torch.testing.assert_close(twin(x), model(x), rtol=2**-6, atol=2**-6)
    for name in NAMES:
        layer = model.get_submodule(name)
        assert twin.get_submodule(name).mismatches(layer.codes(), layer.scales()) == 0


def test_decoder_linears_are_all_that_is_packed(small):
    model = small.model(0)
    names = decoder_linears(model)
    prepare(model, SPEC)
    pack(model)
    packed = [name for name, module in model.named_modules() if isinstance(module, PackedLinear)]
    assert packed == names
    report = effective_bits(model)
    assert report.packed_bits == 4.5 == report.of(names).bits and report.bits > 4.5
