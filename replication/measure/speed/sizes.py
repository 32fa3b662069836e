"""Bytes of a variant: of its weights, of its cache, and of what a decoding step reads."""

from typing import Any

import torch
from torch import nn

from replication.measure.speed.variants import Variant
from replication.measure.speed.weights import stored_bytes
from replication.plan.architectures import Architecture


def expected_bytes(architecture: Architecture, variant: Variant) -> float:
    """What a variant's weights should take: those of its dtype, but a decoder's linear that is
    converted its codes and half a bit for scales."""
    total, linears = architecture.counted_parameters, architecture.decoder_weights
    whole = 8 * variant.dtype.itemsize
    bits = whole if variant.convert is None else variant.bits + 0.5
    return (whole * (total - linears) + bits * linears) / 8


def cache_bytes(
    architecture: Architecture, batch: int, length: int, dtype: torch.dtype = torch.bfloat16
) -> int:
    """Keys and values of `batch` rows of `length` tokens."""
    text = architecture.config().get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = text.num_key_value_heads
    return 2 * text.num_hidden_layers * heads * width * dtype.itemsize * batch * length


def bytes_per_step(architecture: Architecture, model: Any, batch: int, length: int) -> int:
    """Bytes that one decoding step reads at least: the decoder's layers, its last norm and the
    vocabulary projection once, and every row's keys and values of `length` tokens."""
    family = architecture.family
    head = stored_bytes(model.get_submodule(family.output_head))
    decoder = family.decoder_layers.rpartition(".")[0]
    norm = stored_bytes(model.get_submodule(f"{decoder}.norm"))
    layers = stored_bytes(family.layers(model))
    return head + norm + layers + cache_bytes(architecture, batch, length, model.dtype)


def decoder_bits(architecture: Architecture, model: nn.Module) -> float:
    """Stored bits of a decoder weight, scales included and biases left out."""
    layers = [model.get_submodule(name) for name in architecture.decoder_linears]
    biases = sum(
        bias.numel() * bias.element_size()
        for layer in layers
        if (bias := getattr(layer, "bias", None)) is not None
    )
    return 8 * (sum(map(stored_bytes, layers)) - biases) / architecture.decoder_weights
