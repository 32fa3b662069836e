"""Rehearse scale paper: every stage, on tiny checkpoints and data in the published formats.

    python -m replication.rehearsal       # in .scales/rehearsal, minutes on two cores

Checkpoints, annotations, images and benchmarks are made first, in `published/`, as folders and a
mirror of the hub hold them. Then the pipeline of scale paper runs under its own parameters, in
which only names, numbers and lengths are replaced (`rehearsed`). Interrupted, the same command goes
on. The numbers mean nothing, and nothing is copied to `results/`.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from replication.base.command import command
from replication.base.files import ROOT, write_json_atomic
from replication.settings.checks import parse_params
from replication.settings.scales import merge, scale_params
from replication.settings.schema import Standins, section
from replication.settings.workspace import alone, prepare, run_dvc

FOLDER = Path(".scales") / "rehearsal"
CONVERSATIONS = 8  # three epochs of two steps
QUESTIONS = 8  # of a benchmark, in two files
VOCABULARY = 700
RUNS = {
    "llava_runs": ("grace_int4",),
    "qwen2_vl_runs": ("sft_bf16", "grace_int4"),
    "qwen3_vl_runs": ("grace_int4",),
}


def write_published(folder: Path) -> None:
    """Make what a reader of scale paper has to have, but tiny.

    <folder>/checkpoints/<hub name>      a model directory
    <folder>/annotations.json            conversations as ShareGPT4V has them, some without an image
    <folder>/images/coco/...             their images
    <folder>/hub/datasets--...           the benchmarks as the hub's cache holds them
    """
    from replication.data.mirror import add_benchmark

    small, paper = parse_params(scale_params("smoke")), parse_params(scale_params("paper"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".published-", dir=folder.parent))
    try:
        texts = _write_training(scratch, section(small.standins, "standins"))
        for family, vision in section(small.vision, "vision").items():
            for models, shapes in (
                (paper.teacher, small.teacher),
                (paper.baseline, small.baseline),
            ):
                source = models[family].source
                assert source is not None
                place, shape = scratch / "checkpoints" / source, shapes[family].text
                _write_checkpoint(place, family, texts, shape, vision.config)
        for name in section(paper.data, "data").benchmarks:
            add_benchmark(scratch / "hub", name, scratch / "tables", count=QUESTIONS)
        shutil.rmtree(scratch / "tables")
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_training(folder: Path, world: Standins) -> list[str]:
    """Annotations and images; returns what is said in them."""
    from replication.data.world.corpus import write_language_set, write_training_set

    world = replace(world, train=CONVERSATIONS - 2, language=2)
    pictured, plain = folder / "train.parquet", folder / "language.parquet"
    write_training_set(pictured, world, workers=1)
    write_language_set(plain, world)
    records = []
    for row in (*pq.read_table(pictured).to_pylist(), *pq.read_table(plain).to_pylist()):
        record = {"id": row["id"], "conversations": row["conversations"]}
        if row["image"] is not None:
            name = Path("coco") / "train2017" / row["image"]["path"]
            (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "images" / name).write_bytes(row["image"]["bytes"])
            record["image"] = str(name)
        records.append(record)
    for path in (pictured, plain):
        path.unlink()
    write_json_atomic(folder / "annotations.json", records)
    return [turn["value"] for record in records for turn in record["conversations"]]


def _write_checkpoint(
    path: Path, family: str, texts: list[str], shape: dict[str, Any], vision: dict[str, Any]
) -> None:
    from replication.data.world.models import build_model, build_processor

    processor = build_processor(family, texts, VOCABULARY, vision)
    build_model(family, processor, shape, vision, seed=0).save_pretrained(path)
    processor.save_pretrained(path)


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
    given = parser.parse_args()
    return rehearse(ROOT / FOLDER, given.dvc or ["repro"])


if __name__ == "__main__":
    sys.exit(main())
