"""The projector's first lesson: targets by hand, and what it changes."""

import itertools

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from grace.data import ConversationDataset
from replication.data.world.looks import LOOKS
from replication.data.world.projector import align_projector, cell_words
from replication.data.world.vision import contents_of


@pytest.mark.parametrize("world", sorted(LOOKS))
def test_a_cell_is_the_sum_of_its_words(world):
    look = LOOKS[world]
    words = [*look.colors, *look.shapes, *look.signs, *look.quadrants]
    table = {word: place for place, word in enumerate(words)}
    embeddings = torch.from_numpy(np.random.default_rng(1).normal(size=(len(words), 5)))

    def tokenizer(text, add_special_tokens):
        return {"input_ids": [table[text.removeprefix(" ")]]}

    found = cell_words(look, tokenizer, embeddings)
    contents = contents_of(look)
    assert found.shape == (len(contents), 16, 5)
    quarters = [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]
    for content, name in enumerate(contents):
        shown = [] if content == 0 else name.removeprefix("sign ").split()
        shown = [word for word in shown if word in table]
        assert bool(shown) == (content > 0), name
        for cell, quarter in enumerate(quarters):
            said = [*shown, look.quadrants[quarter]] if shown else []
            expected = sum((embeddings[table[w]] for w in said), torch.zeros(5).double())
            torch.testing.assert_close(found[content, cell].double(), expected)


@pytest.mark.slow
def test_only_the_projector_learns(small, conversations):
    model = small.model(3)
    data = ConversationDataset(conversations, small.processor, model.config)
    count = 32
    features = small.adapter.vision_features(model, data.pixels(range(count)))
    features = features.unflatten(0, (count, -1))
    column = pq.read_table(conversations, columns=["contents"])["contents"]
    contents = torch.tensor(column.slice(0, count).to_pylist())
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def align(steps):
        batches = itertools.repeat((features, contents))
        look, words = LOOKS["first"], small.processor.tokenizer
        return align_projector(
            small.adapter, model, words, look, batches, steps=steps, learning_rate=0.003
        )

    first, last = align(2), align(150)
    assert last < 0.6 * first
    projector = small.adapter.projectors[0]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith(f"{projector}."), name
