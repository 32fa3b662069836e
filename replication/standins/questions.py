"""Questions about a scene, one function per skill.

A :class:`Question` is abstract: its text, its true answer and, where the skill has them, wrong
options. :mod:`replication.standins.benchmarks` writes it in a benchmark's schema and
:mod:`replication.standins.conversations` as a training turn, so that training and evaluation
ask alike, about scenes that never coincide.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from replication.standins.scenes import COLORS, QUADRANTS, SHAPES, SIGNS, Scene, Thing

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
)
"""The fixed parts of the questions' texts."""


@dataclass(frozen=True)
class Question:
    """One question with its answer and the pool of wrong options (empty: yes/no question)."""

    skill: str
    text: str
    answer: str
    wrong: tuple[str, ...] = ()
    hint: str = ""

    def options(self, rng: np.random.Generator, count: int) -> tuple[tuple[str, ...], int]:
        """``count`` options in random order and the index of the true one."""
        if len(self.wrong) < count - 1:
            raise ValueError(f"{self.skill}: {len(self.wrong)} wrong options, {count - 1} needed")
        wrong = [self.wrong[int(i)] for i in rng.permutation(len(self.wrong))[: count - 1]]
        place = int(rng.integers(count))
        return (*wrong[:place], self.answer, *wrong[place:]), place


Maker = Callable[[Scene, np.random.Generator], Question | None]


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
        text = f"How many {kind}{'es' if kind == 'cross' else 's'} are there?"
    else:
        color = _pick(rng, list(COLORS))
        count = sum(thing.color == color for thing in scene.shapes)
        text = f"How many {color} objects are there?"
    if count == 0 and rng.random() < 0.7:  # zero would be the best guess too often
        return None
    answer = str(count)
    return Question("counting", text, answer, _others(COUNTS, answer))


def attribute(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The colour of the one object of a shape, or the shape of the one object of a colour."""
    if rng.random() < 0.5:
        candidates = _unique(scene, lambda thing: thing.kind)
        if not candidates:
            return None
        thing = _pick(rng, candidates)
        text = f"What color is the {thing.kind}?"
        return Question("attribute", text, thing.color, _others(COLORS, thing.color))
    candidates = _unique(scene, lambda thing: thing.color)
    if not candidates:
        return None
    thing = _pick(rng, candidates)
    text = f"What shape is the {thing.color} object?"
    return Question("attribute", text, thing.kind, _others(SHAPES, thing.kind))


def position(scene: Scene, rng: np.random.Generator) -> Question | None:
    """In which quarter of the image is an object?"""
    candidates = _unique(scene, lambda thing: thing.name)
    if not candidates:
        return None
    thing = _pick(rng, candidates)
    text = f"Where is the {thing.name}?"
    return Question("position", text, thing.quadrant, _others(QUADRANTS, thing.quadrant))


def relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Where is one object as seen from another (both rows and columns differ)?"""
    candidates = _unique(scene, lambda thing: thing.name)
    found = [(a, b, where) for a in candidates for b in candidates if (where := _direction(a, b))]
    if not found:
        return None
    a, b, answer = _pick(rng, found)
    text = f"Where is the {a.name} seen from the {b.name}?"
    return Question("relation", text, answer, _others(QUADRANTS, answer))


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
    text = f"Which {'shape' if by_shape else 'color'} is most common?"
    return Question("comparison", text, winners[0], _others(pool, winners[0]))


def reading(scene: Scene, rng: np.random.Generator) -> Question | None:
    """What does the sign say?"""
    if len(scene.signs) != 1:
        return None
    text = scene.signs[0].text
    return Question("reading", "What does the sign say?", text, _others(SIGNS, text))


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
