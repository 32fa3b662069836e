"""Rehearse scale paper: every stage, on tiny checkpoints and data in the published formats.

    python -m replication.rehearsal       # in .scales/rehearsal, minutes on two cores

Checkpoints, annotations, images and benchmarks are made first, in `published/`, as folders and a
mirror of the hub hold them. Then the pipeline of scale paper runs under its own parameters, in
which only names, devices and lengths are replaced (`rehearsed`). Interrupted, the same command goes
on. The numbers mean nothing, and nothing is copied to `results/`.
"""

import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from replication.io import write_json_atomic
from replication.params import Standins, parse_params
from replication.scale import scale_params

FOLDER = Path(".scales") / "rehearsal"
REVISION = "0" * 40
SAMPLES = 64
QUESTIONS = 8


def published(folder: Path) -> None:
    """Make what a reader of scale paper has to have, tiny, unless it is there already.

    <folder>/checkpoints/<hub name>      a model directory
    <folder>/annotations.json            conversations, as ShareGPT4V has them
    <folder>/images/<collection>/...     their images
    <folder>/hub/datasets--...           the benchmarks, as the hub's cache holds them
    """
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    small, paper = parse_params(scale_params("smoke")), parse_params(scale_params("paper"))
    assert small.standins is not None and small.vision is not None and paper.data is not None
    with tempfile.TemporaryDirectory(prefix=".published-", dir=folder.parent) as scratch:
        made = Path(scratch)
        turns = _write_training(made, small.standins)
        for family, vision in small.vision.items():
            for name in ("teacher", "baseline"):
                source = getattr(paper, name)[family].source
                shape = getattr(small, name)[family].text
                _write_checkpoint(
                    made / "checkpoints" / source, family, turns, shape, vision.config
                )
        for name, source in paper.data.benchmarks.items():
            _write_benchmark(made / "hub", name, source, small.standins)
        made.rename(folder)
        made.mkdir()  # for the context to remove


def _write_training(folder: Path, world: Standins) -> list[str]:
    """Annotations and images; returns what is said in them."""
    from dataclasses import replace

    from replication.standins.corpus import write_language_set, write_training_set

    world = replace(world, train=SAMPLES, language=SAMPLES // 4)
    write_training_set(folder / "train.parquet", world, workers=1)
    write_language_set(folder / "language.parquet", world)
    records = []
    for row in pq.read_table(folder / "train.parquet").to_pylist():
        place = Path("coco") / "train2017" / row["image"]["path"]
        (folder / "images" / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / place).write_bytes(row["image"]["bytes"])
        records.append(
            {"id": row["id"], "image": str(place), "conversations": row["conversations"]}
        )
    for row in pq.read_table(folder / "language.parquet").to_pylist():
        records.append({"id": row["id"], "conversations": row["conversations"]})
    for name in ("train.parquet", "language.parquet"):
        (folder / name).unlink()
    write_json_atomic(folder / "annotations.json", records)
    return [turn["value"] for record in records for turn in record["conversations"]]


def _write_checkpoint(
    path: Path, family: str, texts: list[str], shape: dict[str, Any], vision: dict[str, Any]
) -> None:
    from replication.standins.models import build_model, build_processor

    processor = build_processor(family, texts, 700, vision)
    build_model(family, processor, shape, vision, seed=0).save_pretrained(path)
    processor.save_pretrained(path)
