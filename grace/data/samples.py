"""A record to the sample that a processor makes of it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from grace.data.encoder import IGNORE_INDEX, Encoder
from grace.data.image_tokens import ImageTokens
from grace.data.records import Record
from grace.errors import InputError
from grace.models import Family


class Sample(NamedTuple):
    """The tokens of a record, after cutting.

    Attributes:
        input_ids: (S,) int64.
        labels: (S,) int64; IGNORE_INDEX where nothing is supervised.
        image_spans: (start, stop) of each image that is left, from its first visual token to one
            past its last.
        full_length: Tokens before cutting.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    image_spans: list[tuple[int, int]]
    full_length: int


class SampleReader:
    """Turns records into samples under one processor; checking and training share it.

    ::

        read = SampleReader(family, processor, config, max_length=2048)
        sample = read(record, [(640, 480)])    # a record with one image of this size

    Args:
        family: The model's adapter.
        processor: Its processor.
        config: Its configuration.
        max_length: Tokens that a sample may have; None for no bound.
        supervise_prompts: Supervise every token but the visual ones, as in language modelling.

    Raises:
        InputError: The processor's chat template cannot be used for training.
    """

    def __init__(
        self,
        family: Family,
        processor: Any,
        config: Any,
        *,
        max_length: int | None = None,
        supervise_prompts: bool = False,
    ) -> None:
        self.max_length = max_length
        self.image_tokens = ImageTokens(family, processor, config)
        self._encode = Encoder(processor, self.image_tokens.placeholder)
        self._encode.check()
        self._supervise_prompts = supervise_prompts
        self._joins_images = family.joins_images

    def __call__(self, record: Record, sizes: Sequence[tuple[int, int]]) -> Sample:
        """The sample of a record.

        Args:
            record: The record.
            sizes: (width, height) of its images, in order.

        Raises:
            InputError: The record cannot be used; the message does not name it.
        """
        images = [self.image_tokens(*size, of=len(sizes)) for size in sizes]
        placeholder = self.image_tokens.placeholder
        encoded = self._encode(record.turns, images)
        ids, labels = (np.array(part, np.int64) for part in encoded[:2])
        kept = kept_tokens(labels, self.max_length)
        if not kept:
            visual = int((ids == placeholder).sum())
            raise InputError(
                f"no answer begins within the {self.max_length} tokens of max_length (its images "
                f"have {visual}); raise max_length, or make its images smaller"
            )
        if self._supervise_prompts:
            labels = np.where(ids == placeholder, IGNORE_INDEX, ids)
        spans = [span for span in encoded.image_spans if span[1] <= kept]
        if self._joins_images and len(spans) not in (0, len(images)):
            raise InputError(
                f"max_length {self.max_length} leaves {len(spans)} of {len(images)} images, which "
                "are read together; raise max_length, or make them one"
            )
        return Sample(ids[:kept], labels[:kept], spans, len(ids))


def kept_tokens(labels: np.ndarray, max_length: int | None) -> int:
    """How many tokens remain of a sample after cutting; 0 if none of them is supervised.

    A sample that is too long ends with the last supervised token that fits. An image's tokens are
    not supervised, so no image is ever cut: what follows that token is dropped whole. A causal
    model loses nothing by it but what lies beyond ``max_length``.

    Args:
        labels: (S,), IGNORE_INDEX where nothing is supervised.
        max_length: Tokens that the sample may have; None for no bound.
    """
    if max_length is None or len(labels) <= max_length:
        return len(labels)
    supervised = np.flatnonzero(labels[:max_length] != IGNORE_INDEX)
    return int(supervised[-1]) + 1 if len(supervised) and supervised[-1] > 0 else 0
