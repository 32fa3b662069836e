"""All variants side by side: a fresh process for each, results kept as they come, one report.

<out>/parts/<model>/<variant>.json    one variant; a run that is interrupted goes on after it
<out>/deploy.json                     all of them, with provenance
"""

import argparse
import hashlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from grace.errors import InputError
from replication.base import provenance
from replication.base.files import ROOT, write_json_atomic
from replication.measure.clock import spread
from replication.measure.harness import Benchmark, Part
from replication.measure.speed.settings import Settings, read_settings
from replication.measure.speed.tables import tables
from replication.measure.speed.variants import ENGINES_PYTHON, VARIANTS, Variant, variant
from replication.plan.architectures import Architecture, architecture, architectures
from replication.results.deployment import BASELINE, RESULT

__all__ = ["HELP", "add_options", "run", "run_options", "tables"]

HELP = (
    "time to first token, decode rate and memory of published architectures with random weights; "
    "peers that are not installed are not run, and the report says why"
)
MODELS = ("llava-1.5-7b",)
DEFAULT_VARIANTS = (BASELINE, "int4")
ENGINES_LOCK = ROOT / "requirements" / "engines.txt"


def run(
    models: Sequence[Architecture],
    variants: Sequence[Variant],
    settings: Settings,
    out: str | Path,
    *,
    command: str,
    evidence: str = "measured",
) -> dict[str, Any]:
    """Measure what is missing, and write the report, after every round anew.

    Args:
        models: the architectures.
        variants: what their decoders become.
        settings: what is measured, and how often.
        out: folder of parts and report.
        command: for the provenance.
        evidence: "measured" here and now, or "recorded": on another device, to be kept as such.

    Returns:
        The content of <out>/deploy.json.

    Raises:
        InputError: where there is nothing to measure, and where BF16 or a variant of our own fails;
            a peer that fails is not run, with its error as the reason.
    """
    if evidence not in ("measured", "recorded"):
        raise InputError(f"evidence {evidence!r}: choose measured or recorded")
    if not models or not variants:
        raise InputError("nothing to measure: name a model and a variant")
    benchmark = Benchmark(_device(settings))
    parts: list[Part] = []
    report: dict[str, Any] = {}
    running = [(model, way) for model in models for way in variants]
    rounds: dict[str, list[dict[str, Any]]] = {_name(*one): [] for one in running}
    for number in range(settings.rounds):
        turn = [_part(model, way, settings, number) for model, way in running]
        found = benchmark.run(turn, Path(out) / "parts")
        for one in running:
            rounds[_name(*one)].append(found[_name(*one, number)])
        # what was not run would not be in another round either
        running = [one for one in running if "not_run" not in rounds[_name(*one)][-1]]
        parts += turn
        done = {**settings.to_dict(), "rounds": number + 1}
        report = {
            "name": "deploy",
            "evidence": evidence,
            "settings": done,
            "device": benchmark.device,
            "models": _models(models, variants, settings, rounds),
            "provenance": benchmark.provenance(
                parts,
                {
                    "models": [model.name for model in models],
                    "variants": [way.name for way in variants],
                    "settings": done,
                },
                settings.seed,
                command,
            ),
        }
        write_json_atomic(Path(out) / RESULT, report)
    return report


