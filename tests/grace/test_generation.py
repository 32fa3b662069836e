"""Greedy decoding against transformers' own generate, on small models of the real classes."""

import contextlib
import copy
from pathlib import Path

import pytest
import torch
from conftest import speaking
from hypothesis import given
from hypothesis import strategies as st
from transformers.cache_utils import StaticCache
from waits import HostWaits

import grace
from grace.decoding import Decoder, generate, special_settings
from grace.decoding.cache import AllocatedLayer
from grace.decoding.generation import _trimmed
from grace.errors import InputError
from grace.quantization import QuantSpec, prepare

PROMPTS = ("what is it", "how many letters are there in the picture at all", "a")


def inputs_of(small, prompts=PROMPTS, *, images=True, seed=0):
    """A left-padded batch: the processor's tokens and images of noise."""
    from PIL import Image

    rng = torch.Generator().manual_seed(seed)
    texts, pictures = [], []
    for prompt in prompts:
        content = [{"type": "text", "text": prompt}]
        if images:
            content.insert(0, {"type": "image"})
            noise = torch.randint(0, 256, (64, 64, 3), generator=rng, dtype=torch.uint8)
            pictures.append(Image.fromarray(noise.numpy()))
        chat = [{"role": "user", "content": content}]
        texts.append(small.processor.apply_chat_template(chat, add_generation_prompt=True))
    batch = small.processor(text=texts, images=pictures or None, padding=True, return_tensors="pt")
    return dict(batch)


def reference(model, inputs, count, **settings):
    return model.generate(
        **copy.deepcopy(inputs), max_new_tokens=count, do_sample=False, num_beams=1, **settings
    )


@contextlib.contextmanager
def logits_of(model):
    """The logits of every forward pass within, (rows, words) each."""
    kept = []
    hook = model.lm_head.register_forward_hook(lambda *args: kept.append(args[2][:, -1].float()))
    try:
        yield kept
    finally:
        hook.remove()


@pytest.fixture
def model(small):
    return small.model(seed=3).eval()


def test_equals_generate_one_prompt(small, model):
    inputs = inputs_of(small, PROMPTS[:1])
    expected = reference(model, inputs, 24, eos_token_id=None)
    model.generation_config.eos_token_id = None
    found = generate(model, inputs, 24)
    assert found.shape[1] == inputs["input_ids"].shape[1] + 24
    assert torch.equal(found, expected)


def test_equals_generate_left_padded(small, model):
    inputs = inputs_of(small)
    assert not inputs["attention_mask"].all(), "the batch has to be padded"
    expected = reference(model, inputs, 16, eos_token_id=None)
    model.generation_config.eos_token_id = None
    assert torch.equal(generate(model, inputs, 16), expected)


def test_positions_and_logits_are_those_of_generate(small, model):
    inputs = inputs_of(small)
    positions = model._prepare_position_ids_for_generation(
        inputs["input_ids"], copy.deepcopy(inputs)
    )
    seen = []
    core = model.get_submodule("model")
    handle = core.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["position_ids"].clone()), with_kwargs=True
    )
    generate(model, inputs, 2)
    handle.remove()
    assert torch.equal(seen[0], positions) and torch.equal(seen[1], positions[..., -1:] + 1)
    model.generation_config.eos_token_id = None
    expected = reference(model, inputs, 6, return_dict_in_generate=True, output_logits=True).logits
    with logits_of(model) as found:
        generate(model, inputs, 6)
    assert len(found) == len(expected) == 6
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-6)  # sums in another order


def test_rows_of_a_batch_equal_single_prompts(small, model):
    model.generation_config.eos_token_id = None
    whole = generate(model, inputs_of(small), 12)[:, -12:]
    images = inputs_of(small)["pixel_values"].chunk(len(PROMPTS))
    for row, (prompt, image) in enumerate(zip(PROMPTS, images, strict=True)):
        single = {**inputs_of(small, [prompt]), "pixel_values": image}
        assert torch.equal(generate(model, single, 12)[0, -12:], whole[row])


