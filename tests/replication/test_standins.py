"""The small world: determinism, true answers, disjoint splits, official schemas and prompts."""

import dataclasses
import importlib
import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import grace  # noqa: F401  (before anything imports torchvision)
from replication.standins import questions
from replication.standins.benchmarks import SKILLS, png, write_benchmark
from replication.standins.conversations import (
    STYLES,
    WITH_LETTER_INSTRUCTION,
    choice_prompt,
    conversation,
    describe,
    drill,
)
from replication.standins.corpus import write_training_set
from replication.standins.models import build_tokenizer
from replication.standins.questions import LETTERS, MAKERS
from replication.standins.scenes import (
    CELL,
    COLORS,
    GRID,
    QUADRANTS,
    SIZE,
    SPLITS,
    Scene,
    draw_scene,
    render,
)
from replication.standins.vision import CONTENTS, cell_contents

SEEDS = st.integers(0, 2**32 - 1)
WORLD = {"noise": 6.0, "clutter": 4}
MIX = {"echoes": 0.3, "open_answers": 0.3, "spelled_letters": 0.3}


def scene_of(seed: int, split: str = "train") -> Scene:
    return draw_scene(np.random.default_rng(seed), split)


@given(SEEDS, st.sampled_from(SPLITS))
def test_a_scene_belongs_to_the_split_it_was_drawn_for(seed, split):
    scene = scene_of(seed, split)
    assert scene.split == split
    cells = [(thing.row, thing.column) for thing in scene.things]
    assert len(set(cells)) == len(cells)
    assert all(0 <= r < GRID and 0 <= c < GRID for r, c in cells)


@given(SEEDS)
def test_drawing_is_determined_by_the_generator(seed):
    scene = scene_of(seed)
    assert scene == scene_of(seed)
    a, b = (render(scene, np.random.default_rng(seed)) for _ in range(2))
    assert a.tobytes() == b.tobytes()
    assert a.size == (SIZE, SIZE)


@given(SEEDS)
@settings(max_examples=30)
def test_objects_are_where_the_scene_says(seed):
    """Without noise the colour of a shape fills the middle of its cell, and nothing else does."""
    scene = scene_of(seed)
    pixels = np.asarray(render(scene, np.random.default_rng(seed), noise=0, clutter=0))
    for thing in scene.shapes:
        y, x = thing.row * CELL + CELL // 2, thing.column * CELL + CELL // 2
        window = pixels[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3)
        assert (window == COLORS[thing.color]).all(axis=1).any()
    for color, value in COLORS.items():
        drawn = (pixels == value).all(axis=2).any()
        assert drawn == any(thing.color == color for thing in scene.shapes)


def answer_by_hand(question, scene):
    """The answer, found again from the question's words alone."""
    text, shapes = question.text.rstrip("?"), scene.shapes
    words = text.split()

    def named(name):
        return next(t for t in shapes if t.name == name)

    if text.startswith("Which") and text.endswith("is in the image"):
        present = [t.kind if words[1] == "shape" else t.color for t in shapes]
        return present[present.index(question.answer)]
    if text.startswith("How many"):
        noun = words[2]
        kind = {"crosses": "cross"}.get(noun, noun.rstrip("s"))
        count = sum(noun == t.color for t in shapes) if words[3] == "objects" else 0
        return str(count or sum(t.kind == kind for t in shapes))
    if text.startswith("What color is the shape there") or text.startswith("Which shape is there"):
        place = question.hint.removeprefix("Look at the ").rstrip(".")
        (thing,) = [t for t in shapes if t.quadrant == place]
        return thing.color if "color" in text else thing.kind
    if text.startswith("What color is the"):
        (thing,) = [t for t in shapes if t.kind == words[-1]]
        return thing.color
    if text.startswith("What shape is the"):
        (thing,) = [t for t in shapes if t.color == words[4]]
        return thing.kind
    if "seen from" in text:
        first, second = text.removeprefix("Where is the ").split(" seen from the ")
        a, b = named(first), named(second)
        vertical = "north" if a.row < b.row else "south"
        return vertical + ("west" if a.column < b.column else "east")
    if text.startswith("Where is the"):
        return named(text.removeprefix("Where is the ")).quadrant
    if "most common" in text:
        values = [t.kind if words[1] == "shape" else t.color for t in shapes]
        return max(set(values), key=values.count)
    if text == "What does the sign say":
        return scene.signs[0].text
    if " of the " in text:  # what is in a direction from something?
        origin = named(text.split(" of the ")[1])
        (thing,) = [
            t
            for t in shapes
            if (t.row < origin.row if "north" in text else t.row > origin.row)
            and (t.column < origin.column if "west" in text else t.column > origin.column)
        ]
        return thing.color if words[1] == "color" else thing.kind
    raise AssertionError(text)


