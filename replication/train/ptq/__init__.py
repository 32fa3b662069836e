"""Post-training quantization: the baselines that train nothing.

Every method quantizes the weights of the decoder's linears and nothing else. What it writes is a
model directory that is loaded and evaluated like any other:

    rtn       round to nearest, a scale a group: max|W| over the highest code
    awq       activation-aware weight quantization (arXiv 2306.00978), through llm-compressor
    gptq      second-order rounding (arXiv 2210.17323), through llm-compressor
    nf4       4-bit NormalFloat (arXiv 2305.14314), of bitsandbytes
    llm_int8  8-bit weights and activations (arXiv 2208.07339), of bitsandbytes

The first three end on the grid of `grace.quantization.QuantSpec` and keep their integer codes and
scales beside the weights. `methods` says what exists, `calibration` draws the conversations that
awq and gptq look at, `compressor` and `bnb` call the libraries, which take seconds to import.
"""

import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from grace.models import check_model_directory, decoder_linears, load_model, load_processor
from grace.quantization import QuantSpec, bake, prepare, write_codes
from replication.settings.ptq_methods import CALIBRATED, LIBRARIES, ON_GRID, check_method
from replication.train.ptq.calibration import Calibration

__all__ = ["Calibration", "quantize"]


def quantize(
    source: Path,
    target: Path,
    method: str,
    bits: int,
    *,
    group_size: int | str = 128,
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    """Quantize the model directory ``source`` and write the model directory ``target``.

    The weights written for rtn, awq and gptq are scale times code in float32, exactly; those for
    nf4 are codebook value times block maximum. The codes (int8, (out, in)) and scales (float32,
    (out, groups)) of the first three are in ``quantized.safetensors``, as a trained run's are.
    llm_int8 also rounds activations, which no float weight can express: its directory holds
    bitsandbytes' own int8 weights and a ``quantization_config``, with which ``from_pretrained``
    builds its int8 linears.

    Args:
        source: The model directory to quantize.
        target: The model directory to write, whole or not at all.
        method: "rtn", "awq", "gptq", "nf4" or "llm_int8".
        bits: A width that the method has.
        group_size: Input channels to a scale, or "row"; of rtn, awq and gptq. nf4 always has
            blocks of 64 weights, llm_int8 one scale a row.
        calibration: Training conversations; for awq and gptq, and only for them.

    Returns:
        The record: the arguments, library versions, the drawn conversations and the seconds it
        took, loading and saving not counted.

    Raises:
        InputError: For an unknown method, a bit width it does not have, a directory that is no
            model, too few conversations, a group size that does not divide a linear's input
            features.
    """
    check_method(method, bits, group_size)
    assert (method in CALIBRATED) == (calibration is not None), "awq and gptq alone are calibrated"
    check_model_directory(source)
    record: dict[str, Any] = {
        "method": method,
        "bits": bits,
        "versions": {name: version(name) for name in LIBRARIES[method]},
    }
    if method not in ON_GRID:
        return record | _with_bitsandbytes(source, target, method)
    spec = QuantSpec(bits=bits, group_size=group_size, init="max")
    record["group_size"] = group_size
    if calibration is None:
        return record | _nearest(source, target, spec)
    return record | _calibrated(source, target, method, spec, calibration)


def _nearest(source: Path, target: Path, spec: QuantSpec) -> dict[str, Any]:
    model = load_model(source)
    start = time.perf_counter()
    prepare(model, spec)
    exact = bake(model)
    seconds = time.perf_counter() - start
    _save(source, target, model, _writer("rtn", spec, exact))
    return {"seconds": seconds}


def _calibrated(
    source: Path, target: Path, method: str, spec: QuantSpec, calibration: Calibration
) -> dict[str, Any]:
    os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")  # read when it is imported
    from replication.train.ptq.compressor import compress, take

    model: Any = load_model(source)
    for name in decoder_linears(model):
        spec.group_width(model.get_submodule(name).in_features, name)
    compressed: Any = load_model(source)  # llm-compressor leaves marks of its own on a model
    processor = load_processor(source)
    start = time.perf_counter()
    drawn = calibration.draw(processor, model.config)
    exact = compress(compressed, processor, method, spec, drawn.batches(model))
    seconds = time.perf_counter() - start
    take(model, compressed, exact, spec)
    _save(source, target, model, _writer(method, spec, exact))
    drawn_from = {"samples": calibration.samples, "seed": calibration.seed, "sha256": drawn.sha256}
    return {"calibration": drawn_from, "seconds": seconds}


def _with_bitsandbytes(source: Path, target: Path, method: str) -> dict[str, Any]:
    from replication.train.ptq.bnb import load_llm_int8, round_to_nf4

    model = load_model(source)
    start = time.perf_counter()
    if method == "nf4":
        round_to_nf4(model)
    else:
        model = load_llm_int8(source, model)
    seconds = time.perf_counter() - start
    _save(source, target, model)
    return {"seconds": seconds}


def _writer(
    method: str, spec: QuantSpec, exact: dict[str, tuple[Tensor, Tensor]]
) -> Callable[[Path], None]:
    settings = {
        "method": method,
        "bits": spec.bits,
        "group_size": spec.group_size,
        "scale_dtype": spec.scale_dtype,
    }
    return lambda directory: write_codes(directory, exact, settings)


def _save(
    source: Path, target: Path, model: Any, also: Callable[[Path], None] | None = None
) -> None:
    from replication.train.fit import save_model

    save_model(model, load_processor(source), target, also=also)
