"""The small world: determinism, true answers, disjoint splits, official schemas and prompts."""

import ast
import dataclasses
import io
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from shapes import VISIONS
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)

from grace.data import ConversationDataset
from grace.errors import InputError
from replication import benchmarks as tasks
from replication.data.world import benchmarks, questions
from replication.data.world.benchmarks import SKILLS, png, write_benchmark
from replication.data.world.captions import JOINTS, OPENINGS, PLACES, describe
from replication.data.world.chat import CHATS
from replication.data.world.conversations import (
    FIXED_PHRASES,
    LETTER_INSTRUCTION,
    MMSTAR_INSTRUCTION,
    VIZWIZ_INSTRUCTION,
    WITH_LETTER_INSTRUCTION,
    Mix,
    choice_prompt,
    conversation,
    drill,
    messages,
    open_prompt,
)
from replication.data.world.corpus import conversations_of, write_training_set
from replication.data.world.looks import FIRST, LOOKS
from replication.data.world.models import (
    build_processor,
    build_tokenizer,
    build_tower,
    load_tower,
    take_tower,
)
from replication.data.world.questions import LETTERS, MAKERS, UNANSWERABLE
from replication.data.world.scenes import (
    CELL,
    GRID,
    KINDS,
    SIZE,
    SPLITS,
    Drawing,
    Scene,
    draw_scene,
    render,
    spoil,
)
from replication.data.world.vision import aspects_of, cell_contents, contents_of, pretrain
from replication.settings.schema import Vision
from replication.train.tower import tower_batches

SEEDS = st.integers(0, 2**32 - 1)
WORLD = Drawing(noise=6.0, clutter=4, poorest=1.0)
BARE = Drawing(noise=0.0, clutter=0)
WORLDS = st.sampled_from(sorted(LOOKS))


def mix(turns: int, captions: float = 0.0, **others: float) -> Mix:
    """Conversations with something of everything."""
    shares = {"echoes": 0.3, "open_answers": 0.3, "spelled_letters": 0.3, "wrong_labels": 0.3}
    return Mix(turns, captions, **{**shares, **others})


def scene_of(seed: int, split: str = "train", kind: str = "plain", world: str = "first") -> Scene:
    return draw_scene(np.random.default_rng(seed), split, kind, world)


@given(SEEDS, st.sampled_from(SPLITS), st.sampled_from(KINDS), WORLDS)
def test_a_scene_belongs_to_the_split_it_was_drawn_for(seed, split, kind, world):
    scene = scene_of(seed, split, kind, world)
    assert scene.split == split
    assert scene.kind == kind
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


@given(SEEDS, WORLDS)
@settings(max_examples=30)
def test_objects_are_where_the_scene_says(seed, world):
    """Without noise the colour of a shape is in its cell, and nowhere else."""
    scene = scene_of(seed, world=world)
    pixels = np.asarray(render(scene, np.random.default_rng(seed), BARE))
    for thing in scene.shapes:
        y, x = thing.row * CELL, thing.column * CELL
        window = pixels[y : y + CELL, x : x + CELL].reshape(-1, 3)
        assert (window == scene.look.colors[thing.color]).all(axis=1).any()
    for color, value in scene.look.colors.items():
        drawn = (pixels == value).all(axis=2).any()
        assert drawn == any(thing.color == color for thing in scene.shapes)


@pytest.mark.slow
@given(SEEDS)
def test_diagrams_are_clean_and_label_every_shape(seed):
    scene = scene_of(seed, kind="diagram")
    image = render(scene, np.random.default_rng(seed), Drawing(9.0, 9, 1.0))
    pixels = np.asarray(image).reshape(-1, 3)
    known = {(255, 255, 255), (20, 20, 20), (250, 250, 250), *scene.look.colors.values()}
    assert set(map(tuple, pixels.tolist())) <= known
    assert len({t.name for t in scene.shapes}) == len(scene.shapes) == len(scene.signs)
    labels = {(t.row, t.column - 1): t.text for t in scene.signs}
    assert {(t.row, t.column) for t in scene.shapes} == set(labels)
    assert len(set(labels.values())) == len(labels)


@given(SEEDS)
def test_poor_images_are_poor_and_unseen_ones_tell_nothing(seed):
    scene = scene_of(seed)
    image = render(scene, np.random.default_rng(seed))
    poor = np.asarray(spoil(image, np.random.default_rng(seed + 1)), dtype=float)
    assert np.abs(poor - np.asarray(image, dtype=float)).mean() > 1.0
    assert poor.std() > 5  # something is left to see
    black = np.asarray(spoil(image, np.random.default_rng(seed + 1), unseen=True), dtype=float)
    assert black.max() < 40


