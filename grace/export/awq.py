"""AutoAWQ's GEMM layout, which vLLM, and transformers with GPTQModel, load."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from grace.errors import InputError
from grace.export.checkpoint import DTYPES, tensor_names, write_checkpoint
from grace.export.layers import Layers, quantized_layers
from grace.export.packing import AWQ_BITS, AWQ_ORDER, awq_zeros, pack_awq, stored_scales
from grace.files import atomic_directory, check_target, write_json
from grace.types import Codes

MODULES_FILE = "awq_quantized_modules.json"


def save_awq(
    model: nn.Module,
    path: str | Path,
    *,
    codes: Codes | None = None,
    bits: int | None = None,
    dtype: torch.dtype = torch.float16,
    processor: Any = None,
    round_scales: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write `model` in AutoAWQ's GEMM layout.

    For every quantized linear layer the checkpoint has qweight (in, out / 8) int32, qzeros
    (groups, out / 8) int32 and scales (groups, out) float16, with w = scale (stored - zero). The
    layout is unsigned: a code q is stored as q + 8 and every zero point is 8, so the codes stay
    what they are. The list of quantized modules stands in `awq_quantized_modules.json` as in the
    paper's released checkpoints, so `load_released` reads the directory back.

    Scales are float16, whatever `dtype` is. A bfloat16 scale has fewer significant bits and is
    stored exactly from 2^-17 to 65280; below, float16 runs out of bits, and above, of range. A
    scale that would be rounded is an error, unless `round_scales` asks for it.

    Example::

        save_awq(student, "student-awq", processor=processor)

    Args:
        model: As in `save_compressed_tensors`, and so `codes`, `processor` and `overwrite`.
        path: Of the new directory.
        codes: Of a baked model.
        bits: Of these codes; 4 bits only.
        dtype: Of everything that is not quantized. float16 is what AWQ's kernels compute in.
        processor: Written beside the model where given.
        round_scales: Round scales that float16 cannot hold, instead of refusing them.
        overwrite: Replace a model directory at `path`.

    Returns:
        The directory.

    Raises:
        InputError: As `save_compressed_tensors`, and for output features that are no multiple
            of 8.
    """
    layers = quantized_layers(model, codes, bits)
    if layers.spec.bits != AWQ_BITS:
        raise InputError(f"save_awq: {layers.spec.bits} bits: the layout has 4")
    if dtype not in DTYPES:
        raise InputError(f"save_awq: dtype is {dtype}: give one of {', '.join(map(str, DTYPES))}")
    check_target(Path(path), overwrite=overwrite)
    packed = {
        name: _pack(name, integers, scales, round_scales=round_scales)
        for name, integers, scales in layers.items()
    }
    group_size = -1 if layers.spec.group_size == "row" else layers.spec.group_size
    quantization = {
        "quant_method": "awq",
        "version": "gemm",
        "bits": AWQ_BITS,
        "group_size": group_size,
        "zero_point": True,
        "modules_to_not_convert": _not_converted(layers),
    }
    with atomic_directory(path, overwrite=overwrite) as directory:
        write_checkpoint(model, directory, packed, quantization, dtype=dtype, processor=processor)
        suffix = ".qweight"
        names = tensor_names(directory)
        modules = [name.removesuffix(suffix) for name in names if name.endswith(suffix)]
        write_json(
            directory / MODULES_FILE,
            {"bits": AWQ_BITS, "group_size": group_size, "modules": modules},
        )
    return Path(path)


def _pack(name: str, codes: Tensor, scales: Tensor, *, round_scales: bool) -> dict[str, Tensor]:
    out_features = codes.shape[0]
    if out_features % len(AWQ_ORDER):
        raise InputError(
            f"{name}: {out_features} output features are no multiple of 8, which AWQ's layout "
            "needs; use save_compressed_tensors"
        )
    half = stored_scales(scales, torch.float16, f"{name}.scales", round_scales=round_scales)
    return {
        "qweight": pack_awq(codes),
        "qzeros": awq_zeros(scales.shape[1], out_features),
        "scales": half.t().contiguous(),
    }


def _not_converted(layers: Layers) -> list[str]:
    """Names of what is not quantized.

    Both as transformers has them (it compares beginnings and ends of a module's name) and as
    published checkpoints and vLLM do (which looks for them anywhere in the name).
    """
    names = []
    for part in layers.apart:
        names += [part.rpartition(".")[2], part]
    return list(dict.fromkeys([*names, *layers.left_places()]))
