"""Questions about a scene, one function per skill.

A :class:`Question` is abstract: its text, its true answer and, where the skill has them, wrong
options. :mod:`replication.data.world.benchmarks` writes it in a benchmark's schema and
:mod:`replication.data.world.conversations` as a training turn, so that training and evaluation
ask alike, about scenes that never coincide.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from replication.data.world.scenes import (
    COLORS,
    LABELS,
    QUADRANTS,
    SHAPES,
    SIGNS,
    Scene,
    Thing,
    label_of,
)

LETTERS = "ABCD"
COUNTS = tuple(str(count) for count in range(6))
POOLS = (tuple(COLORS), SHAPES, QUADRANTS, SIGNS, COUNTS)
"""What options are drawn from, a pool a kind of answer."""
PHRASES = (
    "Which shape is in the image?",
    "Which color is in the image?",
    "Is there a",
    " in the image?",
    "How many",
    "s are there?",
    " objects are there?",
    "What color is the",
    "What shape is the",
    " object?",
    "Where is the",
    " seen from the",
    "Which shape is most common?",
    "Which color is most common?",
    "What does the sign say?",
    "Look at the",
    "What color is the shape there?",
    "Which shape is there?",
    "What color is",
    "What shape is",
    " of the",
    "Is the",
    "Is the number of",
    " in the",
    " object a",
    " the most common shape?",
    " the most common color?",
    "Does the sign say",
    "What do the signs say?",
    "What does the sign in the",
    " say?",
    "What shape is labeled",
    "What color is labeled",
    "Which label has the",
)
"""The fixed parts of the questions' texts."""
UNANSWERABLE = "unanswerable"
YES_NO = ("yes", "no")


@dataclass(frozen=True)
class Question:
    """One question about a scene.

    Attributes:
        skill: What it takes to answer it.
        text: The question.
        answer: The true answer.
        wrong: The pool of wrong options; empty for a question that is asked openly.
        hint: What stands before the question.
        claim: The yes/no question whether an answer, put for {}, is the true one.
    """

    skill: str
    text: str
    answer: str
    wrong: tuple[str, ...] = ()
    hint: str = ""
    claim: str = ""

    def options(self, rng: np.random.Generator, count: int) -> tuple[tuple[str, ...], int]:
        """``count`` options in random order and the index of the true one."""
        assert len(self.wrong) >= count - 1, f"{self.skill} has {len(self.wrong)} wrong options"
        wrong = [self.wrong[int(i)] for i in rng.permutation(len(self.wrong))[: count - 1]]
        place = int(rng.integers(count))
        return (*wrong[:place], self.answer, *wrong[place:]), place


Maker = Callable[[Scene, np.random.Generator], Question | None]
"""Asks a question about a scene; None where the scene does not allow one."""


def listed(options: Sequence[str]) -> str:
    """Options with their letters, one a line."""
    return "\n".join(
        f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)
    )


def _pick(rng: np.random.Generator, items):
    return items[int(rng.integers(len(items)))]


def _others(pool, answer: str) -> tuple[str, ...]:
    return tuple(item for item in pool if item != answer)


def _unique(scene: Scene, key: Callable[[Thing], str]) -> list[Thing]:
    names = [key(thing) for thing in scene.shapes]
    return [thing for thing in scene.shapes if names.count(key(thing)) == 1]