def test_a_poor_image_is_farther_from_the_bare_drawing():
    """Noise, contrast and colours; half of the images of a poor world are worse than any good."""
    errors = []
    for poorest in (0.0, 1.0):
        drawing = dataclasses.replace(WORLD, poorest=poorest)
        gaps = []
        for seed in range(60):
            scene = scene_of(seed)
            bare, drawn = (
                np.asarray(render(scene, np.random.default_rng(seed), how), dtype=float)
                for how in (dataclasses.replace(drawing, noise=0.0, poorest=0.0), drawing)
            )
            gaps.append(np.abs(drawn - bare).mean())
        errors.append(np.sort(gaps))
    good, poor = errors
    assert np.median(poor) > good.max()
    assert poor.std() > 5 * good.std()


def test_worlds_share_no_word_and_no_look():
    """But letters, counts and yes and no, which questions of every world are answered by."""
    first, second = LOOKS["first"], LOOKS["second"]

    def words(look):
        return {
            *look.colors, *look.shapes, *look.signs, *look.quadrants, *look.places,
            *look.synonyms.values(),
        }  # fmt: skip

    assert not words(first) & words(second)
    assert not set(first.colors.values()) & set(second.colors.values())
    for look in (first, second):
        assert set(look.synonyms) == {*look.colors, *look.shapes}
        assert len(words(look)) == len(look.colors) * 2 + len(look.shapes) * 2 + 18
        assert set(look.labels) <= set(look.signs)


def answer_by_hand(question, scene):
    """The answer, found again from the question's words alone."""
    text, shapes = question.text.rstrip("?"), scene.shapes
    words = text.split()

    def there(thing, direction, origin):
        rows, columns = (
            thing.row // 2 - origin.row // 2,
            thing.column // 2 - origin.column // 2,
        )
        step = {"north": (-1, 0), "south": (1, 0), "west": (0, -1), "east": (0, 1)}[direction]
        return step == (rows, columns)

    if text.startswith("Is there a"):
        return "yes" if " ".join(words[3:5]) in {t.name for t in shapes} else "no"
    if text.startswith("Is the number of"):
        noun = words[4]
        kind = {"crosses": "cross"}.get(noun, noun.rstrip("s"))
        found = [t for t in shapes if kind == t.kind or (words[5] == "objects" and noun == t.color)]
        return "yes" if str(len(found)) == words[-1] else "no"
    if text.startswith("Is") and "the most common" in text:
        values = [t.kind if words[-1] == "shape" else t.color for t in shapes]
        return "yes" if max(set(values), key=values.count) == words[1] else "no"
    if text.startswith("Is the") and " in the " in text:
        (thing,) = [t for t in shapes if t.name == " ".join(words[2:4])]
        return "yes" if scene.place(thing) == words[-1] else "no"
    if text.startswith("Is the") and " of the " in text:
        a, b = (next(t for t in shapes if t.name == " ".join(w)) for w in (words[2:4], words[-2:]))
        return "yes" if there(a, words[4], b) else "no"
    if text.startswith("Is the") and " object a " in text:
        (thing,) = [t for t in shapes if t.color == words[2]]
        return "yes" if thing.kind == words[-1] else "no"
    if text.startswith("Is the"):
        (thing,) = [t for t in shapes if t.kind == words[2]]
        return "yes" if thing.color == words[3] else "no"
    if text.startswith("Does the sign say"):
        return "yes" if scene.signs[0].text == words[-1] else "no"
    if text == "What do the signs say":
        cells = sorted((t.row, t.column, t.text) for t in scene.things if t.kind == "sign")
        return " ".join(said for *_, said in cells)
    if text.startswith("What does the sign in the"):
        (thing,) = [t for t in scene.signs if scene.place(t) == words[6]]
        return thing.text
    if "labeled" in text:
        (sign,) = [t for t in scene.signs if t.text == words[-1]]
        (thing,) = [t for t in shapes if (t.row, t.column + 1) == (sign.row, sign.column)]
        return thing.color if words[1] == "color" else thing.kind
    if text.startswith("Which label"):
        (thing,) = [t for t in shapes if t.name == " ".join(words[-2:])]
        (sign,) = [t for t in scene.signs if (t.row, t.column) == (thing.row, thing.column + 1)]
        return sign.text
    if " of the " in text and words[2] == "is" and words[3] == "the":
        origin = next(t for t in shapes if t.name == " ".join(words[-2:]))
        (thing,) = [t for t in shapes if t.kind == words[4] and there(t, words[5], origin)]
        return thing.color

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
        (thing,) = [t for t in shapes if scene.place(t) == place]
        return thing.color if "color" in text else thing.kind
    if text.startswith("What color is the"):
        (thing,) = [t for t in shapes if t.kind == words[-1]]
        return thing.color
    if text.startswith("What shape is the"):
        (thing,) = [t for t in shapes if t.color == words[4]]
        return thing.kind
    if text.startswith("Where is the"):
        return scene.place(named(text.removeprefix("Where is the ")))
    if "most common" in text:
        values = [t.kind if words[1] == "shape" else t.color for t in shapes]
        return max(set(values), key=values.count)
    if text == "What does the sign say":
        return scene.signs[0].text
    if " of the " in text:  # what is in a direction from something?
        origin = named(text.split(" of the ")[1])
        (thing,) = [t for t in shapes if there(t, words[3], origin)]
        return thing.color if words[1] == "color" else thing.kind
    raise AssertionError(text)


