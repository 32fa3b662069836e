"""Adapters: which linears, which tokens, which layer, what is frozen."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlavaConfig, LlavaForConditionalGeneration

from grace.data import ConversationDataset
from grace.errors import InputError
from grace.models import check_model_directory, decoder_linears, family_of, load_model
from grace.quantization import QuantSpec, bake, prepare
from grace.training import MethodConfig, SupervisedForward, prepare_student

QWEN = family_of("qwen2_vl")


def test_the_decoders_linears_and_no_others(small):
    kinds = {"self_attn": ("q", "k", "v", "o"), "mlp": ("gate", "up", "down")}
    expected = [
        f"model.language_model.layers.{layer}.{part}.{kind}_proj"
        for layer in range(2)
        for part in kinds
        for kind in kinds[part]
    ]
    assert decoder_linears(small.model()) == expected


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


def inputs_of(small, batch):
    return {name: batch[name] for name in small.adapter.model_inputs if name in batch}


def batch_of(small, model, path, count):
    data = ConversationDataset(path, small.processor, model.config)
    return small.collator()([data[i] for i in range(count)])


def test_relational_alignment_reads_the_penultimate_layer(small, conversations):
    model = small.model(num_hidden_layers=3).eval()
    batch = batch_of(small, model, conversations, 3)
    inputs = inputs_of(small, batch)
    with torch.no_grad():
        plain = model(**inputs, output_hidden_states=True, use_cache=False)
        forward = SupervisedForward(model, small.adapter, relational=True)
        logits, hidden = forward(model, batch)
    assert torch.equal(hidden, plain.hidden_states[-2])
    expected = plain.logits[batch["token_rows"], batch["token_columns"]]
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    # an ordinary call still gets every position
    assert model(**inputs).logits.shape == plain.logits.shape


def test_a_deepstack_feature_is_part_of_the_penultimate_layers_output(family, conversations):
    """Two layers and one deepstack feature: it enters after the first layer."""
    small = family("qwen3_vl")
    model = small.model().eval()
    batch = batch_of(small, model, conversations, 3)
    inputs = inputs_of(small, batch)
    with torch.no_grad():
        listed = model(**inputs, output_hidden_states=True, use_cache=False).hidden_states[-2]
        images = {name: batch[name] for name in small.adapter.image_inputs}
        (added,) = model.model.get_image_features(**images).deepstack_features
        added = (
            torch.cat(added) if isinstance(added, tuple) else added
        )  # transformers 5.18 and later
        _, hidden = SupervisedForward(model, small.adapter, relational=True)(model, batch)
    shown = batch["input_ids"] == small.processor.image_token_id
    assert torch.equal(hidden[~shown], listed[~shown])
    assert torch.equal(hidden[shown], listed[shown] + added)
    assert added.abs().max() > 1e-3


def test_one_layer_has_no_penultimate(small):
    with pytest.raises(InputError, match="1 layer"):
        small.adapter.relational_layer(small.model(num_hidden_layers=1))


TRAINED_PROJECTORS = {
    "llava": ("model.multi_modal_projector.",),
    "qwen2_vl": ("model.visual.merger.",),
    "qwen3_vl": ("model.visual.merger.", "model.visual.deepstack_merger_list.0."),
}


def test_the_tower_is_frozen_and_the_projectors_are_not(small):
    model = small.model()
    prepare_student(model, MethodConfig("sft"))
    tower = "model.vision_tower." if small.name == "llava" else "model.visual."
    frozen = set()
    for name, parameter in model.named_parameters():
        trained = name.startswith(TRAINED_PROJECTORS[small.name]) or not name.startswith(tower)
        assert parameter.requires_grad == trained, name
        frozen |= set() if trained else {name}
    assert set(small.adapter.tower_parameters(model)) == frozen != set()


def test_quantization_takes_the_decoder_and_nothing_else(small, conversations):
    """Baked, the model has the fake-quantized logits, and no other weight has moved."""
    model = small.model().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = batch_of(small, model, conversations, 2)
    linears = small.adapter.decoder_linears(model)
    prepared = prepare(model, QuantSpec(bits=4), linears)
    assert prepared == linears
    with torch.no_grad():
        expected = model(**inputs_of(small, batch)).logits
        codes = bake(model)
        found = model(**inputs_of(small, batch)).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert list(codes) == prepared
    moved = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert moved == {f"{name}.weight" for name in prepared}


DEEP = {"depth": 3, "deepstack_visual_indexes": [1, 0]}


@pytest.mark.parametrize(
    ("name", "vision"),
    [("llava", {}), ("qwen2_vl", {}), ("qwen3_vl", {}), ("qwen3_vl", DEEP)],
)
def test_features_give_the_same_logits_and_gradients_as_pixels(family, conversations, name, vision):
    small = family(name)
    model = small.model(vision=vision).double()
    small.adapter.freeze_vision(model)
    batch = batch_of(small, model, conversations, 4)
    forward = SupervisedForward(model, small.adapter, relational=False)

    def run():
        model.zero_grad()
        logits, _ = forward(model, batch)
        logits.square().sum().backward()
        return logits.detach(), {
            name: value.grad.clone()
            for name, value in model.named_parameters()
            if value.requires_grad
        }

    expected, gradients = run()
    pixels = batch["pixel_values"]
    batch["pixel_values"] = small.adapter.vision_features(
        model, {name: batch[name] for name in small.adapter.image_inputs}
    )
    with small.adapter.take_vision_features(model):
        found, again = run()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for key, value in gradients.items():
        torch.testing.assert_close(again[key], value, rtol=1e-9, atol=1e-9, msg=key)
    batch["pixel_values"] = pixels  # outside the context the model reads pixels again
    assert torch.equal(run()[0], expected)


def test_features_are_taken_back_after_an_error(family):
    model = family("llava").model()
    own = model.model.get_image_features
    with pytest.raises(RuntimeError), family("llava").adapter.take_vision_features(model):
        assert model.model.get_image_features != own
        raise RuntimeError
    assert model.model.get_image_features == own


def test_llavas_features_are_the_layer_and_the_patches_it_names(family, conversations):
    small = family("llava")
    model = small.model().eval()
    images = {"pixel_values": batch_of(small, model, conversations, 2)["pixel_values"]}
    tower = model.model.vision_tower
    with torch.no_grad():
        hidden = tower(images["pixel_values"], output_hidden_states=True).hidden_states
    for layer, strategy in ((-2, "default"), (-1, "full"), ([0, -2], "default")):
        if isinstance(layer, list):
            model = LlavaForConditionalGeneration(
                LlavaConfig(**{**model.config.to_dict(), "vision_feature_layer": layer})
            )
            model.model.vision_tower.load_state_dict(tower.state_dict())
        model.config.vision_feature_layer = layer
        model.config.vision_feature_select_strategy = strategy
        chosen = [hidden[i][:, 1 if strategy == "default" else 0 :] for i in np.atleast_1d(layer)]
        found = small.adapter.vision_features(model, images)
        torch.testing.assert_close(found, torch.cat(chosen, dim=-1).flatten(0, 1))
        tokens = small.adapter.tokens_per_image(model.config, images)
        assert sum(tokens) == len(found)


def test_unknown_family():
    with pytest.raises(InputError, match="'gpt2'"):
        family_of("gpt2")


def test_model_directories_are_checked_before_weights_are_read(tmp_path, small):
    with pytest.raises(InputError, match="does not exist"):
        check_model_directory(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no config\.json"):
        check_model_directory(tmp_path)
    model = small.model()
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
    with pytest.raises(InputError, match="cannot be read as JSON"):
        check_model_directory(tmp_path / "model")
