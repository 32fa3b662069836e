"""Every family after training: packed, generating, saved, exported and read back.

What a fake-quantized model answers by transformers' own generate is the reference throughout.
"""

import copy
import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tiny_families import family_params, picture, tiny_model, tiny_processor
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.cache_utils import StaticCache

from grace.decoding import Decoder, generate
from grace.export import (
    load_packed,
    load_released,
    save_awq,
    save_compressed_tensors,
    save_packed,
)
from grace.int4 import PackedLinear, pack
from grace.models import family_of
from grace.quantization import QuantSpec, fake_quant_layers, prepare

NEW = 10


def asked(name, questions):
    """The processor's output, padded on the left, for questions about some images each."""
    processor = tiny_processor(name)
    texts, pictures = [], []
    for index, (text, images) in enumerate(questions):
        parts = [{"type": "image"}] * images + [{"type": "text", "text": text}]
        chat = [{"role": "user", "content": parts}]
        texts.append(processor.apply_chat_template(chat, add_generation_prompt=True))
        pictures.append([picture(10 * index + k, 40 + 24 * k, 40) for k in range(images)])
    processor.tokenizer.padding_side = "left"
    images = pictures if any(pictures) else None
    return dict(processor(text=texts, images=images, padding=True, return_tensors="pt"))


def answered(model, inputs, **settings):
    """transformers' own answer."""
    inputs = {key: value for key, value in copy.deepcopy(inputs).items() if key != "labels"}
    return model.generate(**inputs, max_new_tokens=NEW, do_sample=False, **settings)


@torch.no_grad()
def logits(model, inputs):
    inputs = {key: value for key, value in inputs.items() if key != "labels"}
    return model(**inputs, use_cache=False).logits


@dataclass
class Trained:
    """A fake-quantized model, what it is asked, and what it answers."""

    name: str
    model: Any
    quantized: list[str]
    inputs: dict[str, torch.Tensor]
    logits: torch.Tensor
    tokens: torch.Tensor

    def check(self, other):
        assert torch.equal(logits(other, self.inputs), self.logits)
        assert torch.equal(generate(other, self.inputs, NEW), self.tokens)


@pytest.fixture(scope="module", params=family_params())
def trained(request):
    name = request.param
    model = tiny_model(name, seed=3)
    model.generation_config.eos_token_id = None
    if name == "gemma3":  # scaled and tied embeddings would repeat the last token for ever
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(0.1)
    quantized = prepare(model, QuantSpec(4, 32))
    inputs = asked(name, [("What is it?", 1), ("How many shapes are there?", 1)])
    tokens = answered(model, inputs)
    assert len(set(tokens[0, -NEW:].tolist())) > 2, "it says the same for ever"
    return Trained(name, model, quantized, inputs, logits(model, inputs), tokens)


@pytest.fixture
def packed(trained):
    model = copy.deepcopy(trained.model)
    assert pack(model, backend="reference") == trained.quantized
    return model


# ------------------------------------------------------------------------------------- generation


def test_a_packed_model_answers_as_the_fake_quantized_one(trained, packed):
    trained.check(packed)
    trained.check(trained.model)
    assert torch.equal(answered(packed, trained.inputs), trained.tokens)


def test_prompts_without_and_with_several_images(trained, packed):
    for images in (0, 2):
        if trained.name == "paligemma" and not images:
            continue  # its processor wants an image
        inputs = asked(trained.name, [("What is it?", images)])
        expected = answered(trained.model, inputs)
        assert torch.equal(generate(packed, inputs, NEW), expected), images


def test_end_tokens_and_penalties(trained, packed):
    length = trained.inputs["input_ids"].shape[1]
    end = int(trained.tokens[0, length + 2])
    settings = {"eos_token_id": end, "pad_token_id": 0}
    expected = answered(trained.model, trained.inputs, **settings)
    assert torch.equal(generate(packed, trained.inputs, NEW, **settings), expected)
    packed.generation_config.repetition_penalty = 1.7
    expected = answered(trained.model, trained.inputs, repetition_penalty=1.7)
    assert torch.equal(generate(packed, trained.inputs, NEW), expected)


def test_one_prompt_for_many_rows_and_again(trained, packed):
    inputs = asked(trained.name, [("What is it?", 1)])
    length = inputs["input_ids"].shape[1]
    expected = answered(trained.model, inputs)[:, length:]
    reader = Decoder(packed, 1, length + NEW)
    reader.prefill(inputs)
    decoder = Decoder(packed, 3, length + NEW)
    decoder.start_from(reader)
    for _ in range(2):
        decoder.run(NEW - 1)
        assert torch.equal(decoder.tokens(), expected.expand(3, -1))
        decoder.rewind()
        assert torch.equal(decoder.tokens(), expected[:, :1].expand(3, 1))
    assert decoder.cache_bytes() > 0