MORE = {
    "composed": (questions.composed, "plain"),
    "labeled": (questions.labeled, "diagram"),
    "sign_at": (questions.sign_at, "strings"),
}


@given(SEEDS, st.sampled_from([*sorted(MAKERS), *MORE]))
def test_answers_are_true_and_options_are_not(seed, skill):
    maker, kind = MORE.get(skill) or (MAKERS[skill], "plain")
    scene, rng = scene_of(seed, kind=kind), np.random.default_rng(seed + 1)
    question = maker(scene, rng)
    if question is None:
        return
    assert answer_by_hand(question, scene) == question.answer
    options, place = question.options(rng, 4)
    assert options[place] == question.answer
    assert len(set(options)) == 4
    if skill == "presence":
        present = {t.kind for t in scene.shapes} | {t.color for t in scene.shapes}
        assert [option in present for option in options].count(True) == 1


@pytest.mark.slow
@given(SEEDS)
def test_yes_and_no_are_true(seed):
    scene = scene_of(seed)
    question = questions.presence_yes_no(scene, np.random.default_rng(seed))
    name = question.text.removeprefix("Is there a ").removesuffix(" in the image?")
    assert question.answer == ("yes" if name in {t.name for t in scene.shapes} else "no")


@given(SEEDS)
def test_confirmed_answers_are_true(seed):
    """Every skill that can be put as a claim, confirmed and denied."""
    scene, rng = scene_of(seed), np.random.default_rng(seed)
    question = questions.yes_no(scene, rng)
    assert question is None or answer_by_hand(question, scene) == question.answer
    for maker in (questions.counting, questions.position, questions.attribute):
        asked = maker(scene, rng)
        if asked is not None:
            confirmed = questions.confirm(asked, rng)
            assert answer_by_hand(confirmed, scene) == confirmed.answer
            assert not confirmed.wrong


def test_half_of_the_yes_no_questions_are_answered_yes():
    rng = np.random.default_rng(0)
    asked = [questions.yes_no(scene_of(seed), rng) for seed in range(1500)]
    answers = [question.answer for question in asked if question]
    assert len(answers) > 800
    assert answers.count("yes") / len(answers) == pytest.approx(0.5, abs=0.06)


@given(SEEDS)
def test_strings_are_read_in_order(seed):
    scene = scene_of(seed, kind="strings")
    question = questions.string(scene, np.random.default_rng(seed))
    assert answer_by_hand(question, scene) == question.answer
    assert 2 <= len(question.answer.split()) <= 3
    assert questions.string(scene_of(seed), np.random.default_rng(seed)) is None


@given(SEEDS)
def test_the_unanswerable_asks_for_what_is_not_there(seed):
    scene = scene_of(seed)
    question = questions.unanswerable(scene, np.random.default_rng(seed))
    if question is None:
        return
    there = {t.kind for t in scene.shapes} | {t.color for t in scene.shapes}
    there |= {"sign"} if scene.signs else set()
    assert question.answer == UNANSWERABLE
    assert not there & set(question.text.rstrip("?").split())


