"""Evaluation sets in the schemas of lmms-eval's official tasks.

Each stand-in probes the skill its namesake probes, on procedural scenes. The official task
definition and scorer run on these files unchanged; see :mod:`replication.evaluate.score`.
"""

import io
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from grace.errors import InputError
from replication.base.files import atomic_path
from replication.data.world import questions, schemas
from replication.data.world.looks import LOOKS
from replication.data.world.questions import MAKERS, YES_NO, Maker, Question, composed, labeled
from replication.data.world.scenes import (
    GRID,
    Drawing,
    Scene,
    Thing,
    draw_scene,
    pick,
    render,
    spoil,
)
from replication.data.world.schemas import SEED_TYPES, WRITERS, Row

UNSEEN = 0.2
"""Share of the poor images in which nothing can be seen."""

SKILLS = {
    "mmbench": ("presence", "attribute", "position", "counting", "located", "neighbor"),
    "seedbench": tuple(SEED_TYPES),
    "scienceqa": ("located", "counting", "comparison", "neighbor"),
    "vqav2": ("yes_no", "counting", "yes_no", "attribute", "reading", "comparison", "position"),
    "gqa": ("neighbor", "position_yes_no", "composed", "position"),
    "textvqa": ("reading", "sign_at"),
    "vizwiz": ("attribute", "yes_no", "unanswerable", "counting", "comparison", "unseen"),
    "mmstar": tuple(schemas.MMSTAR_CATEGORIES),
    "mmmu": tuple(schemas.MMMU_SUBJECTS),
    "ai2d": ("labeled", "attribute", "labeled", "position", "labeled", "counting"),
    "ocrbench": ("string", "reading"),
    "pope": ("random", "popular", "adversarial"),
    "mme": ("existence", "count", "position", "color", "scene", "OCR"),
    "hallusionbench": ("figure", "math", "map", "ocr"),
}
"""Skills (POPE, MME, HallusionBench: official categories) of each stand-in, asked in turn."""


def _confirmed(maker: Maker, scene: Scene, rng: np.random.Generator) -> Question | None:
    question = maker(scene, rng)
    return None if question is None else questions.confirm(question, rng)


def _nothing_seen(scene: Scene, rng: np.random.Generator) -> Question | None:
    question = questions.attribute(scene, rng)
    return question and Question("unseen", question.text, questions.UNANSWERABLE)


_STREAMS = {name: index for index, name in enumerate(SKILLS)}
_ASK: dict[str, Maker] = {
    **MAKERS,
    "composed": composed,
    "labeled": labeled,
    "sign_at": questions.sign_at,
    "string": questions.string,
    "yes_no": questions.yes_no,
    "position_yes_no": lambda scene, rng: _confirmed(questions.position, scene, rng),
    "unanswerable": questions.unanswerable,
    "unseen": _nothing_seen,
}
_KINDS = {"sign_at": "strings", "string": "strings", "labeled": "diagram"}
_MME: dict[str, Maker] = {
    "count": questions.counting,
    "position": questions.position,
    "color": questions.attribute,
    "scene": questions.comparison,
    "OCR": questions.reading,
}
_FIGURES: dict[str, Maker] = {
    "figure": questions.attribute,
    "math": questions.counting,
    "map": questions.position,
    "ocr": questions.reading,
}


def png(
    scene: Scene,
    rng: np.random.Generator,
    drawing: Drawing,
    *,
    poor: bool = False,
    unseen: bool = False,
) -> bytes:
    """The drawing of a scene as PNG bytes."""
    buffer = io.BytesIO()
    image = render(scene, rng, drawing)
    if poor:
        image = spoil(image, rng, unseen=unseen)
    image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


@dataclass
class _Source:
    """Where a benchmark's scenes come from: draw ``i`` depends on its seed and ``i`` alone."""

    name: str
    split: str
    seed: int
    drawing: Drawing
    drawn: int = 0

    def draw(self, kind: str = "plain") -> tuple[Scene, np.random.Generator]:
        rng = np.random.default_rng([self.seed, _STREAMS[self.name], self.drawn])
        self.drawn += 1
        return draw_scene(rng, self.split, kind, self.drawing.world), rng

    def image(self, scene: Scene, rng: np.random.Generator, index: int, **faults: bool) -> Row:
        content = png(scene, rng, self.drawing, **faults)
        return {"bytes": content, "path": f"scene_{index}.png"}


def _singly(source: _Source, count: int) -> Iterator[Row]:
    """One question about each image, the skills in turn."""
    skills, write = SKILLS[source.name], WRITERS[source.name]
    index = 0
    while index < count:
        skill = skills[index % len(skills)]
        kind = "diagram" if source.name == "ai2d" else _KINDS.get(skill, "plain")
        scene, rng = source.draw(kind)
        question = questions.ask(_ASK[skill], scene, rng)
        if question is None:
            continue
        faults = {"poor": True, "unseen": skill == "unseen"} if source.name == "vizwiz" else {}
        yield write(index, question, rng, source.image(scene, rng, index, **faults))
        index += 1


