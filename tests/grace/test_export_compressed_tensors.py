"""What compressed-tensors and transformers read is what was trained."""

import re
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.utils import match_named_modules
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
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from grace.errors import InputError
from grace.export import save_compressed_tensors
from grace.export.checkpoint import published_names
from grace.export.packing import pack_words
from grace.int4.layouts import WeightShape, pack_plain, unpack_plain
from grace.quantization import QuantSpec, bake, fake_quant_layers, prepare

SPECS = [QuantSpec(4, 64), QuantSpec(8, "row", scale_dtype="float16")]


def load(path):
    """Loaded with nothing but its path, and unpacked, as the first forward pass would."""
    model = AutoModelForImageTextToText.from_pretrained(path).eval()
    model.hf_quantizer.compressor.decompress_model(model)
    return model


@given(st.data(), st.sampled_from([4, 8]), st.integers(1, 5), st.integers(1, 70))
@settings(deadline=None, max_examples=60)
def test_words_are_those_of_compressed_tensors(data, bits, rows, columns):
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    values = st.lists(st.integers(low, high), min_size=rows * columns, max_size=rows * columns)
    codes = torch.tensor(data.draw(values), dtype=torch.int8).view(rows, columns)
    assert torch.equal(pack_words(codes, bits), pack_to_int32(codes, bits))


@given(st.integers(0, 2**32 - 1), st.sampled_from([4, 8]), st.integers(1, 7), st.integers(1, 9))
@settings(deadline=None, max_examples=20)
def test_their_words_are_the_plain_layout_of_packed_layers(seed, bits, rows, eights):
    """From a word's lowest bits on; only that there 8-bit codes are unsigned."""
    from compressed_tensors.compressors.pack_quantized import helpers

    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(low, high, (rows, 8 * eights), generator=generator, dtype=torch.int8)
    words, unsigned = helpers.pack_to_int32(codes, bits), 128 if bits == 8 else 0
    theirs = words.view(torch.uint8) ^ unsigned
    packed = pack_plain(codes, bits)
    assert torch.equal(packed.view(torch.uint8), theirs)
    shape = WeightShape(rows, 8 * eights, 1, bits)
    assert torch.equal(unpack_plain(theirs.view(packed.dtype), shape), codes)
    mine = (packed.view(torch.uint8) ^ unsigned).view(torch.int32)
    assert torch.equal(helpers.unpack_from_int32(mine, bits, codes.shape), codes)


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS, ids=["int4", "int8"])
def test_transformers_loads_the_same_function(small, conversations, tmp_path, spec):
    model = trained(small, spec)
    save_compressed_tensors(model, tmp_path / "out", processor=small.processor)
    loaded = load(tmp_path / "out")
    quantized = dict(fake_quant_layers(model))
    assert len(quantized) == 14
    theirs = dict(loaded.named_parameters())
    for name, mine in model.named_parameters():
        layer = quantized.get(name.rpartition(".")[0])
        if name.endswith("log_scale"):
            continue
        expected = layer.dequantized() if layer and name.endswith("weight") else mine
        assert torch.equal(theirs[name], expected), name
    assert_same_answers(model, loaded, question(small, model, conversations))
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert type(processor) is type(small.processor)


def test_the_first_forward_pass_unpacks_by_itself(family, conversations, tmp_path):
    small = family("qwen2_vl")
    model = trained(small, SPECS[0])
    save_compressed_tensors(model, tmp_path / "out")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    assert_same_answers(model, loaded, question(small, model, conversations))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_dtype_keeps_codes_and_scales(small, tmp_path, dtype):
    """Codes come from the float32 weights; the product is rounded once."""
    model = trained(small, QuantSpec(4, 32))
    save_compressed_tensors(model, tmp_path / "out", dtype=dtype)
    loaded = load(tmp_path / "out")
    assert loaded.dtype == dtype
    for name, layer in fake_quant_layers(model):
        module = loaded.get_submodule(name)
        assert torch.equal(module.weight, layer.dequantized(dtype)), name
        assert torch.equal(module.weight_scale.float(), layer.scales())
    head = model.model.language_model.norm.weight
    assert torch.equal(loaded.model.language_model.norm.weight, head.to(dtype))


