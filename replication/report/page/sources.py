"""Result files as the page reads them: every value knows the file and the place it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from grace.errors import InputError
from replication.base.files import read_json


class Node:
    """A value of a JSON file with its place.

    Attributes:
        file: The path from the repository's root.
        value: The value.
        pointer: Its place in the file, a JSON pointer (RFC 6901).
    """

    __slots__ = ("file", "pointer", "value")

    def __init__(self, file: str, value: Any, pointer: str = "") -> None:
        self.file, self.value, self.pointer = file, value, pointer

    @property
    def ref(self) -> str:
        """File and place: ``results/small/claims.json#/claims/0/status``."""
        return f"{self.file}#{self.pointer}"

    def __getitem__(self, key: str | int) -> Node:
        try:
            value = self.value[key]
        except (KeyError, IndexError, TypeError) as error:
            raise InputError(
                f"{self.ref} has no {key!r}; run the stage that writes it again"
            ) from error
        token = str(key).replace("~", "~0").replace("/", "~1")
        return Node(self.file, value, f"{self.pointer}/{token}")

    def __contains__(self, key: str) -> bool:
        return key in self.value

    def __iter__(self) -> Iterator[Node]:
        """The entries of a list, or the values of a mapping."""
        keys = self.value if isinstance(self.value, dict) else range(len(self.value))
        return (self[key] for key in keys)

    def __len__(self) -> int:
        return len(self.value)

    def items(self) -> Iterator[tuple[str, Node]]:
        return ((key, self[key]) for key in self.value)


class Files:
    """The result files under ``root``, the directory that holds ``results``, each read once."""

    def __init__(self, root: Path, scale: str) -> None:
        self.root, self.scale = root, scale
        self.results = f"results/{scale}"
        self._read: dict[str, Node] = {}

    def path(self, name: str) -> Path:
        return self.root / name

    def find(self, name: str) -> Node | None:
        """The file ``name``, relative to the root; None where there is none.

        Raises:
            InputError: for a file that is not JSON.
        """
        if name not in self._read:
            if not self.path(name).is_file():
                return None
            self._read[name] = Node(name, read_json(self.path(name)))
        return self._read[name]

    def need(self, name: str, stage: str) -> Node:
        """The file ``name`` of this scale's results, which ``stage`` writes.

        Raises:
            InputError: where it is missing or not JSON.
        """
        node = self.find(f"{self.results}/{name}")
        if node is None:
            raise InputError(f"{self.results}/{name} does not exist; run the stage {stage} first")
        return node

    def matching(self, pattern: str) -> list[Node]:
        """The files of this scale's results that match, in order of their names."""
        base = self.path(self.results)
        names = (path.relative_to(self.root) for path in sorted(base.glob(pattern)))
        return [node for name in names if (node := self.find(str(name))) is not None]


def _parts(text: str) -> Markup:
    """A number with what belongs to it, such as its interval, set apart."""
    for mark, kind in (("[", "range"), ("±", "spread")):
        head, separator, rest = text.partition(f" {mark}")
        if separator:
            return Markup('{} <span class="ci {}">{}{}</span>').format(head, kind, mark, rest)
    return escape(text)


def quoted(
    node: Node, text: str, *fields: str, css: str = "", scale: float = 1.0, pad: str = ""
) -> Markup:
    """``text``, marked with the place it was read from.

    Args:
        node: The value, or the mapping that holds it.
        text: What is shown.
        fields: The entries of a mapping whose numbers the text holds, in this order; none where
            the node itself is what the text says.
        css: Classes.
        scale: What the file's number was multiplied by, to say it in another unit.
        pad: "range" or "spread", what other numbers of the column have behind them.
    """
    parts = [Markup('data-source="{}"').format(node.ref)]
    if fields:
        parts.append(Markup('data-fields="{}"').format(" ".join(fields)))
    if scale != 1.0:
        parts.append(Markup('data-scale="{}"').format(f"{scale:g}"))
    if css:
        parts.append(Markup('class="{}"').format(css))
    shown = _parts(text) if fields else escape(text)
    if pad and 'class="ci' not in shown:  # so that the column's numbers stand under each other
        shown += Markup(' <span class="ci {}"></span>').format(pad)
    return Markup("<span {}>{}</span>").format(Markup(" ").join(parts), shown)


def plain(node: Node, css: str = "") -> Markup:
    """A node's own text or whole number."""
    return quoted(node, str(node.value), css=css)


def scaled(node: Node, scale: float, places: int) -> Markup:
    """A number in another unit."""
    return quoted(node, f"{node.value * scale:,.{places}f}", scale=scale)


def counted(node: Node, text: str = "", **wanted: str) -> Markup:
    """How many entries a node has, or a text that says it.

    Args:
        node: A list.
        text: What is shown instead of the number alone.
        wanted: An entry and its value, where only the entries with this value count.
    """
    entries = [one for one in node.value if all(one[key] == wanted[key] for key in wanted)]
    which = ",".join(f"{key}={value}" for key, value in wanted.items())
    shown = text or f"{len(entries)}"
    return Markup('<span data-source="{}" data-count="{}">{}</span>').format(node.ref, which, shown)


def shortened(node: Node, length: int = 12) -> Markup:
    """The first characters of a hash."""
    return Markup('<code data-source="{}" data-short>{}</code>').format(
        node.ref, str(node.value)[:length]
    )


def absent(text: str) -> Markup:
    """What stands where there is no number."""
    return Markup('<span class="absent">{}</span>').format(text)
