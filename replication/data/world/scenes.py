"""Procedural scenes: coloured shapes and signs on a grid, drawn with PIL.

A scene is a set of objects on a 4 x 4 grid of 16-pixel cells. A shape has a colour; a sign
carries a digit or a two-letter word. Clutter (small dots outside any object) and pixel noise
make the drawing harder without changing any answer. Everything follows from one generator.

Three kinds of scene: the plain one; a **diagram**, clean, whose shapes have signs as labels; and
**strings**, several signs to read together. A plain scene's drawing can be made poor.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

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
KINDS = ("plain", "diagram", "strings")
LABELS = ("2", "4", "6", "7", "9")

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
    """Objects in reading order, and how they are drawn (a member of KINDS)."""

    things: tuple[Thing, ...]
    kind: str = "plain"

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


def draw_scene(rng: np.random.Generator, split: str, kind: str = "plain") -> Scene:
    """Draw scenes of ``kind`` from ``rng`` until one belongs to ``split`` (one of SPLITS)."""
    propose = {"plain": _propose, "diagram": _propose_diagram, "strings": _propose_strings}[kind]
    while True:
        scene = propose(rng)
        if scene.split == split:
            return scene


def label_of(scene: Scene, shape: Thing) -> Thing:
    """The label of a shape in a diagram: the sign to the right of it."""
    return next(t for t in scene.signs if (t.row, t.column) == (shape.row, shape.column + 1))


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


def _propose_diagram(rng: np.random.Generator) -> Scene:
    """Two or three different shapes, each in a row of its own with its label to the right."""
    count = int(rng.integers(2, 4))
    rows, labels = rng.permutation(GRID), rng.permutation(len(LABELS))
    looks = rng.permutation(len(SHAPES) * len(COLORS))
    things = []
    for row, label, look in zip(rows[:count], labels, looks, strict=False):
        column, (kind, color) = int(rng.integers(GRID - 1)), divmod(int(look), len(COLORS))
        things.append(Thing(int(row), column, SHAPES[kind], color=list(COLORS)[color]))
        things.append(Thing(int(row), column + 1, "sign", text=LABELS[int(label)]))
    return Scene(tuple(sorted(things)), "diagram")


def _propose_strings(rng: np.random.Generator) -> Scene:
    """Two or three signs, side by side or (one time in four) anywhere, and one or two shapes."""
    n_signs, n_shapes = int(rng.integers(2, 4)), int(rng.integers(1, 3))
    cells = [int(cell) for cell in rng.permutation(GRID * GRID)]
    if rng.random() < 0.75:
        first = int(rng.integers(GRID)) * GRID + int(rng.integers(GRID - n_signs + 1))
        line = list(range(first, first + n_signs))
        cells = line + [cell for cell in cells if cell not in line]
    colors = list(COLORS)
    things = []
    for index, cell in enumerate(cells[: n_signs + n_shapes]):
        row, column = divmod(cell, GRID)
        if index < n_signs:
            things.append(Thing(row, column, "sign", text=SIGNS[int(rng.integers(len(SIGNS)))]))
        else:
            kind = SHAPES[int(rng.integers(len(SHAPES)))]
            things.append(Thing(row, column, kind, color=colors[int(rng.integers(len(colors)))]))
    return Scene(tuple(sorted(things)), "strings")


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


def render(
    scene: Scene, rng: np.random.Generator, *, noise: float = 6.0, clutter: int = 4
) -> Image.Image:
    """Draw a scene as a SIZE x SIZE RGB image; ``rng`` decides jitter, clutter and noise.

    Args:
        noise: standard deviation of the pixel noise, in grey levels (0 to 255).
        clutter: number of grey dots in cells without an object.

    A diagram has neither, on white, and a line from each shape to its label.
    """
    shade = int(rng.integers(190, 235))
    if scene.kind == "diagram":
        noise, clutter, shade = 0.0, 0, 255
    image = Image.new("RGB", (SIZE, SIZE), (shade, shade, shade))
    canvas = ImageDraw.Draw(image)
    taken = {(thing.row, thing.column) for thing in scene.things}
    for row, column in rng.integers(0, GRID, size=(clutter, 2)).tolist():
        if (row, column) not in taken:
            x, y = (int(value) for value in rng.integers(2, CELL - 4, size=2))
            box = (column * CELL + x, row * CELL + y, column * CELL + x + 1, row * CELL + y + 1)
            canvas.rectangle(box, fill=(120, 120, 120))
    if scene.kind == "diagram":
        for shape in scene.shapes:
            x, y = shape.column * CELL + CELL // 2, shape.row * CELL + CELL // 2
            canvas.line((x, y, x + CELL, y), fill=(20, 20, 20))
    for thing in scene.things:
        dx, dy, shrink = (int(value) for value in rng.integers(-1, 2, size=3))
        _draw(canvas, thing, dx, dy, shrink)
    if noise > 0:
        image = _with_grain(np.asarray(image, dtype=np.float32), rng, noise)
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