@pytest.mark.parametrize("spec", SPECS, ids=["int4", "int8"])
def test_the_file_is_what_compressed_tensors_itself_writes(small, tmp_path, spec):
    model = trained(small, spec)
    save_compressed_tensors(model, tmp_path / "out")
    config = QuantizationConfig.model_validate(config_of(tmp_path / "out")["quantization_config"])
    (scheme,) = config.config_groups.values()
    compressor = BaseCompressor.get_value_from_registry(scheme.format)
    stored = tensors_of(tmp_path / "out")
    for name, layer in fake_quant_layers(model):
        prefix = published(small.name, name) + "."
        mine = {
            key.removeprefix(prefix): value
            for key, value in stored.items()
            if key.startswith(prefix) and not key.endswith("bias")
        }
        dense = {"weight": layer.dequantized(torch.float32), "weight_scale": layer.scales()}
        theirs = compressor.compress(dense, scheme)
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            assert mine[key].dtype == value.dtype and torch.equal(mine[key], value), key
        assert torch.equal(compressor.decompress(mine, scheme)["weight"], dense["weight"])


def test_configuration_names_exactly_the_quantized_linears(small, tmp_path):
    """In transformers' names, in the published ones and in vLLM's."""
    plain = small.model()
    everything = [name for name, module in plain.named_modules() if isinstance(module, nn.Linear)]
    some = [name for name in everything if ".layers.1." in name and "language_model" in name][:5]
    for names in (None, some):
        model = trained(small, QuantSpec(4, 64), names=names)
        save_compressed_tensors(model, tmp_path / "out", overwrite=True)
        quantized = [name for name, _ in fake_quant_layers(model)]
        entry = config_of(tmp_path / "out")["quantization_config"]
        config = QuantizationConfig.model_validate(entry)
        matched = match_named_modules(plain, ["Linear"], config.ignore)
        assert [name for name, _ in matched] == quantized
        patterns = [pattern.removeprefix("re:") for pattern in config.ignore]
        for spell in (vllm_name, lambda name: published(small.name, name)):
            kept = [
                name
                for name in everything
                if not any(re.match(pattern, spell(name)) for pattern in patterns)
            ]
            assert kept == quantized
        embedding = "model.language_model.embed_tokens"
        assert any(re.match(pattern, embedding) for pattern in patterns)


def test_a_model_with_some_linears_left_loads(family, conversations, tmp_path):
    small = family("llava")
    names = ["model.language_model.layers.0.mlp.up_proj"]
    model = trained(small, QuantSpec(4, 64), names=names)
    save_compressed_tensors(model, tmp_path / "out")
    loaded = load(tmp_path / "out")
    assert_same_answers(model, loaded, question(small, model, conversations))


def test_a_baked_model_with_its_codes_exports_the_same_bytes(small, tmp_path):
    model = trained(small, QuantSpec(4, 64))
    save_compressed_tensors(model, tmp_path / "one")
    codes = bake(model)
    save_compressed_tensors(model, tmp_path / "two", codes=codes)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_names_are_the_published_ones_wherever_a_model_is_from(small, tmp_path):
    """Built here, saved by this transformers, or loaded from a published checkpoint."""
    model = small.model()
    model.save_pretrained(tmp_path / "saved")
    with published_names(model):
        model.save_pretrained(tmp_path / "published")
    names = set(tensors_of(tmp_path / "published"))
    if small.name == "llava":
        assert "vision_tower.vision_model.embeddings.class_embedding" in names
        assert "vision_tower.embeddings.class_embedding" in tensors_of(tmp_path / "saved")
    else:
        assert names == set(tensors_of(tmp_path / "saved"))
    for source in (None, "saved", "published"):
        if source is not None:
            model = AutoModelForImageTextToText.from_pretrained(tmp_path / source)
        loaded = vars(model).get("_weight_conversions")
        quantized = prepare(model, QuantSpec(4, 64))
        save_compressed_tensors(model, tmp_path / f"out-{source}")
        assert vars(model).get("_weight_conversions") is loaded
        weights = {f"{published(small.name, name)}.weight" for name in quantized}
        stored = set(tensors_of(tmp_path / f"out-{source}"))
        assert names - weights == {name for name in stored if "weight_" not in name}, source


