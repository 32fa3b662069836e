"""Questions about a scene, one function per skill.

A :class:`Question` is abstract: its text, its true answer and, where the skill has them, wrong
options. :mod:`replication.data.world.benchmarks` writes it in a benchmark's schema and
:mod:`replication.data.world.conversations` as a training turn, so that training and evaluation
ask alike, about scenes that never coincide.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from replication.data.world.looks import Look
from replication.data.world.scenes import Scene, Thing, label_of, pick

LETTERS = "ABCD"
COUNTS = tuple(str(count) for count in range(6))
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
"""The fixed parts of the questions' texts, in the first world's words."""
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


def pools(look: Look) -> tuple[tuple[str, ...], ...]:
    """What options are drawn from, a pool a kind of answer."""
    return tuple(look.colors), look.shapes, look.quadrants, look.directions, look.signs, COUNTS


Maker = Callable[[Scene, np.random.Generator], Question | None]
"""Asks a question about a scene; None where the scene does not allow one."""


def ask(maker: Maker, scene: Scene, rng: np.random.Generator) -> Question | None:
    """A maker's question, in the words of the scene's world."""
    question = maker(scene, rng)
    return None if question is None else in_words_of(scene.look, question)


def in_words_of(look: Look, question: Question) -> Question:
    return replace(
        question,
        text=look.say(question.text),
        hint=look.say(question.hint),
        claim=look.say(question.claim),
    )


def listed(options: Sequence[str]) -> str:
    """Options with their letters, one a line."""
    return "\n".join(
        f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)
    )


def _others(pool, answer: str) -> tuple[str, ...]:
    return tuple(item for item in pool if item != answer)


def _ending(kind: str) -> str:
    return "es" if kind.endswith("ss") else "s"


def names_of(look: Look) -> list[str]:
    """Every colour with every shape."""
    return [f"{color} {shape}" for color in look.colors for shape in look.shapes]


def _unique(scene: Scene, key: Callable[[Thing], str]) -> list[Thing]:
    names = [key(thing) for thing in scene.shapes]
    return [thing for thing in scene.shapes if names.count(key(thing)) == 1]


def presence(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Which of these shapes (or colours) is in the image? All others are absent."""
    by_shape = rng.random() < 0.5
    pool = scene.look.shapes if by_shape else tuple(scene.look.colors)
    present = {thing.kind if by_shape else thing.color for thing in scene.shapes}
    absent = tuple(name for name in pool if name not in present)
    if len(absent) < 3:
        return None
    text = f"Which {'shape' if by_shape else 'color'} is in the image?"
    return Question("presence", text, pick(rng, sorted(present)), absent)


