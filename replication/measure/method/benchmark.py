"""All parts, each in a process of its own, and one report: <out>/performance.json, its tables in
<out>/performance.md.

{"name", "evidence", "settings", "device", "memory", "parts": {part: {"rows", "bounds"}},
"provenance"}. A row has "case", "sizes", and what `measure.compare` returns: seconds and peak bytes
of every way, and the quotients of our own way, "grace", over the others.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from grace.errors import InputError
from replication.base import provenance
from replication.base.files import read_json, write_json_atomic, write_text_atomic
from replication.measure.method import (
    fake_quantization,
    gated_distillation,
    projection,
    relational,
    scale_search,
)
from replication.measure.method.text import markdown

RESULT, TABLES = "performance.json", "performance.md"
PARTS: dict[str, ModuleType] = {
    "fake_quantization": fake_quantization,
    "scale_search": scale_search,
    "gated_distillation": gated_distillation,
    "projection": projection,
    "relational": relational,
}
# Freed memory is kept, as in training under make. Else every large tensor is paid for in page
# faults, those of the straightforward ways most.
_KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**35),
    "MALLOC_TOP_PAD_": str(2**28),
}


def run(
    parts: Sequence[str],
    out: str | Path,
    *,
    quick: bool = False,
    repeats: int = 4,
    seed: int = 41,
    threads: int = 0,
    command: str,
    evidence: str = "measured",
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure the parts, write the report and its tables, and return the report.

    quick: sizes that only show that it runs. threads: of the CPU; 0: torch's own number.

    Raises InputError for an unknown part or a setting that cannot be, and where a part fails.
    """
    for name in parts:
        if name not in PARTS:
            raise InputError(f"part {name!r}: choose of {', '.join(PARTS)}")
    for field, value, low in (("repeats", repeats, 1), ("threads", threads, 0)):
        if type(value) is not int or value < low:
            raise InputError(f"{field}: {value!r} is no whole number from {low}")
    found = {}
    for name in dict.fromkeys(parts):
        say(f"{name}: measuring")
        job = {"part": name, "quick": quick, "repeats": repeats, "seed": seed, "threads": threads}
        found[name] = _in_a_process(job)
    settings = {
        "quick": quick,
        "repeats": repeats,
        "threads": threads or torch.get_num_threads(),
        "cases": {name: [asdict(case) for case in cases_of(name, quick)] for name in found},
    }
    report = {
        "name": "performance",
        "evidence": evidence,
        "settings": settings,
        "device": provenance.device_description(),
        "memory": _how_memory_is_counted(),
        "parts": found,
        "provenance": provenance.collect(
            settings, [seed], command, device=provenance.device_description()
        ),
    }
    write_json_atomic(Path(out) / RESULT, report)
    write_text_atomic(Path(out) / TABLES, markdown(report))
    return report


def cases_of(part: str, quick: bool) -> tuple[Any, ...]:
    """What a part measures."""
    module: Any = PARTS[part]
    cases: tuple[Any, ...] = module.QUICK if quick else module.DEFAULT
    return cases


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """One part, in this process."""
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module: Any = PARTS[job["part"]]
    cases = cases_of(job["part"], job["quick"])
    found: dict[str, Any] = module.run(cases, job["repeats"], job["seed"], device)
    return found


def _how_memory_is_counted() -> str:
    if torch.cuda.is_available():
        return "high-water mark of torch's CUDA allocator"
    return "every allocation of torch's CPU allocator, from its profiler's memory events"


def _in_a_process(job: dict[str, Any]) -> dict[str, Any]:
    root = Path(__file__).resolve().parents[3]
    environment = {
        **os.environ,
        **_KEEP_MEMORY,
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
    }
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "part.json"
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "replication.measure.method.process",
                json.dumps(job),
                str(result),
            ],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            found: dict[str, Any] = read_json(result)
            return found
    reason = f"its process was ended by signal {-done.returncode} (out of memory?)"
    if done.returncode > 0:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:300]
    raise InputError(f"{job['part']}: {reason}")
