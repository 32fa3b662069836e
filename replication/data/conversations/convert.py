"""Annotation files and image folders to a directory of shards that training reads.

In passes over the annotation files, of which only one record is held at a time: check every record
and choose; check the chosen records' images; write the shards. Nothing is left out silently: what
is left out is listed in a report, counted in the index, and bounded.
"""

import collections
import hashlib
import json
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from grace.data.records import locate_image
from grace.errors import InputError
from grace.files import file_sha256
from replication.base.files import atomic_path, write_json_atomic
from replication.data.conversations.annotations import AnnotationFile, read_records
from replication.data.conversations.images import Seen, check_images
from replication.data.conversations.records import Problem, Record, check_record, folder_of

FORMAT = 2
"""Version of the directory's layout, which the index states."""
INDEX_FILE = "index.json"
"""Name of the file that says what the shards were made of, with their hashes."""
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("images", pa.list_(pa.string())),
        ("conversations", pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))),
    ]
)
"""Columns of a shard, as `grace.data.ConversationDataset` reads them."""
SHARD_SIZE = 10_000  # conversations; some 20 MB of text
_PROGRESS_FILE = "progress.json"


@dataclass(frozen=True)
class Images:
    """Where images lie: in folders of their own below `root`, or where `folders` says."""

    root: str
    folders: Mapping[str, str] = field(default_factory=dict)

    def locate(self, path: str) -> Path:
        return locate_image(path, {"": self.root, **self.folders})


@dataclass(frozen=True)
class Limits:
    """Shares, from 0 to 1, that may be left out: of the records, and of the chosen ones' images."""

    invalid_records: float = 0.0
    missing_images: float = 0.0


def convert(
    sources: Sequence[AnnotationFile],
    images: Images,
    target: Path,
    *,
    samples: int | None = None,
    seed: int = 0,
    limits: Limits = Limits(),
    workers: int | None = None,
    shard_size: int = SHARD_SIZE,
) -> dict[str, Any]:
    """Write the directory `target`, whole or not at all, and return its index.

    Beside `target` lie the report ``<target>.left_out.jsonl`` (one line a record that is invalid,
    or an image that cannot be used, with the reason), what was seen of the images, and, while an
    interrupted conversion waits to be gone on with, ``<target>.tmp``.

    The same annotation files, images, `samples` and `seed` give the same bytes of every shard, on
    every machine, interrupted or not.

    Args:
        sources: The annotation files.
        images: Where their images lie.
        target: The directory to write.
        samples: Conversations to choose from the valid ones, or None for all. Which ones follows
            from the seed and the files alone, not from the images that are there.
        seed: Of the choice.
        limits: How much may be left out.
        workers: Processes that decode images; default, as many as there are cores.
        shard_size: Conversations in a shard.

    Returns:
        The index.

    Raises:
        InputError: For a file that is no JSON array, more left out than `limits` allow, fewer
            valid records than `samples`, or nothing left.
    """
    report = target.with_name(f"{target.name}.left_out.jsonl")
    scan = _scan(sources, seed, report)
    _check_invalid(scan, limits, report)
    chosen = _choose(scan.keys, samples)
    paths = dict.fromkeys(
        path for _, _, record in _picked(sources, chosen) for path in record.images
    )
    seen = check_images(
        {path: images.locate(path) for path in paths},
        target.with_name(f"{target.name}.images.jsonl"),
        workers=workers,
    )
    missing = {path: look.reason for path, look in seen.items() if look.reason is not None}
    _write_report(sources, chosen, missing, report)
    _check_missing(missing, len(paths), limits, report)
    _take_up(_unfinished(target), _fingerprint(sources, chosen, seen, shard_size))
    written = _write_shards(sources, chosen, seen, _unfinished(target), shard_size)
    counts = {
        "records": scan.records,
        "invalid": dict(sorted(scan.invalid.items())),
        "chosen": int(chosen.sum()),
        "images": len(paths),
        "missing_images": _by_folder(missing),
    }
    index = {
        "format": FORMAT,
        "sources": [
            {
                "file": source.name,
                "repository": source.repository,
                "sha256": source.sha256,
                "records": records,
            }
            for source, records in zip(sources, scan.by_source, strict=True)
        ],
        "selection": {"samples": samples, "seed": seed},
        "images": {"root": images.root, "folders": dict(images.folders)},
        "counts": {**counts, **written.counts},
        "shards": written.shards,
    }
    _finish(target, index)
    return index


