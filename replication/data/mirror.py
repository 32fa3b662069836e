"""A mirror laid out as the hub's cache, with stand-ins in the place of the published data."""

import hashlib
import os
import shutil
from pathlib import Path

import yaml
from datasets import Dataset, Features, Image, Value

from replication import benchmarks as tasks
from replication.data.world.benchmarks import write_benchmark
from replication.data.world.scenes import Drawing
from replication.settings.checks import parse_params
from replication.settings.scales import scale_params
from replication.settings.schema import Source

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def sources() -> dict[str, Source]:
    """The published data of scale paper."""
    data = parse_params(scale_params("paper")).data
    assert data is not None
    return data.benchmarks


def add_repository(mirror: Path, repository: str, kind: str, files: dict[str, Path | str]) -> Path:
    """Put files into a mirror as the hub's client does: blobs by hash, a snapshot of links.

    Args:
        mirror: The directory of all repositories.
        repository: ``<owner>/<name>``.
        kind: "model" or "dataset".
        files: By their paths in the repository: a file to copy, or a text.

    Returns:
        The directory of the snapshot.
    """
    folder = mirror / f"{kind}s--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    for name, content in files.items():
        target = snapshot / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            target.write_text(content)
            continue
        blob = folder / "blobs" / hashlib.sha256(content.read_bytes()).hexdigest()
        blob.parent.mkdir(exist_ok=True)
        shutil.copyfile(content, blob)
        target.symlink_to(os.path.relpath(blob, target.parent))
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(COMMIT)
    return snapshot


def card(entries: list[tuple[str, dict[str, str]]], **more) -> str:
    """A README.md with subsets and the patterns of their splits."""
    configs = [
        {
            "config_name": name,
            "data_files": [{"split": split, "path": path} for split, path in splits.items()],
        }
        for name, splits in entries
    ]
    return f"---\n{yaml.safe_dump({'configs': configs, **more})}---\n# A dataset\n"


def shards(dataset: Dataset, folder: Path, stem: str, count: int) -> dict[str, Path]:
    """The table in numbered files."""
    files = {}
    for index in range(count):
        name = f"{stem}-{index:05d}-of-{count:05d}.parquet"
        path = folder / name.replace("/", "_")
        dataset.shard(count, index, contiguous=True).to_parquet(path)
        files[name] = path
    return files


def add_benchmark(mirror: Path, name: str, scratch: Path, count: int = 12, pieces: int = 2) -> Path:
    """Put a benchmark's stand-ins into the place and layout of its published data.

    The repository lists another split, of which no file is there.

    Args:
        mirror: The directory of all repositories.
        name: The benchmark.
        scratch: Where files are built that are then copied.
        count: Number of questions.
        pieces: Files of the split.

    Returns:
        The directory of the snapshot.
    """
    source = sources()[name]
    scratch.mkdir(parents=True, exist_ok=True)
    flat = scratch / f"{name}.parquet"
    write_benchmark(name, flat, split="evaluation", count=count, seed=7, drawing=Drawing())
    table = Dataset.from_parquet(str(flat), cache_dir=str(scratch / "tables"))
    subset, split = source.subset or "default", source.split
    assert split is not None
    files: dict[str, Path | str] = {}
    entries = [(subset, {split: f"{subset}/{split}-*", "train": f"{subset}/train-*"})]
    benchmark = tasks.get(name)
    if benchmark.images:
        images = Dataset.from_dict(
            {"id": table["imageId"], "image": table["image"]},
            features=Features({"id": Value("string"), "image": Image()}),
        )
        _, first = zip(*{key: row for row, key in enumerate(images["id"])}.items(), strict=True)
        files |= shards(images.select(first), scratch, f"{benchmark.images}/{split}", 1)
        entries.append((benchmark.images, {split: f"{benchmark.images}/{split}-*"}))
        table = table.remove_columns("image")
    files |= shards(table, scratch, f"{subset}/{split}", pieces)
    files["README.md"] = card(entries)
    return add_repository(mirror, source.repository, "dataset", files)
