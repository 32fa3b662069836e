"""compressed-tensors' pack-quantized format, which transformers and vLLM load."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from grace.errors import InputError
from grace.export.checkpoint import DTYPES, write_checkpoint
from grace.export.layers import Layers, quantized_layers
from grace.export.packing import pack_words, stored_scales
from grace.files import atomic_directory, check_target
from grace.types import Codes

BITS = (4, 8)


def save_compressed_tensors(
    model: nn.Module,
    path: str | Path,
    *,
    codes: Codes | None = None,
    bits: int | None = None,
    dtype: torch.dtype | None = None,
    processor: Any = None,
    round_scales: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write `model` in compressed-tensors' format "pack-quantized".

    For every quantized linear layer the checkpoint has weight_packed (out, in bits / 32) int32,
    weight_scale (out, groups) in `dtype` and weight_shape (2,) int64. Loaded with transformers'
    `from_pretrained`, a weight is scale times code, rounded once to `dtype`.

    Example::

        save_compressed_tensors(student, "student-ct", processor=processor)
        AutoModelForImageTextToText.from_pretrained("student-ct")

    Args:
        model: With `FakeQuantLinear`s of 4 or 8 bits, or baked together with `codes`. It is not
            changed.
        path: Of the new directory.
        codes: Of a baked model: what `bake` returned.
        bits: Of these codes, 4 by default.
        dtype: Of the scales and of everything that is not quantized; by default the model's.
        processor: Written beside the model where given.
        round_scales: Round scales that `dtype` cannot hold, instead of refusing them.
        overwrite: Replace a model directory at `path`. Until the new one is complete the old stays.

    Returns:
        The directory.

    Raises:
        InputError: What `grace.export.layers` refuses, other widths than 4 and 8 bits, scales or
            weights that `dtype` cannot hold, or a `path` that is taken.
    """
    layers = quantized_layers(model, codes, bits)
    if layers.spec.bits not in BITS:
        raise InputError(
            f"save_compressed_tensors: {layers.spec.bits} bits: there are kernels for 4 and 8 only"
        )
    chosen: Any = model.dtype if dtype is None else dtype
    if chosen not in DTYPES:
        raise InputError(
            f"save_compressed_tensors: dtype is {chosen}: give one of {', '.join(map(str, DTYPES))}"
        )
    check_target(Path(path), overwrite=overwrite)
    packed = {
        name: {
            "weight_packed": pack_words(integers, layers.spec.bits),
            "weight_scale": stored_scales(
                scales, chosen, f"{name}.weight_scale", round_scales=round_scales
            ),
            "weight_shape": torch.tensor(integers.shape, dtype=torch.int64),
        }
        for name, integers, scales in layers.items()
    }
    with atomic_directory(path, overwrite=overwrite) as directory:
        write_checkpoint(
            model, directory, packed, _config(layers), dtype=chosen, processor=processor
        )
    return Path(path)


def _config(layers: Layers) -> dict[str, Any]:
    by_row = layers.spec.group_size == "row"
    weights = {
        "num_bits": layers.spec.bits,
        "type": "int",
        "symmetric": True,
        "strategy": "channel" if by_row else "group",
        "group_size": None if by_row else layers.spec.group_size,
        "dynamic": False,
    }
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
        "format": "pack-quantized",
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": _ignored(layers),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _ignored(layers: Layers) -> list[str]:
    """Patterns of everything that is not quantized.

    Patterns, for loaders disagree about prefixes: a tower is `visual` in a published checkpoint,
    `model.visual` in transformers and `visual` again in vLLM.
    """
    head = layers.family.output_head
    patterns = [f"re:.*{_last(part)}[.].*" for part in layers.apart if part != head]
    patterns += ["re:.*embed_tokens$", f"re:.*{_last(head)}$"]
    patterns += [f"re:.*{re.escape(name)}$" for name in layers.left_places()]
    return patterns


def _last(name: str) -> str:
    return name.rpartition(".")[2]