def _check_invalid(scan: "_Scan", limits: Limits, report: Path) -> None:
    total, invalid = scan.records, sum(scan.invalid.values())
    if invalid > limits.invalid_records * total:
        raise InputError(
            f"{invalid} of {total} records are invalid ({_listed(scan.invalid)}), more than the "
            f"share of {limits.invalid_records} that data.training.invalid_records allows; they "
            f"are listed in {str(report)!r}: mend the annotation files or raise the share"
        )


def _check_missing(missing: Mapping[str, str], total: int, limits: Limits, report: Path) -> None:
    if len(missing) > limits.missing_images * total:
        folders = "; ".join(f"{name}: {_listed(n)}" for name, n in _by_folder(missing).items())
        raise InputError(
            f"{len(missing)} of {total} images cannot be used ({folders}), more than the share "
            f"of {limits.missing_images} that data.training.missing_images allows; they are listed "
            f"in {str(report)!r}: complete the image folders (docs/data.md) or raise the share"
        )


# -- choosing --------------------------------------------------------------------------------------


@dataclass
class _Scan:
    """What the first pass found; `keys` has one entry a valid record, in order."""

    keys: array
    invalid: Counter
    by_source: list[int]

    @property
    def records(self) -> int:
        return sum(self.by_source)


def _checked(
    sources: Sequence[AnnotationFile],
) -> Iterator[tuple[AnnotationFile, int, Record | Problem]]:
    for source in sources:
        for position, record in enumerate(read_records(source.path)):
            yield source, position, check_record(record, f"{source.name}:{position}")


def _scan(sources: Sequence[AnnotationFile], seed: int, report: Path) -> _Scan:
    """Check every record, write the report of the invalid ones, and draw a key for the others.

    The key is a hash of seed, file and position: an order that no library's generator decides.
    """
    scan = _Scan(array("Q"), Counter(), [])

    def lines() -> Iterator[dict[str, Any]]:
        for source in sources:
            counted = 0
            for _, position, record in _checked([source]):
                counted += 1
                if isinstance(record, Problem):
                    scan.invalid[record.reason] += 1
                    yield _line(source, position, record)
                else:
                    text = f"{seed}\0{source.sha256}\0{position}".encode()
                    key = hashlib.blake2b(text, digest_size=8).digest()
                    scan.keys.append(int.from_bytes(key, "big"))
            scan.by_source.append(counted)

    _write_lines(lines(), report)
    return scan


def _choose(keys: array, samples: int | None) -> np.ndarray:
    """Which valid records are taken: those of the smallest keys."""
    values = np.frombuffer(keys, np.uint64) if len(keys) else np.zeros(0, np.uint64)
    if samples is None:
        chosen = np.ones(len(values), bool)
    elif samples > len(values):
        raise InputError(
            f"data.training.samples is {samples}, but the annotation files have {len(values)} "
            "valid records; ask for fewer, or for all with null"
        )
    else:
        chosen = np.zeros(len(values), bool)
        chosen[np.argsort(values, kind="stable")[:samples]] = True
    if not chosen.any():
        raise InputError("the annotation files hold no valid record; name others")
    return chosen


def _picked(
    sources: Sequence[AnnotationFile], chosen: np.ndarray
) -> Iterator[tuple[AnnotationFile, int, Record]]:
    valid = 0
    for source, position, record in _checked(sources):
        if isinstance(record, Record):
            if valid >= len(chosen):
                break
            if chosen[valid]:
                yield source, position, record
            valid += 1
    if valid != len(chosen):
        raise InputError("an annotation file has changed while it was read; run the stage again")


# -- report ----------------------------------------------------------------------------------------


def _line(source: AnnotationFile, position: int, problem: Problem) -> dict[str, Any]:
    return {
        "file": source.name,
        "record": position,
        "reason": problem.reason,
        "value": problem.value,
    }


def _write_report(
    sources: Sequence[AnnotationFile],
    chosen: np.ndarray,
    missing: Mapping[str, str],
    report: Path,
) -> None:
    """Invalid records, and chosen records with the images they lack, in the files' order."""

    def lines() -> Iterator[dict[str, Any]]:
        valid = 0
        for source, position, record in _checked(sources):
            if isinstance(record, Problem):
                yield _line(source, position, record)
                continue
            if chosen[valid]:
                for path in record.images:
                    if path in missing:
                        yield {
                            "file": source.name,
                            "record": position,
                            "reason": missing[path],
                            "image": path,
                        }
            valid += 1

    _write_lines(lines(), report)


