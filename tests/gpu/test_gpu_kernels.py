"""Packed products and decoding on a device, against float64 and against plain steps."""

import copy

import pytest
import torch
from small_llava import prompt, small_llava

from grace.decoding import Decoder
from grace.int4 import Int4Linear, Int8Linear, available, pack
from grace.models import family_of
from grace.quantization import QuantSpec, bake, prepare

pytest_plugins = ["devices"]

LAYERS = {4: Int4Linear, 8: Int8Linear}
ROUNDING = 2.0**-8  # to bfloat16: the largest relative error of one


def drawn(bits: int, group_size: int, rows: int, outputs: int = 80, inputs: int = 512):
    """Codes, scales, bias and inputs as a layer takes them, and the exact weight."""
    generator = torch.Generator().manual_seed(bits * group_size + rows)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    codes = torch.randint(low, high, (outputs, inputs), generator=generator, dtype=torch.int8)
    scales = torch.rand(outputs, inputs // group_size, generator=generator).mul_(0.1).add_(0.01)
    scales = scales.bfloat16().float()
    bias = torch.randn(outputs, generator=generator).bfloat16()
    x = torch.randn(rows, inputs, generator=generator).bfloat16()
    return codes, scales, bias, x, codes.double() * scales.double().repeat_interleave(group_size, 1)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128, 256, 512])
@pytest.mark.parametrize("rows", [1, 5, 16])
@pytest.mark.parametrize("way", ["packed", "dense"])
def test_products_are_within_rounding_of_float64(device, bits, group_size, rows, way):
    """n 2^-24 sum |x w| for sums in float32; a rounding of every weight, at 8 bits of either plane;
    of the product; and of the sum with the bias."""
    codes, scales, bias, x, weight = drawn(bits, group_size, rows)
    layer = LAYERS[bits].from_codes(
        *(one.to(device) for one in (codes, scales, bias)),
        device.type,
        crossover=0 if way == "dense" else rows,
    )
    expected = x.double() @ weight.t() + bias.double()
    # at 8 bits the planes of a code are rounded one by one: 16 |h| + l <= |q| + 30
    widest = weight.abs()
    if bits == 8:
        widest = widest + 30 * scales.double().repeat_interleave(group_size, 1)
    magnitude = x.double().abs() @ widest.t()
    slack = magnitude * (512 * 2.0**-24 + ROUNDING)
    allowed = slack + 2 * ROUNDING * (expected.abs() + bias.double().abs() + slack)
    assert ((layer(x.to(device)).cpu().double() - expected).abs() <= allowed).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, 128, 512])
def test_the_device_s_layout_holds_every_code_and_scale(device, bits, group_size):
    codes, scales, *_ = drawn(bits, group_size, 1)
    layer = LAYERS[bits].from_codes(codes.to(device), scales.to(device), backend=device.type)
    assert layer.backend == device.type
    assert torch.equal(layer.codes().cpu(), codes)
    assert torch.equal(layer.scales().cpu(), scales)


def test_a_layer_moves_to_the_device_and_back(cuda):
    codes, scales, bias, x, _ = drawn(4, 64, 3)
    layer = Int4Linear.from_codes(codes, scales, bias, crossover=4, name="layers.0.up")
    y = layer(x)
    layer.cuda()
    assert layer.backend == "cuda"
    assert layer.mismatches(codes.to(cuda), scales.to(cuda)) == 0
    assert (layer(x.to(cuda)).cpu().double() - y).norm() <= 2.0**-6 * y.double().norm()
    layer.cpu()
    assert layer.backend == "cpu" and torch.equal(layer(x), y)


@pytest.fixture(scope="module")
def packed(device):
    """A small model with packed linears in its decoder, bfloat16."""
    model = small_llava(1).bfloat16().to(device).eval()
    names = family_of("llava").decoder_linears(model)
    prepare(model, QuantSpec(group_size=64, init="max"), names)
    pack(model, bake(model), crossover=8)
    return model


def said(model, rows: int, steps: int, **options) -> torch.Tensor:
    decoder = Decoder(model, rows, 64, **options)
    inputs = {name: value.to(model.device) for name, value in prompt(rows, rows).items()}
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    decoder.prefill(inputs)
    decoder.run(steps)
    return decoder.tokens().cpu()


@pytest.mark.parametrize("rows", [1, 3])
def test_captured_steps_choose_the_tokens_of_plain_ones(cuda, packed, rows):
    assert available(cuda)["cuda"] is None
    captured, plain = (said(packed, rows, 24, capture=choice) for choice in (True, False))
    assert torch.equal(captured, plain)
    assert len(set(captured.flatten().tolist())) > 4  # it says something


@pytest.mark.parametrize("rows", [1, 3])
def test_packed_decoding_chooses_the_tokens_of_generate(packed, rows):
    inputs = {name: value.to(packed.device) for name, value in prompt(rows, rows).items()}
    inputs["pixel_values"] = inputs["pixel_values"].to(packed.dtype)
    with torch.no_grad():
        longer = packed.generate(**inputs, max_new_tokens=9, do_sample=False, eos_token_id=None)
    expected = longer[:, inputs["input_ids"].shape[1] :].cpu()
    assert torch.equal(said(packed, rows, 8, capture=False), expected)


def test_a_graph_serves_one_prompt_after_another(cuda, packed):
    decoder = Decoder(packed, 1, 64)
    assert decoder.captured
    for seed in (1, 2, 3):
        inputs = {name: value.to(cuda) for name, value in prompt(seed, 1).items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(packed.dtype)
        decoder.prefill(copy.copy(inputs))
        decoder.run(8)
        fresh = Decoder(packed, 1, 64)
        fresh.prefill(inputs)
        fresh.run(8)
        assert torch.equal(decoder.tokens(), fresh.tokens())
