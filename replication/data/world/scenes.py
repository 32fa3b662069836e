"""Procedural scenes: coloured shapes and signs on a grid, drawn with PIL.

A scene is a set of objects on a 4 x 4 grid of 16-pixel cells, at most one in every quarter of the
image. A shape has a colour; a sign carries a digit or a two-letter word. Clutter (small dots
outside any object), pixel noise and a quality that varies from image to image make the drawing
harder without changing any answer. Everything follows from one generator. What things look like
and are called is a :class:`replication.data.world.looks.Look`.

Three kinds of scene: the plain one; a **diagram**, clean, whose shapes have signs as labels; and
**strings**, several signs to read together. A plain scene's drawing can be made poor.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from replication.data.world.looks import LOOKS, Look

GRID = 4
CELL = 16  # pixels
SIZE = GRID * CELL
HALF = GRID // 2  # cells of a quarter, a side

SPLITS = ("train", "validation", "evaluation")
KINDS = ("plain", "diagram", "strings")

_FONT = ImageFont.load_default_imagefont()


@dataclass(frozen=True, order=True)
class Thing:
    """One object: a coloured shape, or a sign (``color`` is then empty). Row 0 is the top."""

    row: int
    column: int
    kind: str  # a shape, or "sign"
    color: str = ""
    text: str = ""

    @property
    def quarter(self) -> int:
        """Index of the quarter of the image: upper left, upper right, lower left, lower right."""
        return 2 * (self.row // HALF) + self.column // HALF

    @property
    def name(self) -> str:
        return f"sign {self.text}" if self.kind == "sign" else f"{self.color} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """Objects in reading order, how they are drawn (a member of KINDS), and in which world (a key
    of LOOKS)."""

    things: tuple[Thing, ...]
    kind: str = "plain"
    world: str = "first"

    @property
    def look(self) -> Look:
        return LOOKS[self.world]

    def place(self, thing: Thing) -> str:
        """The name of the quarter of the image in which a thing lies."""
        return self.look.quadrants[thing.quarter]

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


def draw_scene(
    rng: np.random.Generator, split: str, kind: str = "plain", world: str = "first"
) -> Scene:
    """Draw scenes of ``kind`` from ``rng`` until one belongs to ``split`` (one of SPLITS)."""
    propose = {"plain": _propose, "diagram": _propose_diagram, "strings": _propose_strings}[kind]
    while True:
        scene = Scene(tuple(sorted(propose(rng, LOOKS[world]))), kind, world)
        if scene.split == split:
            return scene


def pick(rng: np.random.Generator, items: Sequence[Any]) -> Any:
    """One of some items, each as likely."""
    return items[int(rng.integers(len(items)))]


def label_of(scene: Scene, shape: Thing) -> Thing:
    """The label of a shape in a diagram: the sign to the right of it."""
    return next(t for t in scene.signs if (t.row, t.column) == (shape.row, shape.column + 1))


def _shape(rng: np.random.Generator, look: Look, row: int, column: int) -> Thing:
    colors = list(look.colors)
    kind = pick(rng, look.shapes)
    return Thing(row, column, kind, color=pick(rng, colors))


def _sign(rng: np.random.Generator, look: Look, row: int, column: int) -> Thing:
    return Thing(row, column, "sign", text=pick(rng, look.signs))


def _places(rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """Rows and columns of so many objects, each in a quarter of its own."""
    quarters = [int(quarter) for quarter in rng.permutation(4)[:count]]
    offsets = rng.integers(0, HALF, size=(count, 2)).tolist()
    return [
        (quarter // 2 * HALF + down, quarter % 2 * HALF + right)
        for quarter, (down, right) in zip(quarters, offsets, strict=True)
    ]


def _propose(rng: np.random.Generator, look: Look) -> list[Thing]:
    """One to four objects, one of them perhaps a sign."""
    n_signs = int(rng.random() < 0.4)
    n_shapes = int(rng.integers(1, 5 - n_signs))
    places = _places(rng, n_shapes + n_signs)
    return [
        (_shape if index < n_shapes else _sign)(rng, look, *place)
        for index, place in enumerate(places)
    ]


def _propose_diagram(rng: np.random.Generator, look: Look) -> list[Thing]:
    """Two different shapes, one above the other, each with its label to the right."""
    labels, colors = rng.permutation(len(look.labels)), list(look.colors)
    chosen = rng.permutation(len(look.shapes) * len(colors))
    things = []
    for half in range(2):
        row, column = half * HALF + int(rng.integers(HALF)), int(rng.integers(GRID - 1))
        kind, color = divmod(int(chosen[half]), len(colors))
        things.append(Thing(row, column, look.shapes[kind], color=colors[color]))
        things.append(Thing(row, column + 1, "sign", text=look.labels[int(labels[half])]))
    return things


def _propose_strings(rng: np.random.Generator, look: Look) -> list[Thing]:
    """Two or three signs and a shape."""
    n_signs = int(rng.integers(2, 4))
    places = _places(rng, n_signs + 1)
    return [
        (_sign if index < n_signs else _shape)(rng, look, *place)
        for index, place in enumerate(places)
    ]


def spoil(image: Image.Image, rng: np.random.Generator, *, unseen: bool = False) -> Image.Image:
    """A poor photograph of a drawing: blurred, dark or grainy; ``unseen``: as good as black."""
    if unseen:
        pixels = np.asarray(image, dtype=np.float32) * 0.04
        return _with_grain(pixels, rng, 4.0)
    fault = int(rng.integers(3))
    if fault == 0:
        return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.7, 1.3))))
    pixels = np.asarray(image, dtype=np.float32)
    if fault == 1:
        return _with_grain(pixels * float(rng.uniform(0.3, 0.5)), rng, 4.0)
    return _with_grain(pixels, rng, float(rng.uniform(20.0, 32.0)))


def _with_grain(pixels: np.ndarray, rng: np.random.Generator, deviation: float) -> Image.Image:
    # noise on a 4 x coarser grid of grey levels keeps PNG files small
    grain = rng.normal(0.0, deviation, size=(SIZE, SIZE, 1)).round() // 4 * 4
    return Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))


@dataclass(frozen=True)
class Drawing:
    """How scenes are drawn.

    Attributes:
        noise: standard deviation of the pixel noise of a good image, in grey levels (0 to 255).
        clutter: grey dots, at most, in cells without an object.
        poorest: how poor the poorest image is, from 0 (all are good) to 1; an image's own share of
            it is uniform. A poor image has more noise, less contrast and colours that are off.
        world: which things there are, a key of LOOKS.
    """

    noise: float = 6.0
    clutter: int = 4
    poorest: float = 0.0
    world: str = "first"


def render(
    scene: Scene,
    rng: np.random.Generator,
    drawing: Drawing = Drawing(),
) -> Image.Image:
    """Draw a scene as a SIZE x SIZE RGB image; ``rng`` decides jitter, clutter, quality and noise.

    A diagram has neither clutter nor noise, on white, and a line from each shape to its label.
    """
    clean, dark = scene.kind == "diagram", scene.look.dark
    poorness = 0.0 if clean else drawing.poorest * float(rng.random())
    shade = int(rng.integers(20, 65) if dark else rng.integers(190, 235))
    if clean:
        shade = 0 if dark else 255
    image = Image.new("RGB", (SIZE, SIZE), (shade, shade, shade))
    canvas = ImageDraw.Draw(image)
    taken = {(thing.row, thing.column) for thing in scene.things}
    for row, column in rng.integers(0, GRID, size=(0 if clean else drawing.clutter, 2)).tolist():
        if (row, column) not in taken:
            x, y = (int(value) for value in rng.integers(2, CELL - 4, size=2))
            box = (column * CELL + x, row * CELL + y, column * CELL + x + 1, row * CELL + y + 1)
            canvas.rectangle(box, fill=(120, 120, 120))
    if clean:
        for shape in scene.shapes:
            x, y = shape.column * CELL + CELL // 2, shape.row * CELL + CELL // 2
            canvas.line((x, y, x + CELL, y), fill=_INK[not dark])
    for thing in scene.things:
        dx, dy, shrink = (int(value) for value in rng.integers(-1, 2, size=3))
        _draw(canvas, scene, thing, (dx, dy, shrink), rng.normal(0, _CAST * poorness, 3))
    if clean:
        return image
    pixels = np.asarray(image, dtype=np.float32)
    if poorness > 0:
        pixels = shade + (pixels - shade) * (1 - 0.6 * poorness)
    deviation = drawing.noise + _NOISE * poorness
    return _with_grain(pixels, rng, deviation) if deviation > 0 else image


_CAST = 45.0
"""Standard deviation of a colour's shift in the poorest image, in grey levels."""
_NOISE = 40.0
"""Standard deviation of the pixel noise that the poorest image has more, in grey levels."""
_INK = ((250, 250, 250), (20, 20, 20))


