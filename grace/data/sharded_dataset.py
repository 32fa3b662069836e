"""Conversations at full scale as samples for training; images are read on demand.

How many tokens a conversation has under a processor is counted once, without opening an image, and
kept beside the directory; see :class:`ShardedConversations`.
"""

import fcntl
import hashlib
import json
import multiprocessing
import os
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from grace.data.encoder import IGNORE_INDEX, SystemEncoder
from grace.data.shards import FORMAT, Shards, locate_image
from grace.errors import InputError
from grace.files import atomic_path
from grace.models import Family, family_of

REJECTED = ("images", "answer", "shape", "marker")
"""Why a conversation cannot be used under a processor: its images alone do not fit into
``max_length``; no answer begins before it; an image has a shape that the processor refuses; its
text holds the processor's own token of an image."""

_COUNTS = np.dtype(
    [
        ("length", np.int32),
        ("supervised", np.int32),
        ("full", np.int32),
        ("images", np.int32),
        ("rejected", np.int8),
    ]
)
_ALONE = 20_000  # fewer conversations than that are not worth further processes


class ImageTokens:
    """Visual tokens of an image, from its size alone, as the processor would resize it.

    Processors with bounds on pixels (Qwen) have as many as the resized image has; one that makes
    all images the same size (LLaVA) has as many for all.

    Raises:
        InputError: for a processor that does neither.
    """

    def __init__(self, family: Family, processor: Any, config: Any) -> None:
        self._patches = getattr(processor.image_processor, "get_number_of_image_patches", None)
        self._known: dict[tuple[int, int], int | None] = {}
        if self._patches is not None:
            self._merge = processor.image_processor.merge_size**2
            return
        blanks = [Image.new("RGB", size) for size in ((96, 48), (40, 120))]
        made = processor.image_processor(images=blanks, return_tensors="pt")
        try:
            first, second = family.tokens_per_image(config, made)
        except (AttributeError, KeyError, ValueError) as error:
            raise InputError(
                "the image processor makes images of different sizes and does not say how many "
                "patches an image has; use one with a fixed size"
            ) from error
        assert first == second
        self._fixed = first

    def __call__(self, width: int, height: int) -> int | None:
        """None for a shape that the processor refuses."""
        if self._patches is None:
            return self._fixed
        if (width, height) not in self._known:
            try:
                count = int(self._patches(height, width, {})) // self._merge
            except ValueError:  # such as a side 200 times the other
                count = None
            self._known[width, height] = count
        return self._known[width, height]


def kept_tokens(labels: np.ndarray, max_length: int | None) -> int:
    """How many tokens remain of a sample that may have `max_length`; 0 if nothing to learn does.

    A sample that is too long ends with the last supervised token that fits. Visual tokens are not
    supervised, so no image is ever cut: what follows that token is dropped whole. A causal model
    loses nothing by it but what lies beyond `max_length`.

    labels: (S,).
    """
    if max_length is None or len(labels) <= max_length:
        return len(labels)
    spoken = np.flatnonzero(labels[:max_length] != IGNORE_INDEX)
    return int(spoken[-1]) + 1 if len(spoken) and spoken[-1] > 0 else 0


@dataclass
class _Sample:
    """A record under a processor: ``input_ids`` and ``labels`` (S,) after cutting, visual tokens of
    each image that is left, and tokens before cutting."""

    input_ids: np.ndarray
    labels: np.ndarray
    image_tokens: list[int]
    full: int


class _Reader:
    """Records to samples under one processor; what counting and training share."""

    def __init__(self, processor: Any, config: Any, max_length: int | None) -> None:
        self.processor = processor
        self.max_length = max_length
        self._encode = SystemEncoder(processor)
        self._image_tokens = ImageTokens(family_of(config.model_type), processor, config)
        self._marker = processor.tokenizer.convert_ids_to_tokens(processor.image_token_id)

    def __call__(self, record: Mapping[str, Any]) -> _Sample | str:
        """The sample, or one of REJECTED.

        Raises:
            InputError: naming the record, for a conversation that cannot be encoded.
        """
        made = [self._image_tokens(image["width"], image["height"]) for image in record["images"]]
        counts = [count for count in made if count is not None]
        if len(counts) != len(made):
            return "shape"
        turns = record["conversations"]
        if any(self._marker in turn["value"].replace("<image>", "") for turn in turns):
            return "marker"
        if self.max_length is not None and sum(counts) >= self.max_length:
            return "images"
        try:
            ids, labels = (np.asarray(part, np.int64) for part in self._encode(turns, counts))
        except InputError as error:
            raise InputError(f"record {record['id']!r}: {error}") from error
        kept = kept_tokens(labels, self.max_length)
        if not kept:
            return "answer"
        shown = int((ids[:kept] == self.processor.image_token_id).sum())
        images = bisect_right(np.cumsum(counts).tolist(), shown)
        return _Sample(ids[:kept], labels[:kept], counts[:images], len(ids))


