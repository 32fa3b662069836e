"""What a figure is: numbers, words and a drawing, and how it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.figure

from replication.base.files import atomic_path, write_json_atomic
from replication.report.figures import style

PICTURES = ("svg", "png")


class NotRun(Exception):  # noqa: N818 (no error: a state that results may be in)
    """Results that a figure shows are missing; the message says which."""


@dataclass(frozen=True)
class Figure:
    """One figure, with words for readers who see nothing else of this project.

    Attributes:
        name: Of its files.
        title: Its title.
        caption: What is drawn, and what may not be read from it.
        alt: What it shows, for those who cannot see it.
        n: What the numbers rest on.
        units: Of every axis.
        sources: The result files behind it, relative to the repository.
        command: What makes it.
        data: The numbers drawn.
        canvas: The drawing.
        paper: The figure of the paper that it repeats, if any.
        claims: The ids of the claims that it bears on.
        models: The models that were measured, with their sizes; they stand under the drawing.
    """

    name: str
    title: str
    caption: str
    alt: str
    n: str
    units: str
    sources: tuple[str, ...]
    command: str
    data: Mapping[str, Any] = field(repr=False)
    canvas: matplotlib.figure.Figure = field(repr=False)
    paper: str | None = None
    claims: tuple[str, ...] = ()
    models: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """The content of its JSON file."""
        return {name: value for name, value in vars(self).items() if name != "canvas"}


def command_of(scale: str) -> str:
    """The command that makes a scale's figures."""
    return f"python -m replication.scale {scale} repro figures"


def write(figure: Figure, folder: Path) -> None:
    """Write <folder>/<name>.{json,svg,png}, each whole or not at all.

    Raises:
        InputError: for a number that is not finite.
    """
    write_json_atomic(folder / f"{figure.name}.json", figure.record())
    for kind in PICTURES:
        with atomic_path(folder / f"{figure.name}.{kind}") as temporary:
            style.save(figure.canvas, temporary, kind, figure.name, figure.models)


def write_not_run(name: str, why: str, scale: str, folder: Path) -> None:
    """Write the JSON of a figure without results, and remove pictures of an earlier run."""
    record = {
        "name": name,
        "title": name.replace("_", " ").capitalize(),
        "not_run": why,
        "command": command_of(scale),
    }
    write_json_atomic(folder / f"{name}.json", record)
    for kind in PICTURES:
        (folder / f"{name}.{kind}").unlink(missing_ok=True)
