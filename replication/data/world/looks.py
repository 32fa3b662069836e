"""What things look like and are called: the words and colours of a small world.

Two worlds share nothing that a picture or a text of one would teach about the other: shapes,
colours, signs, names of places and the words of the questions differ. In each, some colours lie
near each other, so that a poor picture leaves a doubt between words that mean something.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """The things of one world.

    Attributes:
        colors: names, and red, green and blue from 0 to 255.
        shapes: names, drawn by :data:`replication.data.world.scenes.OUTLINES`.
        signs: what a sign can say.
        labels: those of them that label the shapes of a diagram.
        quadrants: the quarters of an image: upper left, upper right, lower left, lower right.
        places: another name of each, in captions.
        directions: up, down, left and right.
        synonyms: another word for a colour or a shape, in captions.
        words: what stands in questions in place of the first world's words.
        dark: whether shapes are bright on a dark ground.
    """

    colors: dict[str, tuple[int, int, int]]
    shapes: tuple[str, ...]
    signs: tuple[str, ...]
    labels: tuple[str, ...]
    quadrants: tuple[str, str, str, str]
    places: tuple[str, str, str, str]
    directions: tuple[str, str, str, str]
    synonyms: dict[str, str]
    words: dict[str, str]
    dark: bool = False

    def say(self, text: str) -> str:
        """``text`` of the first world in the words of this one."""
        if not self.words:
            return text
        pattern = "|".join(sorted(self.words, key=len, reverse=True))
        return re.sub(rf"\b({pattern})\b", lambda found: self.words[found[0]], text)


FIRST = Look(
    colors={
        "red": (220, 40, 40),
        "orange": (235, 125, 40),
        "green": (40, 170, 60),
        "blue": (50, 80, 230),
        "purple": (150, 50, 190),
        "yellow": (230, 210, 40),
    },
    shapes=("circle", "square", "triangle", "cross", "diamond"),
    signs=("2", "4", "6", "7", "9", "go", "up", "no", "hi", "we"),
    labels=("2", "4", "6", "7", "9"),
    quadrants=("northwest", "northeast", "southwest", "southeast"),
    places=("topleft", "topright", "lowleft", "lowright"),
    directions=("north", "south", "west", "east"),
    synonyms={
        **{"red": "scarlet", "orange": "amber", "green": "emerald", "blue": "azure"},
        **{"purple": "violet", "yellow": "golden", "circle": "disc", "square": "box"},
        **{"triangle": "wedge", "cross": "plus", "diamond": "rhombus"},
    },
    words={},
)
SECOND = Look(
    colors={
        "white": (245, 245, 245),
        "pink": (245, 150, 190),
        "cyan": (60, 215, 225),
        "lime": (150, 230, 60),
        "brown": (165, 100, 50),
        "beige": (225, 200, 150),
    },
    shapes=("ring", "bar", "arrow", "star", "frame"),
    signs=("1", "3", "5", "8", "0", "at", "in", "so", "my", "be"),
    labels=("1", "3", "5", "8", "0"),
    quadrants=("backleft", "backright", "frontleft", "frontright"),
    places=("farleft", "farright", "nearleft", "nearright"),
    directions=("behind", "before", "left", "right"),
    synonyms={
        **{"white": "snowy", "pink": "rosy", "cyan": "teal", "lime": "grassy", "brown": "rusty"},
        **{"beige": "sandy", "ring": "hoop", "bar": "beam", "arrow": "dart", "star": "spark"},
        **{"frame": "border"},
    },
    words={
        **{"shape": "figure", "color": "tint", "image": "picture", "objects": "items"},
        **{"object": "item", "sign": "plate", "signs": "plates", "label": "tag"},
        **{"labeled": "tagged", "common": "frequent"},
    },
    dark=True,
)
LOOKS = {"first": FIRST, "second": SECOND}