def _models(
    models: Sequence[Architecture],
    variants: Sequence[Variant],
    settings: Settings,
    rounds: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    """By model its variants, with the rounds that are done pooled."""
    return {
        model.name: {
            "repository": model.repository,
            "parameters": model.parameters if settings.layers is None else None,
            "variants": {
                way.name: {"label": way.label, **pooled(rounds[_name(model, way)])}
                for way in variants
            },
        }
        for model in models
    }


def pooled(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One record of a variant's rounds: all repeats together; not run where one round was not."""
    first, *others = rounds
    for one in rounds:
        if "not_run" in one:
            return {"not_run": one["not_run"]}
    if not others:
        return dict(first)
    bandwidth = [value for one in rounds for value in one["copy_bandwidth"]]
    decode: dict[str, Any] = {}
    for batch, step in first["decode"].items():
        steps = [one["decode"][batch] for one in rounds]
        if any("not_run" in other for other in steps):
            decode[batch] = next(other for other in steps if "not_run" in other)
            continue
        floor = step["bytes_per_step"] / max(bandwidth)
        seconds = _pool(steps, "seconds_per_step")
        decode[batch] = {
            **step,
            "tokens_per_second": _pool(steps, "tokens_per_second"),
            "seconds_per_step": {
                **seconds,
                "p90": max(other["seconds_per_step"]["p90"] for other in steps),
            },
            "floor_seconds": floor,
            "fraction_of_floor": floor / seconds["median"],
        }
    phases = first["peak_bytes"]
    return {
        **first,
        "time_to_first_token": _pool(rounds, "time_to_first_token"),
        "decode": decode,
        "peak_bytes": {name: max(one["peak_bytes"][name] for one in rounds) for name in phases},
        "copy_bandwidth": bandwidth,
    }


def _pool(records: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any]:
    return spread([value for one in records for value in one[key]["values"]])


def _name(model: Architecture, way: Variant, number: int = 0) -> str:
    return f"{model.name}/{way.name}" + (f"-{number}" if number else "")


def _part(model: Architecture, way: Variant, settings: Settings, number: int) -> Part:
    arguments = {"model": asdict(model), "name": way.name, "settings": settings.to_dict()}
    if way.outside and way.convert is None:  # not a linear of ours to be converted: an engine
        arguments["engines"] = hashlib.sha256(ENGINES_LOCK.read_bytes()).hexdigest()
    return Part(
        _name(model, way, number),
        way.module,
        arguments,
        optional=not (way.ours or way.name == BASELINE),
        python=str(ENGINES_PYTHON) if way.outside else sys.executable,
    )


def _device(settings: Settings) -> str:
    if settings.torch_device().type == "cuda":
        return provenance.device_description()
    return provenance.cpu_description()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add, default = parser.add_argument, Settings()
    add(
        "--models",
        default=",".join(MODELS),
        help=f"of {', '.join(architectures())}; or all (default: %(default)s)",
    )
    add(
        "--variants",
        default=",".join(DEFAULT_VARIANTS),
        help=f"of {', '.join(VARIANTS)}; or all (default: %(default)s)",
    )
    batches = ",".join(map(str, default.batches))
    add("--batches", default=batches, help="batch sizes of decoding (default: %(default)s)")
    add("--repeats", type=int, default=default.repeats, help="number of prefills")
    add("--decode-repeats", type=int, default=default.decode_repeats, help="runs of tokens")
    add("--tokens", type=int, default=default.tokens, help="of one run of decoding, at most")
    add("--rounds", type=int, default=default.rounds, help="turns of all variants, pooled")
    add("--words", type=int, default=default.text_tokens, help="in the prompt")
    add("--no-image", action="store_true", help="a prompt of words alone, as engines read it")
    add("--layers", type=int, help="build only so many: to try things out, no published model")
    add("--seed", type=int, default=default.seed, help="of weights and prompt")
    add("--device", default=default.device, help="auto, cpu or cuda")
    add("--threads", type=int, default=default.threads, help="of the CPU; 0: torch's choice")
    add("--out", default="results/deploy", help="folder (default: %(default)s)")
    add(
        "--recorded",
        action="store_true",
        help='mark the result "recorded": measured on another device than the rest',
    )


def run_options(options: argparse.Namespace, command: str) -> dict[str, Any]:
    """`run` with the options of `add_options`."""
    names = (
        *("repeats", "decode_repeats", "tokens", "rounds", "seed", "layers", "device", "threads"),
    )
    return run(
        [architecture(name) for name in _names(options.models, architectures())],
        [variant(name) for name in _names(options.variants, VARIANTS)],
        read_settings(
            batches=_numbers(options.batches),
            image=not options.no_image,
            text_tokens=options.words,
            **{name: getattr(options, name) for name in names},
        ),
        options.out,
        command=command,
        evidence="recorded" if options.recorded else "measured",
    )


def _names(text: str, known: Iterable[str]) -> list[str]:
    return list(known) if text == "all" else text.split(",")


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--batches {text!r}: give whole numbers with commas between") from None
