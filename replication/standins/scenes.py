"""Procedural scenes: coloured shapes and signs on a grid, drawn with PIL.

A scene is a set of objects on a 4 x 4 grid of 16-pixel cells. A shape has a colour; a sign
carries a digit or a two-letter word. Clutter (small dots outside any object) and pixel noise
make the drawing harder without changing any answer. Everything follows from one generator.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GRID = 4
CELL = 16  # pixels
SIZE = GRID * CELL

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 230),
    "yellow": (230, 210, 40),
    "purple": (150, 50, 190),
}
SHAPES = ("circle", "square", "triangle", "cross", "diamond")
SIGNS = ("2", "4", "6", "7", "9", "go", "up", "no", "hi", "we")
QUADRANTS = ("northwest", "northeast", "southwest", "southeast")
SPLITS = ("train", "validation", "evaluation")

_FONT = ImageFont.load_default_imagefont()


@dataclass(frozen=True, order=True)
class Thing:
    """One object: a coloured shape, or a sign (``color`` is then empty). Row 0 is the top."""

    row: int
    column: int
    kind: str  # a member of SHAPES, or "sign"
    color: str = ""
    text: str = ""

    @property
    def quadrant(self) -> str:
        vertical = "north" if self.row < GRID // 2 else "south"
        horizontal = "west" if self.column < GRID // 2 else "east"
        return vertical + horizontal

    @property
    def name(self) -> str:
        return f"sign {self.text}" if self.kind == "sign" else f"{self.color} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """Objects in reading order."""

    things: tuple[Thing, ...]

    @property
    def shapes(self) -> tuple[Thing, ...]:
        return tuple(thing for thing in self.things if thing.kind != "sign")

    @property
    def signs(self) -> tuple[Thing, ...]:
        return tuple(thing for thing in self.things if thing.kind == "sign")

    @property
    def split(self) -> str:
        """The split this scene belongs to: a function of its content alone, so that the splits
        can never share a scene (1/8 evaluation, 1/8 validation, the rest training)."""
        digest = hashlib.blake2b(repr(self.things).encode(), digest_size=2).digest()
        bucket = int.from_bytes(digest, "big") % 8
        return {0: "evaluation", 1: "validation"}.get(bucket, "train")


def draw_scene(rng: np.random.Generator, split: str) -> Scene:
    """Draw scenes from ``rng`` until one belongs to ``split`` (one of SPLITS)."""
    while True:
        scene = _propose(rng)
        if scene.split == split:
            return scene


def _propose(rng: np.random.Generator) -> Scene:
    n_shapes = int(rng.integers(2, 5))
    n_signs = int(rng.random() < 0.6)
    cells = rng.permutation(GRID * GRID)[: n_shapes + n_signs]
    colors = list(COLORS)
    things = []
    for index, cell in enumerate(cells):
        row, column = divmod(int(cell), GRID)
        if index < n_shapes:
            kind = SHAPES[int(rng.integers(len(SHAPES)))]
            things.append(Thing(row, column, kind, color=colors[int(rng.integers(len(colors)))]))
        else:
            things.append(Thing(row, column, "sign", text=SIGNS[int(rng.integers(len(SIGNS)))]))
    return Scene(tuple(sorted(things)))


def render(
    scene: Scene, rng: np.random.Generator, *, noise: float = 6.0, clutter: int = 4
) -> Image.Image:
    """Draw a scene as a SIZE x SIZE RGB image; ``rng`` decides jitter, clutter and noise.

    Args:
        noise: standard deviation of the pixel noise, in grey levels (0 to 255).
        clutter: number of grey dots in cells without an object.
    """
    shade = int(rng.integers(190, 235))
    image = Image.new("RGB", (SIZE, SIZE), (shade, shade, shade))
    canvas = ImageDraw.Draw(image)
    taken = {(thing.row, thing.column) for thing in scene.things}
    for row, column in rng.integers(0, GRID, size=(clutter, 2)).tolist():
        if (row, column) not in taken:
            x, y = (int(value) for value in rng.integers(2, CELL - 4, size=2))
            box = (column * CELL + x, row * CELL + y, column * CELL + x + 1, row * CELL + y + 1)
            canvas.rectangle(box, fill=(120, 120, 120))
    for thing in scene.things:
        dx, dy, shrink = (int(value) for value in rng.integers(-1, 2, size=3))
        _draw(canvas, thing, dx, dy, shrink)
    if noise > 0:
        pixels = np.asarray(image, dtype=np.float32)
        # noise on a 4 x coarser grid of grey levels keeps PNG files small
        grain = rng.normal(0.0, noise, size=(SIZE, SIZE, 1)).round() // 4 * 4
        image = Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))
    return image


def _draw(canvas: ImageDraw.ImageDraw, thing: Thing, dx: int, dy: int, shrink: int) -> None:
    cx = thing.column * CELL + CELL // 2 + dx
    cy = thing.row * CELL + CELL // 2 + dy
    if thing.kind == "sign":
        canvas.rectangle((cx - 7, cy - 6, cx + 6, cy + 6), fill=(20, 20, 20))
        width = canvas.textlength(thing.text, font=_FONT)
        canvas.text((cx - width // 2, cy - 6), thing.text, fill=(250, 250, 250), font=_FONT)
        return
    fill = COLORS[thing.color]
    r = 5 + max(shrink, 0)
    if thing.kind == "circle":
        canvas.ellipse((cx - r, cy - r, cx + r, cy + r), fill=fill)
    elif thing.kind == "square":
        canvas.rectangle((cx - r + 1, cy - r + 1, cx + r - 1, cy + r - 1), fill=fill)
    elif thing.kind == "triangle":
        canvas.polygon([(cx, cy - r), (cx - r, cy + r), (cx + r, cy + r)], fill=fill)
    elif thing.kind == "cross":
        canvas.rectangle((cx - 1, cy - r, cx + 1, cy + r), fill=fill)
        canvas.rectangle((cx - r, cy - 1, cx + r, cy + 1), fill=fill)
    else:  # diamond
        canvas.polygon([(cx, cy - r), (cx + r, cy), (cx, cy + r), (cx - r, cy)], fill=fill)
