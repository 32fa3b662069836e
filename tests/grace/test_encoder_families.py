"""Every family's tokens are those of the library's processor, from the sizes of images alone."""

import pytest
from tiny_families import family_params, picture, tiny_config, tiny_processor

from grace.data import IGNORE_INDEX, Encoder
from grace.data.image_tokens import ImageTokens
from grace.data.records import read_turns
from grace.errors import InputError
from grace.models import family_of

SIZES = [(40, 40), (100, 37), (37, 90), (64, 64), (200, 120), (33, 47), (8, 8), (150, 20)]
ENDS = {"gemma3": "<end_of_turn>", "idefics3": "<end_of_utterance>", "glm4v": "<|endoftext|>"}

pytestmark = pytest.mark.parametrize("name", family_params())


@pytest.fixture
def encode(name):
    """The encoder of a family, and what stands for images of given sizes."""
    config, processor = tiny_config(name), tiny_processor(name)
    tokens = ImageTokens(family_of(config), processor, config)
    return Encoder(processor, tokens.placeholder), tokens


def by_the_library(processor, name, messages, images):
    """Token ids of a prompt, by the processor alone."""
    if name == "paligemma":  # has no template: its processor writes the prefix itself
        text = messages[-1]["content"][-1]["text"]
        return [int(token) for token in processor(text=text, images=images)["input_ids"][0]]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    begun = text.startswith(processor.tokenizer.bos_token or "\0")
    found = processor(text=[text], images=images, add_special_tokens=not begun)
    return [int(token) for token in found["input_ids"][0]]


def test_an_image_is_what_the_processor_writes(name, encode):
    """Every size, whether it was asked for before others or after."""
    processor, (_, tokens) = tiny_processor(name), encode
    mark = processor.image_token
    for place, (width, height) in enumerate(SIZES):
        image = picture(place, width, height)
        written = processor(text=[mark], images=[image], return_text_replacement_offsets=True)
        text = written["text_replacement_offsets"][0][0]["replacement"]
        before, ids, after = tokens(width, height)
        core = text.removeprefix(before).removesuffix(after)
        assert before + core + after == text
        assert list(ids) == processor.tokenizer.encode(core, add_special_tokens=False)
        assert tokens.placeholder in ids


@pytest.mark.parametrize("system", [None, "You are a helpful assistant."])
@pytest.mark.parametrize("start", [0, 4])
def test_a_prompt_is_what_generation_sees(name, encode, start, system):
    processor, (encoder, tokens) = tiny_processor(name), encode
    if name == "paligemma" and system:
        pytest.skip("has no system turn")
    size = SIZES[start]
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "There are three shapes."}]},
    ]
    if system is not None:
        content = [{"type": "text", "text": system}] if encoder._forms["system"] else system
        messages.insert(0, {"role": "system", "content": content})
    ids, labels, spans = encoder(read_turns(messages, 1), [tokens(*size)])
    first = next(place for place, label in enumerate(labels) if label != IGNORE_INDEX)
    images = [picture(0, *size)]
    assert ids[:first] == by_the_library(processor, name, messages[:-1], images)
    (start, stop), image = spans[0], tokens.placeholder
    assert ids[start] == ids[stop - 1] == image
    assert ids.count(image) == ids[start:stop].count(image)
    said = processor.tokenizer.decode([label for label in labels if label != IGNORE_INDEX])
    assert said.strip().startswith("There are three shapes.")
    assert said.endswith(ENDS.get(name, processor.tokenizer.eos_token))


def test_several_turns_and_images(name, encode):
    """LLaVA's template ends no answer, LLaVA-OneVision's writes earlier answers after a space, and
    PaliGemma has one turn: there the first prompt alone is the library's."""
    if name in ("llava", "llava_onevision", "paligemma"):
        pytest.skip("the template of later turns differs on purpose")
    processor, (encoder, tokens) = tiny_processor(name), encode
    answer = "Three." if not encoder._forms["assistant"] else [{"type": "text", "text": "Three."}]
    part = {"type": "image"}
    messages = [
        {"role": "user", "content": [part, {"type": "text", "text": "How many shapes?"}]},
        {"role": "assistant", "content": answer},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Name the colours"}, part, part],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "Green, and yellow."}]},
    ]
    sizes = SIZES[1:4]
    ids, labels, spans = encoder(read_turns(messages, 3), [tokens(*size) for size in sizes])
    supervised = [place for place, label in enumerate(labels) if label != IGNORE_INDEX]
    last = max(p for p, q in zip(supervised[1:], supervised, strict=False) if p != q + 1)
    images = [picture(place, *size) for place, size in enumerate(sizes)]
    assert ids[:last] == by_the_library(processor, name, messages[:-1], images)
    assert len(spans) == 3
    counts = [list(tokens(*size).ids).count(tokens.placeholder) for size in sizes]
    assert [ids[a:b].count(tokens.placeholder) for a, b in spans] == counts


def test_the_models_own_tokens_in_a_text_are_refused(name, encode):
    processor, (encoder, tokens) = tiny_processor(name), encode
    for token in {processor.tokenizer.convert_ids_to_tokens(tokens.placeholder)}:
        for turns in (("What?", f"a {token} b"), (f"a {token} b", "That.")):
            talk = [
                {
                    "role": "user",
                    "content": [{"type": "image"}, {"type": "text", "text": turns[0]}],
                },
                {"role": "assistant", "content": turns[1]},
            ]
            with pytest.raises(InputError, match="own token of an image"):
                encoder(talk, [tokens(40, 40)])
