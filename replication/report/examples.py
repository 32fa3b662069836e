"""Questions whose answer changes from one run to another, as data and as a picture.

    {"family": "llava", "scale": "small", "pair": ["baseline", "grace_int4"],
     "examples": [{"benchmark": "GQA", "skill": "counting", "question": "...", "target": "B",
                   "first": "B", "second": "C", "lost": true, "image": "<PNG, base64>",
                   "width": 64, "height": 64}, ...],
     "standin": true, "sources": [...], "command": "..."}

`first` and `second` are what the two runs of `pair` answered; an answer that is `lost` was right
and became wrong, the others were wrong and became right.
"""

from __future__ import annotations

import ast
import base64
import io
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from grace.errors import InputError
from replication.base.files import atomic_path, write_json_atomic
from replication.benchmarks import BENCHMARKS, PRINTED
from replication.results.question_types import RIGHT
from replication.results.scores import ResultSet

_SCALE, _WIDTH, _GAP, _LINE = 3, 330, 14, 17
_TEXT_LINES = 8


@dataclass(frozen=True)
class Example:
    """One question that two runs answer differently."""

    benchmark: str
    skill: str
    question: str
    image: bytes
    target: str
    first: str
    second: str
    lost: bool  # right, then wrong


def find_examples(
    results: ResultSet, family: str, pair: tuple[str, str], questions: Path, each: int
) -> list[Example]:
    """The first ``each`` lost and gained answers of every benchmark, by question identity.

    Args:
        results: The scale's results.
        family: Whose runs they are.
        pair: Two runs, of which the first seed is read.
        questions: The folder of the evaluation sets.
        each: How many.

    Raises:
        InputError: where a run was not evaluated or the questions are not those asked.
    """
    import pandas as pd

    frames = []
    for run in pair:
        frame = pd.read_parquet(results.outcomes_file(family, run))
        frame = frame[frame["seed"] == frame["seed"].min()]
        frames.append(frame.set_index(["benchmark", "question_id"]).sort_index())
    both = frames[0].join(frames[1], lsuffix="_first", rsuffix="_second", how="inner")
    before, after = both["credit_first"] >= RIGHT, both["credit_second"] >= RIGHT
    names = {printed: name for name, printed in PRINTED.items()}
    examples = []
    for printed in dict.fromkeys(both.index.get_level_values(0)):
        own = both.index.get_level_values(0) == printed
        picked = [
            (lost, identity, outcome)
            for lost, changed in ((True, before & ~after), (False, ~before & after))
            for (_, identity), outcome in both[changed & own].head(each).iterrows()
        ]
        rows = _questions(names[printed], questions) if picked else {}
        for lost, identity, outcome in picked:
            if identity not in rows:
                raise InputError(f"{printed} has no question {identity}; evaluate again")
            text, image = rows[identity]
            examples.append(
                Example(
                    benchmark=printed,
                    skill=outcome["skill_first"],
                    question=text,
                    image=image,
                    target=outcome["target_first"],
                    first=outcome["prediction_first"],
                    second=outcome["prediction_second"],
                    lost=lost,
                )
            )
    return examples


def _questions(name: str, folder: Path) -> dict[str, tuple[str, bytes]]:
    """Question text and image by the question's identity."""
    import pyarrow.parquet as pq

    benchmark, rows = BENCHMARKS[name], {}
    for row, question in enumerate(pq.read_table(folder / f"{name}.parquet").to_pylist()):
        image = question[benchmark.image_column]
        image = image[0] if isinstance(image, list) else image
        rows[benchmark.question_id(question, row)] = (asked(question), image["bytes"])
    return rows


def asked(question: Mapping[str, Any]) -> str:
    """A question's text and, line by line, the options that it has in columns of their own."""
    options = question.get("choices") or question.get("options")
    if isinstance(options, str):
        options = ast.literal_eval(options)
    if not options:
        columns = ("A", "B", "C", "D"), ("choice_a", "choice_b", "choice_c", "choice_d")
        options = [question[name] for names in columns for name in names if name in question]
    text = question["question"].replace("<image 1>", "").strip()
    known = [option for option in options if option not in ("", "nan", None)]
    return "\n".join([text, *(f"{letter}. {o}" for letter, o in zip("ABCD", known, strict=False))])


def write(
    examples: list[Example], results: ResultSet, family: str, pair: tuple[str, str], path: Path
) -> None:
    """Write the examples as JSON, images included, whole or not at all."""
    scores = [results.scores(family, run) for run in pair]
    outcomes = [results.outcomes_file(family, run).relative_to(results.results) for run in pair]
    record = {
        "family": family,
        "scale": results.scale,
        "pair": list(pair),
        "standin": any(one.standin for one in scores if one is not None),
        "examples": [{**vars(one), **_embedded(one.image)} for one in examples],
        "sources": [(Path("results") / file).as_posix() for file in outcomes],
        "command": f"python -m replication.scale {results.scale} repro examples@{family}",
    }
    write_json_atomic(path, record)


def _embedded(image: bytes) -> dict[str, Any]:
    """An image as PNG in base64, of its own size."""
    with Image.open(io.BytesIO(image)) as opened:
        width, height = opened.size
        if opened.format != "PNG":
            stored = io.BytesIO()
            opened.convert("RGB").save(stored, "PNG", optimize=True)
            image = stored.getvalue()
    return {"image": base64.b64encode(image).decode("ascii"), "width": width, "height": height}


def draw(examples: list[Example], pair: tuple[str, str], path: Path, columns: int = 4) -> None:
    """Write a sheet of examples as PNG: the image, the question, the true and both runs' answers.
    Without examples the sheet says so."""
    tiles = [_tile(example, pair) for example in examples]
    if not tiles:
        tiles = [Image.new("RGB", (_WIDTH, 3 * _LINE), "white")]
        text = f"{pair[0]} and {pair[1]}\nanswer every question alike"
        ImageDraw.Draw(tiles[0]).text((0, 0), text, "black", ImageFont.load_default(13))
    columns = min(columns, len(tiles))
    height = max(tile.height for tile in tiles) + _GAP
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * (_WIDTH + _GAP) + _GAP, rows * height + _GAP), "white")
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        sheet.paste(tile, (_GAP + column * (_WIDTH + _GAP), _GAP + row * height))
    with atomic_path(path) as temporary:
        sheet.save(temporary, "PNG")


def _tile(example: Example, pair: tuple[str, str]) -> Image.Image:
    with Image.open(io.BytesIO(example.image)) as opened:
        image = opened.convert("RGB")
    image = image.resize((image.width * _SCALE, image.height * _SCALE), Image.Resampling.NEAREST)
    font = ImageFont.load_default(13)
    what = "right, then wrong" if example.lost else "wrong, then right"
    lines = [f"{example.benchmark}: {what}", example.skill[:46]]
    for part in example.question.splitlines():
        lines += textwrap.wrap(part, 46) or [""]
    lines = lines[:_TEXT_LINES]
    answers = [("true", example.target), (pair[0], example.first), (pair[1], example.second)]
    lines += [f"{name}: {answer}"[:46] for name, answer in answers]
    tile = Image.new("RGB", (_WIDTH, image.height + 6 + _LINE * len(lines)), "white")
    tile.paste(image, (0, 0))
    pen = ImageDraw.Draw(tile)
    for index, line in enumerate(lines):
        colour = "black" if index > 1 else "#b00020" if example.lost else "#00600f"
        pen.text((0, image.height + 6 + _LINE * index), line, colour, font)
    return tile
