"""The conversations that a quantizer is calibrated on: a seeded draw from the training data."""

import hashlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Subset

from grace.data import Collator, ConversationDataset
from grace.errors import InputError

if TYPE_CHECKING:
    from grace.data import ShardedConversations


@dataclass(frozen=True)
class Calibration:
    """``samples`` training conversations with an image, drawn from ``path`` with ``seed``.

    Attributes:
        path: Conversations in the LLaVA schema: a file (`grace.data.ConversationDataset`), or the
            shards of published ones (`grace.data.ShardedConversations`).
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
        shards = None
        if self.path.is_dir():
            from grace.data import ShardedConversations

            shards = ShardedConversations(self.path, processor, config)
        with_image = self._with_image() if shards is None else shards.pictured.tolist()
        if len(with_image) < self.samples:
            raise InputError(
                f"calibration.samples is {self.samples}, but {str(self.path)!r} has only "
                f"{len(with_image)} conversations with an image; ask for fewer"
            )
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(with_image), generator=generator)[: self.samples].tolist()
        records = [with_image[index] for index in order]
        if shards is not None:
            return Drawn(shards, records)
        data = ConversationDataset(self.path, processor, config, records=records)
        return Drawn(data, list(range(len(data))))

    def _with_image(self) -> list[int]:
        import pyarrow.parquet as pq

        # the bytes of the images are not needed, and are most of the file
        with pq.ParquetFile(self.path) as file:
            images = file.read(columns=["image.path"])["image"]
        return [index for index, valid in enumerate(images.is_valid().to_pylist()) if valid]


@dataclass(frozen=True)
class Drawn:
    """Drawn conversations, tokenized: samples of ``data``, by their indices."""

    data: "ConversationDataset | ShardedConversations"
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