def test_equals_generate_in_bfloat16(small, model):
    model = model.to(torch.bfloat16)
    inputs = inputs_of(small)
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    model.generation_config.eos_token_id = None
    found = generate(model, inputs, 16)
    with logits_of(model) as kept:
        expected = reference(model, inputs, 16)
    start = inputs["input_ids"].shape[1]
    for row in range(len(found)):  # equal up to a tie of two words in bfloat16
        differ = (found[row] != expected[row]).nonzero()
        if len(differ):
            at = int(differ[0])
            logits = kept[at - start][row]
            one, other = logits[found[row, at]], logits[expected[row, at]]
            assert (one - other).abs() <= 2**-7 * other.abs()
    assert (found[:, start] == expected[:, start]).all()


def test_equals_generate_without_an_image(small, model):
    inputs = inputs_of(small, images=False)
    assert "pixel_values" not in inputs
    generate(model, inputs_of(small), 2)  # leaves nothing behind that the next prompt would read
    model.generation_config.eos_token_id = None
    assert torch.equal(generate(model, inputs, 12), reference(model, inputs, 12))


@pytest.mark.parametrize("check_every", [1, 3, 64])
def test_early_end_tokens(small, model, check_every):
    inputs = inputs_of(small)
    model.generation_config.eos_token_id = None
    free = generate(model, inputs, 16)[:, inputs["input_ids"].shape[1] :]
    # a token that each row says somewhere, and not all at the same step
    ends = [int(free[0, 2]), int(free[1, 5]), int(free[2, 9])]
    expected = reference(model, inputs, 16, eos_token_id=ends, pad_token_id=1)
    found = generate(model, inputs, 16, eos_token_id=ends, pad_token_id=1, check_every=check_every)
    assert torch.equal(found, expected)
    assert found.shape[1] < inputs["input_ids"].shape[1] + 16


def test_end_and_padding_of_the_generation_config(small, model):
    inputs = inputs_of(small)
    model.generation_config.eos_token_id = None
    free = generate(model, inputs, 8)[:, inputs["input_ids"].shape[1] :]
    model.generation_config.eos_token_id = int(free[0, 1])
    model.generation_config.pad_token_id = None
    assert torch.equal(generate(model, inputs, 8), reference(model, inputs, 8))


def test_fake_quantized_model(small, model):
    prepare(model, QuantSpec(bits=4, group_size=32))
    inputs = inputs_of(small)
    assert torch.equal(generate(model, inputs, 8), reference(model, inputs, 8))


def test_eager_attention(small, model):
    model.set_attn_implementation("eager")
    inputs = inputs_of(small)
    assert torch.equal(generate(model, inputs, 8), reference(model, inputs, 8))


# ------------------------------------------------------------------------ beyond greedy decoding


@pytest.mark.parametrize(
    "settings",
    [{"repetition_penalty": 1.5}, {"num_beams": 3}, {"no_repeat_ngram_size": 1, "top_k": 5}],
)
def test_what_the_generation_config_asks_for_is_done(small, model, settings):
    """By the model's own generate, and without sampling unless that is asked for."""
    # the library finds the images of a beam by a start token that this world's models lack
    inputs = inputs_of(small, images="num_beams" not in settings)
    model.generation_config.eos_token_id = None
    plain = generate(model, inputs, 12)
    for name, value in {"do_sample": True, "temperature": 0.7, **settings}.items():
        setattr(model.generation_config, name, value)
    before = model.generation_config.to_dict()
    assert set(special_settings(model)) == settings.keys() - {"top_k"}
    neutral = {"temperature": 1.0, "top_k": 50}
    found = generate(model, inputs, 12)
    settings = {name: value for name, value in settings.items() if name != "num_beams"}
    beams = model.generation_config.num_beams or 1
    expected = model.generate(
        **copy.deepcopy(inputs),
        max_new_tokens=12,
        do_sample=False,
        **{**settings, **neutral},
        num_beams=beams,
    )
    assert torch.equal(found, expected) and not torch.equal(found, plain)
    assert torch.equal(generate(model, inputs, 12, strategy="greedy"), plain)
    assert model.generation_config.to_dict() == before