@pytest.mark.slow
def test_every_fixed_phrase_is_one_of_a_question():
    rng = np.random.default_rng(0)
    said = ""
    more = (questions.presence_yes_no, questions.yes_no, questions.yes_no, questions.string)
    for seed in range(400):
        for kind in KINDS:
            for maker in (*MAKERS.values(), *more, *(m for m, _ in MORE.values())):
                question = maker(scene_of(seed, kind=kind), rng)
                said += f"{question.hint} {question.text}\n" if question else ""
    assert not [phrase for phrase in questions.PHRASES if phrase not in said]


def named_in(caption, look):
    """What a caption names, as (name, quarter) in the world's first words."""
    canonical = {other: word for word, other in look.synonyms.items()}
    (opening,) = [text for text in OPENINGS if caption.startswith(text)]
    parts = re.split("|".join(map(re.escape, JOINTS)), caption.removeprefix(opening).rstrip("."))
    found = []
    for part in parts:
        (first, second, preposition, place) = part.split()
        assert f" {preposition}" in PLACES
        quarter = (look.quadrants if place in look.quadrants else look.places).index(place)
        found.append((f"{canonical.get(first, first)} {canonical.get(second, second)}", quarter))
    return found


@given(SEEDS, st.sampled_from(KINDS), WORLDS)
def test_captions_name_everything_in_any_order_and_words(seed, kind, world):
    scene = scene_of(seed, kind=kind, world=world)
    caption = describe(scene, np.random.default_rng(seed))
    expected = [(scene.look.say(thing.name), thing.quarter) for thing in scene.things]
    assert sorted(named_in(caption, scene.look)) == sorted(expected)


def test_captions_of_one_scene_differ():
    scene = scene_of(3)
    captions = {describe(scene, np.random.default_rng(seed)) for seed in range(50)}
    assert len(captions) == 50
    for words in (OPENINGS, JOINTS, scene.look.places, scene.look.quadrants):
        assert sum(any(word in caption for caption in captions) for word in words) > 1


def test_a_wrong_caption_errs_about_its_share():
    errors = objects = 0
    for seed in range(300):
        scene, rng = scene_of(seed), np.random.default_rng(seed)
        turn = conversation(scene, rng, mix(1, 1.0, wrong_labels=0.2))[0]
        right, wrong = (named_in(text, scene.look) for text in (turn.answer, turn.wrong))
        objects += len(right)
        errors += sum(a != b for a, b in zip(right, wrong, strict=True))
    assert errors / objects == pytest.approx(0.2, abs=0.04)


@given(SEEDS, st.sampled_from(KINDS))
def test_wrong_answers_are_wrong(seed, kind):
    scene, rng = scene_of(seed, kind=kind), np.random.default_rng(seed)
    for turn in conversation(scene, rng, mix(5)):
        assert turn.wrong != turn.answer
        assert (turn.wrong in LETTERS) == (turn.answer in LETTERS)


