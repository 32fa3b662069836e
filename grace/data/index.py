"""Every record is checked before the first step, in parallel, and what was found is kept.

The index has what is needed of a record without reading it: how many tokens it has, how large its
images are, and whether it can be used. It lies in the cache of ``datasets`` (HF_DATASETS_CACHE) and
is made again when the data, the images or the processor change.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from huggingface_hub.constants import HF_HOME
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from grace.data.encoder import IGNORE_INDEX
from grace.data.images import image_size
from grace.data.records import ImageContent, Record, identity_of, read_record, record_images
from grace.data.samples import Sample, SampleReader
from grace.data.sources import Records
from grace.errors import InputError
from grace.files import atomic_path

_VERSION = 2  # of the index's content
_ALONE = 1000  # fewer records than that are checked at once, and not kept
_CHUNK = 64  # records that a process checks at once
_PACKED = 40_000  # records of which tokens are kept, if there are not more than
_PACKED_TOKENS = 4_000_000  # tokens of all of them: 20 MB
_TOKENS = ("tokens0", "tokens1", "tokens2")
_ROW = np.dtype(
    [
        ("length", np.int32),
        ("supervised", np.int32),
        ("full", np.int32),
        ("images", np.int32),
        ("shown", np.int32),
        ("digest", np.uint64),
    ]
)


@dataclass
class Index:
    """What the check found, by position among the records that were checked.

    Attributes:
        rows: A row a record: ``length`` and ``supervised`` tokens after cutting, tokens before it
            (``full``), ``images`` and those ``shown`` after cutting, and a hash of the sample
            (``digest``). A record that cannot be used has the length 0.
        sizes: (images, 2) width and height of all images, in order.
        ids: Of every record.
        bad: The records that cannot be used: position and reason.
        files: Size and time of change of every image file, by path.
        tokens: Token ids of all samples (T,), whether each is supervised (T,), and (images, 2)
            spans; empty for data of more than some million tokens, which are made when needed.
    """

    rows: np.ndarray
    sizes: np.ndarray
    ids: list[str]
    bad: list[tuple[int, str]]
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    tokens: tuple[np.ndarray, ...] = ()

    def __post_init__(self) -> None:
        self._ends = np.cumsum(self.rows["images"])
        self._token_ends = np.cumsum(self.rows["length"])
        self._span_ends = np.cumsum(self.rows["shown"])
        self._samples: dict[int, Sample] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_samples": {}}

    def sample(self, position: int) -> Sample | None:
        """The sample of a record; None where tokens are not kept."""
        if not self.tokens or position in self._samples:
            return self._samples.get(position)
        ids, supervised, spans = self.tokens
        row = self.rows[position]
        stop, last = int(self._token_ends[position]), int(self._span_ends[position])
        taken = slice(stop - int(row["length"]), stop)
        input_ids = ids[taken].astype(np.int64)
        shown = spans[last - int(row["shown"]) : last].tolist()
        self._samples[position] = Sample(
            input_ids,
            np.where(supervised[taken], input_ids, IGNORE_INDEX),
            [(start, end) for start, end in shown],
            int(row["full"]),
        )
        return self._samples[position]

    def sizes_of(self, position: int) -> list[tuple[int, int]]:
        """(width, height) of a record's images."""
        stop = int(self._ends[position])
        start = stop - int(self.rows["images"][position])
        return [(width, height) for width, height in self.sizes[start:stop].tolist()]

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        texts = json.dumps([self.ids, self.bad, self.files])
        content = np.frombuffer(texts.encode("utf-8", "surrogatepass"), np.uint8)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            arrays: dict[str, Any] = dict(zip(_TOKENS, self.tokens, strict=False))
            np.savez(file, rows=self.rows, sizes=self.sizes, texts=content, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Index | None":
        """Read it; None if there is none, it is broken, or an image file has changed since."""
        try:
            with np.load(path, allow_pickle=False) as content:
                rows, sizes = content["rows"], content["sizes"]
                ids, bad, files = json.loads(bytes(content["texts"]))
                tokens = tuple(content[name] for name in _TOKENS if name in content)
            index = cls(rows, sizes, ids, [tuple(one) for one in bad], files, tokens)
        except (OSError, ValueError, KeyError, EOFError, TypeError):
            return None
        if rows.dtype != _ROW or len(rows) != len(ids):
            return None
        for name, state in files.items():
            try:
                found = os.stat(name)
            except OSError:
                return None
            if [found.st_size, found.st_mtime_ns] != list(state):
                return None
        return index


class Checked(NamedTuple):
    """What was found of one record.

    Attributes:
        id: Its id.
        row: As in the index; None if it cannot be used.
        sizes: Of its images.
        reason: Why it cannot be used.
        files: Its image files, as in the index.
        tokens: Its own, as in the index; None where they are not kept.
    """

    id: str
    row: tuple[int, ...] | None
    sizes: list[tuple[int, int]]
    reason: str
    files: dict[str, tuple[int, int]]
    tokens: tuple[np.ndarray, np.ndarray, list[tuple[int, int]]] | None = None


@dataclass
class Checker:
    """Checks records one by one.

    Attributes:
        records: As they are stored.
        read: Makes their samples.
        locate: Gives the file of an image by a record's position and the path in it.
        keeps_tokens: Whether tokens are part of what is found.
    """

    records: Records
    read: SampleReader
    locate: Callable[[int, str], Path]
    keeps_tokens: bool = True

    def record(self, position: int) -> Record:
        """A record, parsed. Raises InputError, which does not name it."""
        return read_record(
            self.records[position], position, lambda path: self.locate(position, path)
        )

    def images(self, position: int) -> list[ImageContent]:
        """The images of a record alone."""
        beside = self.records.images(position) or {}
        raw = beside if any(beside.values()) else self.records[position]
        return record_images(raw, lambda path: self.locate(position, path))

    def __call__(self, position: int) -> Checked:
        identity = str(position)
        files: dict[str, tuple[int, int]] = {}
        try:
            raw = self.records[position]
            if not isinstance(raw, dict):
                raise InputError(f"it is {str(raw)[:80]!r}, not an object")
            identity = identity_of(raw, position)
            record = read_record(raw, position, lambda path: self.locate(position, path))
            looks = []
            for image in record.images:
                if isinstance(image, bytes):
                    looks.append(_look(image, "its image"))
                else:
                    size, state, digest = _look_at_file(str(image))
                    looks.append((size, digest))
                    files[str(image)] = state
            sizes = [size for size, _ in looks]
            sample = self.read(record, sizes)
        except InputError as error:
            return Checked(identity, None, [], str(error), files)
        whole = hashlib.blake2b(record.id.encode("utf-8", "surrogatepass"), digest_size=8)
        whole.update(sample.input_ids.tobytes() + sample.labels.tobytes())
        for _, digest in looks[: len(sample.image_spans)]:
            whole.update(digest)
        supervised = sample.labels != IGNORE_INDEX
        row = (
            *(len(supervised), int(supervised[1:].sum()), sample.full_length),
            *(len(sizes), len(sample.image_spans), int.from_bytes(whole.digest(), "little")),
        )
        tokens = None
        if self.keeps_tokens:
            tokens = sample.input_ids.astype(np.int32), supervised, sample.image_spans
        return Checked(identity, row, sizes, "", files, tokens)


def _look(content: bytes, name: str) -> tuple[tuple[int, int], bytes]:
    """The size of an image, which is whole, and a hash of its content."""
    digest = hashlib.blake2b(content, digest_size=16).digest()
    return image_size(content, name, "restore it, or remove the record"), digest


@lru_cache(maxsize=20_000)
def _look_at_file(path: str) -> tuple[tuple[int, int], tuple[int, int], bytes]:
    """The same of a file, with its size and time of change; several records may show it."""
    name = f"its image {path!r}"
    try:
        state = os.stat(path)
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            f"{name} cannot be read ({error.strerror}); restore it, or correct image_folder"
        ) from error
    size, digest = _look(content, name)
    return size, (state.st_size, state.st_mtime_ns), digest


