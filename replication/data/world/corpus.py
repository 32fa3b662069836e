"""The training data: scenes with conversations, and text alone, each in one parquet file."""

import dataclasses
import itertools
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from replication.base.files import atomic_path
from replication.data.world.benchmarks import UNSEEN, png
from replication.data.world.conversations import (
    DESCRIBE,
    LESSONS,
    Mix,
    conversation,
    drill,
    messages,
)
from replication.data.world.looks import LOOKS
from replication.data.world.scenes import Drawing, Scene, draw_scene
from replication.data.world.vision import cell_contents
from replication.settings.schema import AlignmentData, Standins

TRAIN_STREAM = 1000  # keeps training draws apart from the benchmarks' streams
LANGUAGE_STREAM = 1001

TEXT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        (
            "conversations",
            pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())])),
        ),
    ]
)
SCHEMA = pa.schema(
    [
        *TEXT_SCHEMA,
        TEXT_SCHEMA.field("conversations").with_name("noisy"),
        ("scene", pa.string()),
        ("contents", pa.list_(pa.int8())),
    ]
)
"""``noisy`` are the same conversations with wrong answers among the right ones."""
_BLOCK = 500


def _rng(seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, TRAIN_STREAM, index])


def _kind(params: Standins, rng: np.random.Generator) -> tuple[str, bool, bool]:
    """A training image's kind, whether it is a poor one, and whether nothing is seen in it."""
    draw = float(rng.random())
    for kind, share in (("diagram", params.diagrams), ("strings", params.strings)):
        if draw < share:
            return kind, False, False
        draw -= share
    poor = draw < params.poor_images
    return "plain", poor, poor and draw < UNSEEN * params.poor_images


def _block(params: Standins, start: int, stop: int) -> pa.Table:
    drawing = drawing_of(params)
    rows = []
    for index in range(start, stop):
        rng = _rng(params.seed, index)
        lesson = lesson_of(params, index)
        mix = mix_of(params if lesson is None else params.alignment, params)
        kind, poor, unseen = _kind(params, rng)
        scene: Scene = draw_scene(rng, "train", kind, params.world)
        while lesson is not None and len(scene.things) > 1:
            scene = draw_scene(rng, "train", "plain", params.world)
        scene_id = f"scene_{index:07d}"
        image = png(scene, rng, drawing, poor=poor, unseen=unseen)
        turns = conversation(scene, rng, mix, poor=poor, unseen=unseen, lesson=lesson)
        wrong = (rng.random(len(turns)) < params.wrong_labels).tolist()
        if turns[0].question == DESCRIBE:
            wrong[0] = True  # a caption errs about a share of its objects
        # the vision tower's targets; a black image shows nothing
        contents = (cell_contents(scene) * (not unseen)).tolist()
        rows.append(
            {
                "id": scene_id,
                "image": {"bytes": image, "path": f"{scene_id}.png"},
                "conversations": messages(turns),
                "noisy": messages(turns, wrong),
                "scene": repr(scene.things),
                "contents": contents,
            }
        )
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def drawing_of(params: Standins) -> Drawing:
    """How a world's scenes are drawn."""
    return Drawing(params.noise, params.clutter, params.poorest, params.world)


def mix_of(part: Standins | AlignmentData, params: Standins) -> Mix:
    """What a part's conversations consist of; what it does not say is as in the others."""
    names = [key.name for key in dataclasses.fields(Mix)]
    return Mix(**{name: getattr(part, name, getattr(params, name)) for name in names})


def lesson_rows(params: Standins, lesson: str) -> list[int]:
    """The first row of a lesson of the alignment, and the one after the last."""
    start = params.train + list(LESSONS).index(lesson) * params.alignment.images
    return [start, start + params.alignment.images]


def lesson_of(params: Standins, row: int) -> str | None:
    """The lesson that a row belongs to; none of those that teachers, baselines and runs see."""
    place = (row - params.train) // params.alignment.images
    return None if row < params.train else list(LESSONS)[place]


def conversations_of(params: Standins) -> int:
    """How many training conversations there are, with those of the alignment."""
    return params.train + len(LESSONS) * params.alignment.images


def write_training_set(path: Path, params: Standins, *, workers: int = 2) -> None:
    """Write the training conversations; sample i depends on the seed and i alone.

    Args:
        path: The parquet file.
        params: The section ``standins``.
        workers: Processes that draw; their number changes nothing in the file.
    """
    count = conversations_of(params)
    edges = [*range(0, count, _BLOCK), count]
    spans = list(itertools.pairwise(edges))
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, SCHEMA) as writer,
        ProcessPoolExecutor(workers) as pool,
        tqdm(total=count, desc="training scenes") as progress,
    ):
        starts, stops = zip(*spans, strict=True)
        for table in pool.map(_block, [params] * len(spans), starts, stops):
            writer.write_table(table)
            progress.update(table.num_rows)


def write_language_set(path: Path, params: Standins) -> None:
    """Write ``params.language`` conversations without an image."""
    rng = np.random.default_rng([params.seed, LANGUAGE_STREAM])
    rows = [
        {"id": f"text_{index:07d}", "image": None, "conversations": drill(rng, LOOKS[params.world])}
        for index in tqdm(range(params.language), desc="text alone")
    ]
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=TEXT_SCHEMA), temporary)