def test_sampling_is_the_librarys(small, model):
    inputs = inputs_of(small, PROMPTS[:1])
    model.generation_config.temperature = 5.0
    torch.manual_seed(1)
    found = generate(model, inputs, 12, strategy="sample")
    torch.manual_seed(1)
    expected = model.generate(**copy.deepcopy(inputs), max_new_tokens=12, do_sample=True)
    assert torch.equal(found, expected)
    assert not torch.equal(found, generate(model, inputs, 12, strategy="greedy"))


def test_stop_strings_end_an_answer(family):
    small = family("llava")
    model = speaking(small)
    inputs = inputs_of(small, PROMPTS[:1])
    tokenizer, length = small.processor.tokenizer, inputs["input_ids"].shape[1]
    model.generation_config.eos_token_id = None
    free = generate(model, inputs, 12)[0, length:]
    texts = [tokenizer.decode(token) for token in free]
    whole = next(text for text in texts[2:] if "\N{REPLACEMENT CHARACTER}" not in text)
    model.generation_config.stop_strings = [whole]  # a token may be one byte of a character
    found = generate(model, inputs, 12, tokenizer=tokenizer)[0, length:]
    assert len(found) < 12 and torch.equal(found, free[: len(found)])


@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.5}])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_logits_that_are_not_finite_are_an_error(small, model, value, settings):
    """As where float16 cannot hold the activations: token 0 for ever would be the answer."""
    inputs = inputs_of(small, PROMPTS[:1])
    for name, setting in settings.items():
        setattr(model.generation_config, name, setting)
    model.generation_config.eos_token_id = None
    seen = []

    def damage(module, arguments, logits):
        seen.append(len(seen))
        if len(seen) == 3:  # not the prompt's, and finite again after it
            logits[..., 5] = value

    model.lm_head.register_forward_hook(damage)
    with pytest.raises(InputError, match=r"not finite: in torch\.float32 .* load or pack it with"):
        generate(model, inputs, 8)


def test_activations_beyond_float16_are_an_error(small, model):
    inputs = inputs_of(small, PROMPTS[:1], images=False)
    with torch.no_grad():
        layer = model.get_submodule(small.adapter.decoder_layers)[0]
        layer.mlp.down_proj.weight.mul_(1e4)
        layer.mlp.up_proj.weight.mul_(1e2)
    assert generate(model, inputs, 4).shape[1] > inputs["input_ids"].shape[1]
    with pytest.raises(InputError, match=r"in torch\.float16 the model's activations leave"):
        generate(model.half(), inputs, 4)


# ---------------------------------------------------------------------------------------- decoder