@given(SEEDS, st.integers(1, 6))
def test_conversations_follow_the_schema(seed, turns):
    scene, rng = scene_of(seed), np.random.default_rng(seed)
    talk = messages(conversation(scene, rng, mix(turns, 0.5)))
    assert len(talk) >= 2 * turns
    assert [m["from"] for m in talk] == ["human", "gpt"] * (len(talk) // 2)
    assert talk[0]["value"].startswith("<image>\n")
    assert sum("<image>" in m["value"] for m in talk) == 1
    for asked, answer in zip(talk[::2], talk[1::2], strict=True):
        if asked["value"].endswith((LETTER_INSTRUCTION, MMSTAR_INSTRUCTION)):
            assert answer["value"] in LETTERS


@given(SEEDS)
def test_of_an_unseen_image_nothing_is_answered(seed):
    scene, rng = scene_of(seed), np.random.default_rng(seed)
    talk = messages(conversation(scene, rng, mix(4, 1.0), poor=True, unseen=True))
    assert {m["value"] for m in talk if m["from"] == "gpt"} == {UNANSWERABLE}
    assert all(m["value"].endswith(VIZWIZ_INSTRUCTION) for m in talk if m["from"] == "human")


def test_choices_keep_their_share_and_every_style_is_trained():
    """The turns that ask for a letter are three in four, as they were before the open styles."""
    asked, shares = [], mix(6, 0.2, echoes=0.15, open_answers=0.2, spelled_letters=0.15)
    for seed in range(600):
        talk = messages(conversation(scene_of(seed), np.random.default_rng(seed), shares))
        asked += [m["value"] for m in talk if m["from"] == "human"]
    asked = [text for text in asked if not text.endswith("Describe the image.")]
    choices = [text for text in asked if "\nA. " in text]
    assert 0.74 < len(choices) / len(asked) < 0.79
    for mark in (LETTER_INSTRUCTION, MMSTAR_INSTRUCTION, "There are several options:", "<image 1>"):
        assert sum(mark in text for text in choices) / len(choices) > 0.05
    opened = [text for text in asked if "\nA. " not in text]
    for mark in ("single word or phrase.", "?", VIZWIZ_INSTRUCTION):
        assert sum(text.endswith(mark) for text in opened) / len(opened) > 0.1


@pytest.mark.slow
def test_the_training_set_has_every_kind_of_image(tmp_path, world):
    write_training_set(tmp_path / "t.parquet", dataclasses.replace(world, train=300), workers=1)
    records = pq.read_table(tmp_path / "t.parquet").to_pylist()
    texts = [" ".join(m["value"] for m in r["conversations"]) for r in records]
    for mark, share in (("label", 0.15), ("do the signs say", 0.08), (UNANSWERABLE, 0.04)):
        assert sum(mark in text for text in texts) > 0.5 * share * len(texts)
    for record in records:  # the vision tower is not asked for what nobody can see
        answers = {m["value"] for m in record["conversations"] if m["from"] == "gpt"}
        if not any(record["contents"]):
            assert answers == {UNANSWERABLE}
    assert not all(any(record["contents"]) for record in records)


@given(SEEDS)
def test_letters_said_with_an_option_are_its_letters(seed):
    scene, rng = scene_of(seed), np.random.default_rng(seed)
    talk = messages(conversation(scene, rng, mix(4)))
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


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CHATS))
def test_words_of_the_world_are_one_token_each(tmp_path, world, name):
    """At the start of an answer and after a space alike."""
    write_training_set(tmp_path / "train.parquet", dataclasses.replace(world, train=600))
    talks = pq.read_table(tmp_path / "train.parquet")["conversations"].to_pylist()
    tokenizer = build_tokenizer(name, (turn["value"] for talk in talks for turn in talk), 512)
    for option in (option for pool in questions.pools(LOOKS["first"]) for option in pool):
        assert len(tokenizer.tokenize(option)) == len(tokenizer.tokenize(f" {option}")) == 1
    for letter in LETTERS:
        assert len(tokenizer.tokenize(letter)) == len(tokenizer.tokenize(f" {letter}")) == 1
    for phrase in (*FIXED_PHRASES, *questions.YES_NO):
        assert len(tokenizer.tokenize(phrase)) == 1
    # evaluation asks in words that training has: nothing falls into letters
    rng = np.random.default_rng(0)
    for seed in range(100):
        for kind in KINDS:
            for maker in (*MAKERS.values(), questions.yes_no, *(m for m, _ in MORE.values())):
                question = maker(scene_of(seed, kind=kind), rng)
                if question is not None:
                    words = len(question.text.split())
                    assert len(tokenizer.tokenize(open_prompt("phrase", question))) <= words + 2
    text = "Zwölf Ängste: what else?"
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text
    assert len(tokenizer) <= 512


def test_a_word_that_is_only_ever_an_answer_is_one_token_where_answers_stand():
    """After "ASSISTANT:" LLaVA writes a space, which the conversations do not show."""
    said = ["undecided", "what is it?"] * 20
    assert build_tokenizer("llava", said, 512).tokenize(" undecided") == ["Ġundecided"]
    assert build_tokenizer("qwen2_vl", said, 512).tokenize("unanswerable") == ["unanswerable"]


