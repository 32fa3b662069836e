"""Every model type that transformers loads for images and text: its parts, or one line why not."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoConfig, Qwen2_5_VLConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from grace.errors import InputError
from grace.models import FAMILIES, Family, discovery, family_of

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_INDEXER = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 256,
    "indexer_budget": 64,
    "indexer_compress_ratio": 4,
    "ple_embed_dim": 64,
}
SETTINGS = {
    "aya_vision": {"vision_config": {"model_type": "siglip_vision_model"}},
    "chameleon": {"vocabulary_map": {"<image>": 1}},
    "cohere_compass": {
        "text_config": {
            "rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE},
        }
    },
    "deepseek_ocr2": {
        "text_config": {"num_experts_per_tok": 6, "mlp_layer_types": ["dense"] + ["sparse"] * 31},
        "vision_config": {"sam_config": {"downsample_channels": [512, 896]}},
    },
    "diffusion_gemma": {
        "text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64},
        "vision_config": {},
    },
    "emu3": {"vocabulary_map": {"<image>": 1}},
    "gemma4": {"vision_config": {}, "audio_config": {}},
    "granite4_vision": {
        "text_config": {"model_type": "granite4_vision_text"},
        "downsample_rate": "4/8",
        "deepstack_layer_map": [[0, 1]],
        "spatial_target_layers": [2],
    },
    "hunyuan_vl": {"text_config": {"head_dim": 128, "rope_parameters": _ROPE}},
    "idefics3": {"text_config": {"model_type": "llama", "pad_token_id": 2}},
    "minicpmv4_6": {"image_token_id": 5},
    "qwen4_exp": {"text_config": _INDEXER},
    "smolvlm": {"text_config": {"model_type": "llama", "pad_token_id": 2}},
}
"""Settings of model types whose default configuration builds no model, or not all of one."""

_EXPERTS = "mixture of experts whose experts are no nn.Linear"
_CODES = "no vision tower"
_ENCODER = "encoder-decoder"
REFUSED = {
    "aria": _EXPERTS,
    "blip": "no linear output head",
    "blip-2": "Q-Former",
    "chameleon": _CODES,
    "deepseek_ocr2": _EXPERTS,
    "diffusion_gemma": _EXPERTS,
    "emu3": _CODES,
    "ernie4_5_vl_moe": _EXPERTS,
    "evolla": "no image-text model that this transformers loads",
    "florence2": _ENCODER,
    "fuyu": _CODES,
    "gemma4_unified": _CODES,
    "git": _CODES,
    "glm4v_moe": _EXPERTS,
    "glm5_next": _EXPERTS,
    "granite4_vision": "Q-Former",
    "idefics": "cross-attention",
    "inkling_mm_model": _EXPERTS,
    "instructblip": "Q-Former",
    "instructblipvideo": "Q-Former",
    "kimi_k25": _EXPERTS,
    "kosmos-2": "no token that stands for images",
    "kosmos-2.5": "no token that stands for images",
    "llama4": _EXPERTS,
    "minimax_m3_vl": _EXPERTS,
    "mistral4": _CODES,
    "mllama": "cross-attention",
    "pi0": "no linear output head",
    "pix2struct": _ENCODER,
    "pp_formulanet": _ENCODER,
    "qwen3_5_moe": _EXPERTS,
    "qwen3_omni_moe_thinker": _EXPERTS,
    "qwen3_vl_moe": _EXPERTS,
    "qwen4_exp": _EXPERTS,
    "step3p7": _EXPERTS,
    "t5gemma2": _ENCODER,
    "udop": _ENCODER,
    "vision-encoder-decoder": "",  # some versions have no default configuration of it
}
"""What is said of the model types that the method cannot train."""


@pytest.fixture
def built(monkeypatch):
    """The models that were built to find a family, last one last."""
    models = []
    build = discovery.without_weights

    def keep(config):
        models.append(build(config))
        return models[-1]

    monkeypatch.setattr(discovery, "without_weights", keep)
    discovery._discover.cache_clear()
    return models


def config_of(model_type):
    settings = SETTINGS.get(model_type)
    return AutoConfig.for_model(model_type, **settings) if settings else model_type


def check_parts(family, model):
    """The parts are there, and quantized is what the decoder's layers hold and nothing else."""
    layers = model.get_submodule(family.decoder_layers)
    inside = [name for name, part in layers.named_modules() if isinstance(part, nn.Linear)]
    linears = family.decoder_linears(model)
    assert linears == [f"{family.decoder_layers}.{name}" for name in inside] != []
    assert not any(name.startswith((family.vision_tower + ".", "lm_head")) for name in linears)
    assert len(layers) == model.config.get_text_config(decoder=True).num_hidden_layers
    assert model.get_submodule(family.output_head) is model.get_output_embeddings()
    assert "pixel_values" in "".join(family.image_inputs)
    family.freeze_vision(model)
    frozen = set(family.tower_parameters(model))
    assert frozen == {n for n, p in model.named_parameters() if not p.requires_grad} != set()
    for projector in family.projectors:
        trained = list(model.get_submodule(projector).parameters())
        assert trained and all(parameter.requires_grad for parameter in trained)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES))
def test_a_model_type_has_its_parts_or_one_line(model_type, built, monkeypatch):
    monkeypatch.setattr(discovery, "FAMILIES", {})  # those that are written down as well
    before = torch.get_rng_state()
    try:
        family = family_of(config_of(model_type))
    except InputError as error:
        line = str(error)
        assert "\n" not in line and repr(model_type) in line
        if "timm library" not in line:
            assert REFUSED.get(model_type, "") in line  # later versions know more types
        return
    assert model_type not in REFUSED
    check_parts(family, built[-1])
    assert torch.equal(torch.get_rng_state(), before)
    if model_type in FAMILIES:
        written = FAMILIES[model_type]
        for part in ("decoder_layers", "vision_tower", "projectors", "output_head", "type_inputs"):
            assert getattr(family, part) == getattr(written, part)
        assert set(written.image_inputs) <= set(family.image_inputs)


def test_a_family_is_found_once(built):
    config = Qwen2_5_VLConfig()
    assert family_of(config) is family_of(Qwen2_5_VLConfig()) is family_of("qwen2_5_vl")
    assert len(built) == 1
    assert isinstance(family_of(config), Family)


def test_finding_a_family_leaves_all_else_as_it_is(built, monkeypatch):
    """The configuration, and DeepSpeed, which would shard what is built under ZeRO-3."""
    monkeypatch.setattr("transformers.modeling_utils.is_deepspeed_zero3_enabled", lambda: True)
    config = Qwen2_5_VLConfig(dtype="bfloat16")
    before = copy.deepcopy(config.to_dict())
    assert family_of(config).decoder_layers == "model.language_model.layers"
    assert config.to_dict() == before
    assert len(built) == 1


def test_pixtral_is_a_llava_with_sizes(built):
    config = AutoConfig.for_model("llava", vision_config={"model_type": "pixtral"})
    assert family_of(config).image_inputs == ("pixel_values", "image_sizes")
    assert family_of("llava").image_inputs == ("pixel_values",)


@pytest.mark.parametrize("model_type", ["gpt2", "no_such_type"])
def test_what_is_no_image_text_model_is_refused(model_type):
    with pytest.raises(InputError, match=f"{model_type!r} is no image-text model"):
        family_of(model_type)