def presence(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Which of these shapes (or colours) is in the image? All others are absent."""
    by_shape = rng.random() < 0.5
    pool = SHAPES if by_shape else tuple(COLORS)
    present = {thing.kind if by_shape else thing.color for thing in scene.shapes}
    absent = tuple(name for name in pool if name not in present)
    if len(absent) < 3:
        return None
    text = f"Which {'shape' if by_shape else 'color'} is in the image?"
    return Question("presence", text, _pick(rng, sorted(present)), absent)


def presence_yes_no(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Is there a <color> <shape>? Half of the answers are yes."""
    present = sorted({thing.name for thing in scene.shapes})
    if rng.random() < 0.5:
        return Question("presence", f"Is there a {_pick(rng, present)} in the image?", "yes")
    absent = [f"{c} {s}" for c in COLORS for s in SHAPES if f"{c} {s}" not in present]
    return Question("presence", f"Is there a {_pick(rng, absent)} in the image?", "no")


def counting(scene: Scene, rng: np.random.Generator) -> Question | None:
    """How many objects have a colour or a shape?"""
    if rng.random() < 0.5:
        kind = _pick(rng, SHAPES)
        count = sum(thing.kind == kind for thing in scene.shapes)
        counted = f"{kind}{'es' if kind == 'cross' else 's'}"
    else:
        color = _pick(rng, list(COLORS))
        count = sum(thing.color == color for thing in scene.shapes)
        counted = f"{color} objects"
    if count == 0 and rng.random() < 0.7:  # zero would be the best guess too often
        return None
    answer = str(count)
    return Question(
        "counting",
        f"How many {counted} are there?",
        answer,
        _others(COUNTS, answer),
        claim=f"Is the number of {counted} {{}}?",
    )


def attribute(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The colour of the one object of a shape, or the shape of the one object of a colour."""
    if rng.random() < 0.5:
        candidates = _unique(scene, lambda thing: thing.kind)
        if not candidates:
            return None
        thing = _pick(rng, candidates)
        text = f"What color is the {thing.kind}?"
        wrong, claim = _others(COLORS, thing.color), f"Is the {thing.kind} {{}}?"
        return Question("attribute", text, thing.color, wrong, claim=claim)
    candidates = _unique(scene, lambda thing: thing.color)
    if not candidates:
        return None
    thing = _pick(rng, candidates)
    text = f"What shape is the {thing.color} object?"
    wrong, claim = _others(SHAPES, thing.kind), f"Is the {thing.color} object a {{}}?"
    return Question("attribute", text, thing.kind, wrong, claim=claim)


def position(scene: Scene, rng: np.random.Generator) -> Question | None:
    """In which quarter of the image is an object?"""
    candidates = _unique(scene, lambda thing: thing.name)
    if not candidates:
        return None
    thing = _pick(rng, candidates)
    text, claim = f"Where is the {thing.name}?", f"Is the {thing.name} in the {{}}?"
    wrong = _others(QUADRANTS, thing.quadrant)
    return Question("position", text, thing.quadrant, wrong, claim=claim)


def relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Where is one object as seen from another (both rows and columns differ)?"""
    candidates = _unique(scene, lambda thing: thing.name)
    found = [(a, b, where) for a in candidates for b in candidates if (where := _direction(a, b))]
    if not found:
        return None
    a, b, answer = _pick(rng, found)
    text = f"Where is the {a.name} seen from the {b.name}?"
    claim = f"Is the {a.name} {{}} of the {b.name}?"
    return Question("relation", text, answer, _others(QUADRANTS, answer), claim=claim)


def comparison(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Which shape (or colour) occurs most often? Only where one does."""
    by_shape = rng.random() < 0.5
    pool = SHAPES if by_shape else tuple(COLORS)
    counts = {
        name: sum((t.kind if by_shape else t.color) == name for t in scene.shapes) for name in pool
    }
    top = max(counts.values())
    winners = [name for name, count in counts.items() if count == top]
    if len(winners) != 1:
        return None
    asked = "shape" if by_shape else "color"
    text, claim = f"Which {asked} is most common?", f"Is {{}} the most common {asked}?"
    return Question("comparison", text, winners[0], _others(pool, winners[0]), claim=claim)


def reading(scene: Scene, rng: np.random.Generator) -> Question | None:
    """What does the sign say?"""
    if len(scene.signs) != 1:
        return None
    text = scene.signs[0].text
    claim = "Does the sign say {}?"
    return Question("reading", "What does the sign say?", text, _others(SIGNS, text), claim=claim)


def sign_at(scene: Scene, rng: np.random.Generator) -> Question | None:
    """What does the one sign in a quarter of the image say? Only where there are several signs."""
    places = [thing.quadrant for thing in scene.signs]
    candidates = [thing for thing in scene.signs if places.count(thing.quadrant) == 1]
    if len(places) < 2 or not candidates:
        return None
    thing = _pick(rng, candidates)
    text = f"What does the sign in the {thing.quadrant} say?"
    return Question("reading", text, thing.text, _others(SIGNS, thing.text))


def string(scene: Scene, rng: np.random.Generator) -> Question | None:
    """What do several signs say, in reading order?"""
    if len(scene.signs) < 2:
        return None
    said = " ".join(thing.text for thing in scene.signs)
    return Question("string", "What do the signs say?", said)


def labeled(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The shape or colour under a label of a diagram, or the label of a shape."""
    if scene.kind != "diagram":
        return None
    thing = _pick(rng, scene.shapes)
    label = label_of(scene, thing).text
    if rng.random() < 0.5:
        return Question(
            "labeled", f"Which label has the {thing.name}?", label, _others(LABELS, label)
        )
    if rng.random() < 0.5:
        text = f"What color is labeled {label}?"
        return Question("labeled", text, thing.color, _others(COLORS, thing.color))
    text = f"What shape is labeled {label}?"
    return Question("labeled", text, thing.kind, _others(SHAPES, thing.kind))


def located(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The hint names a quarter of the image with one shape in it; the question asks about it."""
    singles = [
        thing
        for thing in scene.shapes
        if sum(other.quadrant == thing.quadrant for other in scene.shapes) == 1
    ]
    if not singles:
        return None
    thing = _pick(rng, singles)
    hint = f"Look at the {thing.quadrant}."
    if rng.random() < 0.5:
        return Question(
            "located",
            "What color is the shape there?",
            thing.color,
            _others(COLORS, thing.color),
            hint,
        )
    return Question(
        "located", "Which shape is there?", thing.kind, _others(SHAPES, thing.kind), hint
    )


def neighbor(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Colour or shape of the one shape that lies in a diagonal direction from an object."""
    found = []
    for origin in _unique(scene, lambda thing: thing.name):
        for direction in QUADRANTS:
            seen = [t for t in scene.shapes if _direction(t, origin) == direction]
            if len(seen) == 1:
                found.append((origin, direction, seen[0]))
    if not found:
        return None
    origin, direction, thing = _pick(rng, found)
    where = f"is {direction} of the {origin.name}?"
    if rng.random() < 0.5:
        text = f"What color {where}"
        return Question("neighbor", text, thing.color, _others(COLORS, thing.color))
    return Question("neighbor", f"What shape {where}", thing.kind, _others(SHAPES, thing.kind))


def composed(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The colour of the one object of a shape that lies in a direction from another object."""
    found = []
    for origin in _unique(scene, lambda thing: thing.name):
        for thing in scene.shapes:
            direction = _direction(thing, origin)
            same = [
                t
                for t in scene.shapes
                if t.kind == thing.kind and _direction(t, origin) == direction
            ]
            if direction and len(same) == 1:
                found.append((origin, direction, thing))
    if not found:
        return None
    origin, direction, thing = _pick(rng, found)
    text = f"What color is the {thing.kind} {direction} of the {origin.name}?"
    return Question("composed", text, thing.color, _others(COLORS, thing.color))


def confirm(question: Question, rng: np.random.Generator) -> Question:
    """The yes/no question whether an answer is right: half the time it is the true one."""
    assert question.claim, f"{question.skill} has no form to be confirmed"
    true = rng.random() < 0.5
    value = question.answer if true else _pick(rng, question.wrong)
    text = question.claim.format(value)
    return Question(question.skill, text, YES_NO[0] if true else YES_NO[1])


def yes_no(scene: Scene, rng: np.random.Generator) -> Question | None:
    """A question of mixed skill, to be answered yes or no."""
    maker = _pick(rng, _CONFIRMED)
    if maker is presence_yes_no:
        return presence_yes_no(scene, rng)
    question = maker(scene, rng)
    return None if question is None else confirm(question, rng)


def unanswerable(scene: Scene, rng: np.random.Generator) -> Question | None:
    """A question about something that is not in the image."""
    kinds, colors = {t.kind for t in scene.shapes}, {t.color for t in scene.shapes}
    texts = [f"What color is the {kind}?" for kind in SHAPES if kind not in kinds]
    texts += [f"What shape is the {color} object?" for color in COLORS if color not in colors]
    if not scene.signs:
        texts += ["What does the sign say?"] * 2
    return Question(UNANSWERABLE, _pick(rng, texts), UNANSWERABLE) if texts else None


def _direction(thing: Thing, origin: Thing) -> str | None:
    """The diagonal direction of one object as seen from another; None on its row or column."""
    if thing.row == origin.row or thing.column == origin.column:
        return None
    vertical = "north" if thing.row < origin.row else "south"
    return vertical + ("west" if thing.column < origin.column else "east")


MAKERS: dict[str, Maker] = {
    "presence": presence,
    "counting": counting,
    "attribute": attribute,
    "position": position,
    "relation": relation,
    "comparison": comparison,
    "reading": reading,
    "located": located,
    "neighbor": neighbor,
}
"""Skills with at least three wrong options, which every multiple-choice benchmark can use."""
_CONFIRMED: tuple[Maker, ...] = (
    *(presence_yes_no, presence_yes_no, presence_yes_no),
    *(counting, position, attribute, reading, comparison, relation),
)
