"""The released checkpoints as data (released.yaml), and where their files are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from grace.errors import InputError
from grace.export.released import SIDECAR
from grace.files import directory_sha256, read_yaml
from replication.base import hub
from replication.base.messages import unknown
from replication.base.validation import Flag, Positive, Text, record, validate
from replication.benchmarks import PRINTED
from replication.paper import ReportedTable, load_tables

LIST = Path(__file__).resolve().parent / "released.yaml"
FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model", SIDECAR)
"""What of a repository is fetched: weights, configuration, tokenizer and chat template."""

_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


@record
class Checkpoint:
    """One released checkpoint; released.yaml says more.

    Attributes:
        repository: on the Hugging Face hub.
        seen: where its name was read.
        verified: whether the files were loaded from there.
        family: of its model.
        format: as save_pretrained writes it ("plain"), or the released code ("released").
        bits: of its weights.
        processor: where tokenizer and chat template are taken from if it has none.
        table: the table that reports on it.
        run: the row of that table.
        base: transformers' version of the base model, for a checkpoint in another layout.
        name: its key in the list.
    """

    repository: Text
    seen: Text
    verified: Flag
    family: Text
    format: Literal["plain", "released"]
    bits: Positive
    processor: Text
    table: Text
    run: Text
    base: Text | None = None
    name: str = ""

    @property
    def reported(self) -> ReportedTable:
        """The table that reports on it."""
        return load_tables().table(self.table)

    def benchmarks(self) -> list[str]:
        """The benchmarks of that table, by the names of `replication.benchmarks`."""
        names = {printed: name for name, printed in PRINTED.items()}
        table = self.reported
        return [names[table.benchmark(column)] for column in table.benchmark_columns]


@dataclass(frozen=True)
class Files:
    """Where a checkpoint's files are.

    Attributes:
        model: its own.
        processor: its processor's.
        base: its base model's, where it needs one.
    """

    model: Path
    processor: Path
    base: Path | None = None

    def sha256(self) -> str:
        """Hash of all of them."""
        places = {"model": self.model, "processor": self.processor, "base": self.base}
        return " ".join(f"{role}:{directory_sha256(path)}" for role, path in places.items() if path)


def parse_checkpoints(
    content: Mapping[str, Any], source: str = "released.yaml"
) -> dict[str, Checkpoint]:
    """The list as `Checkpoint`s.

    Raises:
        InputError: for an entry that is wrong, or not of the row that it names.
    """
    checkpoints = {}
    for name, listed in validate(dict[Text, Checkpoint], content, source).items():
        row = listed.reported.row(listed.run)
        if (row.bits, listed.reported.family) != (listed.bits, listed.family):
            raise InputError(
                f"{name}: {listed.family} at {listed.bits} bits is not what row {listed.run} of "
                f"{listed.table} is of"
            )
        checkpoints[name] = replace(listed, name=name)
    return checkpoints


@cache
def load_checkpoints(path: Path = LIST) -> dict[str, Checkpoint]:
    """The list in a file.

    Raises:
        InputError: for a file that cannot be read, or that `parse_checkpoints` refuses.
    """
    return parse_checkpoints(read_yaml(path), str(path))


def choose(names: list[str] | None) -> list[Checkpoint]:
    """Checkpoints by name; all without names.

    Raises:
        InputError: for an unknown name, with the nearest one.
    """
    known = load_checkpoints()
    for name in names or ():
        if name not in known:
            raise InputError(unknown(f"checkpoint {name!r}", name, known))
    return [known[name] for name in names or known]


def find_files(checkpoint: Checkpoint, path: Path | None, mirror: Path | None) -> Files:
    """Where a checkpoint's files are; what is nowhere else is fetched from the hub.

    Args:
        checkpoint: whose files.
        path: a directory that holds checkpoints, or is one.
        mirror: see :mod:`replication.base.hub`.

    Raises:
        InputError: with the reason, for what cannot be had.
    """
    model = _find(checkpoint.repository, path, mirror, itself=True)
    base = None if checkpoint.base is None else _find(checkpoint.base, path, mirror)
    if any((model / name).is_file() for name in _PROCESSOR_FILES):
        return Files(model, model, base)
    return Files(model, _find(checkpoint.processor, path, mirror), base)


def find_in(repository: str, path: Path, itself: bool = True) -> Path | None:
    """A repository's directory below `path`, or (itself) `path` where it is a checkpoint; None if
    there is none."""
    places = [path / repository, path / repository.rpartition("/")[2]]
    for place in [*places, path] if itself else places:
        if (place / "config.json").is_file():
            return place
    return None


def _find(repository: str, path: Path | None, mirror: Path | None, itself: bool = False) -> Path:
    if path is not None and (directory := find_in(repository, path, itself)) is not None:
        return directory
    if hub.online(mirror):
        return hub.fetch(repository, "model", FILES)
    cached = hub.cached(repository, "model", mirror)
    if cached is None:
        raise InputError(hub.missing(repository, mirror))
    return cached
