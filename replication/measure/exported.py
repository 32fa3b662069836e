"""A trained model as it is deployed: packed, or exported and loaded by another library.

Each way gives the model that then runs, and the integers that it runs on, as read back from it.

    ways        what runs                                          codes read by
    packed      `grace.int4` on this device's kernel               the back end's own layout
    compressed  a compressed-tensors export, by `from_pretrained`  compressed-tensors
    awq         a `save_awq` export, by `load_released`            the layout's reader
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grace.errors import InputError
from grace.export import load_released, save_awq, save_compressed_tensors
from grace.int4 import PackedLinear, pack
from grace.models import load_model, load_processor
from grace.quantization import CODES_FILE, CodesFile, fake_quant_layers

Integers = Mapping[str, tuple[Tensor, Tensor]]
"""name -> (codes (out, in), scales (out, groups)) of every quantized linear."""


def trained_integers(path: Path) -> CodesFile:
    """The codes and scales that training ended with. Raises InputError where there are none."""
    return CodesFile(path / CODES_FILE)


def mismatches(expected: Integers, found: Integers) -> int:
    """How many codes and scales of `expected` are not those in `found`, a layer that is missing
    or of another shape counting whole, and one that is there unexpectedly likewise."""
    wrong = 0
    for name in sorted({*expected, *found}):
        sides = [side[name] for side in (expected, found) if name in side]
        size = sum(tensor.numel() for tensor in sides[0])
        same = len(sides) == 2 and all(a.shape == b.shape for a, b in zip(*sides, strict=True))
        if not same:
            wrong += size
            continue
        wrong += sum(int((a.float() != b.float()).sum()) for a, b in zip(*sides, strict=True))
    return wrong


def as_packed(path: Path, folder: Path, *, crossover: int) -> tuple[Any, Integers]:
    """The model at `path`, its linears replaced by packed ones.

    crossover: rows up to which the kernel is used; fixed, so that answers do not depend on what
    is fastest here.
    """
    model: Any = load_model(path)
    pack(model, trained_integers(path), crossover=crossover)
    found = {
        name: (layer.codes(), layer.scales())
        for name, layer in model.named_modules()
        if isinstance(layer, PackedLinear)
    }
    return model, found


def as_compressed(path: Path, folder: Path, *, crossover: int) -> tuple[Any, Integers]:
    """Exported to `folder` in compressed-tensors' format and loaded by transformers, which leaves
    the unpacking to compressed-tensors."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from transformers import AutoModelForImageTextToText

    exact = trained_integers(path)
    target = save_compressed_tensors(
        load_model(path), folder / "compressed", codes=exact, bits=exact.bits
    )
    model: Any = AutoModelForImageTextToText.from_pretrained(target, dtype=torch.float32)
    found = {}
    for name, layer in model.named_modules():
        if hasattr(layer, "weight_packed"):
            shape = torch.Size(layer.weight_shape.tolist())
            codes = unpack_from_int32(layer.weight_packed.data, exact.bits, shape)
            found[name] = (codes, layer.weight_scale.data.clone())
    model.hf_quantizer.compressor.decompress_model(model)
    return model, found


def as_awq(path: Path, folder: Path, *, crossover: int) -> tuple[Any, Integers]:
    """Exported to `folder` in AutoAWQ's layout and read back by `load_released`."""
    exact = trained_integers(path)
    target = save_awq(
        load_model(path), folder / "awq", codes=exact, bits=exact.bits, dtype=torch.float32
    )
    model: Any = load_released(target, dtype=torch.float32)
    found = {name: (layer.codes(), layer.scales()) for name, layer in fake_quant_layers(model)}
    return model, found


WAYS: dict[str, Callable[..., tuple[Any, Integers]]] = {
    "packed": as_packed,
    "compressed": as_compressed,
    "awq": as_awq,
}


def answers(
    way: str | None, path: Path, data: Path, folder: Path, settings: Mapping[str, Any]
) -> tuple[int, list[tuple[str, str, str]]]:
    """Codes and scales that differ from those trained, and every answer on the stand-ins as
    (benchmark, question, answer).

    way: of WAYS, or None for the model as it was trained. data: folder of the questions. folder:
    for exports. settings: of `replication.evaluate.score.evaluate_model`, "benchmarks" among them.

    Raises InputError for a model of more bits than the ways have, and as the evaluation does.
    """
    from replication.evaluate.score import evaluate_model

    wrong = 0
    if way is None:
        model: Any = load_model(path)
    else:
        exact = trained_integers(path)
        if exact.bits != 4:
            raise InputError(f"{exact.path} has codes of {exact.bits} bits; all three ways have 4")
        model, found = WAYS[way](path, folder, crossover=settings["batch_size"])
        wrong = mismatches(exact, found)
    asked = evaluate_model(
        model.eval(),  # all on the CPU: another device would answer some near ties otherwise
        settings["benchmarks"],
        data,
        processor=load_processor(path),
        **{key: value for key, value in settings.items() if key != "benchmarks"},
    )
    columns = (asked.outcomes[name] for name in ("benchmark", "question_id", "prediction"))
    return wrong, list(zip(*map(list, columns), strict=True))
