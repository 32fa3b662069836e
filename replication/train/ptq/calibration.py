"""The conversations that a quantizer is calibrated on: a seeded draw from the training data."""

import hashlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

from grace.data import Collator, ConversationDataset
from grace.errors import InputError
from replication.data.conversations.load import load_conversations


@dataclass(frozen=True)
class Calibration:
    """``samples`` training conversations with an image, drawn from ``path`` with ``seed``.

    Attributes:
        path: Conversations: a file of the small world, or the directory of published ones.
        samples: How many are drawn.
        seed: Of the draw.
    """

    path: Path
    samples: int
    seed: int

    def draw(self, processor: Any, config: Any) -> "Drawn":
        """The conversations of this draw, tokenized.

        Without replacement, and in the order drawn: the first n of a longer draw are those of a
        shorter one.

        Raises:
            InputError: For too few conversations.
        """
        data = self._open(processor, config)
        with_image = data.pictured.tolist()
        if len(with_image) < self.samples:
            raise InputError(
                f"calibration.samples is {self.samples}, but {str(self.path)!r} has only "
                f"{len(with_image)} conversations with an image; ask for fewer"
            )
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(with_image), generator=generator)[: self.samples].tolist()
        return Drawn(data, [with_image[index] for index in order])

    def _open(self, processor: Any, config: Any) -> ConversationDataset:
        if self.path.is_dir():
            return load_conversations(self.path, processor, config)
        return ConversationDataset(self.path, processor, config)


@dataclass(frozen=True)
class Drawn:
    """Drawn conversations, tokenized: samples of ``data``, by their indices."""

    data: ConversationDataset
    indices: list[int]

    @property
    def sha256(self) -> str:
        """Hash of the conversations' ids and tokens, in order."""
        digest = hashlib.sha256()
        for index in self.indices:
            digest.update(self.data.ids[index].encode())
            digest.update(self.data.tokens(index)[0].tobytes())
        return digest.hexdigest()

    def batches(self, model: Any) -> DataLoader:
        """The model's inputs, one conversation at a time.

        A batch of several would be padded, and statistics of activations would count the padding.
        """
        data = self.data
        collate = Collator(
            data.family, model.config.image_token_id, data.processor.tokenizer.pad_token_id
        )
        inputs = set(inspect.signature(type(model).forward).parameters) - {"labels"}

        def batch(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            collated = collate(samples)
            return {name: value for name, value in collated.items() if name in inputs}

        return DataLoader(Subset(data, self.indices), batch_size=1, shuffle=False, collate_fn=batch)
