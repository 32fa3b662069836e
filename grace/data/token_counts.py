"""How many tokens each conversation has under a processor: counted once, in parallel, and kept."""

import fcntl
import hashlib
import json
import multiprocessing
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grace.data.encoder import IGNORE_INDEX
from grace.data.samples import REJECTED, SampleReader
from grace.data.shards import Shards
from grace.files import atomic_path

COUNTS = np.dtype(
    [
        ("length", np.int32),
        ("supervised", np.int32),
        ("full", np.int32),
        ("images", np.int32),
        ("rejected", np.int8),
    ]
)
"""A record's counts: tokens and supervised tokens after cutting, tokens before, images after, and 0
or 1 + the place in ``REJECTED`` of the reason why the record cannot be used."""
_ALONE = 20_000  # fewer conversations than that are not worth further processes


def token_counts(shards: Shards, reader: SampleReader, digest: str) -> np.ndarray:
    """The counts of every record of a directory.

    They are kept in ``<directory>.counts``, beside the directory; processes that start together
    wait for the one that counts.

    Args:
        shards: The records.
        reader: Makes the samples.
        digest: Of everything that the counts follow from; the name they are kept under.

    Returns:
        A row of COUNTS a record.

    Raises:
        InputError: A record cannot be encoded.
    """
    directory = shards.directory
    cache = directory.with_name(directory.name + ".counts") / f"{digest[:32]}.npy"
    counts = _read(cache, len(shards))
    if counts is not None:
        return counts
    try:
        cache.parent.mkdir(exist_ok=True)
        with _locked(cache.with_suffix(".lock")):
            counts = _read(cache, len(shards))  # another process may have been faster
            if counts is None:
                counts = count_tokens(shards, reader)
                with atomic_path(cache) as temporary, temporary.open("wb") as file:
                    np.save(file, counts)
        return counts
    except OSError as error:
        warnings.warn(
            f"token counts cannot be kept in {str(cache)!r} ({error}): every process counts "
            "for itself",
            stacklevel=2,
        )
        return count_tokens(shards, reader)


def count_tokens(shards: Shards, reader: SampleReader) -> np.ndarray:
    """A row of COUNTS for every record, by as many processes as there are cores."""
    numbers = range(len(shards.files))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = min(cores or 1, len(numbers))
    if workers < 2 or len(shards) < _ALONE:
        return np.concatenate([_count(shards, reader, shard) for shard in numbers])
    with ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(shards, reader.processor, reader.config, reader.max_length),
    ) as pool:
        return np.concatenate(list(pool.map(_count_shard, numbers)))


def processor_settings(processor: Any, config: Any, max_length: int | None) -> dict[str, Any]:
    """Everything that token counts follow from but the records."""
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


def _read(cache: Path, records: int) -> np.ndarray | None:
    try:
        counts = np.load(cache, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return counts if counts.dtype == COUNTS and counts.shape == (records,) else None


def _count(shards: Shards, reader: SampleReader, shard: int) -> np.ndarray:
    """A row of COUNTS for every record of one shard."""
    batch = shards.batch(shard)
    counts = np.zeros(batch.num_rows, COUNTS)
    for row, position in enumerate(shards.range_of(shard)):
        sample = reader(shards[position])
        if isinstance(sample, str):
            counts[row]["rejected"] = 1 + REJECTED.index(sample)
            continue
        supervised = int((sample.labels[1:] != IGNORE_INDEX).sum())
        images = len(sample.image_tokens)
        counts[row] = (len(sample.labels), supervised, sample.full_length, images, 0)
    return counts


_worker: tuple[Shards, SampleReader] | None = None


def _start_worker(shards: Shards, processor: Any, config: Any, max_length: int | None) -> None:
    global _worker
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker = shards, SampleReader(processor, config, max_length)


def _count_shard(shard: int) -> np.ndarray:
    assert _worker is not None
    return _count(*_worker, shard)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file gives the lock back
