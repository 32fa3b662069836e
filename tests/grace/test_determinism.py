"""What does not change an answer: the number of threads, and the batch it is asked in."""

import contextlib

import pytest
import torch

from grace.data import ConversationDataset
from grace.decoding import generate
from grace.int4 import pack
from grace.quantization import QuantSpec, bake, fake_quant_layers, prepare

pytestmark = pytest.mark.slow

TOKENS = 12


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def questions(small, conversations, count):
    """Model inputs of some prompts about images, one by one."""
    data = ConversationDataset(conversations, small.processor, small.model().config, limit=48)
    found = []
    for index in range(len(data)):
        sample = data[index]
        ids, labels = sample["input_ids"], sample["labels"]
        prompt = int((labels != -100).argmax())
        if "pixel_values" in sample and prompt:
            ids = torch.from_numpy(ids[:prompt])[None]
            images = {n: sample[n] for n in small.adapter.image_inputs}
            found.append(whole_inputs(small, ids, torch.ones_like(ids), images))
    return found[:count]


def whole_inputs(small, ids, mask, images):
    kinds = small.adapter.token_inputs(ids, small.processor.image_token_id)
    return {"input_ids": ids, "attention_mask": mask, **kinds, **images}


def left_padded(small, asked):
    """The same prompts as one batch."""
    length = max(one["input_ids"].shape[1] for one in asked)
    pad = small.processor.tokenizer.pad_token_id

    def padded(name, value):
        rows = [
            torch.nn.functional.pad(one[name], (length - one[name].shape[1], 0), value=value)
            for one in asked
        ]
        return torch.cat(rows)

    images = {n: torch.cat([one[n] for one in asked]) for n in small.adapter.image_inputs}
    return whole_inputs(small, padded("input_ids", pad), padded("attention_mask", 0), images)


def answers_to(model, inputs):
    return generate(model, dict(inputs), TOKENS)[:, -TOKENS:]


def models(small):
    """The model as trained in float32, fake-quantized, and packed in INT4 as the reference runs."""
    plain = small.model(3).eval()
    fake = small.model(3).eval()
    prepare(fake, QuantSpec(bits=4, group_size=32))
    assert list(fake_quant_layers(fake))
    packed = small.model(3).eval()
    prepare(packed, QuantSpec(bits=4, group_size=32))
    exact = bake(packed)
    pack(packed, exact, backend="reference")
    for model in (plain, fake, packed):
        model.generation_config.eos_token_id = None
    return {"float32": plain, "fake-quantized": fake, "packed": packed}


@pytest.mark.parametrize("form", ["float32", "fake-quantized", "packed"])
def test_neither_threads_nor_batch_change_an_answer(small, conversations, form):
    model = models(small)[form]
    asked = questions(small, conversations, 4)
    assert len({one["input_ids"].shape[1] for one in asked}) > 1, "the batch has to be padded"
    with threads(1):
        alone = torch.cat([answers_to(model, one) for one in asked])
        whole = answers_to(model, left_padded(small, asked))
        logits = model(**asked[0]).logits
    assert torch.equal(alone, whole)
    with threads(2):
        assert torch.equal(torch.cat([answers_to(model, one) for one in asked]), alone)
        assert torch.equal(answers_to(model, left_padded(small, asked)), alone)
        torch.testing.assert_close(model(**asked[0]).logits, logits, rtol=0, atol=1e-5)


def test_the_same_call_gives_the_same_bits(small, conversations):
    """On one machine with one number of threads, not only the same answer."""
    model = models(small)["fake-quantized"]
    (asked,) = questions(small, conversations, 1)
    for count in (1, 2):
        with threads(count):
            first = model(**asked).logits
            assert all(torch.equal(model(**asked).logits, first) for _ in range(3))
