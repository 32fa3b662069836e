"""AutoAWQ's layout, read back by other code, gives what was trained."""

import json
import subprocess
import sys

import awq_layout
import numpy as np
import pytest
import torch
from exported import (
    assert_same_answers,
    config_of,
    published,
    question,
    tensors_of,
    trained,
    vllm_name,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AwqConfig
from transformers.quantizers.quantizer_awq import AwqQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from grace.errors import InputError
from grace.export import load_released, save_awq
from grace.export.packing import awq_zeros, pack_awq, unpack_awq
from grace.quantization import QuantSpec, bake, fake_quant_layers

CODES = st.tuples(st.integers(1, 4), st.integers(1, 40)).flatmap(
    lambda size: hnp.arrays(np.int8, (8 * size[0], size[1]), elements=st.integers(-8, 7))
)
SPECS = [QuantSpec(4, 64), QuantSpec(4, "row", scale_dtype="float16")]


@given(CODES)
@settings(deadline=None, max_examples=60)
def test_layout_is_the_described_one(codes):
    words = pack_awq(torch.from_numpy(codes))
    assert words.dtype == torch.int32 and words.shape == (codes.shape[1], codes.shape[0] // 8)
    assert np.array_equal(awq_layout.read(words.numpy()).T - 8, codes)
    assert np.array_equal(awq_layout.write(codes.T.astype(np.int64) + 8), words.numpy())
    assert torch.equal(unpack_awq(words) - 8, torch.from_numpy(codes).t())
    assert (awq_layout.read(awq_zeros(3, codes.shape[0]).numpy()) == 8).all()


@pytest.mark.parametrize("spec", SPECS, ids=["groups", "rows"])
def test_tensors_hold_codes_and_scales_exactly(small, tmp_path, spec):
    model = trained(small, spec)
    save_awq(model, tmp_path / "out")
    stored = tensors_of(tmp_path / "out")
    for name, layer in fake_quant_layers(model):
        parts = [stored.pop(f"{published(small.name, name)}.{part}") for part in PARTS]
        qweight, qzeros, scales = parts
        assert [part.dtype for part in parts] == [torch.int32, torch.int32, torch.float16]
        groups = layer.scales().shape[1]
        assert qweight.shape == (layer.in_features, layer.out_features // 8)
        assert qzeros.shape == (groups, layer.out_features // 8)
        assert torch.equal(scales.float(), layer.scales().t())
        assert np.array_equal(awq_layout.read(qweight.numpy()).T - 8, layer.codes().numpy())
        dense = awq_layout.weight(*(part.numpy() for part in parts))
        assert np.array_equal(dense, layer.dequantized(torch.float32).double().numpy())
    assert not [name for name in stored if name.endswith(PARTS)]
    assert all(value.dtype == torch.float16 for value in stored.values())


PARTS = ("qweight", "qzeros", "scales")


# In a process of its own, for importing the library changes transformers.
AUTO_ROUND = """
import sys
import torch
import grace
from safetensors.torch import load_file, save_file
from auto_round.export.export_to_awq.utils import WQLinear_GEMM, dequantize_gemm

stored, inputs, results = load_file(sys.argv[1]), load_file(sys.argv[2]), {}
for name, x in inputs.items():
    bias, words = f"{name}.bias" in stored, stored[f"{name}.qweight"]
    linear = WQLinear_GEMM(4, 32, words.shape[0], words.shape[1] * 8, bias, "cpu")
    linear.load_state_dict({part: stored[f"{name}.{part}"] for part in linear.state_dict()})
    dense = dequantize_gemm(linear.qweight, linear.qzeros, linear.scales, 4, 32)
    results |= {f"{name}.weight": dense.t().contiguous(), f"{name}.output": linear(x)}
save_file(results, sys.argv[3])
"""


@pytest.mark.slow
def test_auto_rounds_linear_computes_the_trained_function(family, tmp_path):
    """A second library's AWQ linear, given the tensors of the checkpoint."""
    small = family("qwen2_vl")
    model = trained(small, QuantSpec(4, 32))
    save_awq(model, tmp_path / "out")
    generator = torch.Generator().manual_seed(1)
    layers = {published(small.name, name): layer for name, layer in fake_quant_layers(model)}
    inputs = {
        name: torch.randn(1, 5, layer.in_features, generator=generator).half()
        for name, layer in layers.items()
    }
    save_file(inputs, tmp_path / "inputs")
    files = [tmp_path / "out" / "model.safetensors", tmp_path / "inputs", tmp_path / "results"]
    subprocess.run([sys.executable, "-c", AUTO_ROUND, *map(str, files)], check=True)
    results = load_file(tmp_path / "results")
    for name, layer in layers.items():
        half = layer.dequantized(torch.float16)
        assert torch.equal(results[f"{name}.weight"], half)
        bias = None if layer.bias is None else layer.bias.half()
        expected = nn.functional.linear(inputs[name], half, bias)
        # the matrices are the same; the products add in another order
        torch.testing.assert_close(results[f"{name}.output"], expected, rtol=2e-3, atol=2e-3)


def test_a_model_rebuilt_from_the_tensors_gives_the_same_answers(small, conversations, tmp_path):
    model = trained(small, QuantSpec(4, 64))
    save_awq(model, tmp_path / "out", dtype=torch.float32)
    stored = tensors_of(tmp_path / "out")
    names = json.loads((tmp_path / "out" / "awq_quantized_modules.json").read_text())["modules"]
    for name in names:
        parts = [stored.pop(f"{name}.{part}").numpy() for part in PARTS]
        stored[f"{name}.weight"] = torch.from_numpy(awq_layout.weight(*parts)).float()
    loaded = type(model).from_pretrained(None, config=model.config, state_dict=stored).eval()
    assert not hasattr(loaded, "hf_quantizer")
    loaded.generation_config = model.generation_config
    assert_same_answers(model, loaded, question(small, model, conversations))


def test_codes_survive_export_and_reload(small, conversations, tmp_path):
    model = trained(small, QuantSpec(4, 64))
    save_awq(model, tmp_path / "out", dtype=torch.float32)
    loaded = load_released(tmp_path / "out").eval()
    mine, theirs = dict(fake_quant_layers(model)), dict(fake_quant_layers(loaded))
    assert mine.keys() == theirs.keys()
    for name, layer in mine.items():
        assert torch.equal(theirs[name].codes(), layer.codes())
        assert torch.equal(theirs[name].scales(), layer.scales())
    assert_same_answers(model, loaded, question(small, model, conversations))
    save_awq(loaded, tmp_path / "again", dtype=torch.float32)
    first, second = (tensors_of(tmp_path / name) for name in ("out", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_configuration_names_exactly_the_quantized_linears(small, tmp_path):
    """By the rules of transformers' loader and of vLLM's, in the names of each."""
    plain = small.model()
    everything = [name for name, module in plain.named_modules() if isinstance(module, nn.Linear)]
    some = [name for name in everything if ".layers.1." in name and "language_model" in name][:5]
    for names, size in ((None, 64), (some, "row")):
        model = trained(small, QuantSpec(4, size), names=names)
        save_awq(model, tmp_path / "out", overwrite=True)
        quantized = [name for name, _ in fake_quant_layers(model)]
        entry = config_of(tmp_path / "out")["quantization_config"]
        assert {**entry, "modules_to_not_convert": None} == {
            "quant_method": "awq",
            "version": "gemm",
            "bits": 4,
            "group_size": -1 if size == "row" else size,
            "zero_point": True,
            "modules_to_not_convert": None,
        }
        config = AwqConfig.from_dict(entry)
        skipped = config.modules_to_not_convert
        keys = AwqQuantizer.get_modules_to_not_convert(plain, skipped, None, add_default_skips=True)
        assert [name for name in everything if should_convert_module(name, keys)] == quantized
        for spell in (vllm_name, lambda name: published(small.name, name)):
            kept = [name for name in everything if not any(s in spell(name) for s in skipped)]
            assert kept == quantized


def test_a_baked_model_with_its_codes_exports_the_same_bytes(family, tmp_path):
    model = trained(family("llava"), QuantSpec(4, 64))
    save_awq(model, tmp_path / "one")
    codes = bake(model)
    save_awq(model, tmp_path / "two", codes=codes)
    for file in ("model.safetensors", "config.json", "awq_quantized_modules.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def set_scale(model, scale):
    layer = next(fake_quant_layers(model))[1]
    layer.log_scale.data[1, 0] = np.log(scale)
    assert layer.scales()[1, 0] == scale


@pytest.mark.parametrize("scale", [65280.0, 2.0**-14 * 1.0078125, 2.0**-17 * 1.9921875])
def test_bfloat16_scales_are_stored_exactly(family, tmp_path, scale):
    model = trained(family("qwen2_vl"), QuantSpec(4, 64))
    set_scale(model, scale)
    save_awq(model, tmp_path / "out")
    name = f"{published('qwen2_vl', next(fake_quant_layers(model))[0])}.scales"
    assert tensors_of(tmp_path / "out")[name][0, 1].item() == scale


@pytest.mark.parametrize("scale", [65536.0, 2.0**-18 * 1.0078125, 2.0**-30])
def test_scales_out_of_range_are_refused_by_name(family, tmp_path, scale):
    model = trained(family("qwen2_vl"), QuantSpec(4, 64))
    set_scale(model, scale)
    with pytest.raises(InputError, match=r"layers.0.self_attn.q_proj.scales: scale .*float16"):
        save_awq(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    if scale == 2.0**-18 * 1.0078125:  # loses bits only
        save_awq(model, tmp_path / "out", round_scales=True)
    else:
        with pytest.raises(InputError, match=r"q_proj.scales: scale .*range"):
            save_awq(model, tmp_path / "out", round_scales=True)


def test_what_the_layout_cannot_hold_is_refused(family, tmp_path):
    small = family("qwen2_vl")

    def refuse(model, message, **options):
        with pytest.raises(InputError, match=message):
            save_awq(model, tmp_path / "out", **options)
        assert not list(tmp_path.iterdir())

    refuse(trained(small, QuantSpec(8, 64)), "8 bits: the layout has 4")
    refuse(trained(small, QuantSpec(4, 64)), "dtype is torch.int8", dtype=torch.int8)
    odd = trained(small, QuantSpec(4, "row"), intermediate_size=132)
    refuse(odd, r"mlp\.\w+_proj: 132 output features are no multiple of 8")
    refuse(small.model(), "nothing is quantized")
