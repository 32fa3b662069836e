"""GGUF, which llama.cpp and what is built on it load: decoder, tokenizer and vision part."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from grace.errors import InputError
from grace.export.gguf_file import (
    BLOCK,
    KINDS,
    Stored,
    Value,
    library,
    pack_blocks,
    plain,
    write_file,
)
from grace.export.gguf_tokenizer import tokenizer_values
from grace.export.gguf_vision import ARCHITECTURE, PROJECTORS, vision_part
from grace.export.layers import Layers, quantized_layers
from grace.export.packing import stored_scales
from grace.files import atomic_directory, check_target
from grace.types import Codes

_FILE_TYPES = {"Q4_0": 2, "Q8_0": 7, "F32": 0, "F16": 1, "BF16": 32}
_LANGUAGE_MODEL = "model.language_model."
_HEAD = "lm_head.weight"
_PLACES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""llama.cpp's names of the parts of a decoder layer."""


@dataclass(frozen=True)
class _Decoder:
    """llama.cpp's decoder of a family.

    Attributes:
        architecture: Its name.
        text_model: The decoder's ``model_type``, where the family has several.
        interleaved: Whether the two halves of a head that the positions rotate together lie side
            by side, channel by channel. transformers has one half after the other.
        around: Tokens that llama.cpp writes itself before and after an image.
    """

    architecture: str
    text_model: str | None = None
    interleaved: bool = False
    around: tuple[str, str] = ("<|vision_start|>", "<|vision_end|>")


_DECODERS = {
    "llava": _Decoder("llama", "llama", interleaved=True, around=("", "")),
    "qwen2_vl": _Decoder("qwen2vl"),
    "qwen2_5_vl": _Decoder("qwen2vl"),
    "qwen3_vl": _Decoder("qwen3vl"),
}


