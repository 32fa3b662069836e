"""Tiny checkpoints, annotations, images and benchmarks in the places and formats of the published
ones: all that scale paper reads, for its rehearsal."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from replication.base.files import write_json_atomic
from replication.data.mirror import add_benchmark
from replication.data.world.conversations import LESSONS
from replication.data.world.corpus import write_language_set, write_training_set
from replication.data.world.models import build_model, build_processor
from replication.settings.checks import parse_params
from replication.settings.scales import scale_params
from replication.settings.schema import Standins, section

CONVERSATIONS = 8
"""Three epochs of two steps."""

QUESTIONS = 8
"""Of a benchmark, in two files."""

VOCABULARY = 700


def write_published(folder: Path) -> None:
    """Make what a reader of scale paper has to have, but tiny.

    <folder>/checkpoints/<hub name>      a model directory
    <folder>/annotations.json            conversations as ShareGPT4V has them, some without an image
    <folder>/images/coco/...             their images
    <folder>/hub/datasets--...           the benchmarks as the hub's cache holds them
    """
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
    lessons = replace(world.alignment, images=1)
    world = replace(world, train=CONVERSATIONS - len(LESSONS) - 2, alignment=lessons, language=2)
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
    processor = build_processor(family, texts, VOCABULARY, vision)
    build_model(family, processor, shape, vision, seed=0).save_pretrained(path)
    processor.save_pretrained(path)