@given(SEEDS, st.sampled_from(sorted(MAKERS)))
def test_answers_are_true_and_options_are_not(seed, skill):
    scene, rng = scene_of(seed), np.random.default_rng(seed + 1)
    question = MAKERS[skill](scene, rng)
    if question is None:
        return
    assert answer_by_hand(question, scene) == question.answer
    options, place = question.options(rng, 4)
    assert options[place] == question.answer
    assert len(set(options)) == 4
    if skill == "presence":
        present = {t.kind for t in scene.shapes} | {t.color for t in scene.shapes}
        assert [option in present for option in options].count(True) == 1


@given(SEEDS)
def test_yes_and_no_are_true(seed):
    scene = scene_of(seed)
    question = questions.presence_yes_no(scene, np.random.default_rng(seed))
    name = question.text.removeprefix("Is there a ").removesuffix(" in the image?")
    assert question.answer == ("yes" if name in {t.name for t in scene.shapes} else "no")


def test_every_fixed_phrase_is_one_of_a_question():
    rng = np.random.default_rng(0)
    said = ""
    for seed in range(200):
        for maker in (*MAKERS.values(), questions.presence_yes_no):
            question = maker(scene_of(seed), rng)
            said += f"{question.hint} {question.text}\n" if question else ""
    assert not [phrase for phrase in questions.PHRASES if phrase not in said]


@given(SEEDS)
def test_captions_name_everything(seed):
    scene = scene_of(seed)
    for thing, part in zip(scene.things, describe(scene).rstrip(".").split(", "), strict=True):
        assert part == f"{thing.name} {thing.quadrant}"
        assert thing.quadrant in QUADRANTS


