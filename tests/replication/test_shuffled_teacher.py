"""The shuffled teacher: other samples' outputs, of the same length, and nothing else changed."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grace.errors import InputError
from grace.training import TeacherOutputs
from replication.train.shuffled_teacher import ShuffledTeacher


class _Echo:
    """A teacher that answers with the indices it was asked for."""

    identity, sha256 = None, "x"

    def outputs(self, batch):
        return TeacherOutputs(torch.tensor(batch["indices"]).double(), None)


def shuffled(lengths, seed=0):
    return ShuffledTeacher(_Echo(), lengths, seed)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=60), st.integers(0, 1000))
def test_nobody_keeps_their_own_and_lengths_agree(lengths, seed):
    lengths = np.repeat(lengths, 2)  # everybody has a partner
    teacher = shuffled(lengths, seed)
    indices = torch.arange(len(lengths))
    given_to = teacher.outputs({"indices": indices.tolist()}).logits.long()
    assert not (given_to == indices).any()
    assert sorted(given_to.tolist()) == indices.tolist()
    assert (lengths[given_to.numpy()] == lengths).all()
    picked = indices.flip(0)[:3].tolist()
    assert teacher.outputs({"indices": picked}).logits.long().tolist() == given_to[picked].tolist()


def test_the_pairing_follows_from_the_seed():
    lengths = np.full(200, 3)
    assert (shuffled(lengths, 1).order == shuffled(lengths, 1).order).all()
    assert (shuffled(lengths, 1).order != shuffled(lengths, 2).order).any()


def test_samples_without_a_partner_are_refused():
    with pytest.raises(InputError, match="4 of 4 samples"):
        shuffled(np.arange(4))
    assert shuffled(np.append(np.full(200, 2), 9)).order[200] == 200
