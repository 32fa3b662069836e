"""Samples to batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from grace.data.encoder import IGNORE_INDEX
from grace.models import Family
from grace.types import ImageSpan


@dataclass
class Collator:
    """Pads samples on the right and says where images and supervised tokens are.

    Beside the model's inputs (B, S) a batch holds, all decided on the host: ``image_spans``;
    ``token_rows`` and ``token_columns`` (N,), the positions whose NEXT token is supervised;
    ``targets`` (N,), those tokens; ``indices``, the samples' positions in the data set, a list::

        collate = Collator(family, config.image_token_id, processor.tokenizer.pad_token_id)

    Attributes:
        family: The model's adapter.
        image_token_id: The token that stands for a patch of an image.
        pad_token_id: The token of padding.
        multiple: Lengths are padded to a multiple of this. On a CPU oneDNN compiles bfloat16
            products for every new shape, which takes a small model longer than the padding.
    """

    family: Family
    image_token_id: int
    pad_token_id: int
    multiple: int = 1

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        length = max(len(sample["input_ids"]) for sample in samples)
        length += -length % self.multiple
        shape = (len(samples), length)
        input_ids = torch.full(shape, self.pad_token_id, dtype=torch.long)
        labels = torch.full(shape, IGNORE_INDEX, dtype=torch.long)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        for row, sample in enumerate(samples):
            count = len(sample["input_ids"])
            input_ids[row, :count] = torch.from_numpy(sample["input_ids"])
            labels[row, :count] = torch.from_numpy(sample["labels"])
            attention_mask[row, :count] = 1
        rows, columns = (labels[:, 1:] != IGNORE_INDEX).nonzero(as_tuple=True)
        return {
            "input_ids": input_ids,
            "labels": labels,
            "attention_mask": attention_mask,
            **self.family.token_inputs(input_ids, self.image_token_id, labels),
            **self.family.join_images(samples),
            "image_spans": self._spans(samples, input_ids),
            "token_rows": rows,
            "token_columns": columns,
            "targets": labels[rows, columns + 1],
            "indices": [sample["index"] for sample in samples],
        }

    def _spans(self, samples: Sequence[dict[str, Any]], input_ids: torch.Tensor) -> list[ImageSpan]:
        """Each image's runs of visual tokens; without spans in the samples, every run is one."""
        runs = self.family.image_spans(input_ids, self.image_token_id)
        listed = [
            (row, start, stop)
            for row, sample in enumerate(samples)
            for start, stop in sample.get("image_spans", ())
        ]
        if runs == listed or not all("image_spans" in sample for sample in samples):
            return runs
        spans: list[ImageSpan] = []
        for row, start, stop in listed:
            inside = input_ids[row : row + 1, start:stop]
            parts = self.family.image_spans(inside, self.image_token_id)
            spans.append((row, *(start + edge for _, *part in parts for edge in part)))
        return spans
