"""Is what was trained what is deployed? A trained model packed, or exported and loaded again.

Each way gives the model that then runs, and the integers that it runs on, as read back from it.

    ways        what runs                                          codes read by
    packed      `grace.int4` on this device's kernel               the back end's own layout
    compressed  a compressed-tensors export, by `from_pretrained`  compressed-tensors
    awq         a `save_awq` export, by `load_released`            the layout's reader
"""

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grace.errors import InputError
from grace.export import load_released, save_awq, save_compressed_tensors
from grace.int4 import PackedLinear, pack
from grace.models import load_model, load_processor
from grace.quantization import CODES_FILE, CodesFile, fake_quant_layers
from grace.types import Codes
from replication.base.workers import run_all
from replication.evaluate.score import evaluate_model, evaluation_dtype
from replication.settings.paths import Layout, needed
from replication.settings.schema import Params
from replication.stats.bootstrap import Answers, bootstrap_scores, generator, interval, score
from replication.stats.verdict import Interval

RUN = "grace_int4"
METHOD = (
    f"{RUN}, seed {{seed}}: codes and scales after packing, and after exports read by "
    "compressed-tensors and by the AWQ layout's reader, against those trained; answers against "
    "those of the model as trained; bootstrap over questions"
)

AnswerRow = tuple[str, str, str]
"""(benchmark, question, answer)."""


def trained_integers(path: Path) -> CodesFile:
    """The codes and scales that training ended with.

    Raises:
        InputError: where there are none.
    """
    return CodesFile(path / CODES_FILE)


def mismatches(expected: Codes, actual: Codes) -> int:
    """The number of codes and scales of `expected` that `actual` has otherwise.

    A layer that is missing, unexpected or of another shape counts whole.
    """
    count = 0
    for name in sorted({*expected, *actual}):
        sides = [side[name] for side in (expected, actual) if name in side]
        size = sum(tensor.numel() for tensor in sides[0])
        same = len(sides) == 2 and all(a.shape == b.shape for a, b in zip(*sides, strict=True))
        if not same:
            count += size
            continue
        count += sum(int((a.float() != b.float()).sum()) for a, b in zip(*sides, strict=True))
    return count


def as_packed(path: Path, folder: Path, *, crossover: int) -> tuple[Any, Codes]:
    """The model at `path`, its linears replaced by packed ones.

    Args:
        path: the trained model's directory.
        folder: not used.
        crossover: rows up to which the kernel is used; fixed, so that answers do not depend on
            what is fastest here.

    Returns:
        The model, and the integers that it runs on.
    """
    model: Any = load_model(path)
    pack(model, trained_integers(path), crossover=crossover)
    integers = {
        name: (layer.codes(), layer.scales())
        for name, layer in model.named_modules()
        if isinstance(layer, PackedLinear)
    }
    return model, integers


def as_compressed(path: Path, folder: Path, *, crossover: int) -> tuple[Any, Codes]:
    """Exported to `folder` in compressed-tensors' format and loaded by transformers, which leaves
    the unpacking to compressed-tensors."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from transformers import AutoModelForImageTextToText

    trained = trained_integers(path)
    target = save_compressed_tensors(
        load_model(path), folder / "compressed", codes=trained, bits=trained.bits
    )
    model: Any = AutoModelForImageTextToText.from_pretrained(target, dtype=torch.float32)
    integers = {}
    for name, layer in model.named_modules():
        if hasattr(layer, "weight_packed"):
            shape = torch.Size(layer.weight_shape.tolist())
            codes = unpack_from_int32(layer.weight_packed.data, trained.bits, shape)
            integers[name] = (codes, layer.weight_scale.data.clone())
    model.hf_quantizer.compressor.decompress_model(model)
    return model, integers


def as_awq(path: Path, folder: Path, *, crossover: int) -> tuple[Any, Codes]:
    """Exported to `folder` in AutoAWQ's layout and read back by `load_released`."""
    trained = trained_integers(path)
    target = save_awq(
        load_model(path), folder / "awq", codes=trained, bits=trained.bits, dtype=torch.float32
    )
    model: Any = load_released(target, dtype=torch.float32)
    integers = {name: (layer.codes(), layer.scales()) for name, layer in fake_quant_layers(model)}
    return model, integers


WAYS: dict[str, Callable[..., tuple[Any, Codes]]] = {
    "packed": as_packed,
    "compressed": as_compressed,
    "awq": as_awq,
}


