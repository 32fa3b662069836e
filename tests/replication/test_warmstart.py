"""A decoder carried from one family to another: what is the same afterwards, and what is not."""

import pytest
import torch

from grace.data import Encoder
from grace.errors import InputError
from grace.models import family_of
from replication.data.world.chat import CHATS
from replication.data.world.warmstart import warm_start

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
    small = family(name)
    model = small.model(8, **{**BIASED, **text})
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(".bias"):
                parameter.fill_(0.3)  # what has to become zero is not zero before
    before = {key: value.clone() for key, value in model.state_dict().items()}
    done = warm_start(model, small.processor.tokenizer, source, tokenizer_of(family, "qwen2_vl"))
    return model, before, done


def tokenizer_of(family, name):
    return family(name).processor.tokenizer


def logits_on_text(model, tokenizer, tokens):
    ids = torch.tensor([tokenizer.convert_tokens_to_ids(tokens)])
    with torch.no_grad():
        return model.double().eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]


def test_llava_says_of_text_what_its_source_says(family, source):
    model, _, done = start(family, "llava", source)
    mine, theirs = tokenizer_of(family, "llava"), tokenizer_of(family, "qwen2_vl")
    generator = torch.Generator().manual_seed(5)
    shared = sorted(done.tokens)
    picked = torch.randint(len(shared), (60,), generator=generator).tolist()
    text = [shared[i] for i in picked if shared[i] != CHATS["llava"].image]
    found = logits_on_text(model, mine, text)
    expected = logits_on_text(source, theirs, [done.tokens[token] for token in text])
    rows = mine.convert_tokens_to_ids(shared)
    columns = theirs.convert_tokens_to_ids([done.tokens[token] for token in shared])
    torch.testing.assert_close(found[:, rows], expected[:, columns], rtol=1e-9, atol=1e-9)
    assert expected.std() > 0.1  # different tokens are told apart
    fresh = logits_on_text(family("llava").model(8, **BIASED), mine, text)
    assert (fresh[:, rows] - expected[:, columns]).abs().max() > 0.1


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_everything_is_accounted_for(family, source, name):
    model, before, done = start(family, name, source)
    adapter = family_of(name)
    given = dict(source.named_parameters())
    state = dict(model.named_parameters())
    tower = set(adapter.tower_parameters(model))
    parts = [set(done.copied), set(done.zeroed), set(done.fresh), tower]
    assert sum(map(len, parts)) == len(state)
    assert set.union(*parts) == set(state)
    layers = [
        key
        for key in done.copied
        if ".layers." in key or key.endswith("language_model.norm.weight")
    ]
    assert len(layers) == 2 * 12 + 1  # q, k, v with biases, o, three of the MLP, two norms a layer
    for key in layers:
        assert torch.equal(state[key], given[key]), key
    assert sorted(done.zeroed) == [
        f"model.language_model.layers.{i}.self_attn.o_proj.bias" for i in range(2)
    ]
    assert not any(state[key].any() for key in done.zeroed)
    for key in {*done.fresh, *tower}:
        assert torch.equal(state[key], before[key]), key
    norms = {
        f"model.language_model.layers.{i}.self_attn.{n}_norm.weight" for i in (0, 1) for n in "qk"
    }
    merger = {
        f"model.visual.merger.{part}"
        for part in (
            "norm.weight",
            "norm.bias",
            "linear_fc1.weight",
            "linear_fc1.bias",
            "linear_fc2.weight",
            "linear_fc2.bias",
        )
    }
    if name == "qwen3_vl":
        assert norms <= set(done.fresh)
        assert merger <= set(done.copied)
        theirs = source.model.visual.merger
        assert torch.equal(state["model.visual.merger.linear_fc2.weight"], theirs.mlp[2].weight)
        assert torch.equal(state["model.visual.merger.norm.bias"], theirs.ln_q.bias)
    else:
        assert set(done.fresh) == {k for k in state if "multi_modal_projector" in k}


def test_a_qwen3_with_neutral_norms_differs_only_by_them(family, source):
    """With the norms of queries and keys taken out, text has the source's logits."""
    model, _, done = start(family, "qwen3_vl", source)
    for layer in model.model.language_model.layers:
        layer.self_attn.q_norm = layer.self_attn.k_norm = torch.nn.Identity()
    tokenizer = tokenizer_of(family, "qwen2_vl")
    text = sorted(set(done.tokens) - {"<|image_pad|>", "<|video_pad|>"})[40:90]
    found = logits_on_text(model, tokenizer_of(family, "qwen3_vl"), text)
    torch.testing.assert_close(found, logits_on_text(source, tokenizer, text), rtol=1e-9, atol=1e-9)


def test_tokens_are_matched_by_string_and_by_place(family, source):
    *_, done = start(family, "llava", source)
    assert done.tokens["</s>"] == "<|im_end|>"
    assert done.tokens["<pad>"] == "<|endoftext|>"
    assert done.tokens["<image>"] == "<|image_pad|>"
    assert done.tokens[" ASSISTANT:"] == "<|im_end|>\n<|im_start|>assistant\n"
    assert done.tokens["USER: "] == "\n<|im_start|>user\n"
    assert done.tokens["Ġred"] == "Ġred"
    vocabulary = tokenizer_of(family, "llava").get_vocab()
    assert set(done.tokens) | set(done.fresh_tokens) == set(vocabulary)
    assert not set(done.tokens) & set(done.fresh_tokens)
    assert set(done.tokens.values()) <= set(tokenizer_of(family, "qwen2_vl").get_vocab())
    *_, done = start(family, "qwen3_vl", source)
    assert all(token == other for token, other in done.tokens.items())
    assert not done.fresh_tokens


def test_the_words_of_a_conversation_are_carried_over(family, source):
    """Of what a conversation is made of, few tokens start anew."""
    *_, done = start(family, "llava", source)
    talk = [
        {"from": "human", "value": "<image>\nWhat color is the circle?"},
        {"from": "gpt", "value": "red"},
    ]
    processor = family("llava").processor
    ids, _ = Encoder(processor)(talk, [16])
    assert set(processor.tokenizer.convert_ids_to_tokens(ids)) <= set(done.tokens)


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
