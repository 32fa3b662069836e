"""vLLM in this process: scheme, tensors and answers of every export that it can load."""

import pytest
import torch
from engine import ask, engine, model_of, parts_of, quantized_layers, read_layer
from layout import has_kernel, plain_product
from reference import QUESTIONS, expected, ties_of
from safetensors.torch import load_file
from students import EIGHT, FAMILIES, GROUP
from test_layout import NO_KERNEL

FORMATS = ("ct4", "awq4")


class Loaded:
    """An export, as the engine has it."""

    def __init__(self, family, path, llm):
        self.family, self.path, self.llm = family, path, llm
        self.model = model_of(llm)


@pytest.fixture(scope="module", params=[(f, e) for f in FAMILIES for e in FORMATS], ids="-".join)
def loaded(request, students):
    family, name = request.param
    path = students / family / name
    with engine(path) as llm:
        yield Loaded(family, path, llm)


def test_scheme_and_kernel(loaded):
    layers = quantized_layers(loaded.model)
    assert {name.rpartition(".")[2] for name in layers} == {
        "qkv_proj",
        "o_proj",
        "gate_up_proj",
        "down_proj",
    }
    for name, layer in layers.items():
        assert name.startswith("language_model.model.layers."), name
        scheme = layer.scheme if hasattr(layer, "scheme") else layer.quant_method
        assert type(scheme.kernel).__name__ == "CPUWNA16LinearKernel"
        config = scheme.kernel.config
        assert (config.weight_type.size_bits, config.group_size) == (4, GROUP)
        assert config.act_type == loaded.model.config.dtype
        assert config.zero_points == loaded.path.name.startswith("awq")
        assert not layer.use_w4a8


def test_every_code_and_scale_is_ours(loaded):
    ours = load_file(loaded.path.parent / "codes4.safetensors")
    seen = set()
    for name, layer in quantized_layers(loaded.model).items():
        parts = parts_of(name)
        codes = torch.cat([ours[f"{part}.codes"] for part in parts])
        scales = torch.cat([ours[f"{part}.scales"] for part in parts])
        their_codes, their_scales = read_layer(layer)
        assert torch.equal(their_codes, codes), name
        assert torch.equal(their_scales.float(), scales), name
        seen.update(parts)
    assert seen == {name.rpartition(".")[0] for name in ours}


@pytest.mark.parametrize("kernel", ["kernel", "plain"])
def test_answers_are_those_of_transformers(loaded, kernel, monkeypatch, record_property):
    if kernel == "plain":
        monkeypatch.setattr("vllm._custom_ops.cpu_gemm_wna16", plain_product)
    elif not has_kernel():
        pytest.skip(NO_KERNEL)
    answers, asked = expected(loaded.path), ask(loaded.llm, loaded.path, QUESTIONS)
    ties = ties_of(answers, [tokens for tokens, _ in asked])
    for answer, (tokens, chances) in zip(answers, asked, strict=True):
        for step in range(len(tokens) if tokens == answer.tokens else 1):
            chance = torch.log_softmax(answer.logits[step], -1)[tokens[step]].item()
            assert abs(chances[step] - chance) <= 4 * answer.noise, (tokens, step)
    record_property("ties", ties)
    print(
        f"{loaded.family} {loaded.path.name} {kernel}: {len(asked)} answers, noise of a logit "
        f"{answers[0].noise:.4f}, margins of ties {ties}"
    )


def test_eight_bits_are_refused_by_the_engine(students):
    """It has no kernel for them on a CPU, and says so before it computes anything."""
    with (
        pytest.raises(ValueError, match=r"CPUWNA16.*uint8b128|uint8b128.*CPUWNA16"),
        engine(students / EIGHT / "ct8"),
    ):
        pass