def make_index(check: Checker, positions: Sequence[int] | range) -> Index:
    """Check records by as many processes as there are cores, with a progress bar.

    Args:
        check: Checks one.
        positions: Of the records.
    """
    _look_at_file.cache_clear()  # files may have changed since
    check.keeps_tokens = len(positions) <= _PACKED
    rows = np.zeros(len(positions), _ROW)
    index = Index(rows, np.zeros((0, 2), np.int32), [], [])
    sizes: list[tuple[int, int]] = []
    tokens = _Tokens() if check.keeps_tokens else None
    few = len(positions) < _ALONE
    progress = tqdm(
        total=len(positions), desc="checking records", unit="record", disable=few or None
    )
    with progress:
        for place, found in enumerate(_found(check, positions)):
            index.ids.append(found.id)
            index.files.update(found.files)
            progress.update()
            if found.row is None:
                index.bad.append((place, found.reason))
                continue
            rows[place] = found.row
            sizes += found.sizes
            if tokens is not None and found.tokens is not None:
                tokens.add(*found.tokens)
                tokens = tokens if tokens.count <= _PACKED_TOKENS else None
    return Index(
        rows,
        np.array(sizes, np.int32).reshape(-1, 2),
        index.ids,
        index.bad,
        index.files,
        tokens.packed() if tokens is not None else (),
    )


