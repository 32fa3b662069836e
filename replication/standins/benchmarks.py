"""Evaluation sets in the schemas of lmms-eval's official tasks.

Each stand-in probes the skill its namesake probes, on procedural scenes. The official task
definition and scorer run on these files unchanged; see :mod:`replication.evaluation`.
"""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from replication.io import atomic_path
from replication.standins.questions import LETTERS, MAKERS, Question
from replication.standins.scenes import Scene, draw_scene, render

# SEED-Bench numbers its question types; these are the official ones that our skills belong to.
SEED_TYPES = {"presence": 2, "attribute": 3, "position": 4, "counting": 5, "relation": 6}
SEED_TYPES |= {"comparison": 8, "reading": 9}

SKILLS = {
    "mmbench": ("presence", "attribute", "position", "counting", "relation", "located", "neighbor"),
    "seedbench": tuple(SEED_TYPES),
    "scienceqa": ("located", "counting", "comparison", "relation", "neighbor"),
}
"""Skills of each stand-in; its questions go round them in turn."""


def _mmbench(index: int, question: Question, rng: np.random.Generator, image: dict) -> dict:
    options, place = question.options(rng, 4)
    return {
        "index": index,
        "question": question.text,
        "hint": question.hint or "nan",
        "answer": LETTERS[place],
        **dict(zip(LETTERS, options, strict=True)),
        "category": question.skill,
        "L2-category": "perception" if question.skill != "relation" else "reasoning",
        "source": "stand-in",
        "split": "dev",
        "image": image,
    }


def _seedbench(index: int, question: Question, rng: np.random.Generator, image: dict) -> dict:
    options, place = question.options(rng, 4)
    return {
        "answer": LETTERS[place],
        **{f"choice_{letter.lower()}": o for letter, o in zip(LETTERS, options, strict=True)},
        "data_id": f"scene_{index}",
        "data_type": "image",
        "image": [image],
        "question": question.text,
        "question_id": str(index),
        "question_type_id": SEED_TYPES[question.skill],
        "segment": [],
    }


def _scienceqa(index: int, question: Question, rng: np.random.Generator, image: dict) -> dict:
    options, place = question.options(rng, int(rng.integers(2, 5)))
    return {
        "image": image,
        "question": question.text,
        "choices": list(options),
        "answer": place,
        "hint": question.hint,
        "task": "closed choice",
        "grade": "grade1",
        "subject": "natural science",
        "topic": "scenes",
        "category": "stand-in",
        "skill": question.skill,
        "lecture": "",
        "solution": "",
    }


_WRITERS: dict[str, Callable[[int, Question, np.random.Generator, dict], dict]] = {
    "mmbench": _mmbench,
    "seedbench": _seedbench,
    "scienceqa": _scienceqa,
}


def png(scene: Scene, rng: np.random.Generator, world: dict) -> bytes:
    """The drawing of a scene as PNG bytes, with the world's noise and clutter."""
    buffer = io.BytesIO()
    image = render(scene, rng, noise=world["noise"], clutter=world["clutter"])
    image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def write_benchmark(
    name: str, path: Path, *, split: str, count: int, seed: int, world: dict
) -> set[str]:
    """Write ``count`` questions of benchmark ``name`` over scenes of ``split`` to a parquet file.

    Returns:
        The scenes used, each as the text that the training set's ``scene`` column would hold.

    Raises:
        KeyError: for a benchmark without a stand-in.
    """
    write, skills = _WRITERS[name], SKILLS[name]
    rows: list[dict] = []
    progress = tqdm(total=count, desc=f"{name} ({split})", leave=False)
    attempt = 0
    scenes = set()
    while len(rows) < count:
        rng = np.random.default_rng([seed, list(_WRITERS).index(name), attempt])
        attempt += 1
        scene = draw_scene(rng, split)
        question = MAKERS[skills[len(rows) % len(skills)]](scene, rng)
        if question is None:
            continue
        scenes.add(repr(scene.things))
        image = {"bytes": png(scene, rng, world), "path": f"scene_{len(rows)}.png"}
        rows.append(write(len(rows), question, rng, image))
        progress.update()
    progress.close()
    from datasets import Features, Image, List, Value  # slow to import

    columns: dict = {}
    for column, value in rows[0].items():
        if column == "image":
            columns[column] = List(Image()) if isinstance(value, list) else Image()
        elif column in ("choices", "segment"):
            columns[column] = List(Value("string"))
        else:
            columns[column] = Value("int64" if isinstance(value, int) else "string")
    features = Features(columns)
    table = pa.Table.from_pylist(rows, schema=features.arrow_schema)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)
    return scenes
