"""The samples of a run: those that are trained on, and those that are held out."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Subset

from grace.data import ConversationDataset
from grace.errors import InputError
from grace.training.arguments import Options
from grace.training.checks import Source, say


class Part(Subset):
    """Some samples of a data set, which keep the index that they have in it.

    Attributes:
        processor: The data set's.
        lengths: Number of tokens of every sample.
        pictured: Positions of the samples that show an image, (n,) int64.
    """

    def __init__(self, dataset: ConversationDataset, indices: list[int]) -> None:
        super().__init__(dataset, indices)
        self.processor = dataset.processor
        self.lengths = np.asarray(dataset.lengths)[indices].tolist()
        self.pictured = np.flatnonzero(np.isin(indices, dataset.pictured))


@dataclass
class Conversations:
    """What a run reads.

    Attributes:
        full: The data set of ``--data``.
        train: What of it is trained on.
        evaluation: What is evaluated on; None without.
        identity: What identifies the training samples.
    """

    full: ConversationDataset
    train: Any
    evaluation: Any
    identity: dict[str, Any]


def read_conversations(options: Options, student: Source) -> Conversations:
    """Read and check the conversations of a run.

    Args:
        options: The run's.
        student: Whose processor and configuration make samples of them.

    Raises:
        InputError: Records that cannot be used, or too few to hold some out.
    """
    chosen = options.data
    evaluation: Any = None
    say(f"checking the conversations of {', '.join(chosen.data)}")
    with options.trainer.main_process_first(desc="conversations"):
        full: Any = _dataset(chosen.data, chosen.split, options, student)
        if chosen.eval_data:
            evaluation = _dataset(chosen.eval_data, chosen.eval_split, options, student)
    train = full
    if chosen.eval_share and evaluation is None:
        train, evaluation = split(full, chosen.eval_share, options.trainer.seed)
    batch = options.trainer.train_batch_size * options.trainer.world_size
    if options.trainer.dataloader_drop_last and len(train) < batch:
        raise InputError(
            f"dataloader_drop_last drops all {len(train)} samples, because a batch has {batch}; "
            "leave it out, or lower the batch size"
        )
    identity = {"samples": len(train), "sha256": full.sha256}
    if train is not full:
        identity["held out"] = [chosen.eval_share, options.trainer.seed]
    return Conversations(full, train, evaluation, identity)


def split(dataset: Any, share: float, seed: int) -> tuple[Part, Part]:
    """A data set in two parts, the second of which has a share of it, drawn by a seed.

    Raises:
        InputError: A part would be empty.
    """
    size = len(dataset)
    count = max(1, round(size * share))
    if count >= size:
        raise InputError(f"eval_share is {share}: nothing of {size} samples is left to train on")
    order = np.random.default_rng(seed).permutation(size)
    held, kept = sorted(order[:count].tolist()), sorted(order[count:].tolist())
    return Part(dataset, kept), Part(dataset, held)


def _dataset(
    sources: list[str], split: str, options: Options, student: Source
) -> ConversationDataset:
    chosen = options.data
    return ConversationDataset(
        sources if len(sources) > 1 else sources[0],
        student.processor,
        student.config,
        split=split,
        image_folder=chosen.image_folder,
        max_length=chosen.max_length,
        on_bad_record=chosen.on_bad_record,
        max_bad_share=chosen.max_bad_share,
    )