@pytest.mark.slow
def test_small_models_are_the_real_classes_in_ordinary_directories(tmp_path, small, conversations):
    model = small.model(5).eval()
    model.save_pretrained(tmp_path)
    small.processor.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    processor = AutoProcessor.from_pretrained(tmp_path)
    classes = {
        "llava": (LlavaForConditionalGeneration, LlavaProcessor),
        "qwen2_vl": (Qwen2VLForConditionalGeneration, Qwen2VLProcessor),
        "qwen3_vl": (Qwen3VLForConditionalGeneration, Qwen3VLProcessor),
    }
    assert (type(loaded), type(processor)) == classes[small.name]
    content = [{"type": "image"}, {"type": "text", "text": "What color is the circle?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    image = render(scene_of(1), np.random.default_rng(2), WORLD)
    inputs = processor(text=[text], images=[image], return_tensors="pt")
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 16
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
        said = [m.generate(**inputs, max_new_tokens=4, do_sample=False) for m in (loaded, model)]
    assert torch.equal(*said)
    assert loaded.generation_config.eos_token_id == processor.tokenizer.eos_token_id
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight


def test_images_are_never_resized(small):
    """The processor's values are the pixels', normalised, whatever their arrangement."""
    image = render(scene_of(1), np.random.default_rng(2), WORLD)
    made = small.processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]
    settings_ = small.processor.image_processor
    mean, std = np.array(settings_.image_mean), np.array(settings_.image_std)
    wanted = (np.asarray(image) / 255 - mean) / std
    copies = 1 if small.name == "llava" else 2  # the Qwen families see an image as two frames
    wanted = np.sort(np.repeat(wanted.ravel(), copies))
    np.testing.assert_allclose(np.sort(made.numpy().ravel()), wanted, atol=1e-5)
    if small.name == "llava":
        assert made.shape == (1, 3, SIZE, SIZE)


@pytest.mark.slow
def test_a_tower_learns_cells_and_is_taken_over(tmp_path, small, conversations):
    """Pretrained on what is in every cell and where, saved, and put into another model."""
    table = pq.read_table(conversations)
    vision = VISIONS[small.name]
    settings = Vision(
        seed=1, images=48, steps=150, batch_size=16, learning_rate=0.005, config=vision
    )
    model = build_tower(small.name, small.processor, vision, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = ConversationDataset(conversations, small.processor, model.config)
    batches = tower_batches(data, np.array(table["contents"].to_pylist()), settings)
    told = pretrain(
        small.adapter, model, batches, aspects=aspects_of(FIRST), steps=400, learning_rate=0.005
    )
    chance = 1 / (16 * (1 if small.name == "llava" else 4))
    assert told["place_accuracy"] > 3 * chance, told
    trained = small.adapter.tower_parameters(model)
    for name, value in model.state_dict().items():
        if name not in trained:  # neither the projector nor the decoder around it
            assert torch.equal(value, before[name]), name
    moved = [name for name in trained if not torch.equal(model.state_dict()[name], before[name])]
    assert len(moved) > 0.5 * len(trained)

    tower = model.get_submodule(small.adapter.vision_tower)
    save_file({k: v.contiguous() for k, v in tower.state_dict().items()}, tmp_path / "tower")
    again = load_tower(small.name, small.processor, vision, tmp_path / "tower")
    taker = small.model(7)
    projectors = {
        name: value.clone()
        for name, value in taker.state_dict().items()
        if name.startswith(small.adapter.projectors)
    }
    take_tower(taker, small.name, tmp_path / "tower")
    images = data.pixels(range(3))
    expected = small.adapter.vision_features(model.eval(), images)
    assert torch.equal(small.adapter.vision_features(again, images), expected)
    assert torch.equal(small.adapter.vision_features(taker.eval(), images), expected)
    assert projectors
    for name, value in projectors.items():
        assert torch.equal(taker.state_dict()[name], value), name
    deeper = "num_hidden_layers" if small.name == "llava" else "depth"
    with pytest.raises(AssertionError, match="another tower"):
        take_tower(small.model(7, vision={deeper: 3}), small.name, tmp_path / "tower")


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_a_visual_tokens_patches_stand_together(family, conversations, name):
    """Features of a visual token change when its pixels do, and (without attention) no others."""
    small = family(name)
    vision = {"num_hidden_layers": 1} if name == "llava" else {"depth": 0}
    model = small.model(vision=vision).eval()  # LLaVA reads the layer before the last: the input
    image = np.array(render(scene_of(1), np.random.default_rng(2), WORLD))
    side = 4
    for token in (0, 1, side, side * side - 1):
        row, column = divmod(token, side)
        other = image.copy()
        other[row * 16 : (row + 1) * 16, column * 16 : (column + 1) * 16] += 90
        made = small.processor.image_processor(
            images=[Image.fromarray(image), Image.fromarray(other)], return_tensors="pt"
        )
        first, second = small.adapter.vision_features(model, made).unflatten(0, (2, -1))
        changed = (first != second).any(dim=-1).unflatten(0, (side * side, -1)).any(dim=-1)
        assert changed.nonzero().ravel().tolist() == [token]


def test_towers_that_do_not_fit_the_scenes_are_refused(family, conversations):
    small = family("llava")
    with pytest.raises(InputError, match="image_size is 32"):
        build_processor("llava", ["red"], 400, {**VISIONS["llava"], "image_size": 32})
    with pytest.raises(InputError, match="'gpt2' has no small instance"):
        build_processor("gpt2", ["red"], 400, VISIONS["llava"])
    model = small.model(vision={"patch_size": SIZE})
    images = {"pixel_values": torch.zeros(2, 3, SIZE, SIZE)}
    batches = iter([(images, torch.zeros(2, GRID * GRID, dtype=torch.long))])
    with pytest.raises(InputError, match="1 visual tokens of an image, the scenes have 16"):
        pretrain(
            small.adapter,
            model,
            batches,
            aspects=aspects_of(FIRST),
            steps=400,
            learning_rate=0.005,
        )


def test_aspects_are_the_words_of_a_content():
    for look in LOOKS.values():
        colors, shapes, texts = ("", *look.colors), ("", *look.shapes, "sign"), ("", *look.signs)
        names = ["empty"]
        for color, shape, text in aspects_of(look).tolist()[1:]:
            names.append(" ".join(w for w in (colors[color], shapes[shape], texts[text]) if w))
        assert names == contents_of(look)
        assert not aspects_of(look)[0].any()


@given(SEEDS, st.sampled_from(("plain", "strings")))
def test_quarters_hold_one_object_each(seed, kind):
    quarters = [thing.quarter for thing in scene_of(seed, kind=kind).things]
    assert len(set(quarters)) == len(quarters) <= 4
    assert set(quarters) <= {0, 1, 2, 3}


def test_cells_hold_what_the_scene_holds():
    scene = scene_of(5)
    contents = cell_contents(scene)
    named = {(i // GRID, i % GRID): contents_of(FIRST)[c] for i, c in enumerate(contents) if c}
    assert named == {(t.row, t.column): t.name for t in scene.things}


@pytest.mark.slow
def test_the_training_set_is_the_same_whatever_the_workers(tmp_path, world):
    small = dataclasses.replace(world, train=1100)
    for workers in (1, 2):
        write_training_set(tmp_path / f"{workers}.parquet", small, workers=workers)
    a, b = (pq.read_table(tmp_path / f"{workers}.parquet") for workers in (1, 2))
    assert a.equals(b)
    assert a.num_rows == conversations_of(small)


@pytest.fixture(scope="module")
def benchmark_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    for name in SKILLS:
        write_benchmark(
            name, folder / f"{name}.parquet", split="evaluation", count=60, seed=4, drawing=WORLD
        )
    return folder


def rows_of(folder, name):
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


CHOICES = {
    "mmbench": "mmbench",
    "seedbench": "seedbench",
    "scienceqa": "scienceqa",
    "mmstar": "mmstar",
    "mmmu": "mmmu",
    "ai2d": "seedbench",
}
OPEN = {
    **dict.fromkeys(("vqav2", "gqa", "textvqa", "pope", "mme"), "phrase"),
    **dict.fromkeys(("hallusionbench", "ocrbench"), "bare"),
    "vizwiz": "vizwiz",
    "mmmu": "mmmu",
}


def official_text(name, doc):
    """What the official task asks, with the settings of the official task file."""
    from lmms_eval.utils import load_yaml_config

    config = load_yaml_config(str(tasks.get(name).official_path))
    settings_ = config.get("lmms_eval_specific_kwargs")
    return config["doc_to_text"](doc, *([settings_["default"]] if settings_ else []))


def options_of(name, doc):
    """The options of a multiple-choice question; None for an open one."""
    if name == "mmstar":  # spells them in the question
        return tuple(line[3:] for line in doc["question"].split("\n")[1:])
    if name == "mmmu":
        return tuple(ast.literal_eval(doc["options"])) or None
    if name == "seedbench":
        return tuple(doc[f"choice_{letter.lower()}"] for letter in LETTERS)
    if name == "mmbench":
        return tuple(doc[letter] for letter in LETTERS)
    return tuple(doc["choices" if name == "scienceqa" else "options"])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CHOICES))
def test_training_turns_are_the_official_choice_prompts(benchmark_files, name):
    """What a benchmark's question asks is what the training turn of that style would ask."""
    for doc in rows_of(benchmark_files, name):
        if (options := options_of(name, doc)) is None:
            continue
        text = doc["question"].removesuffix(" <image 1>").partition("\n")[0]
        hint = doc.get("hint") or ""
        question = questions.Question("any", text, "", hint="" if hint == "nan" else hint)
        assert choice_prompt(CHOICES[name], question, options) == official_text(name, doc)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OPEN))
