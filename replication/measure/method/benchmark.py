"""All parts, each in a process of its own, and one report.

    <out>/parts/<part>.json    one part; a run that is interrupted goes on after it
    <out>/performance.json     all of them, with provenance
    <out>/performance.md       its tables

{"name", "evidence", "settings", "device", "memory", "parts": {part: {"rows", "bounds"}},
"provenance"}. A row has "case", "sizes", and what `compare.compare` returns: seconds and peak bytes
of every way, and the quotients of our own way, "grace", over the others.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from grace.errors import InputError
from replication.base import provenance
from replication.base.files import write_json_atomic, write_text_atomic
from replication.base.messages import unknown
from replication.measure.harness import Benchmark, Part
from replication.measure.method import (
    fake_quantization,
    gated_distillation,
    loading,
    projection,
    relational,
    scale_search,
)
from replication.measure.method.tables import markdown, tables

__all__ = ["HELP", "PARTS", "add_options", "cases_of", "run", "run_options", "tables"]

HELP = (
    "the method's own speed and memory beside the straightforward ways, at published widths: about "
    "four minutes on two cores and up to 16 GiB of memory; where there is less, the "
    "straightforward loss is left out at the sizes that do not fit"
)
RESULT, TABLES = "performance.json", "performance.md"
PARTS: dict[str, ModuleType] = {
    "fake_quantization": fake_quantization,
    "scale_search": scale_search,
    "gated_distillation": gated_distillation,
    "projection": projection,
    "relational": relational,
    "loading": loading,
}


def run(
    names: Sequence[str],
    out: str | Path,
    *,
    quick: bool = False,
    repeats: int = 4,
    seed: int = 41,
    threads: int = 0,
    command: str,
) -> dict[str, Any]:
    """Measure the parts that are missing, and write the report and its tables.

    Args:
        names: of `PARTS`.
        out: folder of parts, report and tables.
        quick: small sizes, which only show that it runs.
        repeats: rounds that are timed.
        seed: of the random values.
        threads: of the CPU; 0: torch's choice.
        command: for the provenance.

    Returns:
        The report.

    Raises:
        InputError: for an unknown part or a setting out of range, and where a part fails.
    """
    for name in names:
        if name not in PARTS:
            raise InputError(unknown(f"part {name!r}", name, PARTS))
    for field, value, low in (("repeats", repeats, 1), ("threads", threads, 0)):
        if type(value) is not int or value < low:
            raise InputError(f"{field}: {value!r} is no whole number from {low}")
    cases = {name: [asdict(case) for case in cases_of(name, quick)] for name in names}
    benchmark = Benchmark(provenance.device_description(), keep_memory=True)
    parts = [
        Part(
            name,
            PARTS[name].__name__,
            {"cases": cases[name], "repeats": repeats, "seed": seed, "threads": threads},
        )
        for name in cases
    ]
    results = benchmark.run(parts, Path(out) / "parts")
    settings = {
        "quick": quick,
        "repeats": repeats,
        "threads": threads or torch.get_num_threads(),
        "cases": cases,
    }
    report = {
        "name": "performance",
        "evidence": "measured",
        "settings": settings,
        "device": benchmark.device,
        "memory": _how_memory_is_counted(),
        "parts": results,
        "provenance": benchmark.provenance(parts, settings, seed, command),
    }
    write_json_atomic(Path(out) / RESULT, report)
    write_text_atomic(Path(out) / TABLES, markdown(report))
    return report


def cases_of(part: str, quick: bool) -> tuple[Any, ...]:
    """What a part measures."""
    cases: tuple[Any, ...] = PARTS[part].QUICK if quick else PARTS[part].DEFAULT
    return cases


def _how_memory_is_counted() -> str:
    if torch.cuda.is_available():
        return "high-water mark of torch's CUDA allocator"
    return "every allocation of torch's CPU allocator, from its profiler's memory events"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add, every = parser.add_argument, ",".join(PARTS)
    add("--parts", default=every, help="with commas between (default: %(default)s)")
    add("--quick", action="store_true", help="small sizes: only that it runs")
    add("--repeats", type=int, default=4, help="rounds that are timed (default: %(default)s)")
    add("--seed", type=int, default=41, help="of the random values")
    add("--threads", type=int, default=0, help="of the CPU; 0: torch's choice")
    add("--out", default="results/performance", help="folder (default: %(default)s)")


def run_options(options: argparse.Namespace, command: str) -> dict[str, Any]:
    """`run` with the options of `add_options`."""
    return run(
        options.parts.split(","),
        options.out,
        quick=options.quick,
        repeats=options.repeats,
        seed=options.seed,
        threads=options.threads,
        command=command,
    )