def test_a_captured_step_computes_the_same(trained, packed, monkeypatch):
    """The step that CUDA would capture, without a graph: a whole cache under a mask."""
    length = trained.inputs["input_ids"].shape[1]
    decoder = Decoder(packed, 2, length + NEW)
    if not decoder._full:
        pytest.skip("layers of other kinds are not captured")
    monkeypatch.setattr(decoder, "captured", True)
    monkeypatch.setattr(decoder, "_capture", lambda: None)
    decoder._cache = decoder._new_cache()
    assert isinstance(decoder._cache, StaticCache)
    decoder.prefill(trained.inputs)
    decoder.run(NEW - 1)
    assert torch.equal(decoder.tokens(), trained.tokens[:, length:])


@pytest.mark.parametrize("crossover", [0, 1024], ids=["dense", "packed"])
def test_kernels_err_no_more_than_a_bfloat16_model(trained, crossover):
    """Against the float32 logits, by the packed and the dense product."""
    model = copy.deepcopy(trained.model).to(torch.bfloat16)
    inputs = {
        key: value.to(torch.bfloat16) if value.is_floating_point() else value
        for key, value in trained.inputs.items()
    }
    allowed = (logits(model, inputs).float() - trained.logits).norm()
    pack(model, crossover=crossover)
    assert (logits(model, inputs).float() - trained.logits).norm() <= 2 * allowed


# --------------------------------------------------------------------------------- saved, exported


@pytest.mark.slow
def test_a_saved_packed_model_is_the_same(trained, packed, tmp_path):
    save_packed(packed, tmp_path / "packed", processor=tiny_processor(trained.name))
    loaded = load_packed(tmp_path / "packed", backend="reference")
    trained.check(loaded)
    assert [n for n, m in loaded.named_modules() if isinstance(m, PackedLinear)] == (
        trained.quantized
    )


@pytest.mark.slow
def test_transformers_reads_the_export_with_the_same_codes(trained, tmp_path):
    out = save_compressed_tensors(trained.model, tmp_path / "export")
    loaded = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32).eval()
    assert type(loaded) is type(trained.model)
    schemes = [n for n, m in loaded.named_modules() if hasattr(m, "quantization_scheme")]
    assert schemes == trained.quantized
    loaded.hf_quantizer.compressor.decompress_model(loaded)
    for name, layer in fake_quant_layers(trained.model):
        assert torch.equal(loaded.get_submodule(name).weight, layer.dequantized()), name
    trained.check(loaded)


@pytest.mark.slow
def test_the_awq_export_is_read_back_with_the_same_codes(trained, tmp_path):
    out = save_awq(trained.model, tmp_path / "awq", dtype=torch.float32)
    loaded = load_released(out, dtype=torch.float32).eval()
    codes = dict(fake_quant_layers(trained.model))
    layers = dict(fake_quant_layers(loaded))
    assert layers.keys() == codes.keys()
    for name, layer in layers.items():
        assert torch.equal(layer.codes(), codes[name].codes()), name
        assert torch.equal(layer.scales(), codes[name].scales()), name
    trained.check(loaded)


def test_the_exports_name_every_other_linear(trained, tmp_path):
    """By transformers' rule for AWQ: a name that is, or ends or begins as, one of the list."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    save_awq(trained.model, tmp_path / "awq")
    config = json.loads((tmp_path / "awq" / "config.json").read_text())["quantization_config"]
    left = config["modules_to_not_convert"]
    linears = {
        name
        for name, module in trained.model.named_modules()
        if isinstance(module, nn.Linear) or name in trained.quantized
    }
    converted = {name for name in linears if should_convert_module(name, left)}
    assert converted == set(trained.quantized)


def test_earlier_readers_find_their_settings(trained, tmp_path):
    """Where transformers 4 looks for them; transformers 5 reads what it read before."""
    out = save_compressed_tensors(trained.model, tmp_path / "export")
    stored = json.loads((out / "config.json").read_text())
    ours, theirs = trained.model.config, AutoConfig.from_pretrained(out)
    for one, other in (
        (ours, theirs),
        (ours.get_text_config(), theirs.get_text_config()),
        (ours.vision_config, theirs.vision_config),
    ):
        before = getattr(one, "rope_parameters", None)
        assert getattr(other, "rope_parameters", None) == before
    assert theirs.tie_word_embeddings == ours.tie_word_embeddings
    text, rope = stored["text_config"], ours.get_text_config().rope_parameters
    assert text["tie_word_embeddings"] is ours.tie_word_embeddings
    assert text["rope_theta"] == rope.get("full_attention", rope)["rope_theta"]
    if "mrope_section" in rope:
        assert text["rope_scaling"]["mrope_section"] == rope["mrope_section"]
    if "sliding_attention" in rope:
        assert text["rope_local_base_freq"] == rope["sliding_attention"]["rope_theta"]


def test_decoder_linears_are_what_is_quantized(trained):
    family = family_of(trained.model.config)
    layers = dict(trained.model.named_modules())
    assert trained.quantized
    assert all(name.startswith(f"{family.decoder_layers}.") for name in trained.quantized)
    assert not any(
        isinstance(module, nn.Linear)
        for name, module in layers.items()
        if name.startswith(f"{family.decoder_layers}.")
    )
