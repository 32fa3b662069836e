"""Conversations at full scale as samples for training; images are read on demand.

How many tokens a conversation has under a processor is counted once, without opening an image, and
kept beside the directory; see :class:`ShardedConversations`.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from grace.data.images import read_image
from grace.data.samples import REJECTED, Sample, SampleReader
from grace.data.shards import FORMAT, Shards, locate_image
from grace.data.token_counts import processor_settings, token_counts
from grace.errors import InputError
from grace.models import family_of


class ShardedConversations(Dataset):
    """The conversations of a directory of shards, under a processor, as samples for training.

    The interface is that of :class:`grace.data.ConversationDataset`: text is tokenized and images
    are read on demand. Conversations of several images, several turns, or text alone mix::

        data = ShardedConversations("conversations", processor, model.config, max_length=2048)
        trainer = GraceTrainer(model, arguments, data, Collator(...), method=method)

    Token counts are computed once for a processor and ``max_length``, and kept in
    ``<directory>.counts``, beside the directory; processes that start together wait for the one
    that counts.

    Args:
        directory: A directory of shards, written by :func:`grace.data.write_shard`.
        processor: The model's processor.
        config: The model's configuration.
        max_length: Tokens that a sample may have; None for no bound.
        image_root: The folder of image folders; by default the places that the index names.

    Attributes:
        family: The model's adapter.
        processor: As given.
        config: As given.
        max_length: As given.
        shards: The records.
        rejected: Number of conversations left out, by a reason of ``REJECTED``.
        truncated: Number of conversations cut to ``max_length``.
        pictured: Indices of the samples that show an image, (n,) int64.
        dropped_images: Images in the parts that were cut off.
        sha256: Of everything that the samples follow from, wherever the images are.

    Raises:
        InputError: The directory cannot be read, a record cannot be encoded, or none fits.
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
        self.family = family_of(config)
        self.processor = processor
        self.config = config
        self.max_length = max_length
        self.shards = Shards(directory)
        places = self.shards.index.get("images", {})
        self._root = places.get("root", ".") if image_root is None else image_root
        self._folders = places.get("folders", {}) if image_root is None else {}
        self._read = SampleReader(processor, config, max_length)
        settings = processor_settings(processor, config, max_length)
        content = json.dumps([FORMAT, self.shards.sha256, settings], sort_keys=True)
        self.sha256 = hashlib.sha256(content.encode()).hexdigest()
        self._take(token_counts(self.shards, self._read, self.sha256))

    def _take(self, counts: np.ndarray) -> None:
        """Keep the records that can be used, and the numbers of the others."""
        usable = counts["rejected"] == 0
        self._kept = np.flatnonzero(usable)
        self.rejected = {
            reason: int((counts["rejected"] == 1 + place).sum())
            for place, reason in enumerate(REJECTED)
        }
        if not len(self._kept):
            reasons = ", ".join(f"{name} {count}" for name, count in self.rejected.items() if count)
            raise InputError(
                f"none of the {len(counts)} conversations in {str(self.shards.directory)!r} can be "
                f"used with max_length {self.max_length} ({reasons}); raise max_length or check "
                "the processor"
            )
        counts = counts[usable]
        self._lengths, self._supervised = counts["length"].copy(), counts["supervised"].copy()
        self.pictured = np.flatnonzero(counts["images"])
        self.truncated = int((counts["full"] > counts["length"]).sum())
        self.dropped_images = 0
        if self.truncated:
            before = self._images_per_record()[self._kept]
            self.dropped_images = int((before - counts["images"]).sum())

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
        """Token ids and labels of a sample, (S,) each; IGNORE_INDEX where nothing is supervised."""
        sample = self._sample(self._record(index))
        return sample.input_ids, sample.labels

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``index``, ``input_ids``, ``labels`` and, where there are images, the image inputs.

        Raises:
            InputError: An image is missing, cannot be decoded, or has changed its size.
        """
        record = self._record(index)
        sample = self._sample(record)
        item = {"index": index, "input_ids": sample.input_ids, "labels": sample.labels}
        if not sample.image_tokens:
            return item
        kept = record["images"][: len(sample.image_tokens)]
        images = [self._image(record["id"], image["path"]) for image in kept]
        inputs = self.processor.image_processor(images=images, return_tensors="pt")
        tokens = self.family.tokens_per_image(self.config, inputs)
        if tokens != sample.image_tokens:
            raise InputError(
                f"record {record['id']!r}: its images make {tokens} visual tokens, but had sizes "
                f"that make {sample.image_tokens} when the data were built; build them again"
            )
        return {**item, **{name: inputs[name] for name in self.family.image_inputs}}

    def _record(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.shards[int(self._kept[index])]

    def _sample(self, record: Mapping[str, Any]) -> Sample:
        sample = self._read(record)
        assert not isinstance(sample, str)  # rejected ones have no index
        return sample

    def _image(self, identity: str, path: str) -> Image.Image:
        try:
            place = locate_image(path, self._root, self._folders)
        except InputError as error:
            raise InputError(f"record {identity!r}: {error}") from error
        name = f"record {identity!r}: image {str(place)!r}"
        return read_image(place, name, "restore it, or build the data again")

    def _images_per_record(self) -> np.ndarray:
        """Number of images of every record of the shards, those of unusable ones too."""
        shards = range(len(self.shards.files))
        return np.concatenate(
            [
                self.shards.batch(s).column("images").value_lengths().to_numpy(zero_copy_only=False)
                for s in shards
            ]
        )
