"""The figures and the gallery of answers that change, each from its own JSON file."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from grace.errors import InputError
from replication.report.page.sources import Files, Node

MAP = "regimes"
"""The map of regimes: a figure, and a table."""
FIGURES = {
    MAP: "When does the method help?",
    "pareto": "Accuracy against throughput and memory",
    "entropy_error": "The teacher's entropy and its errors",
    "attention": "Attention of the answer over the image",
    "similarity": "Similarity of visual tokens",
    "deployment": "Speed and memory when deployed",
    "engines": "Speed and memory in other engines",
    "controller": "The controller over training",
    "bits": "Bit widths",
    "effects": "Effects of the components",
    "flips": "Answers that change, by question type",
    "distributions": "Gates, weights and scales",
}
"""The figures in the page's order, and what they are called where they were not drawn."""
_TYPES = {"svg": "image/svg+xml", "png": "image/png"}
_AS_THEY_ARE = " \n!$()*+,-./:;=?@[]^_`{|}~"
"""Characters that mean nothing in an address within quotes, beside letters and digits."""


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


def _figure(files: Files, name: str) -> FigureView:
    base = f"{files.results}/figures/{name}"
    node = files.find(f"{base}.json")
    command = f"python -m replication.scale {files.scale} repro figures"
    if node is None:
        return FigureView(name, FIGURES[name], None, "", f"there is no {base}.json", command)
    title, command = node["title"].value, node.value.get("command") or command
    if "not_run" in node:
        return FigureView(name, title, node, "", node["not_run"].value, command)
    for kind, media in _TYPES.items():
        path = files.path(f"{base}.{kind}")
        if path.is_file():
            if not str(node["alt"].value).strip():
                raise InputError(f"{node.ref}/alt is empty; say what the figure shows")
            return FigureView(name, title, node, _uri(path, media), "", command)
    raise InputError(f"{base}.svg and {base}.png do not exist; run the stage figures again")


def _uri(path: Path, media: str) -> str:
    """A picture as the address of an image; text takes a fifth less space than in base64."""
    if media.endswith("xml"):
        return f"data:{media},{quote(path.read_text(encoding='utf-8'), safe=_AS_THEY_ARE)}"
    return f"data:{media};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def figure_views(files: Files) -> list[FigureView]:
    """Every figure, drawn or not.

    Raises:
        InputError: for a figure's JSON without a picture that does not say why, or without words
            for those who cannot see it.
    """
    return [_figure(files, name) for name in FIGURES]


def galleries(files: Files) -> list[Node]:
    """The questions that a pair of runs answers differently, one file a family that has them."""
    return files.matching("examples/*.json")