def _count(shards: Shards, reader: _Reader, shard: int) -> np.ndarray:
    """A row of _COUNTS for every record of a shard."""
    batch = shards.batch(shard)
    counts = np.zeros(batch.num_rows, _COUNTS)
    for row, position in enumerate(shards.range_of(shard)):
        sample = reader(shards[position])
        if isinstance(sample, str):
            counts[row]["rejected"] = 1 + REJECTED.index(sample)
            continue
        supervised = int((sample.labels[1:] != IGNORE_INDEX).sum())
        images = len(sample.image_tokens)
        counts[row] = (len(sample.labels), supervised, sample.full, images, 0)
    return counts


_worker: tuple[Shards, _Reader] | None = None


def _start_worker(shards: Shards, processor: Any, config: Any, max_length: int | None) -> None:
    global _worker
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker = shards, _Reader(processor, config, max_length)


def _count_shard(shard: int) -> np.ndarray:
    assert _worker is not None
    return _count(*_worker, shard)


class ShardedConversations(Dataset):
    """The conversations of a directory of shards, under a processor, as samples for training.

    The interface is that of :class:`grace.data.ConversationDataset`: text is tokenized and images
    are read on demand. Conversations of several images, several turns, or text alone mix.

    Token counts are computed once for a processor and ``max_length``, and kept in
    ``<directory>.counts``, beside the directory; processes that start together wait for the one
    that counts.

    Attributes:
        rejected: number of conversations left out, by a reason of REJECTED.
        truncated: number of conversations cut to ``max_length``; see :func:`kept_tokens`.
        pictured: indices of the samples that show an image, (n,) int64.
        dropped_images: images that stood in the part that was cut off.
        sha256: of what the samples follow from, wherever the images lie.

    Args:
        directory: what ``replication.data.conversations`` (or :func:`write_shard`) wrote.
        config: the model's configuration.
        max_length: tokens that a sample may have; None for no bound.
        image_root: the folder of image folders; default, the places that the index names.

    Raises:
        InputError: for an unreadable directory, a record that cannot be encoded, or if nothing
            fits.
    """

    def __init__(
        self,
        directory: str | Path,
        processor: Any,
        config: Any,
        *,
        max_length: int | None = None,
        image_root: str | Path | None = None,
    ) -> None:
        if max_length is not None and max_length < 1:
            raise InputError(f"max_length is {max_length}; it must be at least 1")
        self.family = family_of(config.model_type)
        self.processor = processor
        self.config = config
        self.max_length = max_length
        self.shards = Shards(directory)
        places = self.shards.index.get("images", {})
        self._root = places.get("root", ".") if image_root is None else image_root
        self._folders = places.get("folders", {}) if image_root is None else {}
        self._read = _Reader(processor, config, max_length)
        settings = _settings(processor, config, max_length)
        content = json.dumps([FORMAT, self.shards.sha256, settings], sort_keys=True)
        self.sha256 = hashlib.sha256(content.encode()).hexdigest()
        counts = self._counts()
        usable = counts["rejected"] == 0
        self._kept = np.flatnonzero(usable)
        self.rejected = {
            reason: int((counts["rejected"] == 1 + place).sum())
            for place, reason in enumerate(REJECTED)
        }
        if not len(self._kept):
            reasons = ", ".join(f"{name} {count}" for name, count in self.rejected.items() if count)
            raise InputError(
                f"none of the {len(counts)} conversations in {str(directory)!r} can be used with "
                f"max_length {max_length} ({reasons}); raise max_length or check the processor"
            )
        counts = counts[usable]
        self._lengths, self._supervised = counts["length"].copy(), counts["supervised"].copy()
        self.pictured = np.flatnonzero(counts["images"])
        self.truncated = int((counts["full"] > counts["length"]).sum())
        self.dropped_images = 0
        if self.truncated:
            shown = self._image_numbers()[self._kept]
            self.dropped_images = int((shown - counts["images"]).sum())

    def __len__(self) -> int:
        return len(self._kept)

    @cached_property
    def ids(self) -> list[str]:
        """The id of every sample; published ids are not unique."""
        ids = self.shards.ids
        return [ids[position] for position in self._kept]

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of every sample."""
        return self._lengths.tolist()

    @property
    def supervised(self) -> list[int]:
        """Number of supervised tokens of every sample."""
        return self._supervised.tolist()

    def tokens(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and labels of a sample, (S,) each; a label is IGNORE_INDEX where nothing is
        supervised."""
        sample = self._sample(self._record(index))
        return sample.input_ids, sample.labels

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``index``, ``input_ids``, ``labels`` and, where there are images, what shows them.

        Raises:
            InputError: for an image that is missing, cannot be decoded, or has changed its size.
        """
        record = self._record(index)
        read = self._sample(record)
        sample: dict[str, Any] = {
            "index": index,
            "input_ids": read.input_ids,
            "labels": read.labels,
        }
        if not read.image_tokens:
            return sample
        shown = record["images"][: len(read.image_tokens)]
        images = [self._image(record["id"], image["path"]) for image in shown]
        made = self.processor.image_processor(images=images, return_tensors="pt")
        tokens = self.family.tokens_per_image(self.config, made)
        if tokens != read.image_tokens:
            raise InputError(
                f"record {record['id']!r}: its images make {tokens} visual tokens, but had sizes "
                f"that make {read.image_tokens} when the data were built; build them again"
            )
        sample.update({name: made[name] for name in self.family.image_inputs})
        return sample

    def _record(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.shards[int(self._kept[index])]

    def _sample(self, record: Mapping[str, Any]) -> _Sample:
        sample = self._read(record)
        assert not isinstance(sample, str)  # rejected ones have no index
        return sample

    def _image(self, identity: str, path: str) -> Image.Image:
        try:
            place = locate_image(path, self._root, self._folders)
        except InputError as error:
            raise InputError(f"record {identity!r}: {error}") from error
        try:
            with Image.open(place) as image:
                return image.convert("RGB")
        except Exception as error:  # every image format fails with types of its own
            raise InputError(
                f"record {identity!r}: image {str(place)!r} cannot be read ({error}); restore it, "
                "or build the data again"
            ) from error

    def _image_numbers(self) -> np.ndarray:
        """Images of every record of the shards."""
        shards = range(len(self.shards.files))
        return np.concatenate(
            [
                self.shards.batch(s).column("images").value_lengths().to_numpy(zero_copy_only=False)
                for s in shards
            ]
        )

    # -- counts ---------------------------------------------------------------------------------

    def _counts(self) -> np.ndarray:
        """A row of _COUNTS for every record, read or made."""
        directory = self.shards.directory
        cache = directory.with_name(directory.name + ".counts") / f"{self.sha256[:32]}.npy"
        known = self._read_counts(cache)
        if known is not None:
            return known
        try:
            cache.parent.mkdir(exist_ok=True)
            with _locked(cache.with_suffix(".lock")):
                known = self._read_counts(cache)  # another process may have been faster
                if known is None:
                    known = self._make_counts()
                    with atomic_path(cache) as temporary, temporary.open("wb") as file:
                        np.save(file, known)
            return known
        except OSError as error:
            warnings.warn(
                f"token counts cannot be kept in {str(cache)!r} ({error}): every process counts "
                "for itself",
                stacklevel=2,
            )
            return self._make_counts()

    def _read_counts(self, cache: Path) -> np.ndarray | None:
        try:
            counts = np.load(cache, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        fits = counts.dtype == _COUNTS and counts.shape == (len(self.shards),)
        return counts if fits else None

    def _make_counts(self) -> np.ndarray:
        shards = range(len(self.shards.files))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        workers = min(cores or 1, len(shards))
        if workers < 2 or len(self.shards) < _ALONE:
            return np.concatenate([_count(self.shards, self._read, shard) for shard in shards])
        with ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(self.shards, self.processor, self.config, self.max_length),
        ) as pool:
            return np.concatenate(list(pool.map(_count_shard, shards)))


def _settings(processor: Any, config: Any, max_length: int | None) -> dict[str, Any]:
    """All that token counts follow from beside the records."""
    import transformers

    tokenizer = processor.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab())
    return {
        "tokenizer": hashlib.sha256(words.encode()).hexdigest(),
        "special": [str(tokenizer.bos_token), str(tokenizer.eos_token), processor.image_token_id],
        "template": processor.chat_template,
        "images": json.loads(json.dumps(processor.image_processor.to_dict(), default=str)),
        "family": config.model_type,
        "strategy": getattr(config, "vision_feature_select_strategy", None),
        "patch_size": config.vision_config.patch_size,
        "max_length": max_length,
        "transformers": transformers.__version__,
    }


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file gives the lock back