def test_a_captured_step_computes_the_same(small, model, monkeypatch):
    """The step that would be captured, run without a graph: whole cache, mask, device counters."""
    model.generation_config.eos_token_id = None
    inputs = inputs_of(small)
    length = inputs["input_ids"].shape[1]
    decoder = Decoder(model, 3, length + 16)
    monkeypatch.setattr(decoder, "captured", True)
    monkeypatch.setattr(decoder, "_capture", lambda: None)
    decoder._cache = decoder._new_cache()
    assert isinstance(decoder._cache, StaticCache)
    with logits_of(model) as eager:
        expected = generate(model, inputs, 12)[:, length:]
    with logits_of(model) as whole:
        decoder.prefill(inputs)
        decoder.run(11)
    assert torch.equal(decoder.tokens(), expected)
    for ours, theirs in zip(whole, eager, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    decoder.rewind()
    decoder.run(11)
    assert torch.equal(decoder.tokens(), expected)
    decoder.prefill(inputs)  # the same buffers again
    decoder.run(11)
    assert torch.equal(decoder.tokens(), expected)


def test_rewind_and_a_second_prompt(small, model):
    model.generation_config.eos_token_id = None
    first, second = inputs_of(small), inputs_of(small, PROMPTS[::-1], seed=5)
    decoder = Decoder(model, 3, first["input_ids"].shape[1] + 8)
    for inputs in (first, second):
        expected = generate(model, inputs, 8)[:, inputs["input_ids"].shape[1] :]
        decoder.prefill(inputs)
        for _ in range(2):
            decoder.run(7)
            assert torch.equal(decoder.tokens(), expected)
            decoder.rewind()
            assert torch.equal(decoder.tokens(), expected[:, :1])


def test_start_from_a_prompt_read_once(small, model):
    model.generation_config.eos_token_id = None
    inputs = inputs_of(small)
    length = inputs["input_ids"].shape[1]
    read = Decoder(model, 3, length + 1)
    read.prefill(inputs)
    many = Decoder(model, 6, length + 8)
    many.start_from(read)
    many.run(7)
    expected = generate(model, inputs, 8)[:, length:].repeat_interleave(2, 0)
    assert torch.equal(many.tokens(), expected)


def test_after_step_sees_every_step(small, model):
    inputs = inputs_of(small, PROMPTS[:1])
    decoder = Decoder(model, 1, inputs["input_ids"].shape[1] + 6)
    decoder.prefill(inputs)
    seen = []
    decoder.run(4, after_step=lambda: seen.append(decoder.generated))
    assert seen == [2, 3, 4, 5]


def test_no_line_of_a_step_makes_the_host_wait(small, model):
    """The check for logits that are not finite is kept on the device until it is asked."""
    inputs = inputs_of(small)
    decoder = Decoder(model, 3, inputs["input_ids"].shape[1] + 6)
    decoder.prefill(inputs)
    package = Path(grace.__file__).parent
    with HostWaits() as waits:
        decoder.run(5)
    assert not [wait for wait in waits.found if package in Path(wait.file).parents]
    with HostWaits() as waits:
        decoder.check_finite()
    assert [wait for wait in waits.found if package in Path(wait.file).parents]


def test_the_cache_is_allocated_once(small, model):
    inputs = inputs_of(small, PROMPTS[:1])
    length = inputs["input_ids"].shape[1]
    decoder = Decoder(model, 1, length + 6)
    decoder.prefill(inputs)
    places = [layer.all_keys.data_ptr() for layer in decoder._cache.layers]
    size = decoder.cache_bytes()
    decoder.run(5)
    assert [layer.all_keys.data_ptr() for layer in decoder._cache.layers] == places
    text = model.config.get_text_config()
    width = model.model.language_model.layers[0].self_attn.head_dim
    slots = (length + 6) * text.num_key_value_heads * width
    assert decoder.cache_bytes() == size == 2 * text.num_hidden_layers * slots * 4


@given(st.data())
def test_allocated_layer_holds_what_a_growing_one_does(data):
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    layer = AllocatedLayer(sum(sizes))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    keys, values = [], []
    for size in sizes:
        keys.append(torch.randn(2, 3, size, 5, generator=generator))
        values.append(torch.randn(2, 3, size, 4, generator=generator))
        found = layer.update(keys[-1], values[-1])
        assert torch.equal(found[0], torch.cat(keys, 2))
        assert torch.equal(found[1], torch.cat(values, 2))
        assert layer.get_mask_sizes(1) == (sum(k.shape[2] for k in keys) + 1, 0)


@given(st.data())
def test_trimmed_by_rows(data):
    rows = data.draw(st.lists(st.lists(st.integers(0, 5), min_size=6, max_size=6), min_size=1))
    ends = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=2))
    cut = []
    for row in rows:
        stop = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        cut.append(row[:stop])
    longest = max(map(len, cut))
    expected = [row + [9] * (longest - len(row)) for row in cut]
    assert _trimmed(torch.tensor(rows), torch.tensor(ends), 9).tolist() == expected


# -------------------------------------------------------------------------------------- bad input


def test_right_padding_is_refused(small, model):
    inputs = inputs_of(small)
    inputs["attention_mask"] = inputs["attention_mask"].flip(1)
    with pytest.raises(InputError, match="pad on the left"):
        generate(model, inputs, 2)


def test_unknown_input_is_refused(small, model):
    inputs = {**inputs_of(small), "pixel_values_videos": torch.zeros(1)}
    with pytest.raises(InputError, match="pixel_values_videos"):
        generate(model, inputs, 2)


def test_no_tokens_to_generate_are_refused(small, model):
    with pytest.raises(InputError, match="max_new_tokens is 0"):
        generate(model, inputs_of(small), max_new_tokens=0)


def test_capture_needs_cuda(make_model):
    with pytest.raises(InputError, match="needs CUDA"):
        Decoder(make_model(), 1, 8, capture=True)
