"""The released checkpoints as data (checkpoints.yaml), and where their files are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from grace.errors import InputError
from grace.export.released import SIDECAR
from replication.base import hub
from replication.benchmarks import PRINTED
from replication.paper import ReportedTable, load_tables, nearest, read_yaml
from replication.paper.reading import expect_choice, expect_mapping, expect_number, expect_text

LIST = Path(__file__).resolve().parent / "released.yaml"
FORMATS = ("plain", "released")
FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model", SIDECAR)
"""What of a repository is fetched: weights, configuration, tokenizer and chat template."""

_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class Checkpoint:
    """One released checkpoint; see checkpoints.yaml for what the entries mean."""

    name: str
    repository: str
    seen: str
    verified: bool
    family: str
    format: str
    bits: int
    processor: str
    table: str
    run: str
    base: str | None = None

    @property
    def reported(self) -> ReportedTable:
        """The table that reports on it."""
        return load_tables().table(self.table)

    def benchmarks(self) -> list[str]:
        """The benchmarks of that table, by the names of `replication.benchmarks`."""
        printed = {shown: name for name, shown in PRINTED.items()}
        table = self.reported
        return [printed[table.benchmark(column)] for column in table.benchmark_columns]


@dataclass(frozen=True)
class Files:
    """Where a checkpoint's files are: its own, its base model's, its processor's."""

    model: Path
    processor: Path
    base: Path | None = None

    def sha256(self) -> str:
        """Hash of all of them."""
        places = {"model": self.model, "processor": self.processor, "base": self.base}
        return " ".join(
            f"{role}:{hub.directory_sha256(path)}" for role, path in places.items() if path
        )


def parse_checkpoints(content: Mapping[str, Any]) -> dict[str, Checkpoint]:
    """The list as `Checkpoint`s. Raises InputError for an entry that is wrong, naming it."""
    needed = ("repository", "seen", "verified", "family", "format", "bits", "processor", "table")
    found = {}
    for name, raw in content.items():
        data = expect_mapping(raw, name, (*needed, "run"), ("base",))
        texts = {
            key: expect_text(data[key], f"{name}.{key}")
            for key in ("repository", "seen", "family", "processor", "table", "run", "base")
            if key in data
        }
        if not isinstance(data["verified"], bool):
            raise InputError(f"{name}.verified is {data['verified']!r}: expected true or false")
        checkpoint = Checkpoint(
            name=name,
            verified=data["verified"],
            format=expect_choice(data["format"], FORMATS, f"{name}.format"),
            bits=int(expect_number(data["bits"], f"{name}.bits")),
            **texts,
        )
        row = checkpoint.reported.row(checkpoint.run)
        if (row.bits, checkpoint.reported.family) != (checkpoint.bits, checkpoint.family):
            raise InputError(
                f"{name}: {checkpoint.family} at {checkpoint.bits} bits is not what row "
                f"{checkpoint.run} of {checkpoint.table} is of"
            )
        found[name] = checkpoint
    return found


@cache
def load_checkpoints(path: Path = LIST) -> dict[str, Checkpoint]:
    """The list in a file. Errors: see `read_yaml` and `parse_checkpoints`."""
    return parse_checkpoints(read_yaml(path))


def choose(names: list[str] | None) -> list[Checkpoint]:
    """Checkpoints by name; all without names. Raises InputError with the nearest name."""
    known = load_checkpoints()
    for name in names or ():
        if name not in known:
            raise InputError(
                f"unknown checkpoint {name!r}{nearest(name, known)}; known: {', '.join(known)}"
            )
    return [known[name] for name in names or known]


def find_files(checkpoint: Checkpoint, path: Path | None, mirror: Path | None) -> Files:
    """Where a checkpoint's files are; what is nowhere else is fetched from the hub.

    path: a directory that holds checkpoints, or is one. mirror: see :mod:`replication.base.hub`.

    Raises InputError, with the reason, for what cannot be had.
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
    if path is not None and (found := find_in(repository, path, itself)) is not None:
        return found
    if hub.online(mirror):
        return hub.fetch(repository, "model", FILES)
    found = hub.cached(repository, "model", mirror)
    if found is None:
        raise InputError(hub.missing(repository, mirror))
    return found