def answers(
    way: str | None, path: Path, data: Path, folder: Path, settings: Mapping[str, Any]
) -> tuple[int, list[AnswerRow]]:
    """Codes and scales that differ from those trained, and every answer on the stand-ins.

    Args:
        way: of WAYS, or None for the model as it was trained.
        path: the trained model's directory.
        data: folder of the questions.
        folder: for exports.
        settings: of `replication.evaluate.score.evaluate_model`, "benchmarks" among them.

    Returns:
        The number of mismatches, and one row for every question.

    Raises:
        InputError: for a model of more bits than the ways have, and as the evaluation does.
    """
    count = 0
    if way is None:
        model: Any = load_model(path)
    else:
        trained = trained_integers(path)
        if trained.bits != 4:
            raise InputError(
                f"{trained.path} has codes of {trained.bits} bits; all three ways have 4"
            )
        model, integers = WAYS[way](path, folder, crossover=settings["batch_size"])
        count = mismatches(trained, integers)
    evaluation = evaluate_model(
        model.eval(),  # all on the CPU: another device would answer some near ties otherwise
        settings["benchmarks"],
        data,
        processor=load_processor(path),
        **{key: value for key, value in settings.items() if key != "benchmarks"},
    )
    columns = (evaluation.outcomes[name] for name in ("benchmark", "question_id", "prediction"))
    return count, list(zip(*map(list, columns), strict=True))


def equal_answers(before: Sequence[AnswerRow], after: Sequence[AnswerRow]) -> dict[str, np.ndarray]:
    """By benchmark, whether each question got the same answer: (questions,) of bool.

    Raises:
        InputError: where the questions are not the same.
    """
    if [row[:2] for row in before] != [row[:2] for row in after]:
        raise InputError("answers to other questions: they cannot be compared")
    equal: dict[str, list[bool]] = {}
    for (benchmark, _, first), (_, _, second) in zip(before, after, strict=True):
        equal.setdefault(benchmark, []).append(first == second)
    return {benchmark: np.array(values) for benchmark, values in equal.items()}


def measure_exports(params: Params, layout: Layout, family: str) -> dict[str, Any]:
    """Pack and export a family's trained student, and count what differs.

    Args:
        params: the sections evaluate, export and compare are read.
        layout: where the student and the questions are.
        family: the family's name.

    Returns:
        The parts of a measurement: "n", "values" ("mismatches" and "differing", which are counts;
        "agreement", the percentage of questions that the packed model answers alike) and "data"
        (both counts by way).

    Raises:
        InputError: where the student is missing, or cannot be exported.
    """
    group, run = params.find_run(family, RUN)
    path = needed(layout.trained(group, RUN, run.seeds[0]), "train")
    benchmarks = params.evaluate.benchmarks[group]
    settings = {
        "benchmarks": benchmarks,
        "batch_size": params.evaluate.batch_size,
        "max_new_tokens": params.evaluate.max_new_tokens,
        "dtype": evaluation_dtype(params.evaluate.dtype),
        "limit": params.export.questions,
    }
    with tempfile.TemporaryDirectory() as folder:
        jobs = [(way, path, layout.benchmarks, Path(folder), settings) for way in (None, *WAYS)]
        (_, before), *after = run_all(answers, jobs)
    equal, ways = {}, {}
    for way, (count, rows) in zip(WAYS, after, strict=True):
        equal[way] = equal_answers(before, rows)
        differing = sum(int((~values).sum()) for values in equal[way].values())
        ways[way] = {"mismatches": count, "differing": differing}
        text = f"{family}, {way}: {count} mismatches; {differing} other answers"
        print(text, file=sys.stderr)
    exported = [ways[way]["differing"] for way in ("compressed", "awq")]
    packed = Answers(
        (run.seeds[0],), {name: values[None] for name, values in equal["packed"].items()}
    )
    rng = generator(params.export.seed, family)
    return {
        "n": {"questions": len(before), "benchmarks": len(benchmarks)},
        "values": {
            "mismatches": Interval.exact(float(sum(way["mismatches"] for way in ways.values()))),
            "differing": Interval.exact(float(sum(exported))),
            "agreement": interval(
                bootstrap_scores([packed], benchmarks, rng, params.compare.resamples), score
            ),
        },
        "data": {"ways": ways},
    }
