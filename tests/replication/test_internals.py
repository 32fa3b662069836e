"""What is seen inside models, against from-scratch arithmetic on small ones."""

import dataclasses
import itertools
import json
import math
from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy.stats import entropy

from grace.errors import InputError
from grace.models import decoder_linears
from grace.quantization import QuantSpec, bake, prepare, write_codes
from grace.training import CachedTeacher
from replication.data.world.benchmarks import write_benchmark
from replication.data.world.scenes import Drawing
from replication.evaluate.score import evaluate_model
from replication.measure.inside.agreement import (
    mean_interval,
    most_varied_token,
    overlap,
    token_cka,
    token_cosines,
    visual_share,
)
from replication.measure.inside.distributions import (
    gate_histogram,
    gates,
    histogram,
    quantizer_histograms,
)
from replication.measure.inside.observing import Observation, observe, token_grid
from replication.measure.inside.questions import draw_questions
from replication.measure.inside.record import intervals, rounded, scenes
from replication.stats.verdict import Interval


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten real questions."""
    path = tmp_path_factory.mktemp("questions")
    write_benchmark(
        "mmbench",
        path / "mmbench.parquet",
        split="evaluation",
        count=10,
        seed=3,
        drawing=Drawing(2.0, 0),
    )
    return path


@pytest.fixture(scope="module")
def questions(folder):
    return draw_questions(folder, 10, np.random.default_rng(5))


@pytest.fixture
def eager(small):
    model = small.model(seed=1).eval()
    model.set_attn_implementation("eager")
    return model


def rotated(x, cos, sin):
    """Rotary position embedding (arXiv 2104.09864) in the half-split layout."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def rms(x, weight, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def answer_row(layer, hidden, cos, sin, heads, groups):
    """(S,) the last position's attention, mean over heads, in float64 from the weights alone."""
    attention = layer.self_attn
    count = hidden.shape[0]

    def project(linear, number, norm):
        x = hidden @ linear.weight.double().T
        if linear.bias is not None:
            x = x + linear.bias.double()
        x = x.view(count, number, -1)
        if norm is not None:
            x = rms(x, norm.weight.double(), norm.variance_epsilon)
        return rotated(x.transpose(0, 1), cos, sin)

    query = project(attention.q_proj, heads, getattr(attention, "q_norm", None))[:, -1]
    key = project(attention.k_proj, groups, getattr(attention, "k_norm", None))
    rows = []
    for head in range(heads):
        scores = key[head * groups // heads] @ query[head] / math.sqrt(query.shape[-1])
        weights = (scores - scores.max()).exp()
        rows.append(weights / weights.sum())
    return torch.stack(rows).mean(0)


def test_attention_is_the_softmax_of_scaled_products(small, eager, questions):
    """Every layer, from its own input: norm, projections, rotation, softmax and mean by hand."""
    family, text = small.adapter, eager.config.get_text_config()
    seen = []

    def keep(module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        cos, sin = kwargs["position_embeddings"]
        seen.append((module, hidden[0].double(), cos[0].double(), sin[0].double()))

    for layer in family.layers(eager):
        layer.register_forward_pre_hook(keep, with_kwargs=True)
    ids = []
    eager.register_forward_pre_hook(
        lambda module, args, kwargs: ids.append(kwargs["input_ids"][0]), with_kwargs=True
    )
    observation = observe(eager, small.processor, questions[0])
    (places,) = (ids[0] == eager.config.image_token_id).nonzero(as_tuple=True)
    assert len(seen) == len(observation.attention) == text.num_hidden_layers
    for (layer, hidden, cos, sin), row in zip(seen, observation.attention, strict=True):
        norm = layer.input_layernorm
        with torch.no_grad():
            normed = rms(hidden, norm.weight.double(), norm.variance_epsilon)
            expected = answer_row(
                layer, normed, cos, sin, text.num_attention_heads, text.num_key_value_heads
            )
        assert expected.sum() == pytest.approx(1.0)
        np.testing.assert_allclose(row, expected[places].numpy(), rtol=2e-4, atol=1e-7)


def test_the_tokens_are_those_that_enter_the_last_layer(small, eager, questions):
    kept = []
    small.adapter.layers(eager)[-1].input_layernorm.register_forward_pre_hook(
        lambda module, args: kept.append(args[0][0])
    )
    observation = observe(eager, small.processor, questions[1])
    rows = {tuple(row) for row in kept[0].numpy().tolist()}
    assert observation.tokens.shape == (
        math.prod(observation.grid),
        eager.config.get_text_config().hidden_size,
    )
    assert all(tuple(row) in rows for row in observation.tokens.tolist())


def test_questions_are_posed_as_in_the_evaluation(small, eager, folder, questions):
    """The same tokens and pixels reach the model, and its first token is the same."""
    seen = []

    def keep(module, args, kwargs):
        seen.append((tuple(kwargs["input_ids"][0].tolist()), kwargs["pixel_values"]))

    hook = eager.register_forward_pre_hook(keep, with_kwargs=True)
    evaluation = evaluate_model(
        eager,
        ["mmbench"],
        folder,
        processor=small.processor,
        batch_size=1,
        max_new_tokens=1,
        limit=3,
    )
    evaluated = dict(seen)
    seen.clear()
    ids = evaluation.outcomes["question_id"].tolist()
    chosen = {one.identity: one for one in questions if one.identity in ids}
    answers = {name: observe(eager, small.processor, one) for name, one in chosen.items()}
    hook.remove()
    assert len(chosen) == 3
    assert {tokens for tokens, _ in seen} == set(evaluated)
    for tokens, pixels in seen:
        torch.testing.assert_close(pixels, evaluated[tokens], rtol=0, atol=0)
    special = set(small.processor.tokenizer.all_special_tokens)
    for row in evaluation.outcomes.to_dict("records"):
        answer = answers[row["question_id"]].answer
        assert row["prediction"] == ("" if answer in special else answer)
        assert row["target"] == chosen[row["question_id"]].target


def test_draws_are_of_different_questions_and_repeat(folder, questions):
    again = draw_questions(folder, 4, np.random.default_rng(5))
    assert len({one.identity for one in questions}) == 10
    first = draw_questions(folder, 4, np.random.default_rng(5))
    assert [dataclasses.replace(one, image=None) for one in first] == [
        dataclasses.replace(one, image=None) for one in again
    ]
    for one in questions:
        assert one.target in one.options
        assert all(f"{letter}. {text}" in one.prompt for letter, text in one.options.items())


@pytest.mark.parametrize(("count", "words"), [(11, "has 10 questions"), (1, "run the stage")])
def test_too_few_questions_or_none_are_one_error(folder, tmp_path, count, words):
    place = folder if count > 1 else tmp_path
    with pytest.raises(InputError, match=words):
        draw_questions(place, count, np.random.default_rng(0))


def test_a_class_token_has_no_place(family):
    llava = family("llava")
    model = llava.model()
    model.config.vision_feature_select_strategy = "full"
    with pytest.raises(InputError, match="class token"):
        token_grid(llava.adapter, model.config, {"pixel_values": torch.zeros(1, 3, 64, 64)})


# ---------------------------------------------------------------------------------- comparisons


def features(seed, n, d):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def seen(attention, tokens=None):
    tokens = np.eye(len(attention[0]), dtype=np.float32) if tokens is None else tokens
    return Observation(np.array(attention, dtype=np.float64), tokens, (1, len(tokens)), "A")


@given(st.integers(0, 2**32 - 1), st.integers(3, 20), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=40)
def test_cka_is_the_normalised_hilbert_schmidt_criterion(seed, n, d1, d2):
    """HSIC(K, L) = tr(KHLH) / (n-1)² of the rows' cosines, from the definition (1905.00414)."""
    pair = [features(seed, n, d1 + 1), features(seed + 1, n, d2 + 1)]
    grams = []
    for x in (one.astype(np.float64) for one in pair):
        grams.append([[np.dot(a, b) / np.sqrt(a @ a) / np.sqrt(b @ b) for b in x] for a in x])
    k, other = map(np.array, grams)
    h = np.eye(n) - 1 / n

    def hsic(a, b):
        return np.trace(a @ h @ b @ h) / (n - 1) ** 2

    expected = hsic(k, other) / np.sqrt(hsic(k, k) * hsic(other, other))
    row = [[1 / n] * n]
    value = token_cka(seen(row, pair[0]), seen(row, pair[1]))
    assert value == pytest.approx(expected, abs=1e-9)
    assert token_cka(seen(row, pair[0]), seen(row, pair[0] * 3)) == pytest.approx(1.0)


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(1, 8), st.data())
def test_cosines_are_torch_s(seed, n, d, data):
    tokens, anchor = features(seed, n, d), data.draw(st.integers(0, n - 1))
    wide = torch.from_numpy(tokens).double()
    expected = torch.nn.functional.cosine_similarity(wide, wide[anchor : anchor + 1])
    cosines = token_cosines(tokens, anchor)
    np.testing.assert_allclose(cosines, expected.numpy(), atol=1e-12)
    assert cosines[anchor] == pytest.approx(1.0)


MAPS = arrays(np.float64, (2, 6), elements=st.floats(1e-3, 1.0))


@given(MAPS, MAPS, st.floats(0.1, 1.0))
def test_overlap_is_one_less_the_total_variation(one, other, factor):
    first, second = (values.mean(0) / values.mean(0).sum() for values in (one, other))
    expected = 1 - np.abs(first - second).sum() / 2
    assert overlap(seen(one), seen(other)) == pytest.approx(expected)
    assert overlap(seen(one), seen(one * factor)) == pytest.approx(1.0)
    assert visual_share(seen(one)) == pytest.approx(one.sum(1))


def test_overlap_of_different_places_is_nothing():
    assert overlap(seen([[0.2, 0.0]]), seen([[0.0, 0.5], [0.0, 0.1]])) == 0


@given(st.integers(1, 5), st.integers(1, 5), st.data())
def test_the_most_varied_token_is_where_the_only_object_is(rows, columns, data):
    place = data.draw(st.integers(0, rows * columns - 1))
    pixels = np.full((rows * 16, columns * 16, 3), 200, dtype=np.uint8)
    top, left = (16 * at for at in divmod(place, columns))
    pixels[top + 4 : top + 12, left + 4 : left + 12] = (220, 30, 30)
    assert most_varied_token(Image.fromarray(pixels), (rows, columns)) == place


def test_intervals_are_of_means_and_of_paired_differences():
    rng = np.random.default_rng
    of_seeds, of_questions = np.array([[-0.02], [0.0], [0.02]]), rng(0).normal(0.4, 0.1, 200)
    values = of_seeds + of_questions
    interval = mean_interval(values, rng(1), resamples=4000)
    assert interval.point == pytest.approx(values.mean())
    # a part from questions, a part from seeds
    error = math.hypot(of_questions.std() / math.sqrt(200), of_seeds.std(ddof=1) / math.sqrt(3))
    assert interval.standard_error == pytest.approx(error, rel=0.06)
    base = values[:1] - 0.25
    paired = mean_interval(values[:1], rng(1), resamples=500, minus=base)
    assert (paired.low, paired.point, paired.high) == pytest.approx((0.25, 0.25, 0.25))
    assert mean_interval(base, rng(1), resamples=500, minus=values[:1]).point < 0


def observations(names, seed, count, runs=1):
    rng = np.random.default_rng(seed)
    models = {}
    for name in names:
        layers = 3 if name == "teacher" else 2
        copies = 1 if name in ("teacher", "baseline") else runs
        models[name] = [
            [
                Observation(
                    rng.dirichlet(np.ones(6), layers)[:, :4],
                    rng.standard_normal((4, 5)).astype(np.float32),
                    (2, 2),
                    "A",
                )
                for _ in range(count)
            ]
            for _ in range(copies)
        ]
    return models


def test_intervals_say_what_is_there(questions):
    names = ("teacher", "baseline", "kd_int4", "grace_int4")
    models = observations(names, 4, 10, runs=2)
    result = intervals(models, 1, "llava", 300)
    assert set(result) == {
        *(f"visual_share.teacher.{layer}" for layer in (1, 2, 3)),
        *(f"visual_share.{name}.{k}" for name in ("baseline", "grace_int4") for k in (1, 2)),
        *(f"{key}.{name}" for key in ("cka", "overlap") for name in names[1:]),
        *(f"{key}_gain.{name}" for key in ("cka", "overlap") for name in names[2:]),
    }
    third = [one.attention[2].sum() for one in models["teacher"][0]]
    assert result["visual_share.teacher.3"].point == pytest.approx(np.mean(third))
    (teacher,), runs = models["teacher"], models["grace_int4"]
    pairs = [token_cka(a, b) for run in runs for a, b in zip(run, teacher, strict=True)]
    base = [token_cka(a, b) for a, b in zip(models["baseline"][0], teacher, strict=True)]
    assert result["cka.grace_int4"].point == pytest.approx(np.mean(pairs))
    assert result["cka_gain.grace_int4"].point == pytest.approx(np.mean(pairs) - np.mean(base))
    assert result == intervals(models, 1, "llava", 300)


def test_scenes_are_the_first_questions(questions):
    models = observations(("teacher", "baseline", "grace_int4"), 4, 10, runs=2)
    result = scenes(models, questions, 3)
    assert [one["question_id"] for one in result] == [one.identity for one in questions[:3]]
    for index, one in enumerate(result):
        own = models["grace_int4"][0][index]
        assert one["models"]["grace_int4"]["attention"] == own.attention.tolist()
        cosines = one["models"]["grace_int4"]["cosine"]
        assert cosines[one["anchor"]] == pytest.approx(1.0)
    json.dumps(rounded(result), allow_nan=False)


@given(st.floats(-1e6, 1e6, allow_subnormal=False), st.integers(-(10**9), 10**9))
def test_rounding_keeps_four_digits_and_whole_numbers(number, whole):
    result = rounded({"a": [number, whole, True, "x"], "b": (number,)})
    assert result["a"][1:] == [whole, True, "x"]
    assert result["a"][0] == result["b"][0] == pytest.approx(number, rel=6e-4)
    assert len(Decimal(str(result["a"][0])).normalize().as_tuple().digits) <= 4
    low, high = sorted((number, number + 0.1))
    one = rounded(Interval(low, low, high))
    assert one["low"] <= one["point"] <= one["high"]


# -------------------------------------------------------------------------------- distributions


@given(
    arrays(np.float64, st.integers(1, 60), elements=st.floats(-3, 3)), st.integers(1, 9)
)  # fmt: skip
def test_histograms_are_numpy_s(values, bins):
    edges = np.linspace(-3, 3, bins + 1)
    result = histogram(edges, one=values)
    assert result["one"]["counts"] == np.histogram(values, bins, (-3, 3))[0].tolist()
    assert sum(result["one"]["counts"]) == result["one"]["count"] == values.size
    assert result["edges"] == edges.tolist()
    assert result["one"]["median"] == pytest.approx(np.median(values))


@pytest.mark.parametrize("value", [1.5, -0.1, math.nan])
def test_a_value_in_no_bin_is_an_error(value):
    with pytest.raises(InputError, match="1 of 3 values lie outside"):
        histogram(np.array([0.0, 0.5, 1.0]), one=np.array([0.0, value, 1.0]))


@pytest.mark.parametrize("kappa", [1.0, 4.0, 0.0, -1.0])
def test_gates_are_those_of_the_entropy(tmp_path, kappa):
    """At the supervised tokens of the picked samples alone, whatever their order."""
    rng = np.random.default_rng(2)
    lengths, vocabulary = [3, 1, 4, 2], 11
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    logits = torch.from_numpy(rng.normal(0, 4, (10, vocabulary))).bfloat16()
    np.save(tmp_path / "offsets.npy", offsets)
    np.save(tmp_path / "logits.npy", logits.view(torch.int16).numpy())
    np.save(tmp_path / "grams.npy", np.zeros((4, 2, 2), np.float16))
    identity = {"model_type": "llava", "rows": vocabulary, "tokens": vocabulary, "vocabulary": "x"}
    meta = {"samples": 4, "teacher": identity, "sha256": "0"}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    teacher = CachedTeacher(tmp_path, samples=4)
    picked = np.array([2, 0])
    values = gates(teacher, picked, [lengths[place] for place in picked], kappa)
    rows = np.concatenate([np.arange(offsets[place], offsets[place + 1]) for place in picked])
    chances = torch.softmax(logits[rows].double(), dim=-1).numpy()
    expected = np.exp(-kappa * entropy(chances, axis=1) / math.log(vocabulary))
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    counted = gate_histogram(values, kappa, 7)
    assert sum(counted["gate"]["counts"]) == 7
    assert counted["edges"][0] <= min(1, math.exp(-kappa)) <= counted["edges"][-1]
    with pytest.raises(InputError, match="other data"):
        gates(teacher, picked, [1, 1], kappa)


def test_weights_and_scales_are_counted_before_and_after(make_model, processor, tmp_path):
    spec = QuantSpec(bits=4)
    model = make_model(3)
    model.save_pretrained(tmp_path / "baseline")
    names = decoder_linears(model)
    before = [model.get_submodule(name).weight.detach().clone() for name in names]
    prepare(model, spec)
    start, changed = [], []
    for place, name in enumerate(names):
        layer = model.get_submodule(name)
        start.append(layer.scales())
        with torch.no_grad():  # what training might do
            layer.log_scale += 0.3 * (-1) ** place
            layer.weight *= 1.1
        changed.append(layer.scales())
    trained = tmp_path / "trained"
    trained.mkdir()
    exact = bake(model)
    write_codes(trained, exact, spec.to_dict())
    result = quantizer_histograms(tmp_path / "baseline", trained, spec, 9)

    def flat(tensors):
        return torch.cat([one.flatten() for one in tensors]).double().numpy()

    after = flat(model.get_submodule(name).weight.detach() for name in names)
    for part, pair in (
        ("weights", {"before": flat(before), "after": after}),
        ("scales", {"before": flat(start), "after": flat(changed)}),
        ("scale_ratio", {"ratio": flat(changed) / flat(start)}),
    ):
        edges = np.array(result[part]["edges"])
        assert len(edges) == 10
        for name, values in pair.items():
            assert result[part][name]["counts"] == np.histogram(values, edges)[0].tolist()
            assert result[part][name]["mean"] == pytest.approx(values.mean())
            assert result[part][name]["standard_deviation"] == pytest.approx(values.std())
    edges = np.array(result["weights"]["edges"])
    np.testing.assert_allclose(edges, -edges[::-1], atol=1e-12)

    other = dict(itertools.islice(exact.items(), 3))
    write_codes(trained, other, spec.to_dict())
    with pytest.raises(InputError, match="codes of other linears"):
        quantizer_histograms(tmp_path / "baseline", trained, spec, 9)