def test_training_turns_are_the_official_open_prompts(benchmark_files, name):
    seen = 0
    for doc in rows_of(benchmark_files, name):
        if doc.get("question_type") == "multiple-choice":
            continue
        text = doc["question"].removesuffix(" <image 1>")
        text = text.removesuffix(" Please answer yes or no.")
        question = questions.Question("any", text, "")
        assert open_prompt(OPEN[name], question) == official_text(name, doc)
        seen += 1
    assert seen


@pytest.mark.slow
def test_pope_asks_for_what_is_popular_or_goes_together(benchmark_files):
    rows = rows_of(benchmark_files, "pope")
    assert [row["answer"] for row in rows] == ["yes", "no"] * (len(rows) // 2)
    assert {row["category"] for row in rows} == {"random", "popular", "adversarial"}
    counts = {c: sum(r["category"] == c for r in rows) for c in ("random", "popular")}
    assert counts["random"] == counts["popular"] == len(rows) // 3
    popular = [r["question"] for r in rows if r["category"] == "popular" and r["answer"] == "no"]
    chosen = [r["question"] for r in rows if r["category"] == "random" and r["answer"] == "no"]
    assert len(set(popular)) < len(set(chosen))


@pytest.mark.slow
def test_absent_things_are_absent_and_adversarial_ones_share_most(benchmark_files):
    """The scenes are drawn again, apart from the rows."""
    rows = rows_of(benchmark_files, "pope")
    source = benchmarks._Source("pope", "evaluation", 4, WORLD)
    names = questions.names_of(FIRST)
    for there, absent in zip(rows[::2], rows[1::2], strict=True):
        scene, _ = source.draw()
        things = {t.name for t in scene.shapes}
        parts = {t.color for t in scene.shapes} | {t.kind for t in scene.shapes}
        yes, no = (" ".join(row["question"].split()[3:5]) for row in (there, absent))
        assert yes in things
        assert no not in things
        if absent["category"] == "adversarial":
            shared = {n: len(parts & set(n.split())) for n in names if n not in things}
            assert shared[no] == max(shared.values())


@pytest.mark.slow
def test_hallusionbench_edits_turn_the_answer(benchmark_files):
    rows = rows_of(benchmark_files, "hallusionbench")
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first["question"] == second["question"]
        assert (first["set_id"], first["subcategory"]) == (second["set_id"], second["subcategory"])
        assert (first["figure_id"], second["figure_id"]) == ("0", "1")
        assert {first["gt_answer"], second["gt_answer"]} == {"0", "1"}
        assert first["image"]["bytes"] != second["image"]["bytes"]
    assert {row["gt_answer"] for row in rows[::2]} == {"0", "1"}


@pytest.mark.slow
def test_mme_asks_twice_about_each_image(benchmark_files):
    rows = rows_of(benchmark_files, "mme")
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first["question_id"] == second["question_id"]
        assert (first["answer"], second["answer"]) == ("Yes", "No")
        assert first["image"] == second["image"]
        assert first["question"] != second["question"]


def test_an_odd_number_of_paired_questions_is_refused(tmp_path):
    with pytest.raises(InputError, match="mme asks its questions in pairs: 7 is odd"):
        write_benchmark("mme", tmp_path / "x", split="evaluation", count=7, seed=4, drawing=WORLD)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vqav2", "textvqa", "vizwiz"])
def test_ten_annotators_mostly_agree(benchmark_files, name):
    partly = 0
    for row in rows_of(benchmark_files, name):
        given = [a["answer"] if isinstance(a, dict) else a for a in row["answers"]]
        assert len(given) == 10
        assert max(map(given.count, given)) >= 8
        partly += len(set(given)) > 1
    assert partly > 5


@pytest.mark.slow
def test_benchmarks_read_as_pictures(benchmark_files):
    import datasets

    for name in SKILLS:
        rows = datasets.Dataset.from_parquet(
            str(benchmark_files / f"{name}.parquet"), cache_dir=str(benchmark_files)
        )
        image = rows[0]["image_1" if name == "mmmu" else "image"]
        image = image[0] if isinstance(image, list) else image
        assert isinstance(image, Image.Image)
        assert image.size == (SIZE, SIZE)
        assert len(rows) == 60


def test_png_is_lossless():
    scene = scene_of(1)
    image = Image.open(io.BytesIO(png(scene, np.random.default_rng(2), WORLD)))
    direct = render(scene, np.random.default_rng(2), WORLD)
    assert image.tobytes() == direct.tobytes()