def save_gguf(
    model: nn.Module,
    path: str | Path,
    *,
    codes: Codes | None = None,
    bits: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    processor: Any = None,
    round_scales: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write `model` as GGUF files for llama.cpp.

    The directory holds `model-Q4_0.gguf` (Q8_0 for more than 4 bits) with decoder, tokenizer and
    chat template, the vision part `mmproj-BF16.gguf`, and the model's config.json. Every code is
    stored as it was trained, in blocks of 32 with a float16 scale each: w = scale code. Scales are
    exact or refused. llama.cpp itself rounds the inputs of quantized linears to 8 bits.

    Example::

        save_gguf(student, "student-gguf", processor=processor)

    Args:
        model: Of LLaVA-1.5, Qwen2-VL, Qwen2.5-VL or Qwen3-VL; otherwise as in
            `save_compressed_tensors`, and so `codes` and `overwrite`.
        path: Of the new directory.
        codes: Of a baked model.
        bits: Of these codes: 2 to 8, 4 by default.
        dtype: Of the matrices that are not quantized. Norms and biases are float32.
        processor: Tokenizer, chat template and the pixels' mean and deviation; it has to be given.
        round_scales: Round scales that float16 cannot hold, instead of refusing them.
        overwrite: Replace a model directory at `path`.

    Returns:
        The directory.

    Raises:
        InputError: As `save_compressed_tensors`; the package gguf is missing; a group is no
            multiple of 32; or llama.cpp would not compute what was trained: another family, another
            setting of one of these, or a tokenizer that it would split texts differently with.
            Nothing is written then.
    """
    library()
    layers = quantized_layers(model, codes, bits)
    decoder = _decoder_of(layers)
    if dtype not in KINDS:
        raise InputError(f"save_gguf: dtype is {dtype}: give one of {', '.join(map(str, KINDS))}")
    if processor is None:
        raise InputError("save_gguf: give the processor: the file holds its tokenizer")
    check_target(Path(path), overwrite=overwrite)
    config: Any = model.config
    text = config.get_text_config()
    values = _decoder_values(config, decoder)
    kind = "Q4_0" if layers.spec.bits <= 4 else "Q8_0"
    values |= {"general.file_type": _FILE_TYPES[kind], "general.quantization_version": 2}
    values |= tokenizer_values(
        processor, text.vocab_size, decoder.around, _stops(model), text.bos_token_id
    )
    vision = vision_part(model, layers.family, processor, dtype)
    vision.values["general.file_type"] = _FILE_TYPES[KINDS[dtype]]
    tensors = _decoder_tensors(model, layers, decoder, kind, dtype, round_scales=round_scales)
    with atomic_directory(path, overwrite=overwrite) as directory:
        config.save_pretrained(directory)  # says what the model is, and that this is a model's
        write_file(directory / f"model-{kind}.gguf", decoder.architecture, values, tensors)
        write_file(
            directory / f"mmproj-{KINDS[dtype]}.gguf", ARCHITECTURE, vision.values, vision.tensors
        )
    return Path(path)


def _decoder_of(layers: Layers) -> _Decoder:
    """The decoder of a family that llama.cpp runs, with groups that its blocks hold."""
    name = layers.family.model_type
    if name not in _DECODERS:
        known = ", ".join(PROJECTORS)
        raise InputError(f"save_gguf: {name} is not exported to llama.cpp: only {known} are")
    for linear, width in layers.group_widths().items():
        if width % BLOCK:
            raise InputError(
                f"{linear}: {width} inputs share a scale, no multiple of {BLOCK}: GGUF's blocks "
                f"have {BLOCK} codes; train with groups of 32, 64, 128 or 256"
            )
    return _DECODERS[name]


def _decoder_values(config: Any, decoder: _Decoder) -> dict[str, Value]:
    """Settings of the decoder. Raises InputError for one that llama.cpp has otherwise."""
    text = config.get_text_config()
    rope = dict(text.rope_parameters)
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    checks = {
        "model_type": (text.model_type, decoder.text_model or text.model_type),
        "hidden_act": (text.hidden_act, "silu"),
        "rope_type": (rope.get("rope_type", "default"), "default"),
        "partial_rotary_factor": (rope.get("partial_rotary_factor", 1.0), 1.0),
        "layer_types": (sorted(kinds), ["full_attention"]),
        "head_dim, modulo 2": (head % 2, 0),
    }
    for name, (own, known) in checks.items():
        if own != known:
            raise InputError(
                f"the decoder's {name} is {own!r}: the export to llama.cpp has {known!r} only; "
                "export to another format"
            )
    prefix = decoder.architecture
    values: dict[str, Value] = {
        "general.type": "model",
        f"{prefix}.vocab_size": text.vocab_size,
        f"{prefix}.context_length": text.max_position_embeddings,
        f"{prefix}.embedding_length": text.hidden_size,
        f"{prefix}.block_count": text.num_hidden_layers,
        f"{prefix}.feed_forward_length": text.intermediate_size,
        f"{prefix}.attention.head_count": text.num_attention_heads,
        f"{prefix}.attention.head_count_kv": text.num_key_value_heads,
        f"{prefix}.attention.key_length": head,
        f"{prefix}.attention.value_length": head,
        f"{prefix}.attention.layer_norm_rms_epsilon": float(text.rms_norm_eps),
        f"{prefix}.rope.dimension_count": head,
        f"{prefix}.rope.freq_base": float(rope["rope_theta"]),
    }
    if "mrope_section" in rope:
        sections = [int(width) for width in rope["mrope_section"]]
        values[f"{prefix}.rope.dimension_sections"] = [*sections, *[0] * (4 - len(sections))]
    merged = getattr(config.vision_config, "deepstack_visual_indexes", None)
    if merged is not None:
        values[f"{prefix}.n_deepstack_layers"] = len(merged)
    return values


def _decoder_tensors(
    model: nn.Module,
    layers: Layers,
    decoder: _Decoder,
    kind: str,
    dtype: torch.dtype,
    *,
    round_scales: bool,
) -> dict[str, Stored]:
    """The decoder's tensors by llama.cpp's names."""
    config: Any = model.config
    tensors: dict[str, Stored] = {}
    for name, integers, scales in layers.items():
        rows = _rows(name, integers.shape[0], config, decoder)
        half = stored_scales(scales, torch.float16, f"{name}.scales", round_scales=round_scales)
        tensors[_place(f"{name}.weight")] = pack_blocks(integers[rows], half[rows], kind)
    gone = {f"{name}.{part}" for name in layers.names for part in ("weight", "log_scale")}
    for name, tensor in _plain_weights(model):
        if name not in gone:
            linear = name.rpartition(".")[0]
            rows = _rows(linear, tensor.shape[0], config, decoder)
            stored = torch.float32 if tensor.dim() < 2 else dtype
            tensors[_place(name)] = plain(name, tensor[rows], stored)
    return tensors


def _plain_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Everything of the decoder's state; the output head only where it is not tied."""
    state = model.state_dict()
    embedding = state[f"{_LANGUAGE_MODEL}embed_tokens.weight"]
    for name, tensor in state.items():
        if name.startswith(_LANGUAGE_MODEL):
            yield name, tensor
    if _HEAD in state and state[_HEAD].data_ptr() != embedding.data_ptr():
        yield _HEAD, state[_HEAD]


def _rows(linear: str, count: int, config: Any, decoder: _Decoder) -> slice | Tensor:
    """The order of a linear's output rows in the file: codes, scales and bias move alike."""
    text = config.get_text_config()
    last = linear.rpartition(".")[2]
    heads = {"q_proj": text.num_attention_heads, "k_proj": text.num_key_value_heads}.get(last)
    if heads is None or not decoder.interleaved:
        return slice(None)
    return torch.arange(count).view(heads, 2, -1).transpose(1, 2).flatten()


def _place(name: str) -> str:
    """llama.cpp's name of a tensor of the decoder."""
    if name == _HEAD:
        return "output.weight"
    rest = name.removeprefix(_LANGUAGE_MODEL)
    path, _, part = rest.rpartition(".")
    whole = {"embed_tokens": "token_embd", "norm": "output_norm"}
    if path in whole:
        return f"{whole[path]}.{part}"
    _, index, inner = path.split(".", 2) if path.count(".") >= 2 else ("", "", path)
    if inner not in _PLACES:
        raise InputError(f"{name} has no place in a GGUF file: export to another format")
    return f"blk.{index}.{_PLACES[inner]}.{part}"


def _stops(model: Any) -> list[int]:
    """Tokens that end an answer, as the generation configuration lists them."""
    stops = getattr(model.generation_config, "eos_token_id", None)
    return [] if stops is None else [stops] if isinstance(stops, int) else list(stops)