def _draw(
    canvas: ImageDraw.ImageDraw,
    scene: Scene,
    thing: Thing,
    jitter: tuple[int, int, int],
    cast: np.ndarray,
) -> None:
    dx, dy, shrink = jitter
    cx = thing.column * CELL + CELL // 2 + dx
    cy = thing.row * CELL + CELL // 2 + dy
    dark = scene.look.dark
    if thing.kind == "sign":
        canvas.rectangle((cx - 7, cy - 6, cx + 6, cy + 6), fill=_INK[not dark])
        width = canvas.textlength(thing.text, font=_FONT)
        canvas.text((cx - width // 2, cy - 6), thing.text, fill=_INK[dark], font=_FONT)
        return
    shifted = np.clip(np.array(scene.look.colors[thing.color]) + cast.round(), 0, 255)
    fill = tuple(int(value) for value in shifted)
    OUTLINES[thing.kind](canvas, cx, cy, 5 + max(shrink, 0), fill)


def _circle(canvas, x, y, r, fill):
    canvas.ellipse((x - r, y - r, x + r, y + r), fill=fill)


def _square(canvas, x, y, r, fill):
    canvas.rectangle((x - r + 1, y - r + 1, x + r - 1, y + r - 1), fill=fill)


def _triangle(canvas, x, y, r, fill):
    canvas.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=fill)


def _cross(canvas, x, y, r, fill):
    canvas.rectangle((x - 1, y - r, x + 1, y + r), fill=fill)
    canvas.rectangle((x - r, y - 1, x + r, y + 1), fill=fill)


def _diamond(canvas, x, y, r, fill):
    canvas.polygon([(x, y - r), (x + r, y), (x, y + r), (x - r, y)], fill=fill)


def _ring(canvas, x, y, r, fill):
    canvas.ellipse((x - r, y - r, x + r, y + r), outline=fill, width=2)


def _bar(canvas, x, y, r, fill):
    canvas.rectangle((x - r, y - 2, x + r, y + 2), fill=fill)


def _arrow(canvas, x, y, r, fill):
    canvas.polygon([(x - r, y - r), (x + r, y), (x - r, y + r), (x - r // 2, y)], fill=fill)


def _star(canvas, x, y, r, fill):
    canvas.polygon([(x, y - r), (x + 1, y - 1), (x + r, y), (x + 1, y + 1)], fill=fill)
    canvas.polygon([(x, y + r), (x - 1, y + 1), (x - r, y), (x - 1, y - 1)], fill=fill)
    canvas.rectangle((x - 1, y - 1, x + 1, y + 1), fill=fill)


def _frame(canvas, x, y, r, fill):
    canvas.rectangle((x - r, y - r, x + r, y + r), outline=fill, width=2)


OUTLINES: dict[str, Callable[..., None]] = {
    **{"circle": _circle, "square": _square, "triangle": _triangle, "cross": _cross},
    **{"diamond": _diamond, "ring": _ring, "bar": _bar, "arrow": _arrow, "star": _star},
    "frame": _frame,
}
"""How each shape is drawn: (canvas, x, y of its centre, radius in pixels, colour)."""