@given(SEEDS, st.integers(1, 6))
def test_conversations_follow_the_schema(seed, turns):
    scene, rng = scene_of(seed), np.random.default_rng(seed)
    talk = conversation(scene, rng, turns=turns, captions=0.5, **MIX)
    assert len(talk) >= 2 * turns
    assert [m["from"] for m in talk] == ["human", "gpt"] * (len(talk) // 2)
    assert talk[0]["value"].startswith("<image>\n")
    assert sum("<image>" in m["value"] for m in talk) == 1
    for asked, answer in zip(talk[::2], talk[1::2], strict=True):
        if asked["value"].endswith("choices directly."):
            assert answer["value"] in LETTERS


@given(SEEDS)
def test_letters_said_with_an_option_are_its_letters(seed):
    scene, rng = scene_of(seed), np.random.default_rng(seed)
    talk = conversation(scene, rng, turns=4, captions=0.0, **MIX)
    for asked, answer in zip(talk[::2], talk[1::2], strict=True):
        if not asked["value"].endswith(WITH_LETTER_INSTRUCTION):
            continue
        options = {
            line[3:]: line[0]
            for line in asked["value"].split("\n")
            if line[:3] in ("A. ", "B. ", "C. ", "D. ")
        }
        for said in answer["value"].split(", "):
            text, letter = said.rsplit(" ", 1)
            assert options[text] == letter


@given(SEEDS)
def test_drills_name_every_option_with_its_letter(seed):
    talk = drill(np.random.default_rng(seed))
    assert [m["from"] for m in talk] == ["human", "gpt"] * (len(talk) // 2)
    for asked, answer in zip(talk[::2], talk[1::2], strict=True):
        lines = asked["value"].removesuffix(WITH_LETTER_INSTRUCTION).strip("\n").split("\n")
        said = [part.rsplit(" ", 1) for part in answer["value"].split(", ")]
        assert sorted(f"{letter}. {option}" for option, letter in said) == sorted(lines)


def test_words_of_the_world_are_one_token_each(tmp_path, world):
    """At the start of an answer and after a space alike."""
    write_training_set(tmp_path / "train.parquet", dataclasses.replace(world, train=600))
    talks = pq.read_table(tmp_path / "train.parquet")["conversations"].to_pylist()
    tokenizer = build_tokenizer((turn["value"] for talk in talks for turn in talk), 512)
    for option in (option for pool in questions.POOLS for option in pool):
        assert len(tokenizer.tokenize(option)) == len(tokenizer.tokenize(f" {option}")) == 1
    text = "Zwölf Ängste: what else?"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_cells_hold_what_the_scene_holds():
    scene = scene_of(5)
    contents = cell_contents(scene)
    named = {(i // GRID, i % GRID): CONTENTS[c] for i, c in enumerate(contents) if c}
    assert named == {(t.row, t.column): t.name for t in scene.things}


def test_the_training_set_is_the_same_whatever_the_workers(tmp_path, world):
    small = dataclasses.replace(world, train=1100)
    for workers in (1, 2):
        write_training_set(tmp_path / f"{workers}.parquet", small, workers=workers)
    a, b = (pq.read_table(tmp_path / f"{workers}.parquet") for workers in (1, 2))
    assert a.equals(b)
    assert a.num_rows == 1100


@pytest.fixture(scope="module")
def benchmark_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    scenes = {}
    for name in SKILLS:
        scenes[name] = write_benchmark(
            name, folder / f"{name}.parquet", split="evaluation", count=36, seed=4, world=WORLD
        )
    return folder, scenes


def test_evaluation_and_training_share_no_scene(benchmark_files, conversations):
    trained = set(pq.read_table(conversations)["scene"].to_pylist())
    for scenes in benchmark_files[1].values():
        assert len(scenes) > 30
        assert not trained & scenes


OFFICIAL = {
    "mmbench": ("lmms_eval.tasks.mmbench.en_utils", "mmbench_doc_to_text", "mmbench"),
    "seedbench": ("lmms_eval.tasks.seedbench.utils", "seed_doc_to_text", "seedbench"),
    "scienceqa": ("lmms_eval.tasks.scienceqa.utils", "sqa_doc_to_text", "scienceqa"),
}
POST = "\nAnswer with the option's letter from the given choices directly."


@pytest.mark.parametrize("name", sorted(SKILLS))
def test_training_prompts_are_the_official_prompts(benchmark_files, name):
    """What a benchmark's question asks is what the training turn of that style would ask."""
    module, function, style = OFFICIAL[name]
    to_text = getattr(importlib.import_module(module), function)
    for doc in pq.read_table(benchmark_files[0] / f"{name}.parquet").to_pylist():
        if name == "scienceqa":
            official = to_text(doc, {"format": "default", "pre_prompt": "", "post_prompt": POST})
            options = tuple(doc["choices"])
        elif name == "mmbench":
            official = to_text(doc, {"pre_prompt": "", "post_prompt": POST})
            options = tuple(doc[letter] for letter in LETTERS)
        else:
            official = to_text(doc)
            options = tuple(doc[f"choice_{letter.lower()}"] for letter in LETTERS)
        hint = doc.get("hint") or ""
        question = questions.Question(
            "any", doc["question"], "", hint="" if hint == "nan" else hint
        )
        assert choice_prompt(style, question, options) == official


def test_benchmarks_read_as_pictures(benchmark_files):
    import datasets

    for name in SKILLS:
        rows = datasets.Dataset.from_parquet(
            str(benchmark_files[0] / f"{name}.parquet"), cache_dir=str(benchmark_files[0])
        )
        image = rows[0]["image"]
        image = image[0] if isinstance(image, list) else image
        assert isinstance(image, Image.Image)
        assert image.size == (SIZE, SIZE)
        assert len(rows) == 36


def test_png_is_lossless():
    scene = scene_of(1)
    image = Image.open(io.BytesIO(png(scene, np.random.default_rng(2), WORLD)))
    direct = render(scene, np.random.default_rng(2), noise=6.0, clutter=4)
    assert image.tobytes() == direct.tobytes()


def test_unknown_style():
    with pytest.raises(ValueError, match="unknown prompt style"):
        choice_prompt("riddle", questions.Question("a", "b", "c"), ("x",))
    assert "mmbench" in STYLES
