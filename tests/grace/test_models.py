"""Adapters: which linears, which tokens, which layer, what is frozen."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grace.errors import InputError
from grace.models import check_model_directory, decoder_linears, family_of, load_model
from grace.training import MethodConfig, prepare_student

QWEN = family_of("qwen2_vl")


def test_the_decoders_linears_and_no_others(make_model):
    model = make_model()
    kinds = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    expected = {
        name
        for name, _ in model.named_modules()
        if "language_model.layers" in name and name.endswith(kinds)
    }
    found = decoder_linears(model)
    assert set(found) == expected
    assert len(found) == len(expected) == 7 * 2
    assert not any("visual" in name or "head" in name for name in found)


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=4))
def test_spans_are_the_runs_of_image_tokens(rows):
    width = max(map(len, rows))
    ids = torch.tensor(
        [[7 if flag else 1 for flag in row] + [1] * (width - len(row)) for row in rows]
    )
    inside = torch.zeros_like(ids, dtype=torch.bool)
    for row, start, stop in QWEN.image_spans(ids, 7):
        assert start < stop
        assert not inside[row, start:stop].any()
        inside[row, start:stop] = True
        assert start == 0 or ids[row, start - 1] != 7  # runs are maximal
        assert stop == width or ids[row, stop] != 7
    assert torch.equal(inside, ids == 7)


def test_relational_alignment_reads_the_penultimate_layer(make_model, conversations, processor):
    from grace.data import Collator, ConversationDataset
    from grace.teacher import MODEL_INPUTS, SupervisedForward

    model = make_model(num_hidden_layers=3).eval()
    data = ConversationDataset(conversations, processor, model.config)
    batch = Collator(QWEN, processor.image_token_id, processor.tokenizer.pad_token_id)(
        [data[i] for i in range(3)]
    )
    inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    with torch.no_grad():
        plain = model(**inputs, output_hidden_states=True, use_cache=False)
        forward = SupervisedForward(model, QWEN, relational=True)
        logits, hidden = forward(model, batch)
    assert torch.equal(hidden, plain.hidden_states[-2])
    expected = plain.logits[batch["token_rows"], batch["token_columns"]]
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    # an ordinary call still gets every position
    assert model(**inputs).logits.shape == plain.logits.shape


def test_one_layer_has_no_penultimate(make_model):
    with pytest.raises(InputError, match="1 layer"):
        QWEN.relational_layer(make_model(num_hidden_layers=1))


def test_the_tower_is_frozen_and_the_projector_is_not(make_model):
    model = make_model()
    prepare_student(model, MethodConfig("sft"))
    for name, parameter in model.named_parameters():
        in_tower = name.startswith("model.visual.") and not name.startswith("model.visual.merger.")
        assert parameter.requires_grad != in_tower, name


def test_features_give_the_same_logits_as_pixels(make_model, conversations, processor):
    from grace.data import Collator, ConversationDataset
    from grace.teacher import SupervisedForward

    model = make_model().eval()
    data = ConversationDataset(conversations, processor, model.config)
    batch = Collator(QWEN, processor.image_token_id, processor.tokenizer.pad_token_id)(
        [data[i] for i in range(4)]
    )
    forward = SupervisedForward(model, QWEN, relational=False)
    with torch.no_grad():
        expected, _ = forward(model, batch)
        batch["pixel_values"] = QWEN.vision_features(
            model, batch["pixel_values"], batch["image_grid_thw"]
        )
        QWEN.take_vision_features(model)
        found, _ = forward(model, batch)
    torch.testing.assert_close(found, expected)


def test_unknown_family():
    with pytest.raises(InputError, match="'gpt2'"):
        family_of("gpt2")


def test_model_directories_are_checked_before_weights_are_read(tmp_path, make_model):
    with pytest.raises(InputError, match="does not exist"):
        check_model_directory(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no config\.json"):
        check_model_directory(tmp_path)
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    for (name, a), b in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"corrupt|cannot load"):
        load_model(tmp_path / "model")
    weights.unlink()
    with pytest.raises(InputError, match=r"no .*safetensors"):
        load_model(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        check_model_directory(tmp_path / "model")


def test_a_hub_name_is_not_taken_for_a_missing_directory():
    assert check_model_directory("some-org/some-model") is None
