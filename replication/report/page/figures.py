"""The ten figures and the gallery of answers that change, each from its own JSON file."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grace.errors import InputError
from replication.report.page.sources import Files, Node

FIGURES = {
    "pareto": "Accuracy against throughput and memory",
    "entropy_error": "The teacher's entropy and its errors",
    "attention": "Attention of the answer over the image",
    "similarity": "Similarity of visual tokens",
    "deployment": "Speed and memory when deployed",
    "controller": "The controller over training",
    "bits": "Bit widths",
    "effects": "Effects of the components",
    "flips": "Answers that change, by question type",
    "distributions": "Gates, weights and scales",
}
"""The figures in the page's order, and what they are called where they were not drawn."""
_TYPES = {"svg": "image/svg+xml", "png": "image/png"}


@dataclass(frozen=True)
class FigureView:
    """A figure, ready to print.

    Attributes:
        name: Of its files.
        title: Its title.
        node: Its JSON content, where there is a file.
        image: A data URI, "" where it was not drawn.
        not_run: Why it was not drawn.
        command: What draws it again.
    """

    name: str
    title: str
    node: Node | None
    image: str
    not_run: str
    command: str

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What is said under the figure: n, units, the paper's figure, sources."""
        value = {} if self.node is None else self.node.value
        labels = {"n": "n", "units": "Units", "paper": "In the paper", "sources": "Made from"}
        words = {label: _words(value.get(key)) for key, label in labels.items()}
        return [(label, text) for label, text in words.items() if text]

    @property
    def claims(self) -> list[str]:
        return list(self.node.value.get("claims", [])) if self.node is not None else []


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_words(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "" if value is None else str(value)


def data_uri(content: bytes, kind: str) -> str:
    """An image file's content, of kind "svg" or "png", as text that a page can hold."""
    return f"data:{_TYPES[kind]};base64,{base64.b64encode(content).decode('ascii')}"


def _figure(files: Files, name: str) -> FigureView:
    base = f"{files.results}/figures/{name}"
    node = files.find(f"{base}.json")
    command = f"python -m replication.scale {files.scale} repro figures"
    if node is None:
        return FigureView(name, FIGURES[name], None, "", f"there is no {base}.json", command)
    title, command = node["title"].value, node.value.get("command") or command
    if "not_run" in node:
        return FigureView(name, title, node, "", node["not_run"].value, command)
    for kind in _TYPES:
        path = files.path(f"{base}.{kind}")
        if path.is_file():
            if not str(node["alt"].value).strip():
                raise InputError(f"{node.ref}/alt is empty; say what the figure shows")
            return FigureView(name, title, node, data_uri(path.read_bytes(), kind), "", command)
    raise InputError(f"{base}.svg and {base}.png do not exist; run the stage figures again")


def figure_views(files: Files) -> list[FigureView]:
    """Every figure, drawn or not.

    Raises:
        InputError: for a figure's JSON without a picture that does not say why, or without words
            for those who cannot see it.
    """
    return [_figure(files, name) for name in FIGURES]


@dataclass(frozen=True)
class Example:
    """A question that two runs answer differently, its image as a data URI and that one's size."""

    node: Node
    image: str
    size: tuple[int, int]


@dataclass(frozen=True)
class Gallery:
    """The questions of one family, of a pair of runs."""

    node: Node
    examples: list[Example]

    @property
    def family(self) -> str:
        return str(self.node["family"].value)


def _example(node: Node) -> Example:
    from PIL import Image

    try:
        content = base64.b64decode(node["image"].value, validate=True)
        with Image.open(io.BytesIO(content)) as image:
            kind, size = str(image.format), image.size
    except (binascii.Error, OSError, TypeError, ValueError) as error:
        raise InputError(f"{node.ref}/image is no PNG in base64 ({error})") from error
    if kind != "PNG":
        raise InputError(f"{node.ref}/image is a {kind} image; it has to be PNG")
    return Example(node, data_uri(content, "png"), size)


def galleries(files: Files) -> list[Gallery]:
    """The galleries of all families that have one.

    Raises:
        InputError: for an example whose image is no PNG.
    """
    nodes = files.matching("examples/*.json")
    return [Gallery(node, [_example(one) for one in node["examples"]]) for node in nodes]