def presence_yes_no(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Is there a <color> <shape>? Half of the answers are yes."""
    present = sorted({thing.name for thing in scene.shapes})
    if rng.random() < 0.5:
        return Question("presence", f"Is there a {pick(rng, present)} in the image?", "yes")
    absent = [name for name in names_of(scene.look) if name not in present]
    return Question("presence", f"Is there a {pick(rng, absent)} in the image?", "no")


def counting(scene: Scene, rng: np.random.Generator) -> Question | None:
    """How many objects have a colour or a shape?"""
    if rng.random() < 0.5:
        kind = pick(rng, scene.look.shapes)
        count = sum(thing.kind == kind for thing in scene.shapes)
        counted = f"{kind}{_ending(kind)}"
    else:
        color = pick(rng, list(scene.look.colors))
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
        thing = pick(rng, candidates)
        text = f"What color is the {thing.kind}?"
        wrong, claim = _others(scene.look.colors, thing.color), f"Is the {thing.kind} {{}}?"
        return Question("attribute", text, thing.color, wrong, claim=claim)
    candidates = _unique(scene, lambda thing: thing.color)
    if not candidates:
        return None
    thing = pick(rng, candidates)
    text = f"What shape is the {thing.color} object?"
    wrong, claim = _others(scene.look.shapes, thing.kind), f"Is the {thing.color} object a {{}}?"
    return Question("attribute", text, thing.kind, wrong, claim=claim)


def position(scene: Scene, rng: np.random.Generator) -> Question | None:
    """In which quarter of the image is an object?"""
    candidates = _unique(scene, lambda thing: thing.name)
    if not candidates:
        return None
    thing = pick(rng, candidates)
    text, claim = f"Where is the {thing.name}?", f"Is the {thing.name} in the {{}}?"
    answer = scene.place(thing)
    wrong = _others(scene.look.quadrants, answer)
    return Question("position", text, answer, wrong, claim=claim)


def comparison(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Which shape (or colour) occurs most often? Only where one does."""
    by_shape = rng.random() < 0.5
    pool = scene.look.shapes if by_shape else tuple(scene.look.colors)
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
    return Question(
        "reading", "What does the sign say?", text, _others(scene.look.signs, text), claim=claim
    )


def sign_at(scene: Scene, rng: np.random.Generator) -> Question | None:
    """What does the one sign in a quarter of the image say? Only where there are several signs."""
    places = [thing.quarter for thing in scene.signs]
    candidates = [thing for thing in scene.signs if places.count(thing.quarter) == 1]
    if len(places) < 2 or not candidates:
        return None
    thing = pick(rng, candidates)
    text = f"What does the sign in the {scene.place(thing)} say?"
    return Question("reading", text, thing.text, _others(scene.look.signs, thing.text))


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
    thing = pick(rng, scene.shapes)
    label = label_of(scene, thing).text
    if rng.random() < 0.5:
        return Question(
            "labeled",
            f"Which label has the {thing.name}?",
            label,
            _others(scene.look.labels, label),
        )
    if rng.random() < 0.5:
        text = f"What color is labeled {label}?"
        return Question("labeled", text, thing.color, _others(scene.look.colors, thing.color))
    text = f"What shape is labeled {label}?"
    return Question("labeled", text, thing.kind, _others(scene.look.shapes, thing.kind))


def located(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The hint names a quarter of the image with one shape in it; the question asks about it."""
    singles = [
        thing
        for thing in scene.shapes
        if sum(other.quarter == thing.quarter for other in scene.shapes) == 1
    ]
    if not singles:
        return None
    thing = pick(rng, singles)
    hint = f"Look at the {scene.place(thing)}."
    if rng.random() < 0.5:
        return Question(
            "located",
            "What color is the shape there?",
            thing.color,
            _others(scene.look.colors, thing.color),
            hint,
        )
    return Question(
        "located", "Which shape is there?", thing.kind, _others(scene.look.shapes, thing.kind), hint
    )


def neighbor(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Colour or shape of the one shape that lies in a direction from an object."""
    found = []
    for origin in _unique(scene, lambda thing: thing.name):
        for direction in scene.look.directions:
            seen = [
                t for t in scene.shapes if t != origin and _direction(scene, t, origin) == direction
            ]
            if len(seen) == 1:
                found.append((origin, direction, seen[0]))
    if not found:
        return None
    origin, direction, thing = pick(rng, found)
    where = f"is {direction} of the {origin.name}?"
    if rng.random() < 0.5:
        text = f"What color {where}"
        return Question("neighbor", text, thing.color, _others(scene.look.colors, thing.color))
    return Question(
        "neighbor", f"What shape {where}", thing.kind, _others(scene.look.shapes, thing.kind)
    )


def composed(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The colour of the one object of a shape that lies in a direction from another object."""
    found = []
    for origin in _unique(scene, lambda thing: thing.name):
        for thing in scene.shapes:
            direction = _direction(scene, thing, origin)
            same = [
                t
                for t in scene.shapes
                if t != origin
                and t.kind == thing.kind
                and _direction(scene, t, origin) == direction
            ]
            if direction and len(same) == 1:
                found.append((origin, direction, thing))
    if not found:
        return None
    origin, direction, thing = pick(rng, found)
    text = f"What color is the {thing.kind} {direction} of the {origin.name}?"
    return Question("composed", text, thing.color, _others(scene.look.colors, thing.color))


def confirm(question: Question, rng: np.random.Generator) -> Question:
    """The yes/no question whether an answer is right: half the time it is the true one."""
    assert question.claim, f"{question.skill} has no form to be confirmed"
    true = rng.random() < 0.5
    value = question.answer if true else pick(rng, question.wrong)
    text = question.claim.format(value)
    return Question(question.skill, text, YES_NO[0] if true else YES_NO[1])


def yes_no(scene: Scene, rng: np.random.Generator) -> Question | None:
    """A question of mixed skill, to be answered yes or no."""
    maker = pick(rng, _CONFIRMED)
    if maker is presence_yes_no:
        return presence_yes_no(scene, rng)
    question = maker(scene, rng)
    return None if question is None else confirm(question, rng)


def unanswerable(scene: Scene, rng: np.random.Generator) -> Question | None:
    """A question about something that is not in the image."""
    kinds, colors = {t.kind for t in scene.shapes}, {t.color for t in scene.shapes}
    texts = [f"What color is the {kind}?" for kind in scene.look.shapes if kind not in kinds]
    texts += [
        f"What shape is the {color} object?" for color in scene.look.colors if color not in colors
    ]
    if not scene.signs:
        texts += ["What does the sign say?"] * 2
    return Question(UNANSWERABLE, pick(rng, texts), UNANSWERABLE) if texts else None


def _direction(scene: Scene, thing: Thing, origin: Thing) -> str | None:
    """The direction of one object's quarter as seen from another's beside, above or below; else
    None."""
    up, down, left, right = scene.look.directions
    (row, column), (other_row, other_column) = (divmod(t.quarter, 2) for t in (thing, origin))
    if thing.quarter == origin.quarter:
        return None
    if column == other_column:
        return up if row < other_row else down
    if row == other_row:
        return left if column < other_column else right
    return None


MAKERS: dict[str, Maker] = {
    "presence": presence,
    "counting": counting,
    "attribute": attribute,
    "position": position,
    "comparison": comparison,
    "reading": reading,
    "located": located,
    "neighbor": neighbor,
}
"""Skills with at least three wrong options, which every multiple-choice benchmark can use."""
_CONFIRMED: tuple[Maker, ...] = (
    *(presence_yes_no, presence_yes_no, presence_yes_no),
    *(counting, position, attribute, reading, comparison),
)
