"""The vision part of a model as llama.cpp's own file, `mmproj-….gguf`.

llama.cpp fixes much of a tower: what a file cannot say has to be as it is there, or the model is
refused. `vision_part` gives the settings and tensors of the four families that are exported.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from grace.errors import InputError
from grace.export.gguf_file import Stored, Value, plain
from grace.models import Family

ARCHITECTURE = "clip"
WINDOW = 112
"""Pixels of a window of Qwen2.5-VL's tower, which llama.cpp has as a constant."""
_ACTIVATIONS = {
    "quick_gelu": {},  # llama.cpp's default
    "gelu": {"clip.use_gelu": True},
    "gelu_pytorch_tanh": {"clip.use_gelu": True},
    "silu": {"clip.use_silu": True},
}
Named = Iterator[tuple[str, Tensor]]


@dataclass(frozen=True)
class Part:
    """What a file holds.

    Attributes:
        values: Settings by name.
        tensors: By llama.cpp's names.
    """

    values: dict[str, Value]
    tensors: dict[str, Stored]


def vision_part(model: nn.Module, family: Family, processor: Any, dtype: torch.dtype) -> Part:
    """A model's tower and projectors.

    Args:
        model: A model of a family in `PROJECTORS`.
        family: Its adapter.
        processor: The mean and deviation of the pixels are its image processor's.
        dtype: Of matrices. Norms, biases, and what becomes a patch's embedding are float32.

    Returns:
        Its settings and tensors.

    Raises:
        InputError: llama.cpp would compute something else; the message names the setting.
    """
    projector, describe = PROJECTORS[family.model_type]
    tower: Any = model.get_submodule(family.vision_tower)
    values, named = describe(model, tower)
    config: Any = model.config
    images = processor.image_processor
    values |= {
        "clip.has_vision_encoder": True,
        "clip.projector_type": projector,
        "clip.vision.projection_dim": config.get_text_config().hidden_size,
        "clip.vision.image_mean": [float(value) for value in images.image_mean],
        "clip.vision.image_std": [float(value) for value in images.image_std],
        "clip.vision.attention.layer_norm_epsilon": _epsilon(model, family),
        **_ACTIVATIONS[_one_of(tower.config, "hidden_act", *_ACTIVATIONS)],
    }
    tensors = {}
    for name, tensor in named:
        small = tensor.dim() < 2 or "_embd" in name
        tensors[name] = plain(name, tensor.detach(), torch.float32 if small else dtype)
    return Part(values, tensors)


def _clip(model: Any, tower: Any) -> tuple[dict[str, Value], Named]:
    """LLaVA-1.5: CLIP, of which one hidden layer is read without its class token."""
    warnings.warn(
        "llava: llama.cpp, up to the version of October 2026 at least, takes CLIP's class token "
        "for the last patch: its answers about images are not the student's, those about text "
        "alone are; export to compressed-tensors for images",
        stacklevel=4,
    )
    config = tower.config
    _one_of(config, "model_type", "clip_vision_model")
    _one_of(model.config, "vision_feature_select_strategy", "default")
    _one_of(model.config, "projector_hidden_act", "gelu")
    _check_widths(config.hidden_size, config.intermediate_size)
    blocks = config.num_hidden_layers
    layer = model.config.vision_feature_layer
    if not isinstance(layer, int):
        raise InputError(
            f"vision_feature_layer is {layer!r}: llama.cpp reads one layer; export to another "
            "format"
        )
    read = layer % (blocks + 1)
    if not read:
        raise InputError(
            "vision_feature_layer is 0: llama.cpp reads no layer before the first; export to "
            "another format"
        )
    values: dict[str, Value] = {
        "clip.vision.image_size": config.image_size,
        "clip.vision.patch_size": config.patch_size,
        "clip.vision.embedding_length": config.hidden_size,
        "clip.vision.feed_forward_length": config.intermediate_size,
        "clip.vision.block_count": read,  # further ones are of no use
        # Without it llama.cpp leaves out the last block that there is.
        "clip.vision.feature_layer": [read],
        "clip.vision.attention.head_count": config.num_attention_heads,
    }
    places = {
        "layer_norm1": "ln1",
        "layer_norm2": "ln2",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.out_proj": "attn_out",
        "mlp.fc1": "ffn_up",
        "mlp.fc2": "ffn_down",
    }

    def named() -> Named:
        yield "v.class_embd", tower.embeddings.class_embedding
        yield "v.patch_embd.weight", tower.embeddings.patch_embedding.weight
        yield "v.position_embd.weight", tower.embeddings.position_embedding.weight
        yield from _parameters("v.pre_ln", tower.pre_layrnorm)
        yield from _blocks(tower.encoder.layers[:read], places)
        projector = model.model.multi_modal_projector
        yield from _parameters("mm.0", projector.linear_1)
        yield from _parameters("mm.2", projector.linear_2)

    return values, named()