class _Tokens:
    """Tokens of samples, one after the other."""

    def __init__(self) -> None:
        self.count = 0
        self._ids: list[np.ndarray] = []
        self._supervised: list[np.ndarray] = []
        self._spans: list[tuple[int, int]] = []

    def add(self, ids: np.ndarray, supervised: np.ndarray, spans: list[tuple[int, int]]) -> None:
        self._ids.append(ids)
        self._supervised.append(supervised)
        self._spans += spans
        self.count += len(ids)

    def packed(self) -> tuple[np.ndarray, ...]:
        """As :class:`Index` has them."""
        none = np.zeros(0, np.int32)
        return (
            np.concatenate([none, *self._ids]),
            np.concatenate([none.astype(bool), *self._supervised]),
            np.array(self._spans, np.int32).reshape(-1, 2),
        )


def _found(check: Checker, positions: Sequence[int] | range) -> Iterable[Checked]:
    """What is found of every record, in order."""
    chunks = _Chunks(check, positions)
    workers = min(_cores(), len(chunks)) if len(positions) >= _ALONE else 0
    if workers < 2:
        yield from (check(position) for position in positions)
        return
    for chunk in DataLoader(chunks, batch_size=None, num_workers=workers, collate_fn=_same):
        yield from chunk


class _Chunks(Dataset):
    """What is found of some records at a time."""

    def __init__(self, check: Checker, positions: Sequence[int] | range) -> None:
        self.check, self.positions = check, positions

    def __len__(self) -> int:
        return (len(self.positions) + _CHUNK - 1) // _CHUNK

    def __getitem__(self, place: int) -> list[Checked]:
        chunk = self.positions[place * _CHUNK : (place + 1) * _CHUNK]
        return [self.check(int(position)) for position in chunk]


def _same(value: Any) -> Any:
    return value


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def kept_index(check: Checker, positions: Sequence[int] | range, fingerprint: str) -> Index:
    """The index of these records, from the cache if it is there.

    Processes that start together wait for the one that makes it. That of a few records is made
    again every time.

    Args:
        check: Checks one.
        positions: Of the records.
        fingerprint: Of everything that the index follows from but the image files.
    """
    if len(positions) < _ALONE:
        return make_index(check, positions)
    digest = hashlib.sha256(f"{_VERSION}{fingerprint}".encode()).hexdigest()[:32]
    path = cache_folder() / f"{digest}.npz"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            index = Index.load(path)
            if index is None:
                index = make_index(check, positions)
                index.save(path)
        return index
    except OSError as error:
        warnings.warn(
            f"the index of the data cannot be kept in {str(path.parent)!r} ({error}): every "
            "process makes its own; set HF_DATASETS_CACHE to a folder that can be written to",
            stacklevel=2,
        )
        return make_index(check, positions)


def cache_folder() -> Path:
    """Where indices are kept: in the cache of ``datasets``."""
    # as datasets.config has it, which takes a second to import
    cache = os.environ.get("HF_DATASETS_CACHE") or os.path.join(HF_HOME, "datasets")
    return Path(cache).expanduser() / "grace"


def processor_settings(processor: Any, config: Any) -> dict[str, Any]:
    """Everything of a processor and a model that samples follow from."""
    import transformers

    tokenizer = processor.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        words = json.loads(backend.to_str())
        for state in ("padding", "truncation"):  # those of the last call
            words.pop(state, None)
    else:
        words = tokenizer.get_vocab()
    simple = {
        name: value
        for name, value in vars(processor).items()
        if isinstance(value, str | int | float | bool | None)
    }
    return {
        "tokenizer": hashlib.sha256(json.dumps(words).encode()).hexdigest(),
        "special": [str(tokenizer.bos_token), str(tokenizer.eos_token)],
        "processor": [type(processor).__name__, simple, processor.chat_template],
        "images": json.loads(json.dumps(processor.image_processor.to_dict(), default=str)),
        "family": config.model_type,
        "image_token": [getattr(config, n, None) for n in ("image_token_id", "image_token_index")],
        "transformers": transformers.__version__,
    }