def _write_lines(lines: Iterable[dict[str, Any]], path: Path) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _by_folder(missing: Mapping[str, str]) -> dict[str, dict[str, int]]:
    folders: dict[str, Counter] = collections.defaultdict(Counter)
    for path, reason in missing.items():
        folders[folder_of(path)][reason] += 1
    return {name: dict(sorted(counts.items())) for name, counts in sorted(folders.items())}


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


# -- shards ----------------------------------------------------------------------------------------


@dataclass
class _Written:
    shards: list[dict[str, Any]]
    counts: dict[str, Any]


def _fingerprint(
    sources: Sequence[AnnotationFile],
    chosen: np.ndarray,
    seen: Mapping[str, Seen],
    shard_size: int,
) -> str:
    """What the bytes of the shards follow from."""
    digest = hashlib.sha256(json.dumps([FORMAT, shard_size]).encode())
    for source in sources:
        digest.update(f"{source.name}\0{source.sha256}\0".encode())
    digest.update(np.packbits(chosen).tobytes())
    for path, look in seen.items():
        digest.update(f"{path}\0{look.width}\0{look.height}\0{look.reason}\0".encode())
    return digest.hexdigest()


def _write_shards(
    sources: Sequence[AnnotationFile],
    chosen: np.ndarray,
    seen: Mapping[str, Seen],
    work: Path,
    shard_size: int,
) -> _Written:
    """Write the shards that are not yet in the folder `work`."""
    written = _Written([], {})
    kinds: Counter = Counter()
    folders: Counter = Counter()
    waiting: list[dict[str, Any]] = []

    def flush() -> None:
        path = work / f"part-{len(written.shards):05d}.arrow"
        if not path.exists():
            with atomic_path(path) as temporary:
                _write_shard(waiting, temporary)
        digest = file_sha256(path)
        written.shards.append({"file": path.name, "records": len(waiting), "sha256": digest})
        waiting.clear()

    for _, _, record in _picked(sources, chosen):
        if not all(seen[path].usable for path in record.images):
            kinds["without_image"] += 1
            continue
        kinds["conversations"] += 1
        kinds["answers"] += sum(speaker == "gpt" for speaker, _ in record.turns)
        kinds["text_alone"] += not record.images
        kinds["several_images"] += len(record.images) > 1
        folders.update(folder_of(path) for path in record.images)
        waiting.append(_row(record))
        if len(waiting) == shard_size:
            flush()
    if waiting:
        flush()
    if not written.shards:
        raise InputError("no conversation is left, as all of them lack an image; see docs/data.md")
    names = ("conversations", "answers", "text_alone", "several_images", "without_image")
    written.counts = {name: kinds[name] for name in names}
    written.counts["shown_images"] = dict(sorted(folders.items()))
    return written


def _write_shard(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write records (rows of SCHEMA) as one Arrow file; equal records give equal bytes."""
    batch = pa.RecordBatch.from_pylist(list(records), schema=SCHEMA)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_batch(batch)


def _row(record: Record) -> dict[str, Any]:
    return {
        "id": record.id,
        "images": list(record.images),
        "conversations": [{"from": speaker, "value": text} for speaker, text in record.turns],
    }


def _unfinished(target: Path) -> Path:
    return target.with_name(f"{target.name}.tmp")


def _take_up(work: Path, fingerprint: str) -> None:
    """Keep the shards in `work` if they are of this conversion, else begin anew."""
    progress = work / _PROGRESS_FILE
    try:
        same = json.loads(progress.read_text(encoding="utf-8")) == {"fingerprint": fingerprint}
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(work, ignore_errors=True)
        write_json_atomic(progress, {"fingerprint": fingerprint})


def _finish(target: Path, index: dict[str, Any]) -> None:
    work = _unfinished(target)
    listed = {shard["file"] for shard in index["shards"]}
    for path in work.iterdir():  # what an interruption left
        if path.name not in listed:
            path.unlink()
    write_json_atomic(work / INDEX_FILE, index)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(work, target)
