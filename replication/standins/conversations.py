"""Training records in the LLaVA conversation schema, and the prompts shared with the benchmarks.

A record is ``{"id", "image", "conversations": [{"from": "human" | "gpt", "value": str}, ...]}``;
the first human turn starts with ``<image>``. Multiple-choice turns use the prompts that the
official lmms-eval tasks use, as LLaVA's own training mix does.
"""

import numpy as np

from replication.standins.questions import LETTERS, MAKERS, Maker, Question, presence_yes_no
from replication.standins.scenes import Scene

LETTER_INSTRUCTION = "\nAnswer with the option's letter from the given choices directly."
PHRASE_INSTRUCTION = "\nAnswer the question using a single word or phrase."
WITH_LETTER_INSTRUCTION = "\nAnswer with the option and its letter."
SEVERAL_OPTIONS = "There are several options:"
DESCRIBE = "Describe the image."
STYLES = ("mmbench", "seedbench", "scienceqa")

_MAKERS: tuple[Maker, ...] = (*MAKERS.values(), presence_yes_no)


def choice_prompt(style: str, question: Question, options: tuple[str, ...]) -> str:
    """The text that the official task of ``style`` asks for a multiple-choice question."""
    listed = "\n".join(
        f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)
    )
    if style == "mmbench":
        hint = f"{question.hint} " if question.hint else ""
        # the official task puts an empty line before the instruction
        return f"{hint}{question.text} {SEVERAL_OPTIONS}\n{listed}\n{LETTER_INSTRUCTION}"
    if style == "scienceqa":
        context = f"Context: {question.hint}\n" if question.hint else ""
        return f"{context}{question.text}\n{listed}{LETTER_INSTRUCTION}"
    if style == "seedbench":
        hint = f"{question.hint} " if question.hint else ""
        return f"{hint}{question.text}\n{listed}{LETTER_INSTRUCTION}"
    raise ValueError(f"unknown prompt style {style!r}; known: {', '.join(STYLES)}")


def describe(scene: Scene) -> str:
    """A caption that names every object and where it is, in reading order."""
    return ", ".join(f"{thing.name} {thing.quadrant}" for thing in scene.things) + "."


def conversation(
    scene: Scene, rng: np.random.Generator, *, turns: int, captions: float, echoes: float
) -> list[dict[str, str]]:
    """At least ``turns`` turns about one scene.

    Args:
        captions: chance that the first turn asks for a caption.
        echoes: chance that a question gives way to one for the letter of each of its options;
            these teach what the letters mean, which small models otherwise learn last.
    """
    pairs = [(DESCRIBE, describe(scene))] if rng.random() < captions else []
    while len(pairs) < turns:
        question = _MAKERS[int(rng.integers(len(_MAKERS)))](scene, rng)
        if question is None:
            continue
        pairs.append(_echo(question, rng) if rng.random() < echoes else _turn(question, rng))
    messages = []
    for index, (asked, answer) in enumerate(pairs):
        start = "<image>\n" if index == 0 else ""
        messages.append({"from": "human", "value": start + asked})
        messages.append({"from": "gpt", "value": answer})
    return messages


def _turn(question: Question, rng: np.random.Generator) -> tuple[str, str]:
    if not question.wrong or rng.random() < 0.3:
        hint = f"{question.hint} " if question.hint else ""
        return f"{hint}{question.text}{PHRASE_INSTRUCTION}", question.answer
    options, place, style = _options(question, rng)
    prompt = choice_prompt(style, question, options)
    if rng.random() < 0.25:
        prompt = prompt.removesuffix(LETTER_INSTRUCTION).rstrip("\n") + WITH_LETTER_INSTRUCTION
        return prompt, f"{options[place]} {LETTERS[place]}"
    return prompt, LETTERS[place]


def _echo(question: Question, rng: np.random.Generator) -> tuple[str, str]:
    """Ask for the letter of every option, in random order; needs no image."""
    if not question.wrong:
        return _turn(question, rng)
    options, _, style = _options(question, rng)
    order = [int(place) for place in rng.permutation(len(options))]
    asked = Question("echo", ", ".join(options[place] for place in order) + "?", "")
    prompt = choice_prompt(style, asked, options).removesuffix(LETTER_INSTRUCTION)
    answer = ", ".join(f"{options[place]} {LETTERS[place]}" for place in order)
    return prompt.rstrip("\n") + WITH_LETTER_INSTRUCTION, answer


def _options(question: Question, rng: np.random.Generator) -> tuple[tuple[str, ...], int, str]:
    style = STYLES[int(rng.integers(len(STYLES)))]
    count = int(rng.integers(2, 5)) if style == "scienceqa" else 4
    options, place = question.options(rng, count)
    return options, place, style
