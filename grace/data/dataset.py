"""The conversations of a parquet file as samples for training."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import Dataset

from grace.data.encoder import IGNORE_INDEX, Encoder
from grace.data.images import read_image
from grace.errors import InputError
from grace.models import family_of

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("conversations", pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))),
    ]
)
"""Columns of a parquet file of conversations."""


class ConversationDataset(Dataset):
    """Conversations with images from a parquet file, tokenized once, pixels made on demand.

    ::

        data = ConversationDataset("train.parquet", load_processor(path), model.config)
        batch = Collator(data.family, data.processor.image_token_id, pad)([data[0], data[1]])

    Args:
        path: The file, of the columns in `SCHEMA`; all images have to come to the same number of
            visual tokens.
        processor: The model's processor.
        config: The model's configuration.
        limit: Number of records to take, from the first; all by default.
        records: Positions of the records to take instead, in this order.
        vision_features: (records of the file, patches, width): the frozen tower's output, which
            replaces the pixels; see ``Family.take_vision_features``.
        supervise_prompts: Supervise every token but the visual ones, as in language modelling.

    Attributes:
        family: The model's adapter.
        processor: As given.
        config: As given.
        vision_features: Those of the records that were taken; None to read pixels.
        ids: The id of every sample.

    Raises:
        InputError: The file is missing, unreadable or empty, lacks a column, or has a bad record.
    """

    def __init__(
        self,
        path: str | Path,
        processor: Any,
        config: Any,
        *,
        limit: int | None = None,
        records: Sequence[int] | None = None,
        vision_features: np.ndarray | None = None,
        supervise_prompts: bool = False,
    ) -> None:
        self.family = family_of(config)
        self.processor = processor
        self.config = config
        table = _read_parquet(Path(path), ("id", "image", "conversations"))
        if limit is not None:
            table = table.slice(0, limit)
        if records is not None:
            table = table.take(records)
            if vision_features is not None:
                vision_features = vision_features[records]
        self.ids: list[str] = table["id"].to_pylist()
        self._images = table["image"].combine_chunks()
        self._has_image = self._images.is_valid().to_pylist()
        if vision_features is not None and len(vision_features) < len(self.ids):
            raise InputError(
                f"{path}: {len(self.ids)} records but vision features for {len(vision_features)}; "
                "rebuild the features"
            )
        self.vision_features = vision_features
        per_image: list[int] = []
        if True in self._has_image:
            first = self.pixels([self._has_image.index(True)])
            per_image = self.family.tokens_per_image(config, first)
            self._beside_pixels = {name: first[name] for name in first if name != "pixel_values"}
        self._input_ids: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        encode, image = Encoder(processor), processor.image_token_id
        for identity, turns, has_image in zip(
            self.ids, table["conversations"].to_pylist(), self._has_image, strict=True
        ):
            try:
                ids, labels = encode(turns, per_image if has_image else [])
            except InputError as error:
                raise InputError(f"{path}, record {identity!r}: {error}") from error
            if supervise_prompts:
                labels = [IGNORE_INDEX if token == image else token for token in ids]
            self._input_ids.append(np.asarray(ids, dtype=np.int64))
            self._labels.append(np.asarray(labels, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of every sample."""
        return [len(ids) for ids in self._input_ids]

    @property
    def supervised(self) -> list[int]:
        """Number of supervised tokens of every sample."""
        return [int((labels[1:] != IGNORE_INDEX).sum()) for labels in self._labels]

    def image(self, index: int) -> Image.Image:
        """The decoded image of a sample.

        Raises:
            InputError: Its bytes are not an image.
        """
        content = self._images[index]["bytes"].as_py()
        name = f"record {self.ids[index]!r}: its image"
        return read_image(io.BytesIO(content), name, "rebuild the data or remove the record")

    def pixels(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """The family's ``image_inputs`` for the images of some samples: (patches, ...) each.

        Raises:
            InputError: An image cannot be decoded.
        """
        images = [self.image(index) for index in indices]
        inputs = self.processor.image_processor(images=images, return_tensors="pt")
        return {name: inputs[name] for name in self.family.image_inputs}

    def tokens(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and labels of a sample, (S,) each; IGNORE_INDEX where nothing is supervised."""
        return self._input_ids[index], self._labels[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``index``, ``input_ids``, ``labels`` and, where there is an image, the image inputs."""
        input_ids, labels = self.tokens(index)
        sample: dict[str, Any] = {"index": index, "input_ids": input_ids, "labels": labels}
        if not self._has_image[index]:
            return sample
        if self.vision_features is not None:
            sample["pixel_values"] = torch.from_numpy(self.vision_features[index])
            sample.update(self._beside_pixels)
        else:
            sample.update(self.pixels([index]))
        return sample


def _read_parquet(path: Path, columns: Sequence[str]) -> pa.Table:
    if not path.is_file():
        raise InputError(f"data file {str(path)!r} does not exist; build it or correct the path")
    try:
        table = pq.read_table(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{str(path)!r} is not a readable parquet file ({error}); rebuild it"
        ) from error
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise InputError(
            f"{str(path)!r} lacks column(s) {', '.join(missing)}; "
            f"it has {', '.join(table.column_names)}"
        )
    if table.num_rows == 0:
        raise InputError(f"{str(path)!r} has no records; rebuild it")
    try:
        table = table.select(list(columns)).cast(SCHEMA)
        table.validate(full=True)  # the texts are Unicode
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise InputError(
            f"{str(path)!r} holds no conversations in the LLaVA schema ({error}); rebuild it"
        ) from error
    return table
