"""Examples of changed answers: the right ones, with their own image, as data and on one sheet."""

import base64
import dataclasses
import io
import json

import pandas as pd
import pytest
from PIL import Image
from synthetic_results import write_results

from grace.errors import InputError
from replication.data.world.benchmarks import write_benchmark
from replication.data.world.scenes import Drawing
from replication.report.examples import asked, draw, find_examples, write
from replication.results.scores import ResultSet, outcomes_path

PAIR = ("baseline", "grace_int4")


def write_questions(folder, count):
    path, drawing = folder / "mmbench.parquet", Drawing(2.0, 0)
    write_benchmark("mmbench", path, split="evaluation", count=count, seed=3, drawing=drawing)


@pytest.fixture
def world(tmp_path):
    """Two runs' made-up answers to ten real questions."""
    questions = tmp_path / "questions"
    questions.mkdir()
    write_questions(questions, count=10)
    runs = dict.fromkeys(PAIR, 0.5)
    root = write_results(tmp_path, runs, seed=4, n=10, benchmarks=("MMBench",))
    for run in PAIR:
        file = outcomes_path(root, "small", "qwen2_vl", run)
        frame = pd.read_parquet(file)
        frame["question_id"] = frame["question_id"].astype(int).astype(str)
        frame.to_parquet(file, index=False)
    return root, questions


@pytest.fixture
def results(world):
    return ResultSet(world[0], "small")


def pixels(image):
    with Image.open(io.BytesIO(image)) as opened:
        return opened.convert("RGB").tobytes()


def test_examples_are_the_first_changed_answers(world, results):
    frames = [pd.read_parquet(results.outcomes_file("qwen2_vl", run)) for run in PAIR]
    first, second = (f.set_index("question_id")["credit"].sort_index() for f in frames)
    examples = find_examples(results, "qwen2_vl", PAIR, world[1], each=2)
    rows = pd.read_parquet(world[1] / "mmbench.parquet").set_index("index")
    for lost in (True, False):
        changed = [q for q in first.index if (first[q], second[q]) == ((1, 0) if lost else (0, 1))]
        own = [example for example in examples if example.lost == lost]
        assert len(own) == min(2, len(changed))
        for identity, example in zip(changed, own, strict=False):
            row = rows.loc[int(identity)]
            options = [f"{letter}. {row[letter]}" for letter in "ABCD"]
            assert example.question.splitlines() == [row["question"], *options]
            assert example.image == row["image"]["bytes"]


def test_the_data_hold_every_example_and_its_image(world, results, tmp_path):
    examples = find_examples(results, "qwen2_vl", PAIR, world[1], each=2)
    write(examples, results, "qwen2_vl", PAIR, tmp_path / "qwen2_vl.json")
    record = json.loads((tmp_path / "qwen2_vl.json").read_text())
    assert (record["family"], record["scale"], record["pair"]) == ("qwen2_vl", "small", [*PAIR])
    assert record["standin"]
    assert record["command"].endswith("repro examples@qwen2_vl")
    assert [world[0] / name.removeprefix("results/") for name in record["sources"]] == [
        results.outcomes_file("qwen2_vl", run) for run in PAIR
    ]
    for entry, example in zip(record["examples"], examples, strict=True):
        assert {key: entry[key] for key in vars(example) if key != "image"}.items() <= (
            vars(example).items()
        )
        assert pixels(base64.b64decode(entry["image"])) == pixels(example.image)


def test_an_image_of_another_format_becomes_png(world, results, tmp_path):
    (example, *_) = find_examples(results, "qwen2_vl", PAIR, world[1], each=1)
    stored = io.BytesIO()
    Image.new("L", (12, 8), 77).save(stored, "JPEG")
    changed = dataclasses.replace(example, image=stored.getvalue())
    write([changed], results, "qwen2_vl", PAIR, tmp_path / "one.json")
    (entry,) = json.loads((tmp_path / "one.json").read_text())["examples"]
    assert (entry["width"], entry["height"]) == (12, 8)
    with Image.open(io.BytesIO(base64.b64decode(entry["image"]))) as image:
        assert image.format == "PNG"
        assert image.getpixel((3, 3)) == (77, 77, 77)


@pytest.mark.parametrize(
    "columns",
    [
        {"choices": ["red", "blue"]},
        {"options": "['red', 'blue']"},
        {"options": ["red", "blue"]},
        {"A": "red", "B": "blue", "C": "nan", "D": "nan"},
        {"choice_a": "red", "choice_b": "blue", "choice_c": "nan", "choice_d": "nan"},
    ],
)
def test_options_are_shown_from_whatever_column_has_them(columns):
    assert asked({"question": "Which? <image 1>", **columns}) == "Which?\nA. red\nB. blue"
    assert asked({"question": "Which?"}) == "Which?"


def test_a_sheet_shows_every_image(world, results, tmp_path):
    examples = find_examples(results, "qwen2_vl", PAIR, world[1], each=1)
    draw(examples, PAIR, tmp_path / "sheet.png")
    image = Image.open(io.BytesIO(examples[0].image))
    with Image.open(tmp_path / "sheet.png") as sheet:
        box = (14, 14, 14 + 3 * image.width, 14 + 3 * image.height)
        corner = sheet.convert("RGB").crop(box).resize(image.size, Image.Resampling.NEAREST)
    assert corner.tobytes() == pixels(examples[0].image)
    draw([], PAIR, tmp_path / "empty.png")
    assert (tmp_path / "empty.png").is_file()
    assert not list(tmp_path.glob("*.tmp"))


def test_what_cannot_be_shown_is_named(world, results):
    with pytest.raises(InputError, match="qat_int4"):
        find_examples(results, "qwen2_vl", ("baseline", "qat_int4"), world[1], each=1)
    write_questions(world[1], count=1)
    with pytest.raises(InputError, match="has no question"):
        find_examples(results, "qwen2_vl", PAIR, world[1], each=9)