def test_the_model_is_left_as_it_was(small, tmp_path):
    model = trained(small, QuantSpec(4, 64))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = model.config.to_dict()
    save_compressed_tensors(model, tmp_path / "out", dtype=torch.bfloat16)
    assert model.config.to_dict() | {"architectures": None} == config | {"architectures": None}
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


# -- files ---------------------------------------------------------------------------------------


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_target_is_replaced_whole_and_only_when_asked(family, tmp_path):
    small = family("qwen2_vl")
    target = tmp_path / "out"
    save_compressed_tensors(trained(small, QuantSpec(8, 64)), target)
    (target / "notes.txt").write_text("of the old model")
    before = snapshot(tmp_path)
    model = trained(small, QuantSpec(4, 64))
    with pytest.raises(InputError, match=r"out exists.*overwrite"):
        save_compressed_tensors(model, target)
    assert snapshot(tmp_path) == before
    save_compressed_tensors(model, target, overwrite=True)
    save_compressed_tensors(model, tmp_path / "fresh")
    assert snapshot(target) == snapshot(tmp_path / "fresh")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "out"]
    assert target.stat().st_mode == (tmp_path / "fresh").stat().st_mode


def test_an_interrupted_export_leaves_the_old_one(family, tmp_path):
    small = family("qwen2_vl")
    target = tmp_path / "out"
    save_compressed_tensors(trained(small, QuantSpec(8, 64)), target)
    before = snapshot(tmp_path)

    class Broken:
        def save_pretrained(self, directory):
            assert (directory / "model.safetensors").is_file()  # half of it is written
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_compressed_tensors(
            trained(small, QuantSpec(4, 64)), target, processor=Broken(), overwrite=True
        )
    assert snapshot(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failing_rename_puts_the_old_one_back(family, tmp_path, monkeypatch):
    small = family("qwen2_vl")
    target = tmp_path / "out"
    save_compressed_tensors(trained(small, QuantSpec(8, 64)), target)
    before = snapshot(tmp_path)
    rename = Path.rename

    def fail_once(self, name):
        if self.suffix == ".tmp":
            raise OSError("disk full")
        return rename(self, name)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(OSError, match="disk full"):
        save_compressed_tensors(trained(small, QuantSpec(4, 64)), target, overwrite=True)
    assert snapshot(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_only_a_model_directory_is_ever_overwritten(family, tmp_path):
    model = trained(family("qwen2_vl"), QuantSpec(4, 64))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    for target in (tmp_path / "home", tmp_path / "home" / "letter.txt"):
        with pytest.raises(InputError, match="no model directory"):
            save_compressed_tensors(model, target, overwrite=True)
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


# -- bad input -----------------------------------------------------------------------------------


def change(baked, name, codes=None, scales=None):
    old = baked[name]
    new = old[0] if codes is None else codes, old[1] if scales is None else scales
    return {**baked, name: new}


FIRST = "model.language_model.layers.0.self_attn.q_proj"


def poked(tensor, value):
    tensor = tensor.clone()
    tensor[0, 0] = value
    return tensor


BAD_CODES = {
    "out of range": (lambda c: change(c, FIRST, codes=poked(c[FIRST][0], 8)), "q_proj.*8.*4 bits"),
    "nan": (lambda c: change(c, FIRST, scales=poked(c[FIRST][1], torch.nan)), "q_proj.*nan"),
    "infinite": (lambda c: change(c, FIRST, scales=poked(c[FIRST][1], torch.inf)), "q_proj.*inf"),
    "zero": (lambda c: change(c, FIRST, scales=poked(c[FIRST][1], 0.0)), r"q_proj.*0\.0"),
    "negative": (lambda c: change(c, FIRST, scales=-c[FIRST][1]), "q_proj.*-.*positive"),
    "shape": (lambda c: change(c, FIRST, codes=c[FIRST][0][1:]), "q_proj.*int8"),
    "dtype": (lambda c: change(c, FIRST, codes=c[FIRST][0].int()), "q_proj.*int32"),
    "groups": (
        lambda c: change(c, FIRST, scales=c[FIRST][1].repeat(1, 2)[:, :3]),
        "q_proj.*3 scales",
    ),
    "other groups": (
        lambda c: change(c, FIRST, scales=c[FIRST][1].repeat_interleave(2, 1)),
        "one grid",
    ),
    "of another model": (
        lambda c: change(c, FIRST, codes=-c[FIRST][0].clamp(-7, 7)),
        "q_proj.weight is not scale times code",
    ),
    "unknown layer": (lambda c: {**c, f"{FIRST}x": c[FIRST]}, "q_projx, which the model lacks"),
    "no linear": (
        lambda c: {**c, "model.language_model.norm": c[FIRST]},
        "norm, which is a .*no linear",
    ),
    "empty": (lambda c: {}, "nothing is quantized"),
}


@pytest.fixture(scope="module")
def baked(family):
    model = trained(family("qwen2_vl"), QuantSpec(4, 64))
    return model, bake(model)


@pytest.mark.parametrize("case", BAD_CODES)
def test_bad_codes_are_refused_by_name(baked, tmp_path, case):
    model, codes = baked
    spoil, message = BAD_CODES[case]
    with pytest.raises(InputError, match=message):
        save_compressed_tensors(model, tmp_path / "out", codes=spoil(codes))
    assert not list(tmp_path.iterdir())


def test_models_that_cannot_be_exported_are_refused(family, tmp_path):
    small = family("qwen2_vl")

    def refuse(model, message, **options):
        with pytest.raises(InputError, match=message):
            save_compressed_tensors(model, tmp_path / "out", **options)
        assert not list(tmp_path.iterdir())

    refuse(small.model(), "nothing is quantized")
    refuse(trained(small, QuantSpec(3, 64)), "3 bits.*4 and 8")
    refuse(trained(small, QuantSpec(4, 64)), "still fake-quantized", codes={"x": None})
    refuse(trained(small, QuantSpec(4, 64)), "dtype is torch.int8", dtype=torch.int8)
    refuse(trained(small, QuantSpec(4, 64), names=["lm_head"]), "lm_head is no linear of a decoder")
    mixed = trained(small, QuantSpec(4, 64), names=[FIRST])
    prepare(mixed, QuantSpec(8, 64), [FIRST.replace("q_proj", "v_proj")])
    refuse(mixed, r"q_proj has .*\(4, 64\) and .*v_proj \(8, 64\)")
    refuse(nn.Linear(3, 3), "has no configuration")
    sick = trained(small, QuantSpec(4, 64))
    sick.model.language_model.norm.weight.data[3] = torch.nan
    refuse(sick, "norm.weight has values that are not finite")
    large = trained(small, QuantSpec(4, 64))
    large.model.language_model.norm.weight.data[3] = 1e6
    refuse(large, "norm.weight has the value 1e\\+06, out of range", dtype=torch.float16)


def test_scales_are_rounded_only_when_asked(family, tmp_path):
    model = trained(family("qwen2_vl"), QuantSpec(4, 64, scale_dtype="float32"))
    save_compressed_tensors(model, tmp_path / "exact")
    with pytest.raises(InputError, match=r"q_proj.weight_scale: scale .* torch.bfloat16"):
        save_compressed_tensors(model, tmp_path / "out", dtype=torch.bfloat16)
    assert [path.name for path in tmp_path.iterdir()] == ["exact"]
    save_compressed_tensors(model, tmp_path / "out", dtype=torch.bfloat16, round_scales=True)
    exact, rounded = tensors_of(tmp_path / "exact"), tensors_of(tmp_path / "out")
    for name, value in exact.items():
        if name.endswith("weight_packed"):
            assert torch.equal(rounded[name], value)
        if name.endswith("weight_scale"):
            assert torch.equal(rounded[name], value.bfloat16())
    next(fake_quant_layers(model))[1].log_scale.data[0, 0] = 12.0  # e^12 is no float16
    with pytest.raises(InputError, match=r"q_proj.weight_scale: scale .* torch.float16"):
        save_compressed_tensors(model, tmp_path / "no", dtype=torch.float16, round_scales=True)
