"""Every family, end to end on a tiny random instance: batches, a step of training, resume, bake."""

import numpy as np
import pytest
import torch
from tiny_families import family_params, picture, tiny_config, tiny_model, tiny_processor

from grace.data import IGNORE_INDEX, Collator
from grace.models import family_of
from grace.training import SupervisedForward

SIZES = [[(40, 40)], [], [(64, 32), (24, 56)], [(17, 61)]]
"""Width and height of the images of four samples."""


@pytest.fixture(scope="module", params=family_params())
def name(request):
    return request.param


def written(name, images, question):
    """The library's own inputs for a question about some images."""
    processor = tiny_processor(name)
    text = f"{processor.image_token}\n" * len(images) + question
    if not images and name == "paligemma":  # its processor wants an image
        tokens = torch.tensor([processor.tokenizer.encode(text)])
        return {"input_ids": tokens, "token_type_ids": torch.zeros_like(tokens)}
    inputs = processor(text=[text], images=[images] if images else None, return_tensors="pt")
    return {key: value for key, value in inputs.items() if key != "labels"}


def answered(name, index):
    """Sample `index`: the library's prompt and a random answer; and the library's inputs."""
    images = [picture(10 * index + k, *size) for k, size in enumerate(SIZES[index])]
    inputs = written(name, images, "What is it?" + " It is red." * index)
    prompt = inputs["input_ids"][0].numpy()
    answer = np.random.default_rng(index).integers(20, 200, 5)
    labels = np.concatenate([np.full_like(prompt, IGNORE_INDEX), answer])
    sample = {"index": index, "labels": labels}
    sample["input_ids"] = np.concatenate([prompt, answer])
    family = family_of(tiny_config(name))
    sample |= family.read_images(tiny_processor(name), images) if images else {}
    return sample, inputs | {"input_ids": torch.from_numpy(sample["input_ids"])[None]}


def collator(name):
    config = tiny_config(name)
    family = family_of(config)
    pad = tiny_processor(name).tokenizer.pad_token_id
    return Collator(family, family.image_token_id(config), pad)


def types(inputs, name):
    """The library's types of tokens, with those of the answer."""
    later = {"paligemma": 1}.get(name, 0)
    longer = {}
    for key in ("mm_token_type_ids", "token_type_ids"):
        if key in inputs:
            answer = torch.full((1, 5), later, dtype=inputs[key].dtype)
            longer[key] = torch.cat([inputs[key], answer], dim=1)
    return longer


def test_a_sample_has_the_same_logits_alone_in_a_batch_and_by_the_library(name):
    """None, one or several images of different sizes in one padded batch."""
    model = tiny_model(name)
    family = family_of(model.config)
    forward = SupervisedForward(model, family, relational=True)
    samples, inputs = zip(*(answered(name, index) for index in range(len(SIZES))), strict=True)
    collate = collator(name)
    with torch.no_grad():
        batch = collate(samples)
        logits, hidden = forward(model, batch)
        for row, (sample, given) in enumerate(zip(samples, inputs, strict=True)):
            length = len(sample["input_ids"])
            told = {k: v for k, v in given.items() if k != "attention_mask"} | types(given, name)
            plain = model(**told, output_hidden_states=True)
            rows = batch["token_rows"] == row
            expected = plain.logits[0, batch["token_columns"][rows]]
            torch.testing.assert_close(logits[rows], expected, rtol=1e-4, atol=1e-4)
            alone, inner = forward(model, collate([sample]))
            torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(hidden[row, :length], inner[0], rtol=1e-4, atol=1e-4)
            if name != "qwen3_vl":  # whose deepstack features enter after the listed state
                torch.testing.assert_close(inner, plain.hidden_states[-2], rtol=1e-5, atol=1e-5)
