"""Training records in the LLaVA conversation schema, and the prompts shared with the benchmarks.

A record is ``{"id", "image", "conversations": [{"from": "human" | "gpt", "value": str}, ...]}``;
the first human turn starts with ``<image>``. Multiple-choice turns use the prompts that the
official lmms-eval tasks use, as LLaVA's own training mix does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from replication.data.world.captions import JOINTS, OPENINGS, PLACES, describe, mistaken
from replication.data.world.looks import FIRST, Look
from replication.data.world.questions import (
    LETTERS,
    MAKERS,
    PHRASES,
    UNANSWERABLE,
    YES_NO,
    Maker,
    Question,
    ask,
    attribute,
    composed,
    labeled,
    listed,
    located,
    pools,
    position,
    presence,
    sign_at,
    string,
    unanswerable,
    yes_no,
)
from replication.data.world.scenes import Scene, pick

LETTER_INSTRUCTION = "\nAnswer with the option's letter from the given choices directly."
PHRASE_INSTRUCTION = "\nAnswer the question using a single word or phrase."
WITH_LETTER_INSTRUCTION = "\nAnswer with the option and its letter."
# MMStar's instruction lacks the full stop
MMSTAR_INSTRUCTION = LETTER_INSTRUCTION.removesuffix(".")
VIZWIZ_INSTRUCTION = (
    "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
    + PHRASE_INSTRUCTION
)
MMMU_IMAGE = " <image 1>"
SEVERAL_OPTIONS = "There are several options:"
DESCRIBE = "Describe the image."
FIXED_PHRASES = (
    DESCRIBE,
    LETTER_INSTRUCTION,
    PHRASE_INSTRUCTION,
    WITH_LETTER_INSTRUCTION,
    MMSTAR_INSTRUCTION,
    VIZWIZ_INSTRUCTION,
    MMMU_IMAGE,
    UNANSWERABLE,
    " " + SEVERAL_OPTIONS,
    *(f"\n{letter}." for letter in LETTERS),
    *OPENINGS,
    *JOINTS,
    *PLACES,
    *PHRASES,
)
"""The parts of prompts, questions and captions that never change: one token each, see `models`."""
STYLES = ("mmbench", "seedbench", "scienceqa", "mmstar", "mmmu")
OPEN_STYLES = ("phrase", "bare", "vizwiz", "mmmu")
# AI2D asks as SEED-Bench does; what is new is asked less often than what was there
_STYLE_SHARES = (0.26, 0.26, 0.26, 0.13, 0.09)
_OPEN_SHARES = (0.5, 0.25, 0.2, 0.05)
_VIZWIZ_UNANSWERABLE = 0.35

# what an object is and where takes the most practice, so these come up more often
_MAKERS: tuple[Maker, ...] = (
    *MAKERS.values(),
    *(attribute, position, position, located),
    *(composed, yes_no),
)
_MAKERS_OF_KIND: dict[str, tuple[Maker, ...]] = {
    "plain": _MAKERS,
    "strings": (*_MAKERS, *(string,) * 4, *(sign_at,) * 6),
    "diagram": (
        *(labeled,) * 6,
        *(MAKERS[skill] for skill in ("attribute", "counting", "position", "presence")),
        yes_no,
    ),
}
_WHAT = (*MAKERS.values(), *(presence,) * 3, yes_no)
LESSONS: dict[str, tuple[Maker, ...]] = {"what": _WHAT, "where": (*_WHAT, *(position,) * 4)}
"""What is asked in an alignment, in order. It is soonest learned which option names the object; its
place with options, once that is known: from the beginning it keeps a model from both."""
_ENDINGS = {
    "phrase": PHRASE_INSTRUCTION,
    "bare": "",
    "vizwiz": VIZWIZ_INSTRUCTION,
    "mmmu": f"{MMMU_IMAGE}\n{PHRASE_INSTRUCTION}",
}


def choice_prompt(style: str, question: Question, options: tuple[str, ...]) -> str:
    """The text that the official task of ``style`` asks for a multiple-choice question."""
    hint = f"{question.hint} " if question.hint else ""
    context = f"Context: {question.hint}\n" if question.hint else ""
    lines = listed(options)
    # the official tasks of MMBench and MMMU put an empty line before the instruction
    prompts = {
        "mmbench": f"{hint}{question.text} {SEVERAL_OPTIONS}\n{lines}\n{LETTER_INSTRUCTION}",
        "scienceqa": f"{context}{question.text}\n{lines}{LETTER_INSTRUCTION}",
        "seedbench": f"{hint}{question.text}\n{lines}{LETTER_INSTRUCTION}",
        "mmstar": f"{hint}{question.text}\n{lines}{MMSTAR_INSTRUCTION}",
        "mmmu": f"{hint}{question.text}{MMMU_IMAGE}\n{lines}\n{LETTER_INSTRUCTION}",
    }
    return prompts[style]


def open_prompt(style: str, question: Question) -> str:
    """The text that the official tasks of ``style`` ask for a question without options.

    ``phrase``: VQAv2, GQA, TextVQA, POPE, MME; ``bare``: HallusionBench, OCRBench.
    """
    hint = f"{question.hint} " if question.hint else ""
    return f"{hint}{question.text}{_ENDINGS[style]}"


@dataclass(frozen=True)
class Turn:
    """A question, its answer, and an answer as one gives it who errs."""

    question: str
    answer: str
    wrong: str


@dataclass(frozen=True)
class Mix:
    """What conversations consist of.

    Attributes:
        turns: the least number of questions.
        captions: chance that the first turn asks for a caption.
        echoes: chance that a question with options gives way to one for the letters of options
            that it names; these teach what letters mean, which small models otherwise learn last.
        open_answers: chance that a question is asked without its options.
        spelled_letters: chance that the answer is the option with its letter.
        wrong_labels: share of the objects about which a wrong caption errs.
    """

    turns: int
    captions: float
    echoes: float
    open_answers: float
    spelled_letters: float
    wrong_labels: float = 0.0


def conversation(
    scene: Scene,
    rng: np.random.Generator,
    mix: Mix,
    *,
    poor: bool = False,
    unseen: bool = False,
    lesson: str | None = None,
) -> list[Turn]:
    """A conversation about one scene.

    Args:
        scene: The scene.
        rng: Of all draws.
        mix: What it consists of.
        poor: the drawing is a poor one: what is asked without options is asked as VizWiz asks.
        unseen: nothing can be seen in it: that is all that is asked, and nothing can be answered.
        lesson: which of :data:`LESSONS` asks, of an image of one object.
    """
    turns = [_caption(scene, rng, mix)] if not unseen and rng.random() < mix.captions else []
    count = mix.turns + len(turns)
    makers = _MAKERS_OF_KIND[scene.kind] if lesson is None else LESSONS[lesson]
    while len(turns) < count:
        question = ask(pick(rng, makers), scene, rng)
        if question is None:
            continue
        if unseen:
            answer = question.answer
            turns.append(Turn(open_prompt("vizwiz", question), UNANSWERABLE, answer))
        elif question.wrong and rng.random() < mix.echoes:
            turns.append(_echo(question, rng))
        elif not question.wrong or rng.random() < mix.open_answers:
            turns.append(_open(question, scene, rng, poor))
        else:
            turns.append(_choice(question, rng, mix.spelled_letters))
    return turns


def messages(turns: Sequence[Turn], wrong: Sequence[bool] | None = None) -> list[dict[str, str]]:
    """Turns in the LLaVA schema, the first with the image.

    Args:
        turns: the conversation.
        wrong: of which turns the answer is the wrong one; of none by default.
    """
    answers = [
        turn.wrong if err else turn.answer
        for turn, err in zip(turns, wrong or [False] * len(turns), strict=True)
    ]
    pairs = [(turn.question, answer) for turn, answer in zip(turns, answers, strict=True)]
    return _messages([(f"<image>\n{pairs[0][0]}", pairs[0][1]), *pairs[1:]])


def _caption(scene: Scene, rng: np.random.Generator, mix: Mix) -> Turn:
    """The wrong caption errs about a share of the objects, in the same wording."""
    wording = int(rng.integers(2**32))
    seen = mistaken(scene, rng, mix.wrong_labels)
    captions = [describe(what, np.random.default_rng(wording)) for what in (scene, seen)]
    return Turn(DESCRIBE, *captions)


def _mistake(question: Question, rng: np.random.Generator) -> str:
    """A wrong answer to an open question."""
    if question.answer in YES_NO:
        return YES_NO[question.answer == YES_NO[0]]
    if not question.wrong:
        return UNANSWERABLE if question.answer != UNANSWERABLE else YES_NO[1]
    return pick(rng, question.wrong)


def drill(rng: np.random.Generator, look: Look = FIRST) -> list[dict[str, str]]:
    """Text alone: two lists of options, each answered by its options with their letters in random
    order. Half of an answer follows from the list, so that a model learns to read lists."""
    pairs, kinds = [], pools(look)
    for _ in range(2):
        pool = pick(rng, kinds)
        options = [pool[int(place)] for place in rng.permutation(len(pool))[: len(LETTERS)]]
        order = [int(place) for place in rng.permutation(len(options))]
        prompt = f"\n{listed(options)}{WITH_LETTER_INSTRUCTION}"
        pairs.append((prompt, _spelled(options, order)))
    return _messages(pairs)


def _messages(pairs: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [
        {"from": speaker, "value": said}
        for pair in pairs
        for speaker, said in zip(("human", "gpt"), pair, strict=True)
    ]


def _spelled(options: Sequence[str], places: Sequence[int]) -> str:
    """The options at ``places``, each with its letter."""
    return ", ".join(f"{options[place]} {LETTERS[place]}" for place in places)


def _open(question: Question, scene: Scene, rng: np.random.Generator, poor: bool) -> Turn:
    style = "vizwiz" if poor else OPEN_STYLES[int(rng.choice(len(OPEN_STYLES), p=_OPEN_SHARES))]
    if style == "vizwiz" and rng.random() < _VIZWIZ_UNANSWERABLE:
        question = ask(unanswerable, scene, rng) or question
    return Turn(open_prompt(style, question), question.answer, _mistake(question, rng))


def _choice(question: Question, rng: np.random.Generator, spelled_letters: float) -> Turn:
    options, place, style = _options(question, rng)
    prompt = choice_prompt(style, question, options)
    wrong = (place + 1 + int(rng.integers(len(options) - 1))) % len(options)
    if rng.random() < spelled_letters:
        answers = [_spelled(options, [chosen]) for chosen in (place, wrong)]
        return Turn(_with_letter(prompt), *answers)
    return Turn(prompt, LETTERS[place], LETTERS[wrong])


def _echo(question: Question, rng: np.random.Generator) -> Turn:
    """Ask for the letter of one option (1/3), or of every option in random order."""
    options, _, style = _options(question, rng)
    order = [int(place) for place in rng.permutation(len(options))]
    if rng.random() < 1 / 3:
        asked = Question("echo", f"{options[order[0]]}?", "")
        prompt = choice_prompt(style, asked, options)
        return Turn(prompt, LETTERS[order[0]], LETTERS[order[1]])
    asked = Question("echo", ", ".join(options[place] for place in order) + "?", "")
    prompt = _with_letter(choice_prompt(style, asked, options))
    return Turn(prompt, _spelled(options, order), _spelled(options, order[::-1]))


def _with_letter(prompt: str) -> str:
    for instruction in (LETTER_INSTRUCTION, MMSTAR_INSTRUCTION):
        prompt = prompt.removesuffix(instruction)
    return prompt.rstrip("\n") + WITH_LETTER_INSTRUCTION


def _options(question: Question, rng: np.random.Generator) -> tuple[tuple[str, ...], int, str]:
    style = STYLES[int(rng.choice(len(STYLES), p=_STYLE_SHARES))]
    count = int(rng.integers(2, 5)) if style == "scienceqa" else 4
    options, place = question.options(rng, count)
    return options, place, style
