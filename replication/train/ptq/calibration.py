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

    path: conversations in the LLaVA schema, a file (`grace.data.ConversationDataset`) or the shards
    of published ones (`grace.data.ShardedConversations`).
    """

    path: Path
    samples: int
    seed: int

    def check(self) -> None:
        """Check that there is something to draw from.

        Raises:
            InputError: for a missing file or a number of samples below 1.
        """
        if self.samples < 1:
            raise InputError(f"calibration.samples is {self.samples}; it must be at least 1")
        if not self.path.exists():
            raise InputError(
                f"calibration data {str(self.path)!r} does not exist; build it or correct the path"
            )

    def draw(self, processor: Any, config: Any) -> "Drawn":
        """The conversations of this draw, tokenized.

        Without replacement, and in the order drawn: the first n of a longer draw are those of a
        shorter one.

        Raises:
            InputError: for a file that cannot be read, or with too few conversations.
        """
        self.check()
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
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:  # the bytes of the images are not needed, and are most of the file
            with pq.ParquetFile(self.path) as file:
                images = file.read(columns=["image.path"])["image"]
        except (pa.ArrowException, OSError, KeyError) as error:
            raise InputError(
                f"calibration file {str(self.path)!r} has no readable column 'image' ({error}); "
                "rebuild it"
            ) from error
        return [index for index, valid in enumerate(images.is_valid().to_pylist()) if valid]


@dataclass(frozen=True)
class Drawn:
    """Drawn conversations, tokenized: samples of ``data``, by their indices."""

    data: "ConversationDataset | ShardedConversations"
    indices: list[int]

    @property
    def sha256(self) -> str:
        """Hash of the conversations' ids and tokens, in order."""
        found = hashlib.sha256()
        for index in self.indices:
            found.update(self.data.ids[index].encode())
            found.update(self.data.tokens(index)[0].tobytes())
        return found.hexdigest()

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
            made = collate(samples)
            return {name: value for name, value in made.items() if name in inputs}

        return DataLoader(Subset(data, self.indices), batch_size=1, shuffle=False, collate_fn=batch)
