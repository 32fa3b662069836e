"""Held-out questions, posed to a model as the evaluation poses them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from grace.errors import InputError
from replication import benchmarks as tasks
from replication.evaluate.official import official_tasks

BENCHMARK = "mmbench"
"""Evaluated in every family; every question has one image and lettered options."""
_LETTERS = "ABCD"


@dataclass(frozen=True)
class Question:
    """One question of `BENCHMARK`.

    Attributes:
        identity: its id, as in the outcomes.
        text: the question, after its hint if it has one.
        options: texts by letter.
        target: the letter of the right option.
        prompt: the official task's wording of it.
        image: in RGB.
    """

    identity: str
    text: str
    options: dict[str, str]
    target: str
    prompt: str
    image: Image.Image


def draw_questions(folder: Path, count: int, rng: np.random.Generator) -> list[Question]:
    """Different questions of the evaluation set.

    Args:
        folder: has the set as ``<BENCHMARK>.parquet``.
        count: number of questions.
        rng: draws them.

    Returns:
        The questions in the order of the draw.

    Raises:
        InputError: where the set is missing, cannot be read, or has fewer questions.
    """
    benchmark, path = tasks.get(BENCHMARK), folder / f"{BENCHMARK}.parquet"
    if not path.is_file():
        raise InputError(f"{str(path)!r} does not exist; run the stage standins first")
    with official_tasks([benchmark], {BENCHMARK: tasks.Standins(str(path.absolute()))}) as loaded:
        task = loaded[BENCHMARK]
        rows = len(task.question_ids)
        if rows < count:
            raise InputError(
                f"internals.samples is {count}, and {str(path)!r} has {rows} questions; ask fewer"
            )
        documents = task.dataset[benchmark.split]
        return [
            _question(task, documents[int(row)], task.question_ids[int(row)])
            for row in rng.choice(rows, count, replace=False)
        ]


def _question(task: Any, document: dict[str, Any], identity: str) -> Question:
    (image,) = task.doc_to_visual(document)
    hint = "" if document["hint"] == "nan" else f"{document['hint']} "
    return Question(
        identity=identity,
        text=hint + document["question"],
        options={letter: document[letter] for letter in _LETTERS if document[letter] != "nan"},
        target=document["answer"],
        prompt=task.doc_to_text(document),
        image=image.convert("RGB"),
    )