def _qwen2(model: Any, tower: Any) -> tuple[dict[str, Value], Named]:
    """Qwen2-VL."""
    config = tower.config
    wide = int(config.embed_dim * config.mlp_ratio)
    _check_widths(config.embed_dim, wide)
    values = _grid(config, config.embed_dim, wide)
    places = {"mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down"}
    return values, _split_tower(tower, places)


def _qwen25(model: Any, tower: Any) -> tuple[dict[str, Value], Named]:
    """Qwen2.5-VL: most blocks attend within windows, every n-th to the whole image."""
    config = tower.config
    _check_widths(config.hidden_size, config.intermediate_size)
    _one_of(config, "window_size", WINDOW)
    whole = sorted(config.fullatt_block_indexes)
    every = whole[0] + 1 if whole else 0
    if not whole or whole != list(range(every - 1, config.depth, every)):
        raise InputError(
            f"fullatt_block_indexes is {config.fullatt_block_indexes}: llama.cpp attends to the "
            f"whole image in every n-th of the {config.depth} blocks; export to another format"
        )
    values = _grid(config, config.hidden_size, config.intermediate_size)
    values["clip.vision.n_wa_pattern"] = every
    places = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    return values, _split_tower(tower, places)


def _qwen3(model: Any, tower: Any) -> tuple[dict[str, Value], Named]:
    """Qwen3-VL: some blocks' outputs are merged as well."""
    config = tower.config
    values = _grid(config, config.hidden_size, config.intermediate_size)
    side = round(config.num_position_embeddings**0.5)
    values["clip.vision.image_size"] = side * config.patch_size
    merged = list(config.deepstack_visual_indexes)
    values["clip.vision.is_deepstack_layers"] = [i in merged for i in range(config.depth)]
    places = {
        "norm1": "ln1",
        "norm2": "ln2",
        "attn.qkv": "attn_qkv",
        "attn.proj": "attn_out",
        "mlp.linear_fc1": "ffn_up",
        "mlp.linear_fc2": "ffn_down",
    }

    def named() -> Named:
        yield from _patches(tower)
        yield "v.patch_embd.bias", tower.patch_embed.proj.bias
        yield "v.position_embd.weight", tower.pos_embed.weight
        yield from _blocks(tower.blocks, places)
        yield from _parameters("v.post_ln", tower.merger.norm)
        yield from _parameters("mm.0", tower.merger.linear_fc1)
        yield from _parameters("mm.2", tower.merger.linear_fc2)
        for block, merger in zip(merged, tower.deepstack_merger_list, strict=True):
            yield from _parameters(f"v.deepstack.{block}.norm", merger.norm)
            yield from _parameters(f"v.deepstack.{block}.fc1", merger.linear_fc1)
            yield from _parameters(f"v.deepstack.{block}.fc2", merger.linear_fc2)

    return values, named()


