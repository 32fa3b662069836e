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
from replication.report.examples import asked, draw, find_examples, write
from replication.results.scores import ResultSet, outcomes_path

PAIR = ("baseline", "grace_int4")


@pytest.fixture
def world(tmp_path):
    """Two runs' made-up answers to ten real questions."""
    questions = tmp_path / "questions"
    questions.mkdir()
    given = {"noise": 2.0, "clutter": 0}
    path = questions / "mmbench.parquet"
    write_benchmark("mmbench", path, split="evaluation", count=10, seed=3, world=given)
    root = write_results(
        tmp_path, {"baseline": 0.5, "grace_int4": 0.5}, seed=4, n=10, benchmarks=("MMBench",)
    )
    for run in PAIR:
        file = outcomes_path(root, "small", "qwen2_vl", run)
        frame = pd.read_parquet(file)
        frame["question_id"] = frame["question_id"].astype(int).astype(str)
        frame.to_parquet(file, index=False)
    return root, questions


def test_examples_are_the_first_changed_answers(world):
    root, folder = world
    results = ResultSet(root, "small")
    frames = [pd.read_parquet(results.outcomes_file("qwen2_vl", run)) for run in PAIR]
    first, second = (f.set_index("question_id")["credit"].sort_index() for f in frames)
    found = find_examples(results, "qwen2_vl", PAIR, folder, each=2)
    rows = pd.read_parquet(folder / "mmbench.parquet").set_index("index")
    for lost in (True, False):
        changed = [q for q in first.index if (first[q], second[q]) == ((1, 0) if lost else (0, 1))]
        shown = [example for example in found if example.lost == lost]
        assert len(shown) == min(2, len(changed))
        for identity, example in zip(changed, shown, strict=False):
            row = rows.loc[int(identity)]
            options = [f"{letter}. {row[letter]}" for letter in "ABCD"]
            assert example.question.splitlines() == [row["question"], *options]
            assert example.image == rows.loc[int(identity)]["image"]["bytes"]


def test_the_data_hold_every_example_and_its_image(world, tmp_path):
    root, folder = world
    results = ResultSet(root, "small")
    found = find_examples(results, "qwen2_vl", PAIR, folder, each=2)
    write(found, results, "qwen2_vl", PAIR, tmp_path / "qwen2_vl.json")
    record = json.loads((tmp_path / "qwen2_vl.json").read_text())
    assert (record["family"], record["scale"], record["pair"]) == ("qwen2_vl", "small", [*PAIR])
    assert record["standin"]
    assert record["command"].endswith("repro examples@qwen2_vl")
    assert [root / name.removeprefix("results/") for name in record["sources"]] == [
        results.outcomes_file("qwen2_vl", run) for run in PAIR
    ]
    rows = pd.read_parquet(folder / "mmbench.parquet")
    assert len(record["examples"]) == len(found) > 0
    for shown, example in zip(record["examples"], found, strict=True):
        for key in ("benchmark", "skill", "question", "target", "first", "second", "lost"):
            assert shown[key] == getattr(example, key)
        with Image.open(io.BytesIO(base64.b64decode(shown["image"]))) as image:
            assert image.format == "PNG"
            assert image.size == (shown["width"], shown["height"])
            same = [
                image.convert("RGB").tobytes() == _pixels(given["bytes"]) for given in rows["image"]
            ]
        assert sum(same) == 1
        assert rows["question"][same.index(True)] in shown["question"]


def _pixels(image):
    with Image.open(io.BytesIO(image)) as opened:
        return opened.convert("RGB").tobytes()


def test_an_image_of_another_format_becomes_png(world, tmp_path):
    root, folder = world
    results = ResultSet(root, "small")
    (example, *_) = find_examples(results, "qwen2_vl", PAIR, folder, each=1)
    stored = io.BytesIO()
    Image.new("L", (12, 8), 77).save(stored, "JPEG")
    given = dataclasses.replace(example, image=stored.getvalue())
    write([given], results, "qwen2_vl", PAIR, tmp_path / "one.json")
    (shown,) = json.loads((tmp_path / "one.json").read_text())["examples"]
    assert (shown["width"], shown["height"]) == (12, 8)
    with Image.open(io.BytesIO(base64.b64decode(shown["image"]))) as image:
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


def test_a_sheet_shows_every_image(world, tmp_path):
    root, folder = world
    found = find_examples(ResultSet(root, "small"), "qwen2_vl", PAIR, folder, each=1)
    assert found
    draw(found, PAIR, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet, Image.open(io.BytesIO(found[0].image)) as own:
        corner = sheet.convert("RGB").crop((14, 14, 14 + 3 * own.width, 14 + 3 * own.height))
        assert corner.resize(own.size, Image.Resampling.NEAREST).tobytes() == (
            own.convert("RGB").tobytes()
        )
    assert not list(tmp_path.glob("*.tmp"))


def test_what_cannot_be_shown_is_named(world, tmp_path):
    root, folder = world
    draw([], PAIR, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").is_file()
    results = ResultSet(root, "small")
    with pytest.raises(InputError, match="qat_int4"):
        find_examples(results, "qwen2_vl", ("baseline", "qat_int4"), folder, each=1)
    given = {"noise": 2.0, "clutter": 0}
    write_benchmark(
        "mmbench", folder / "mmbench.parquet", split="evaluation", count=1, seed=3, world=given
    )
    with pytest.raises(InputError, match="has no question"):
        find_examples(results, "qwen2_vl", PAIR, folder, each=9)
