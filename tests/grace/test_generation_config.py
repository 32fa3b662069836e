"""Invalid generation configurations, as published checkpoints have them."""

import json
import types
import warnings

import pytest
from transformers import GenerationConfig

from grace.errors import InputError
from grace.models import load_model, mend_generation_config


def test_an_invalid_generation_configuration_is_mended_with_a_warning(tmp_path, small):
    """A published one: its model loads, and what it asks for otherwise stays."""
    model = small.model()
    model.save_pretrained(tmp_path)
    published = {"do_sample": False, "temperature": 0.9, "top_p": 0.6, "max_length": 77}
    (tmp_path / "generation_config.json").write_text(json.dumps(published))
    with pytest.warns(UserWarning, match=r"temperature = 0\.9, top_p = 0\.6 left out"):
        model = load_model(tmp_path)
    assert model.generation_config.do_sample is False and model.generation_config.max_length == 77
    model.save_pretrained(tmp_path / "again")
    load_model(tmp_path / "again")  # and no warning any more


@pytest.mark.parametrize(
    ("settings", "dropped"),
    [
        ({"temperature": 0.9, "do_sample": True}, []),
        ({"length_penalty": 2.0, "num_beams": 3, "early_stopping": True}, []),
        ({"length_penalty": 2.0, "repetition_penalty": 1.05}, ["length_penalty"]),
        ({"num_return_sequences": 2, "eos_token_id": [3, 4]}, ["num_return_sequences"]),
        ({"output_scores": True, "top_k": 1, "pad_token_id": 7}, ["output_scores", "top_k"]),
    ],
)
def test_only_what_is_invalid_is_left_out(settings, dropped):
    config = GenerationConfig()
    for name, value in settings.items():
        setattr(config, name, value)
    model = types.SimpleNamespace(generation_config=config)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        mend_generation_config(model, "the student")
    assert len(seen) == bool(dropped)
    assert all(f"{name} = " in str(seen[0].message) for name in dropped)
    model.generation_config.validate(strict=True)
    for name, value in settings.items():
        expected = getattr(GenerationConfig(), name) if name in dropped else value
        assert getattr(model.generation_config, name) == expected


@pytest.mark.parametrize("impossible", [{"cache_implementation": "none"}, {"max_new_tokens": 0}])
def test_settings_of_impossible_values_stop_nothing(tmp_path, family, impossible):
    family("llava").model().save_pretrained(tmp_path)
    settings = {**impossible, "repetition_penalty": 1.05}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    (name,) = impossible
    with pytest.warns(UserWarning, match=f"{name} = .* left out"):
        model = load_model(tmp_path)
    assert model.generation_config.repetition_penalty == 1.05
    assert getattr(model.generation_config, name) == getattr(GenerationConfig(), name)


def test_a_generation_configuration_that_is_no_json_is_one_line(tmp_path, family):
    family("llava").model().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(InputError, match=r"generation_config.json: cannot be read as JSON"):
        load_model(tmp_path)
