"""Rehearse scale paper: every stage, on tiny checkpoints and data in the published formats.

    python -m replication.rehearsal       # in .scales/rehearsal, minutes on two cores

Checkpoints, annotations, images and benchmarks are made first, in `published/`, as folders and a
mirror of the hub hold them. Then the pipeline of scale paper runs under its own parameters, in
which only names, numbers and lengths are replaced (`rehearsed`). Interrupted, the same command goes
on. The numbers mean nothing, and nothing is copied to `results/`.
"""

import argparse
import os
import sys
from collections.abc import Collection, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from replication.base.command import command
from replication.base.files import ROOT
from replication.data.miniature import write_published
from replication.settings.checks import parse_params
from replication.settings.scales import merge, scale_params
from replication.settings.workspace import alone, prepare, run_dvc

FOLDER = Path(".scales") / "rehearsal"
RUNS = {
    "llava_runs": ("grace_int4",),
    "qwen2_vl_controls": ("sft_bf16",),
    "qwen2_vl_runs": ("grace_int4",),
    "qwen3_vl_runs": ("grace_int4",),
}


def rehearsed(published: Path) -> dict[str, Any]:
    """The parameters of scale paper, with the names of what `write_published` made, one process on
    the processor in the place of GPUs, and few samples, runs and tokens."""
    params = scale_params("paper")
    checked = parse_params(params)

    def local(models: dict[str, Any]) -> dict[str, Any]:
        return {
            family: {"source": str(published / "checkpoints" / model.source)}
            for family, model in models.items()
        }

    runs: dict[str, Any] = dict(_without(checked.runs, RUNS))
    for name, kept in RUNS.items():
        runs[name] = {"models": _without(checked.runs[name].models, kept)}
    folders = {*checked.families, *RUNS, "llava_ptq"}
    deploy = scale_params("smoke")["deploy"]
    return merge(
        params,
        {
            "data": {
                "training": {
                    "repository": None,
                    "files": [str(published / "annotations.json")],
                    "images": str(published / "images"),
                }
            },
            "teacher": local(checked.teacher),
            "baseline": local(checked.baseline),
            "train": {
                "accumulation": 2,
                "devices": 1,
                "logging_steps": 2,
                "save_steps": 2,
                "launch": {
                    "config": "replication/train/launch/single.yaml",
                    "processes": 1,
                    "workers": 0,
                },
            },
            "runs": runs,
            "evaluate": {
                "benchmarks": _without(checked.evaluate.benchmarks, folders),
                "max_new_tokens": 4,
            },
            "ptq": {
                "calibration": {"samples": 2},
                "groups": {"qwen2_vl_ptq": None},
            },
            "deploy": {
                **deploy,
                "models": {**_without(checked.deploy.models, deploy["models"]), **deploy["models"]},
            },
            "compare": {"resamples": 200},
        },
    )


def _without(names: Iterable[str], kept: Collection[str]) -> dict[str, None]:
    """Changes that remove all but some."""
    return {name: None for name in names if name not in kept}


def rehearse(folder: Path, words: list[str]) -> int:
    """Run dvc on the rehearsal; returns its exit code."""
    published = folder.resolve() / "published"
    with alone(folder.name) if words[:1] == ["repro"] else nullcontext() as lock:
        if not published.is_dir():
            write_published(published)
        params = rehearsed(published)
        parse_params(params, "parameters of the rehearsal")
        prepare(folder, params)
        os.environ |= {"HF_HUB_CACHE": str(published / "hub"), "HF_HUB_OFFLINE": "1"}
        return run_dvc(folder, *words, lock=lock)


@command
def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m replication.rehearsal",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dvc", nargs=argparse.REMAINDER, help="words for dvc (default: repro)")
    arguments = parser.parse_args()
    return rehearse(ROOT / FOLDER, arguments.dvc or ["repro"])


if __name__ == "__main__":
    sys.exit(main())
