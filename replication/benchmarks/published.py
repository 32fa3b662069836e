"""The published data of the official tasks, as `datasets` loads them without the network.

An official task names a dataset repository, perhaps a subset of it, and a split. `datasets` finds
the files of a split through the repository's README.md, but only while it can ask the hub: with a
whole snapshot in the hub's cache it still refuses to load by name offline. So the same reading of
README.md is done here, and for every benchmark a *view* is made: a directory with links to the
files of the one split and a README.md that says of them what the repository's own says. Nothing but
that split is fetched or prepared.
"""

import fnmatch
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import yaml

from grace.errors import InputError
from grace.files import file_sha256
from replication.base import hub
from replication.benchmarks.benchmark import Benchmark

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.")


class Source(Protocol):
    """A dataset repository and what to take of it, as the parameters have it."""

    @property
    def repository(self) -> str: ...

    @property
    def subset(self) -> str | None: ...

    @property
    def split(self) -> str | None: ...


@dataclass(frozen=True)
class Published:
    """One split of a published dataset, as a directory that `datasets` loads.

    Attributes:
        folder: The view.
        repository: The data set on the hub.
        subset: Of the repository; None for the only or default one.
        split: Of the subset.
        commit: Of the repository; None for a plain copy of it.
        sha256: Of the files, in order.
        images: Where the images lie in a subset of their own, the view of that.
    """

    folder: str
    repository: str
    subset: str | None
    split: str
    commit: str | None
    sha256: str
    images: "Published | None" = None

    @property
    def name(self) -> str:
        """What an error message calls it."""
        return self.repository

    @property
    def place(self) -> str:
        """What is read."""
        return self.folder

    @property
    def digest(self) -> str:
        """Hash of the questions and their images."""
        return self.sha256 + (f" {self.images.sha256}" if self.images else "")

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Published":
        images = content["images"]
        return cls(**{**content, "images": cls.from_dict(images) if images else None})


@dataclass(frozen=True)
class _Split:
    repository: str
    subset: str | None
    name: str

    def __str__(self) -> str:
        of = f" of subset {self.subset!r}" if self.subset else ""
        return f"{self.repository}, split {self.name!r}{of}"


def prepare(benchmark: Benchmark, source: Source, views: Path, mirror: Path | None) -> Published:
    """The benchmark's published data, fetched where that is allowed and needed.

    Args:
        benchmark: The benchmark.
        source: Its repository, subset and split.
        views: Where the directories that are loaded are kept.
        mirror: See :mod:`replication.base.hub`.

    Raises:
        InputError: If the data cannot be had, or files of the split are missing.
    """
    if source.split is None:
        raise InputError(f"data.benchmarks.{benchmark.name} names no split; add one")
    split = _Split(source.repository, source.subset, source.split)
    published = _view(benchmark.name, split, views, mirror)
    if benchmark.images is None:
        return published
    split = replace(split, subset=benchmark.images)
    return replace(published, images=_view(f"{benchmark.name}-images", split, views, mirror))


def _view(name: str, split: _Split, views: Path, mirror: Path | None) -> Published:
    directory, files, features = _locate(split, mirror)
    sums = [file_sha256(directory / file) for file in files]
    digest = hashlib.sha256("\n".join(sums).encode()).hexdigest()
    folder = (views / f"{name}-{digest[:16]}").absolute()
    label = split.subset or "default"
    links = [f"{split.name}-{index:05d}.parquet" for index in range(len(files))]
    entry = {"split": split.name, "path": links}
    card: dict[str, Any] = {"configs": [{"config_name": label, "data_files": [entry]}]}
    if features is not None:
        card["dataset_info"] = [{"config_name": label, "features": features}]
    readme = f"---\n{yaml.safe_dump(card, sort_keys=False)}---\n"
    targets = {link: (directory / file).resolve() for link, file in zip(links, files, strict=True)}
    if not _is_view(folder, readme, targets):
        views.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=views))
        for link, target in targets.items():
            (temporary / link).symlink_to(target)
        (temporary / "README.md").write_text(readme, encoding="utf-8")
        temporary.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    commit = hub.commit_of(directory)
    return Published(str(folder), split.repository, split.subset, split.name, commit, digest)


def _is_view(folder: Path, readme: str, targets: dict[str, Path]) -> bool:
    try:
        same = (folder / "README.md").read_text(encoding="utf-8") == readme
        return same and all((folder / x).resolve(strict=True) == to for x, to in targets.items())
    except OSError:
        return False


