"""Conversations as samples for training."""

import hashlib
import json
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from grace.data.images import read_image
from grace.data.index import Checker, kept_index, processor_settings
from grace.data.records import ImageContent, ImageFolder, Record, locate_image
from grace.data.samples import Sample, SampleReader
from grace.data.sources import open_records
from grace.errors import InputError
from grace.models import family_of

_LISTED = 10  # bad records that an error names


class ConversationDataset(Dataset):
    """Conversations with images as samples for training; text is tokenized and images are read
    on demand.

    ::

        data = ConversationDataset("train.jsonl", load_processor(path), model.config,
                                   image_folder="photos", max_length=2048)
        collate = Collator(data.family, data.image_token_id, pad_token_id)
        batch = collate([data[0], data[1]])

    Every record is checked first, in parallel; see :mod:`grace.data.index`. Records of one image,
    of several, of text alone, and images of any sizes mix. docs/data.md has the schemas.

    Args:
        source: A path (JSON, JSONL, parquet, Arrow), several, a folder of such files, a directory
            that ``datasets`` saved, the name of a data set on the hub, or a ``datasets.Dataset``.
        processor: The model's processor.
        config: The model's configuration.
        image_folder: Where images lie whose paths are in the records; by default beside the data
            file. A mapping gives folders by the first part of the path, "" for all others.
        max_length: Tokens that a sample may have; by default the model's positions. A longer one is
            cut after the last answer's token that fits.
        on_bad_record: What a record that cannot be used does: "error", or "skip".
        max_bad_share: Share of the records that may be skipped.
        split: Of data that have several.
        limit: Number of records to take, from the first; all by default.
        records: Positions of the records to take instead, in this order.
        vision_features: (records of the source, patches, width): the frozen tower's output, which
            replaces the pixels; see ``Family.take_vision_features``. For records of one image at
            most, all of one size.
        supervise_prompts: Supervise every token but the visual ones, as in language modelling.

    Attributes:
        family: The model's adapter.
        processor: As given.
        config: As given.
        image_token_id: The token that stands for a patch of an image.
        max_length: Tokens that a sample may have.
        vision_features: Those of the records that were taken; None to read pixels.
        bad_records: (id, reason) of the records that were left out.
        truncated: Number of samples that were cut to ``max_length``.
        dropped_images: Images in the parts that were cut off.
        pictured: Indices of the samples that show an image, (n,) int64.
        sha256: Of everything that the samples follow from, wherever files and images are.

    Raises:
        InputError: The source is missing, unreadable or empty; the processor cannot be used for
            training; or more records are bad than may be, of which the first ten are named.
    """

    def __init__(
        self,
        source: Any,
        processor: Any,
        config: Any,
        *,
        image_folder: ImageFolder | None = None,
        max_length: int | None = None,
        on_bad_record: str = "error",
        max_bad_share: float = 0.01,
        split: str = "train",
        limit: int | None = None,
        records: Sequence[int] | None = None,
        vision_features: np.ndarray | None = None,
        supervise_prompts: bool = False,
    ) -> None:
        if max_length is not None and max_length < 1:
            raise InputError(f"max_length is {max_length}; it must be at least 1")
        if on_bad_record not in ("error", "skip"):
            raise InputError(f"on_bad_record is {on_bad_record!r}; choose 'error' or 'skip'")
        self.family = family_of(config)
        self.processor = processor
        self.config = config
        self.image_token_id = self.family.image_token_id(config)
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        self.max_length = max_length if max_length is not None else positions
        self._image_folder = image_folder
        self._read = SampleReader(
            self.family,
            processor,
            config,
            max_length=self.max_length,
            supervise_prompts=supervise_prompts,
        )
        self._records = open_records(source, split)
        self._check = Checker(self._records, self._read, self._locate)
        self._settings = {
            **processor_settings(processor, config),
            "max_length": self.max_length,
            "supervise_prompts": supervise_prompts,
        }
        self._choose(limit, records)
        self._take(on_bad_record, max_bad_share)
        self.vision_features = self._features(vision_features)

    # -- which records ---------------------------------------------------------------------------

    def _choose(self, limit: int | None, records: Sequence[int] | None) -> None:
        """Positions of the records that are checked."""
        every = range(len(self._records))
        self._chosen: Sequence[int] | range = every if limit is None else every[:limit]
        if records is not None:
            if any(not 0 <= position < len(every) for position in records):
                raise InputError(f"records are positions from 0 to {len(every) - 1}")
            self._chosen = [int(position) for position in records]

    def _take(self, on_bad_record: str, max_bad_share: float) -> None:
        """Check all records, refuse or leave out bad ones, and keep the index of the others."""
        chosen = self._chosen
        named = [chosen.start, chosen.stop] if isinstance(chosen, range) else list(chosen)
        content = [self._records.fingerprint, str(self._image_folder), self._settings, named]
        self._index = kept_index(self._check, chosen, json.dumps(content, sort_keys=True))
        self._index.files.clear()  # a started worker process needs none of them
        bad = self._index.bad
        self.bad_records = [(self._index.ids[place], reason) for place, reason in bad]
        if bad and (on_bad_record == "error" or len(bad) > max_bad_share * len(chosen)):
            self._refuse(on_bad_record, max_bad_share)
        rows = self._index.rows
        self._places = np.flatnonzero(rows["length"])
        if not len(self._places):
            self._refuse("error", 0)
        kept = rows[self._places]
        self._lengths, self._supervised = kept["length"], kept["supervised"]
        self.pictured = np.flatnonzero(kept["shown"])
        self.truncated = int((kept["full"] > kept["length"]).sum())
        self.dropped_images = int((kept["images"] - kept["shown"]).sum())
        settings = json.dumps(self._settings, sort_keys=True)
        self.sha256 = hashlib.sha256(settings.encode() + kept["digest"].tobytes()).hexdigest()
        for count, what in ((len(bad), "are left out"), (self.truncated, "are cut to max_length")):
            if count:
                warnings.warn(f"{count} of {len(chosen)} records {what}", stacklevel=3)

    def _refuse(self, on_bad_record: str, share: float) -> None:
        """Raise an error that lists the first bad records."""
        total, count = len(self._chosen), len(self.bad_records)
        lines = [
            f"record {identity!r} (number {self._chosen[place]}): {reason}"
            for (identity, reason), (place, _) in zip(
                self.bad_records[:_LISTED], self._index.bad, strict=False
            )
        ]
        if count > _LISTED:
            lines.append(f"and {count - _LISTED} more")
        bound = f", more than the share of {share} that may be" if on_bad_record == "skip" else ""
        mend = "mend or remove them" + (
            ", or leave them out with on_bad_record='skip'" if on_bad_record == "error" else ""
        )
        raise InputError(
            f"{self._records.name}: {count} of {total} records cannot be used{bound}; {mend}:",
            lines,
        )

    def _locate(self, position: int, path: str) -> Path:
        """The file of an image. Raises InputError where it leads out of its folder."""
        beside = self._records.folder(position)
        return locate_image(path, beside if self._image_folder is None else self._image_folder)

    # -- samples ---------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._places)

    @cached_property
    def ids(self) -> list[str]:
        """The id of every sample."""
        return [self._index.ids[place] for place in self._places]

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
        place = self._place(index)
        sample = self._index.sample(place) or self._sample(place, self._record(place))
        return sample.input_ids, sample.labels

    def images(self, index: int) -> list[Image.Image]:
        """The images that a sample shows, in order.

        Raises:
            InputError: One is missing, cannot be decoded, or has another size than it had when the
                data were checked.
        """
        place = self._place(index)
        return self._images(place, self._check.images(self._chosen[place]))

    def pixels(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """The family's ``image_inputs`` for the images of some samples: (patches, ...) each.

        Raises:
            InputError: As :meth:`images`.
        """
        images = [image for index in indices for image in self.images(index)]
        return self.family.read_images(self.processor, images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``index``, ``input_ids``, ``labels``, ``image_spans`` and, where there are images, the
        image inputs.

        Raises:
            InputError: As :meth:`images`.
        """
        place = self._place(index)
        tokens, contents = self._index.sample(place), None
        if tokens is None:
            record = self._record(place)
            tokens, contents = self._sample(place, record), record.images
        sample: dict[str, Any] = {
            "index": index,
            "input_ids": tokens.input_ids,
            "labels": tokens.labels,
            "image_spans": tokens.image_spans,
        }
        if not tokens.image_spans:
            return sample
        if self.vision_features is not None:
            sample["pixel_values"] = torch.from_numpy(self.vision_features[index])
            return {**sample, **self._beside_pixels}
        if contents is None:
            contents = self._check.images(self._chosen[place])
        images = self._images(place, contents)
        return {**sample, **self.family.read_images(self.processor, images)}

    def _place(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return int(self._places[index])

    def _record(self, place: int) -> Record:
        return self._check.record(self._chosen[place])

    def _sample(self, place: int, record: Record) -> Sample:
        return self._read(record, self._index.sizes_of(place))

    def _images(self, place: int, contents: Sequence[ImageContent]) -> list[Image.Image]:
        images = []
        shown = contents[: self._index.rows["shown"][place]]
        for content, size in zip(shown, self._index.sizes_of(place), strict=False):
            where = "" if isinstance(content, bytes) else f" {str(content)!r}"
            name = f"record {self._index.ids[place]!r}: its image{where}"
            image = read_image(content, name, "restore it, or remove the record")
            if image.size != size:
                raise InputError(
                    f"{name} has {image.size} pixels, and had {size} when the data were checked; "
                    "start again"
                )
            images.append(image)
        return images

    # -- features in the place of pixels -----------------------------------------------------------

    def _features(self, features: np.ndarray | None) -> np.ndarray | None:
        """Those of the samples, in order."""
        if features is None:
            return None
        positions = np.asarray(self._chosen)[self._places]
        if len(features) <= positions.max():
            raise InputError(
                f"{self._records.name}: {len(self._records)} records but vision features for "
                f"{len(features)}; rebuild the features"
            )
        if np.array_equal(positions, np.arange(len(positions))):
            return features
        return features[positions]

    @cached_property
    def _beside_pixels(self) -> dict[str, torch.Tensor]:
        """The image inputs beside the pixels, which are the same for all images."""
        first = self.pixels([int(self.pictured[0])])
        return {name: value for name, value in first.items() if name != "pixel_values"}
