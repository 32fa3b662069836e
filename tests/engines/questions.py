"""Pictures of two coloured halves, what is asked of them, and what a trained student answers."""

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

COLOURS = {
    "red": (220, 30, 30),
    "blue": (30, 30, 220),
    "green": (20, 150, 20),
    "yellow": (230, 220, 30),
    "black": (15, 15, 15),
    "white": (240, 240, 240),
}
SIZES = [(32, 32), (48, 32), (32, 48), (64, 32)]


@dataclass(frozen=True)
class Question:
    """A question about some pictures, and its right answer."""

    text: str
    images: tuple[Image.Image, ...]
    answer: str

    def messages(self) -> list[dict]:
        """The chat, as processors take it."""
        parts = [{"type": "image"}] * len(self.images) + [{"type": "text", "text": self.text}]
        return [{"role": "user", "content": parts}]


def _halves(left: str, right: str, draw: random.Random) -> Image.Image:
    width, height = draw.choice(SIZES)
    pixels = np.empty((height, width, 3), dtype=np.float64)
    pixels[:, : width // 2] = COLOURS[left]
    pixels[:, width // 2 :] = COLOURS[right]
    noise = np.random.default_rng(draw.getrandbits(32)).normal(0, 12, pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def image_questions(count: int, seed: int) -> list[Question]:
    """Questions about one picture each, no two of them the same."""
    draw = random.Random(seed)
    questions = []
    for _ in range(count):
        left, right = draw.choices(list(COLOURS), k=2)
        same = "yes" if left == right else "no"
        text, answer = draw.choice(
            [
                ("What is the left colour?", f"It is {left}."),
                ("What is the right colour?", f"It is {right}."),
                ("Name the two colours.", f"A {left} half and a {right} half."),
                ("Is there one colour?", same),
            ]
        )
        questions.append(Question(text, (_halves(left, right, draw),), answer))
    return questions


def other_questions(count: int, seed: int) -> list[Question]:
    """Questions about no picture and about two, in turn; nothing was trained on them."""
    draw = random.Random(seed)
    questions = []
    for index in range(count):
        colours = draw.choices(list(COLOURS), k=4)
        pictures = (_halves(*colours[:2], draw), _halves(*colours[2:], draw))
        text = f"Name the {colours[0]} shapes, or the {colours[3]} ones."
        questions.append(Question(text, pictures if index % 2 else (), ""))
    return questions