PROJECTORS: dict[str, tuple[str, Callable[[Any, Any], tuple[dict[str, Value], Named]]]] = {
    "llava": ("mlp", _clip),
    "qwen2_vl": ("qwen2vl_merger", _qwen2),
    "qwen2_5_vl": ("qwen2.5vl_merger", _qwen25),
    "qwen3_vl": ("qwen3vl_merger", _qwen3),
}
"""By ``model_type``: llama.cpp's name of the projector, and what describes the vision part."""


def _grid(config: Any, width: int, wide: int) -> dict[str, Value]:
    """Settings that the Qwen towers share."""
    _one_of(config, "spatial_merge_size", 2)
    _one_of(config, "temporal_patch_size", 2)
    _one_of(config, "in_channels", 3)
    size = width // config.num_heads
    if size % 4:
        raise InputError(
            f"the vision tower's heads have {size} channels: llama.cpp's positions need a multiple "
            "of 4; export to another format"
        )
    return {
        "clip.vision.image_size": 40 * config.patch_size,  # of no meaning where sizes differ
        "clip.vision.patch_size": config.patch_size,
        "clip.vision.embedding_length": width,
        "clip.vision.feed_forward_length": wide,
        "clip.vision.block_count": config.depth,
        "clip.vision.attention.head_count": config.num_heads,
        "clip.vision.spatial_merge_size": config.spatial_merge_size,
    }


def _split_tower(tower: Any, places: dict[str, str]) -> Named:
    """Tensors of a tower whose q, k and v are one linear here and three in the file."""
    yield from _patches(tower)
    places = {"norm1": "ln1", "norm2": "ln2", "attn.proj": "attn_out", **places}
    for index, block in enumerate(tower.blocks):
        for name, parameter in block.attn.qkv.named_parameters():
            for part, tensor in zip("qkv", parameter.chunk(3), strict=True):
                yield f"v.blk.{index}.attn_{part}.{name}", tensor
    yield from _blocks(tower.blocks, places)
    yield from _parameters("v.post_ln", tower.merger.ln_q)
    yield from _parameters("mm.0", tower.merger.mlp[0])
    yield from _parameters("mm.2", tower.merger.mlp[2])


def _patches(tower: Any) -> Named:
    """A convolution over two frames, which are two of one frame each in the file."""
    weight = tower.patch_embed.proj.weight
    yield "v.patch_embd.weight", weight[:, :, 0]
    yield "v.patch_embd.weight.1", weight[:, :, 1]


def _blocks(blocks: Any, places: dict[str, str]) -> Named:
    for index, block in enumerate(blocks):
        for path, place in places.items():
            yield from _parameters(f"v.blk.{index}.{place}", block.get_submodule(path))


def _parameters(place: str, module: nn.Module) -> Named:
    for name, parameter in module.named_parameters():
        yield f"{place}.{name}", parameter


def _epsilon(model: nn.Module, family: Family) -> float:
    """The ε of the tower's norms, of which a file has one."""
    parts = dict.fromkeys((family.vision_tower, *family.projectors))
    found = {
        float(getattr(module, "eps", getattr(module, "variance_epsilon", 0.0)))
        for part in parts
        for module in model.get_submodule(part).modules()
        if "Norm" in type(module).__name__
    }
    if len(found) != 1:
        raise InputError(
            f"the vision tower's norms have the epsilons {sorted(found)}: a GGUF file has one; "
            "export to another format"
        )
    return found.pop()


def _one_of(config: Any, name: str, *known: Any) -> Any:
    """A setting. Raises InputError where llama.cpp computes with another."""
    value = getattr(config, name)
    if value not in known:
        raise InputError(
            f"{name} is {value!r}: llama.cpp computes with {' or '.join(map(str, known))} here; "
            "export to another format"
        )
    return value


def _check_widths(width: int, wide: int) -> None:
    # There were files with the two linears' names exchanged: llama.cpp tells them by the widths.
    if width == wide:
        raise InputError(
            f"the vision tower's feed-forward layers are as wide as the tower ({width}): llama.cpp "
            "would take one linear for the other; export to another format"
        )
