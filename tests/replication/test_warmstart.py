"""A decoder carried from one family to another: what is the same afterwards, and what is not."""

import pytest
import torch

from grace.data import Encoder
from grace.errors import InputError
from grace.models import family_of
from replication.data.world.chat import CHATS
from replication.data.world.warmstart import map_tokens, warm_start

BIASED = {"attention_bias": True, "rms_norm_eps": 1e-5}


@pytest.fixture
def source(family):
    """A small Qwen2-VL with norms and biases that are not those of a fresh model."""
    model = family("qwen2_vl").model(3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def start(family, name, source, **text):
    """A model that was started from the source, and its values before."""
    small = family(name)
    model = small.model(8, **{**BIASED, **text})
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(".bias"):
                parameter.fill_(0.3)  # what has to become zero is not zero before
    before = {key: value.clone() for key, value in model.state_dict().items()}
    warm_start(model, small.processor.tokenizer, source, tokenizer_of(family, "qwen2_vl"))
    return model, before


def tokenizer_of(family, name):
    return family(name).processor.tokenizer


def tokens_of(family, name):
    """Tokens of a family by the Qwen2-VL token that they are matched with."""
    mine, theirs = tokenizer_of(family, name), tokenizer_of(family, "qwen2_vl")
    return map_tokens(family_of(name), mine, family_of("qwen2_vl"), theirs)


def logits_on_text(model, tokenizer, tokens):
    ids = torch.tensor([tokenizer.convert_tokens_to_ids(tokens)])
    with torch.no_grad():
        return model.double().eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]


def test_llava_says_of_text_what_its_source_says(family, source):
    model, _ = start(family, "llava", source)
    mine, theirs = tokenizer_of(family, "llava"), tokenizer_of(family, "qwen2_vl")
    tokens = tokens_of(family, "llava")
    generator = torch.Generator().manual_seed(5)
    shared = sorted(tokens)
    places = torch.randint(len(shared), (60,), generator=generator).tolist()
    text = [shared[i] for i in places if shared[i] != CHATS["llava"].image]
    found = logits_on_text(model, mine, text)
    expected = logits_on_text(source, theirs, [tokens[token] for token in text])
    rows = mine.convert_tokens_to_ids(shared)
    columns = theirs.convert_tokens_to_ids([tokens[token] for token in shared])
    torch.testing.assert_close(found[:, rows], expected[:, columns], rtol=1e-9, atol=1e-9)
    assert expected.std() > 0.1  # different tokens are told apart
    fresh = logits_on_text(family("llava").model(8, **BIASED), mine, text)
    assert (fresh[:, rows] - expected[:, columns]).abs().max() > 0.1


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_every_value_is_the_source_s_or_zero_or_its_own(family, source, name):
    model, before = start(family, name, source)
    values, given = dict(model.named_parameters()), dict(source.named_parameters())
    tokens, tokenizer = tokens_of(family, name), tokenizer_of(family, name)
    rows = tokenizer.convert_tokens_to_ids(list(tokens))
    theirs = tokenizer_of(family, "qwen2_vl").convert_tokens_to_ids(list(tokens.values()))
    copied = 0
    for key, value in values.items():
        if value is model.get_input_embeddings().weight:
            expected = before[key].clone()
            expected[rows] = source.get_input_embeddings().weight[theirs]
        elif key.endswith("o_proj.bias"):
            expected = torch.zeros_like(value)
        elif key in given and (".layers." in key or key.endswith("language_model.norm.weight")):
            expected, copied = given[key], copied + 1
        else:
            expected = before[key]  # tower, projectors, norms of queries and keys
        assert torch.equal(value, expected), key
    assert copied == 2 * 12 + 1  # q, k, v with biases, o, three of the MLP, two norms a layer


def test_a_qwen3_with_neutral_norms_differs_only_by_them(family, source):
    """With the norms of queries and keys taken out, text has the source's logits."""
    model, _ = start(family, "qwen3_vl", source)
    for layer in model.model.language_model.layers:
        layer.self_attn.q_norm = layer.self_attn.k_norm = torch.nn.Identity()
    tokenizer = tokenizer_of(family, "qwen2_vl")
    text = sorted(set(tokens_of(family, "qwen3_vl")) - {"<|image_pad|>", "<|video_pad|>"})[40:90]
    found = logits_on_text(model, tokenizer_of(family, "qwen3_vl"), text)
    torch.testing.assert_close(found, logits_on_text(source, tokenizer, text), rtol=1e-9, atol=1e-9)


def test_tokens_are_matched_by_string_and_by_place(family):
    tokens = tokens_of(family, "llava")
    assert tokens["</s>"] == "<|im_end|>"
    assert tokens["<pad>"] == "<|endoftext|>"
    assert tokens["<image>"] == "<|image_pad|>"
    assert tokens[" ASSISTANT:"] == "<|im_end|>\n<|im_start|>assistant\n"
    assert tokens["USER: "] == "\n<|im_start|>user\n"
    assert tokens["Ġred"] == "Ġred"
    assert set(tokens.values()) <= set(tokenizer_of(family, "qwen2_vl").get_vocab())
    tokens = tokens_of(family, "qwen3_vl")
    assert all(token == other for token, other in tokens.items())
    assert set(tokens) == set(tokenizer_of(family, "qwen3_vl").get_vocab())


def test_the_words_of_a_conversation_are_carried_over(family):
    """Of what a conversation is made of, no token starts anew."""
    talk = [
        {"from": "human", "value": "<image>\nWhat color is the circle?"},
        {"from": "gpt", "value": "red"},
    ]
    processor = family("llava").processor
    ids = Encoder(processor)(talk, [16]).ids
    assert set(processor.tokenizer.convert_ids_to_tokens(ids)) <= set(tokens_of(family, "llava"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"hidden_size": 64}, "hidden_size is 64 in the llava model and 128"),
        ({"head_dim": 32}, r"q_proj.*\(64, 128\) in the llava model and \(128, 128\)"),
        ({"attention_bias": False}, "no place for .*bias.*attention_bias: true"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}, "rope_theta is 5.0"),
    ],
)
def test_decoders_that_differ_are_refused(family, source, text, message):
    small = family("llava")
    model = small.model(8, **{**BIASED, **text})
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InputError, match=message):
        warm_start(model, small.processor.tokenizer, source, tokenizer_of(family, "qwen2_vl"))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
