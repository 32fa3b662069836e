"""A record of the published conversations to the sample that a processor makes of it."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from grace.data.encoder import IGNORE_INDEX, SystemEncoder
from grace.errors import InputError
from grace.models import Family, family_of

REJECTED = ("images", "answer", "shape", "marker")
"""Why a conversation cannot be used under a processor: its images alone do not fit into
``max_length``; no answer begins before it; an image has a shape that the processor refuses; its
text holds the processor's own token of an image."""


class ImageTokens:
    """Number of visual tokens of an image, from its size alone.

    A processor with bounds on pixels (Qwen) says how it would resize the image; one that makes all
    images the same size (LLaVA) has the same number for all.

    Args:
        family: The model's adapter.
        processor: Its processor.
        config: Its configuration.

    Raises:
        InputError: The processor does neither.
    """

    def __init__(self, family: Family, processor: Any, config: Any) -> None:
        self._patches = getattr(processor.image_processor, "get_number_of_image_patches", None)
        self._known: dict[tuple[int, int], int | None] = {}
        if self._patches is not None:
            self._merge = processor.image_processor.merge_size**2
            return
        blanks = [Image.new("RGB", size) for size in ((96, 48), (40, 120))]
        inputs = processor.image_processor(images=blanks, return_tensors="pt")
        try:
            first, second = family.tokens_per_image(config, inputs)
        except (AttributeError, KeyError, ValueError) as error:
            raise InputError(
                "the image processor makes images of different sizes and does not say how many "
                "patches an image has; use one with a fixed size"
            ) from error
        assert first == second
        self._fixed = first

    def __call__(self, width: int, height: int) -> int | None:
        """Tokens of an image of so many pixels; None for a shape that the processor refuses."""
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
    """How many tokens remain of a sample after cutting; 0 if none of them is supervised.

    A sample that is too long ends with the last supervised token that fits. Visual tokens are not
    supervised, so no image is ever cut: what follows that token is dropped whole. A causal model
    loses nothing by it but what lies beyond ``max_length``.

    Args:
        labels: (S,), IGNORE_INDEX where nothing is supervised.
        max_length: Tokens that the sample may have; None for no bound.
    """
    if max_length is None or len(labels) <= max_length:
        return len(labels)
    supervised = np.flatnonzero(labels[:max_length] != IGNORE_INDEX)
    return int(supervised[-1]) + 1 if len(supervised) and supervised[-1] > 0 else 0


@dataclass
class Sample:
    """A record under a processor, after cutting.

    Attributes:
        input_ids: (S,) token ids.
        labels: (S,), IGNORE_INDEX where nothing is supervised.
        image_tokens: Visual tokens of each image that is left.
        full_length: Tokens before cutting.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    image_tokens: list[int]
    full_length: int


class SampleReader:
    """Turns records into samples under one processor; counting and training share it.

    Attributes:
        processor: The model's processor.
        config: The model's configuration.
        max_length: Tokens that a sample may have; None for no bound.
    """

    def __init__(self, processor: Any, config: Any, max_length: int | None) -> None:
        self.processor = processor
        self.config = config
        self.max_length = max_length
        self._encode = SystemEncoder(processor)
        self._image_tokens = ImageTokens(family_of(config), processor, config)
        self._marker = processor.tokenizer.convert_ids_to_tokens(processor.image_token_id)

    def __call__(self, record: Mapping[str, Any]) -> Sample | str:
        """The sample of a record (a row of ``grace.data.shards.SCHEMA``), or one of REJECTED.

        Raises:
            InputError: The conversation cannot be encoded; the message names the record.
        """
        images = record["images"]
        sizes = (self._image_tokens(image["width"], image["height"]) for image in images)
        counts = [count for count in sizes if count is not None]
        if len(counts) != len(images):
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
        visual = int((ids[:kept] == self.processor.image_token_id).sum())
        whole = bisect_right(np.cumsum(counts).tolist(), visual)
        return Sample(ids[:kept], labels[:kept], counts[:whole], len(ids))