def _pope(source: _Source, count: int) -> Iterator[Row]:
    """Per image something that is there and something that is not, chosen as the category says."""
    drawn = [source.draw() for _ in range(count // 2)]
    look = LOOKS[source.drawing.world]
    names = questions.names_of(look)
    frequent = Counter(thing.name for scene, _ in drawn for thing in scene.shapes)
    categories = SKILLS["pope"]
    for place, (scene, rng) in enumerate(drawn):
        category = categories[place % len(categories)]
        present = sorted({thing.name for thing in scene.shapes})
        absent = [name for name in names if name not in present]
        if category == "popular":  # what other images show most often
            absent = sorted(absent, key=lambda name: (-frequent[name], name))[:3]
        elif category == "adversarial":  # colour and shape are both there, but not together
            parts = [{t.color for t in scene.shapes}, {t.kind for t in scene.shapes}]
            shared = {n: sum(w in p for w, p in zip(n.split(), parts, strict=True)) for n in absent}
            absent = [name for name in absent if shared[name] == max(shared.values())]
        image = source.image(scene, rng, place)
        for offset, (pool, answer) in enumerate(zip((present, absent), YES_NO, strict=True)):
            name = pick(rng, pool)
            text = look.say(f"Is there a {name} in the image?")
            question = Question("presence", text, answer)
            yield schemas.pope(2 * place + offset, question, category, image)


def _mme(source: _Source, count: int) -> Iterator[Row]:
    """Per image the same question twice: once the answer is yes, once no."""
    index, categories = 0, SKILLS["mme"]
    while index < count:
        category = categories[index // 2 % len(categories)]
        scene, rng = source.draw()
        pair = _both(category, scene, rng)
        if pair is None:
            continue
        image = source.image(scene, rng, index // 2)
        for question in pair:
            yield schemas.mme(index, question, category, image)
            index += 1


def _both(
    category: str, scene: Scene, rng: np.random.Generator
) -> tuple[Question, Question] | None:
    """The same question with the answers yes and no."""
    maker = _MME.get(category)
    question: Question | None
    if maker is None:
        claim = scene.look.say("Is there a {} in the image?")
        names = {thing.name for thing in scene.shapes}
        absent = tuple(name for name in questions.names_of(scene.look) if name not in names)
        true = pick(rng, sorted(names))
        question = Question("presence", "", true, absent, claim=claim)
    else:
        question = questions.ask(maker, scene, rng)
    if question is None:
        return None
    wrong = pick(rng, question.wrong)
    return (
        Question(question.skill, question.claim.format(question.answer), YES_NO[0]),
        Question(question.skill, question.claim.format(wrong), YES_NO[1]),
    )


def _hallusionbench(source: _Source, count: int) -> Iterator[Row]:
    """Per set one question about a figure, and again after an edit that turns the answer."""
    index, subcategories = 0, SKILLS["hallusionbench"]
    while index < count:
        subcategory = subcategories[index // 2 % len(subcategories)]
        scene, rng = source.draw()
        edit = _turned(_FIGURES[subcategory], scene, rng, source.split)
        if edit is None:
            continue
        edited, before, after = edit
        claim = before.claim.format((before, after)[int(rng.integers(2))].answer)
        for figure, question in ((scene, before), (edited, after)):
            answer = YES_NO[0] if claim == question.claim.format(question.answer) else YES_NO[1]
            asked = Question(question.skill, claim, answer)
            image = source.image(figure, rng, index)
            yield schemas.hallusionbench(index, asked, subcategory, image)
            index += 1


def _turned(
    maker: Maker, scene: Scene, rng: np.random.Generator, split: str
) -> tuple[Scene, Question, Question] | None:
    """An edited scene, and a question whose answer the edit turns, asked of both."""
    before = _asked(maker, scene, rng)
    for _ in range(60):
        edited = _edit(scene, rng)
        if edited.split != split or edited == scene:
            continue
        after = _asked(maker, edited, rng)
        turned = [t for t in before if t in after and before[t].answer != after[t].answer]
        if turned:
            text = pick(rng, turned)
            return edited, before[text], after[text]
    return None


def _asked(maker: Maker, scene: Scene, rng: np.random.Generator) -> dict[str, Question]:
    draws = (questions.ask(maker, scene, rng) for _ in range(16))
    return {question.text: question for question in draws if question}


def _edit(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with one object recoloured, reshaped or moved, or with another sign."""
    things = list(scene.things)
    place = int(rng.integers(len(things)))
    thing = things[place]
    taken = {(t.row, t.column) for t in things}
    free = [divmod(i, GRID) for i in range(GRID * GRID) if divmod(i, GRID) not in taken]
    if free and rng.random() < 0.4:
        row, column = pick(rng, free)
        things[place] = replace(thing, row=row, column=column)
    else:
        things[place] = _altered(scene, thing, rng)
    return replace(scene, things=tuple(sorted(things)))


def _altered(scene: Scene, thing: Thing, rng: np.random.Generator) -> Thing:
    look = scene.look
    if thing.kind == "sign":
        return replace(thing, text=pick(rng, look.signs))
    if rng.random() < 0.5:
        return replace(thing, color=pick(rng, list(look.colors)))
    return replace(thing, kind=pick(rng, look.shapes))


_IN_PAIRS: dict[str, Callable[[_Source, int], Iterator[Row]]] = {
    "pope": _pope,
    "mme": _mme,
    "hallusionbench": _hallusionbench,
}


def write_benchmark(
    name: str, path: Path, *, split: str, count: int, seed: int, drawing: Drawing
) -> None:
    """Write a benchmark's stand-ins to a parquet file.

    Args:
        name: The benchmark.
        path: The file.
        split: Of the scenes, one of :data:`replication.data.world.scenes.SPLITS`.
        count: Number of questions.
        seed: Of all random draws.
        drawing: How scenes are drawn.

    Raises:
        InputError: For an odd count where the questions come in pairs.
    """
    source = _Source(name, split, seed, drawing)
    make = _IN_PAIRS.get(name, _singly)
    if name in _IN_PAIRS and count % 2:
        raise InputError(f"{name} asks its questions in pairs: {count} is odd, give an even number")
    progress: Any = tqdm(make(source, count), total=count, desc=f"{name} ({split})", leave=False)
    rows = list(progress)
    table = pa.Table.from_pylist(rows, schema=schemas.features_of(rows[0]).arrow_schema)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)
