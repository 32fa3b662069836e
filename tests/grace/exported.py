"""Small fake-quantized models for the tests of exports, and what they answer."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from grace.data import ConversationDataset
from grace.quantization import QuantSpec, fake_quant_layers, prepare


def trained(small, spec: QuantSpec, *, seed=0, names=None, **text):
    """A model whose scales and weights are no longer those of the start, in evaluation mode."""
    model = small.model(seed, **text).eval()
    prepare(model, spec, names)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, layer in fake_quant_layers(model):
            for parameter in (layer.weight, layer.log_scale):
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise, alpha=0.1 * parameter.std().item())
            if layer.bias is not None:
                layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator))
    return model


def question(small, model, conversations):
    """Model inputs of one conversation with an image, without its last tokens."""
    data = ConversationDataset(conversations, small.processor, model.config, limit=4)
    batch = small.collator()([data[0]])
    return {name: batch[name] for name in small.adapter.model_inputs if name in batch}


@torch.no_grad()
def answers(model, inputs):
    """(logits, greedily generated tokens)."""
    logits = model(**inputs, use_cache=False).logits
    return logits, model.generate(**inputs, max_new_tokens=6, do_sample=False)


def assert_same_answers(model, other, inputs):
    for mine, theirs in zip(answers(model, inputs), answers(other, inputs), strict=True):
        assert torch.equal(mine, theirs)


def tensors_of(directory: Path):
    (file,) = directory.glob("*.safetensors")
    return load_file(file)


def config_of(directory: Path):
    return json.loads((directory / "config.json").read_text())


# A decoder layer's path: in the module, in a published checkpoint, in vLLM.
PUBLISHED = {
    "llava": "language_model.model.layers.",
    "qwen2_vl": "model.layers.",
    "qwen3_vl": "model.language_model.layers.",
}
MODULE = "model.language_model.layers."
VLLM = "language_model.model.layers."


def published(family: str, name: str) -> str:
    return PUBLISHED[family] + name.removeprefix(MODULE)


def vllm_name(name: str) -> str:
    """vLLM's name of a module of these three families (its `hf_to_vllm_mapper`s)."""
    name = name.replace(MODULE, VLLM)
    for part in ("visual.", "vision_tower.", "multi_modal_projector."):
        if name.startswith(f"model.{part}"):
            return name.removeprefix("model.")
    return f"language_model.{name}" if name == "lm_head" else name
