"""Everything that wants a GPU, in ten minutes, without a network: tests, losses, steps, decoding.

    python -m replication.gpu [--out results/gpu] [--minutes 10] [--rehearse]
    python -m replication.gpu --import FILE

It needs this repository, torch, transformers, accelerate, psutil, PyYAML, rich and pytest. It
writes <out>/gpu.json, also where a part fails, and says what failed:

1. `tests/gpu`: products, layouts, captured steps, losses, waits for the device;
2. GDKD, RCKA and fake-quantized steps at published sizes beside straightforward ones
   (`replication.bench method`);
3. decoding of LLaVA-1.5-7B and Qwen2-VL-2B in BF16, INT8 and INT4 (`replication.bench speed`).

What does not begin within the minutes is not run, and named. --rehearse takes small sizes and,
where there is no GPU, the processor. --import brings the decoding of a file to `recorded/`, where
the tables show it beside what was measured here.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from grace.errors import InputError
from grace.machine import CACHE_ENVIRONMENT
from replication.base import provenance
from replication.base.command import command
from replication.base.files import ROOT, read_json, write_json_atomic
from replication.measure.harness import code_of
from replication.measure.method import benchmark as method
from replication.measure.printing import print_report
from replication.measure.speed import benchmark as speed
from replication.measure.speed.settings import Settings
from replication.measure.speed.variants import variant
from replication.plan.architectures import architecture
from replication.results.deployment import RESULT as DEPLOYMENT

RESULT = "gpu.json"
MODELS = ("llava-1.5-7b", "qwen2-vl-2b")
VARIANTS = ("bf16", "int4", "int8")
BATCHES = (1, 4, 16, 32)
LOSSES = ("gated_distillation", "relational", "fake_quantization")
SCALE = "small"
"""Whose tables show what is imported."""


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m replication.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", default="results/gpu", help="folder (default: %(default)s)")
    add("--minutes", type=float, default=10.0, help="in which parts begin (default: %(default)s)")
    add("--rehearse", action="store_true", help="small sizes, on the processor where need be")
    add(
        "--import", dest="file", metavar="FILE", help="bring a result to recorded/, and run nothing"
    )
    options = parser.parse_args(arguments)
    if options.file:
        for path in bring_in(options.file, ROOT / "recorded"):
            print(path)
        return 0
    if not (torch.cuda.is_available() or options.rehearse):
        raise InputError("torch sees no CUDA device here; --rehearse runs it on the processor")
    report = run(options.out, options.minutes, rehearse=options.rehearse)
    for name, part in report["parts"].items():
        print(f"{name}: {part.get('not_run') or 'done'}")
    for part, shown in (("losses", method), ("decoding", speed)):
        if "not_run" not in report["parts"][part]:
            print_report(report["parts"][part], shown.tables(report["parts"][part]))
    failed = report["failed"]
    print("\n".join(["failed:", *failed]) if failed else "nothing failed")
    return 1 if failed else 0


def run(out: str | Path, minutes: float, *, rehearse: bool) -> dict[str, Any]:
    """Run all parts and write the report, after each part anew.

    Args:
        out: folder of the report and of what the parts keep.
        minutes: after which no part begins.
        rehearse: small sizes.

    Returns:
        {"name", "device", "rehearsal", "parts": {"tests", "losses", "decoding"}, "failed": lines,
        "provenance"}; a part that did not run is {"not_run": reason}.
    """
    folder, end = Path(out), time.monotonic() + 60 * minutes
    words = "python -m replication.gpu" + (" --rehearse" if rehearse else "")
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "tests": run_tests,
        "losses": lambda: method.run(
            LOSSES, folder / "losses", quick=rehearse, repeats=2 if rehearse else 4, command=words
        ),
        "decoding": lambda: _decoding(folder / "decoding", rehearse, words),
    }
    report: dict[str, Any] = {
        "name": "gpu",
        "device": provenance.device_description(),
        "rehearsal": rehearse,
        "parts": {name: {"not_run": "it has not begun"} for name in parts},
        "failed": [],
    }
    for name, part in parts.items():
        start = time.monotonic()
        if start > end:
            report["parts"][name] = {"not_run": f"the {minutes:g} minutes were over"}
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            report["parts"][name] = part()
        except InputError as error:
            report["parts"][name] = {"not_run": str(error)}
            report["failed"].append(f"{name}: {error}")
        report["parts"][name]["seconds"] = time.monotonic() - start
        report["failed"] += _failures(name, report["parts"][name], bounds=not rehearse)
        report["provenance"] = provenance.collect(
            {"minutes": minutes, "rehearse": rehearse}, [0], words, device=report["device"]
        )
        write_json_atomic(folder / RESULT, report)
    return report


def _decoding(folder: Path, rehearse: bool, words: str) -> dict[str, Any]:
    settings = Settings(batches=BATCHES)
    if rehearse:
        settings = Settings(batches=(1, 4), layers=1, repeats=1, decode_repeats=2, tokens=4)
    return speed.run(
        [architecture(name) for name in MODELS],
        [variant(name) for name in VARIANTS],
        settings,
        folder,
        command=words,
        evidence="measured" if rehearse else "recorded",
    )


def run_tests(folder: Path = ROOT / "tests" / "gpu") -> dict[str, Any]:
    """Run a folder of tests.

    Returns:
        {"passed", "skipped", "failed": counts, "failures": {test: first line}}.

    Raises:
        InputError: pytest did not get as far as to run them.
    """
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "tests.xml"
        words = [sys.executable, "-m", "pytest", str(folder), "--confcutdir", str(folder), "-q"]
        words += ["-p", "no:cacheprovider", f"--junitxml={file}"]
        path = os.pathsep.join([str(ROOT), str(folder), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, CACHE_ENVIRONMENT: place}
        done = subprocess.run(words, cwd=ROOT, env=environment, stdout=sys.stderr, check=False)
        if not file.is_file():
            raise InputError(f"pytest ended with {done.returncode} and ran no test")
        cases = list(ET.parse(file).getroot().iter("testcase"))
    counts = Counter(_outcome(case) for case in cases)
    failures = {
        f"{case.get('classname')}.{case.get('name')}": _reason(case)
        for case in cases
        if _outcome(case) == "failed"
    }
    return {**{name: counts[name] for name in ("passed", "skipped", "failed")},
            "failures": failures}  # fmt: skip


def _outcome(case: ET.Element) -> str:
    kinds = {child.tag for child in case}
    if kinds & {"failure", "error"}:
        return "failed"
    return "skipped" if "skipped" in kinds else "passed"


def _reason(case: ET.Element) -> str:
    texts = [child.get("message") or "" for child in case if child.tag in ("failure", "error")]
    return (" ".join(texts).strip().splitlines() or ["no reason given"])[0]


def _failures(name: str, part: dict[str, Any], *, bounds: bool) -> list[str]:
    """What failed in a part: tests, and bounds at published sizes."""
    lines = [f"{test}: {reason}" for test, reason in part.get("failures", {}).items()]
    if bounds:
        stated = [bound for one in part.get("parts", {}).values() for bound in one["bounds"]]
        lines += [
            f"{name}: {bound['what']}: {bound['median']:.3g}, at most {bound['at_most']:g} stated"
            for bound in stated
            if bound["median"] > bound["at_most"]
        ]
    return lines


def bring_in(file: str | Path, recorded: Path) -> list[Path]:
    """Write the decoding of a result where the tables look for what other devices measured.

    Args:
        file: gpu.json of a run that was no rehearsal.
        recorded: the folder of recorded results.

    Returns:
        The files that were written, one a model.

    Raises:
        InputError: it is no such result, nothing was decoded, or its code is neither committed nor
            the code here.
    """
    from replication.results.elsewhere import slug_of  # wants pydantic: not on every GPU's machine

    report = read_json(file)
    if not isinstance(report, dict) or report.get("name") != "gpu" or report.get("rehearsal"):
        raise InputError(f"{file} is no result of a GPU: run python -m replication.gpu on one")
    decoding = report["parts"]["decoding"]
    if "not_run" in decoding:
        raise InputError(f"{file}: nothing was decoded: {decoding['not_run']}")
    origin = decoding["provenance"]
    if origin["commit"] is None:  # measured by a copy without its history
        same = origin["code"] == code_of(variant(name).module for name in VARIANTS)
        origin = {**origin, **(provenance.git_state() if same else {})}
    if origin["dirty"] is not False:
        raise InputError(f"{file}: its code is not committed here: commit it, and measure again")
    written = []
    for name, model in decoding["models"].items():
        place = recorded / slug_of(decoding["device"]) / SCALE / "deploy" / name / DEPLOYMENT
        own = {key: value for key, value in decoding.items() if key != "seconds"}
        write_json_atomic(place, {**own, "models": {name: model}, "provenance": origin})
        written.append(place)
    return written


if __name__ == "__main__":
    sys.exit(main())
