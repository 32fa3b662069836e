"""Annotation files and images in the published format, made by the tests."""

import json

import numpy as np
from PIL import Image

from replication.data.conversations.annotations import find_annotations
from replication.data.conversations.convert import Images, convert

WORDS = ("red", "blue", "green", "circle", "square", "triangle", "top", "left", "right", "what is")


def draw(path, width, height, seed=0):
    """A random image; equal seeds give equal pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def words(seed, count):
    return " ".join(np.random.default_rng(seed).choice(WORDS, count))


def talk(turns, images=0, seed=0, length=4, system=None):
    """Turns in the published schema; the images stand in the first."""
    said = [] if system is None else [{"from": "system", "value": system}]
    for turn in range(turns):
        mark = "<image>\n" * images if turn == 0 else ""
        question, answer = (words(9973 * seed + 2 * turn + k, length) for k in (0, 1))
        said.append({"from": "human", "value": mark + question})
        said.append({"from": "gpt", "value": answer})
    return said


def annotate(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def build(folder, records, **options):
    """Records, and images below ``folder/images``, converted: the directory of shards."""
    source = annotate(folder / "annotations.json", records)
    target = folder / "conversations"
    convert([find_annotations(str(source))], Images(str(folder / "images")), target, **options)
    return target


def mixed(folder):
    """Records of one image, several, none, in one turn and several, with and without a system
    turn; images of different shapes."""
    shapes = [(64, 64), (100, 40), (30, 90), (200, 120), (33, 47)]
    for place, shape in enumerate(shapes):
        draw(folder / "images" / "coco" / "train2017" / f"{place}.png", *shape, seed=place)
    paths = [f"coco/train2017/{place}.png" for place in range(len(shapes))]
    apart = talk(2, seed=5)
    apart[0]["value"] += "\n<image>"
    apart[2]["value"] = "<image>\n" + apart[2]["value"]
    return [
        {"id": "one", "image": paths[0], "conversations": talk(1, 1, 1)},
        {"id": "text", "conversations": talk(2, 0, 2)},
        {"id": "many", "image": paths[1:4], "conversations": talk(2, 3, 3)},
        {"id": 4, "image": paths[4], "conversations": talk(3, 1, 4)},
        {"id": "apart", "image": paths[:2], "conversations": apart},
        {"id": "told", "image": paths[2], "conversations": talk(2, 1, 6, system="the red circle")},
        {"id": "null", "image": None, "conversations": talk(1, 0, 7, system="what is blue")},
    ]
