"""The training data: scenes with conversations, and text alone, each in one parquet file."""

import itertools
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from replication.base.files import atomic_path
from replication.data.world.benchmarks import UNSEEN, png
from replication.data.world.conversations import conversation, drill
from replication.data.world.scenes import Scene, draw_scene
from replication.data.world.vision import cell_contents
from replication.settings.schema import Standins

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
SCHEMA = pa.schema([*TEXT_SCHEMA, ("scene", pa.string()), ("contents", pa.list_(pa.int8()))])
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
    world = {"noise": params.noise, "clutter": params.clutter}
    rows = []
    for index in range(start, stop):
        rng = _rng(params.seed, index)
        kind, poor, unseen = _kind(params, rng)
        scene: Scene = draw_scene(rng, "train", kind)
        scene_id = f"scene_{index:07d}"
        contents = cell_contents(scene)
        rows.append(
            {
                "id": scene_id,
                "image": {
                    "bytes": png(scene, rng, world, poor=poor, unseen=unseen),
                    "path": f"{scene_id}.png",
                },
                "conversations": conversation(
                    scene,
                    rng,
                    turns=params.turns,
                    captions=params.captions,
                    echoes=params.echoes,
                    open_answers=params.open_answers,
                    spelled_letters=params.spelled_letters,
                    poor=poor,
                    unseen=unseen,
                ),
                "scene": repr(scene.things),
                # the vision tower's targets; a black image shows nothing
                "contents": (contents * (not unseen)).tolist(),
            }
        )
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def write_training_set(path: Path, params: Standins, *, workers: int = 2) -> None:
    """Write the training conversations; sample i depends on the seed and i alone.

    Args:
        path: The parquet file.
        params: The section ``standins``.
        workers: Processes that draw; their number changes nothing in the file.
    """
    edges = [*range(0, params.train, _BLOCK), params.train]
    spans = list(itertools.pairwise(edges))
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, SCHEMA) as writer,
        ProcessPoolExecutor(workers) as pool,
        tqdm(total=params.train, desc="training scenes") as progress,
    ):
        starts, stops = zip(*spans, strict=True)
        for table in pool.map(_block, [params] * len(spans), starts, stops):
            writer.write_table(table)
            progress.update(table.num_rows)


def write_language_set(path: Path, params: Standins) -> None:
    """Write ``params.language`` conversations without an image."""
    rng = np.random.default_rng([params.seed, LANGUAGE_STREAM])
    rows = [
        {"id": f"text_{index:07d}", "image": None, "conversations": drill(rng)}
        for index in tqdm(range(params.language), desc="text alone")
    ]
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=TEXT_SCHEMA), temporary)
