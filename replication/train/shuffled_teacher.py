"""Negative controls: what must not help."""

from typing import Any

import numpy as np

from grace.errors import InputError
from grace.training import CachedTeacher, TeacherOutputs


class ShuffledTeacher:
    """A teacher whose outputs are those on other samples.

    Every sample is given the outputs on another one with as many supervised tokens, so that
    their distribution, entropies included, is the teacher's own and only what they say of the
    sample is lost. The pairing is a random permutation without fixed points, drawn once.

    Args:
        supervised: supervised tokens of every sample.
        seed: of the permutation.

    Raises:
        InputError: when more than one sample in twenty has no partner of its length.
    """

    def __init__(self, teacher: CachedTeacher, supervised: Any, seed: int) -> None:
        lengths = np.asarray(supervised)
        rng = np.random.default_rng([seed, 3])
        self.order = np.arange(len(lengths))
        for length in np.unique(lengths):
            members = rng.permutation(np.flatnonzero(lengths == length))
            self.order[members] = np.roll(members, 1)  # one cycle: nobody keeps their own
        alone = int((self.order == np.arange(len(lengths))).sum())
        if alone > len(lengths) / 20:
            raise InputError(
                f"{alone} of {len(lengths)} samples have a number of supervised tokens of their "
                "own and cannot be shuffled; use more samples, or samples of more equal length"
            )
        self.teacher = teacher
        self.identity, self.sha256, self.seed = teacher.identity, teacher.sha256, seed

    def outputs(self, batch: dict[str, Any]) -> TeacherOutputs:
        """The outputs on the other samples, in the place of the batch's own."""
        others = self.order[batch["indices"]].tolist()
        return self.teacher.outputs({**batch, "indices": others})
