"""All variants side by side: a fresh process for each, results kept as they come, one report.

<out>/parts/<model>/<variant>.json    one variant; a run that is interrupted goes on after it
<out>/deploy.json                     all of them, with provenance
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from grace.errors import InputError
from replication.base import provenance
from replication.base.files import write_json_atomic
from replication.measure.harness import Benchmark, Part
from replication.measure.speed.settings import Settings, read_settings
from replication.measure.speed.tables import tables
from replication.measure.speed.variants import VARIANTS, Variant, variant
from replication.plan.architectures import Architecture, architecture, architectures
from replication.results.deployment import BASELINE, RESULT

__all__ = ["HELP", "add_options", "run", "run_options", "tables"]

HELP = (
    "time to first token, decode rate and memory of published architectures with random weights; "
    "peers that are not installed are not run, and the report says why"
)
MODELS = ("llava-1.5-7b",)
DEFAULT_VARIANTS = (BASELINE, "int4")


def run(
    models: Sequence[Architecture],
    variants: Sequence[Variant],
    settings: Settings,
    out: str | Path,
    *,
    command: str,
    evidence: str = "measured",
) -> dict[str, Any]:
    """Measure what is missing, and write the report.

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
    parts = [_part(model, way, settings) for model in models for way in variants]
    results = benchmark.run(parts, Path(out) / "parts")
    report = {
        "name": "deploy",
        "evidence": evidence,
        "settings": settings.to_dict(),
        "device": benchmark.device,
        "models": {
            model.name: {
                "repository": model.repository,
                "parameters": model.parameters if settings.layers is None else None,
                "variants": {
                    way.name: {"label": way.label, **results[_name(model, way)]} for way in variants
                },
            }
            for model in models
        },
        "provenance": benchmark.provenance(
            parts,
            {
                "models": [model.name for model in models],
                "variants": [way.name for way in variants],
                "settings": settings.to_dict(),
            },
            settings.seed,
            command,
        ),
    }
    write_json_atomic(Path(out) / RESULT, report)
    return report


def _name(model: Architecture, way: Variant) -> str:
    return f"{model.name}/{way.name}"


def _part(model: Architecture, way: Variant, settings: Settings) -> Part:
    return Part(
        _name(model, way),
        "replication.measure.speed.measure",
        {"model": asdict(model), "name": way.name, "settings": settings.to_dict()},
        optional=not (way.ours or way.name == BASELINE),
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
    names = ("repeats", "decode_repeats", "tokens", "seed", "layers", "device", "threads")
    return run(
        [architecture(name) for name in _names(options.models, architectures())],
        [variant(name) for name in _names(options.variants, VARIANTS)],
        read_settings(
            batches=_numbers(options.batches),
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
