"""Which samples make a batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

from grace.data import IGNORE_INDEX, Collator, ConversationDataset


class EpochLengthGroupedSampler(LengthGroupedSampler):
    """Groups samples of similar length; the order follows from the seed and the epoch alone.

    Attributes:
        seed: Of the order.
        epoch: The epoch whose order comes next.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; the trainer calls this."""
        self.epoch = epoch

    def __iter__(self):
        self.generator.manual_seed(self.seed * 1_000_003 + self.epoch)
        return super().__iter__()


@dataclass
class ImageInEveryBatch:
    """A collator for several processes: a batch of text alone gets one more row, with an image and
    nothing supervised.

    So every process runs the vision tower and the projectors on every batch. Where parameters are
    sharded, all processes gather them together, and one that left out a module would wait for
    ever. The row is no part of any loss: ``image_spans`` and ``indices`` leave it out.

    Attributes:
        collate: Makes the batches.
        blank: The sample of the further row.
    """

    collate: Collator
    blank: dict[str, Any]

    @classmethod
    def around(cls, collate: Collator, dataset: ConversationDataset) -> "ImageInEveryBatch | None":
        """A collator with the image of the data set's first sample that has one.

        Returns:
            None where no sample has an image.
        """
        if not len(dataset.pictured):
            return None
        sample = dict(dataset[int(dataset.pictured[0])])
        end = max(stop for _, stop in sample["image_spans"])
        sample["input_ids"] = sample["input_ids"][: end + 1]  # with the token that ends the image
        sample["labels"] = np.full_like(sample["input_ids"], IGNORE_INDEX)
        return cls(collate, sample)

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        if any(self.collate.family.image_inputs[0] in sample for sample in samples):
            return self.collate(samples)
        batch = self.collate([*samples, self.blank])
        return {**batch, "image_spans": [], "indices": batch["indices"][:-1]}