def _locate(split: _Split, mirror: Path | None) -> tuple[Path, list[str], Any]:
    """(directory, files of the split, features that README.md declares or None)."""
    repository = split.repository
    directory, fault = hub.cached(repository, "dataset", mirror), ""
    if directory is not None:
        names = [str(f.relative_to(directory)) for f in directory.rglob("*") if f.is_file()]
        try:
            files, features = split_files(_read(directory / "README.md"), names, split)
        except InputError as error:  # a part of the repository: perhaps the hub has the rest
            fault = f"{error}, or complete {str(directory)!r}"
        else:
            return directory, files, features
    if not hub.online(mirror):
        raise InputError(fault or hub.missing(repository, mirror))
    from huggingface_hub import HfApi

    with hub.asking(repository):
        names = HfApi().list_repo_files(repository, repo_type="dataset")
    card = hub.fetch(repository, "dataset", ["README.md"])
    files, features = split_files(_read(card / "README.md"), names, split)
    return hub.fetch(repository, "dataset", ["README.md", *files]), files, features


def _read(readme: Path) -> str:
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


def split_files(readme: str, names: Sequence[str], split: _Split) -> tuple[list[str], Any]:
    """The parquet files of a split among a repository's, and the features that README.md declares.

    README.md says which files make the split; one without that part leaves it to their names.

    Args:
        readme: The text of README.md; may be empty.
        names: The repository's files.
        split: The split.

    Returns:
        The files in order, and the features; None where README.md declares none.

    Raises:
        InputError: If there are none, or one of several numbered ones is missing.
    """
    card = hub.front_matter(readme)
    label = split.subset or "default"
    if configs := card.get("configs"):
        config = _config(configs, split)
        label = config["config_name"]
        patterns = _patterns(config.get("data_files", []), split.name)
        files = [name for name in names if any(fnmatch.fnmatch(name, p) for p in patterns)]
    else:
        inside = f"{split.subset}/" if split.subset else ""
        word = re.compile(rf"(^|[/._ -]){re.escape(split.name)}([/._ -]|$)")
        files = [n for n in names if n.startswith(inside) and word.search(n[len(inside) :])]
        files = [name for name in files if name.endswith(".parquet")]
    if not files:
        raise InputError(f"{split}: none of its files is there; fetch it again")
    if strange := [name for name in files if not name.endswith(".parquet")]:
        raise InputError(f"{split}: {strange[0]} is no parquet file; convert it")
    files.sort()
    _check_shards(files, split)
    infos: Any = card.get("dataset_info") or []
    infos = infos if isinstance(infos, list) else [infos]
    info = [entry for entry in infos if entry.get("config_name", label) == label]
    return files, info[0].get("features") if info else None


def _config(configs: list[dict[str, Any]], split: _Split) -> dict[str, Any]:
    """A subset's entry; without a name the only one, or the default."""
    if split.subset is None and len(configs) == 1:
        return configs[0]
    for config in configs:
        default = config.get("default") or config.get("config_name") == "default"
        if default if split.subset is None else config.get("config_name") == split.subset:
            return config
    raise InputError(f"{split}: README.md lists no such subset; correct the name")


def _patterns(data_files: Any, split: str) -> list[str]:
    """The patterns of a split; where no splits are named, all files are those of "train"."""
    entries = data_files if isinstance(data_files, list) else [data_files]
    if all(isinstance(entry, str) for entry in entries):
        return entries if split == "train" else []
    paths = [entry["path"] for entry in entries if str(entry.get("split")) == split]
    return [item for path in paths for item in ([path] if isinstance(path, str) else path)]


def _check_shards(files: Sequence[str], split: _Split) -> None:
    """Files named ``<name>-00003-of-00008`` have to be there from 0 to 7."""
    series: dict[tuple[str, int], set[int]] = {}
    for file in files:
        if match := _SHARD.search(file):
            key = file[: match.start()], int(match[2])
            series.setdefault(key, set()).add(int(match[1]))
    for (name, count), numbers in series.items():
        if absent := sorted(set(range(count)) - numbers):
            raise InputError(
                f"{split}: {len(absent)} of the {count} files {name}-* are missing, the first is "
                f"number {absent[0]:05d}; fetch it again"
            )
