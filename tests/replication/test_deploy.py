"""The deployment benchmark on small configurations of the real classes."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from grace.decoding import generate
from grace.errors import InputError
from grace.files import read_yaml
from grace.models import FAMILIES
from grace.quantization import QuantSpec, prepare
from replication import bench
from replication.base.validation import Positive, Text, record, validate
from replication.measure import harness, memory
from replication.measure.clock import spread
from replication.measure.speed import benchmark, measure, sizes, weights
from replication.measure.speed.settings import Settings, read_settings
from replication.measure.speed.variants import VARIANTS, UnfusedAwqLinear, variant
from replication.measure.step import Trial
from replication.plan.architectures import PATH, Architecture, architecture, architectures
from replication.results import deployment as results

FAST = Settings(
    batches=(1, 2), repeats=2, decode_repeats=3, tokens=3, text_tokens=8, device="cpu", threads=1
)


def small(family: str) -> Architecture:
    """Two layers of width 128, 16 visual tokens, in a group of 128 for every linear."""
    shape = Trial(family=family, vocabulary=256, width=128, layers=2).shape()
    return replace(shape, name=f"small-{family}", repository="nobody/nothing")


@pytest.fixture(params=sorted(FAMILIES))
def tiny(request) -> Architecture:
    return small(request.param)


@pytest.fixture(autouse=True)
def crossover(monkeypatch, tmp_path):
    """No measurement of layers this small, and no file outside of the test's folder."""
    monkeypatch.setenv("GRACE_INT4_CROSSOVER", "4")
    monkeypatch.setenv("GRACE_CACHE", str(tmp_path))


# ------------------------------------------------------------------------------- the architectures


def decoder_size(t: dict, *, norms: int, qkv_bias: bool) -> int:
    """Weights of a decoder with gated MLPs, embeddings and head left out."""
    h, i, layers = t["hidden_size"], t["intermediate_size"], t["num_hidden_layers"]
    width = t.get("head_dim", h // t["num_attention_heads"])
    q, kv = t["num_attention_heads"] * width, t["num_key_value_heads"] * width
    attention = 2 * h * q + 2 * h * kv + (q + 2 * kv if qkv_bias else 0)
    heads = 2 * width if norms == 4 else 0
    return layers * (attention + 3 * h * i + 2 * h + heads) + h


def clip_size(v: dict) -> int:
    h, i, patch = v["hidden_size"], v["intermediate_size"], v["patch_size"]
    places = (v["image_size"] // patch) ** 2 + 1
    layer = 4 * h * h + 4 * h + 2 * h * i + h + i + 4 * h
    return h + 3 * patch**2 * h + places * h + 4 * h + v["num_hidden_layers"] * layer


def expected_size(values: dict) -> int:
    t, v = values["text_config"], values["vision_config"]
    words = t["vocab_size"] * t["hidden_size"] * (1 if values["tie_word_embeddings"] else 2)
    if values["model_type"] == "llava":
        h, out = v["hidden_size"], t["hidden_size"]
        projector = h * out + out + out * out + out
        return words + decoder_size(t, norms=2, qkv_bias=False) + clip_size(v) + projector
    patch = 3 * v["temporal_patch_size"] * v["patch_size"] ** 2
    if values["model_type"] == "qwen2_vl":
        h, out = v["embed_dim"], v["hidden_size"]
        i = h * v["mlp_ratio"]
        layer = 4 * h * h + 4 * h + 2 * h * i + h + i + 4 * h
        wide = 4 * h
        merger = 2 * h + wide * wide + wide + wide * out + out
        tower = patch * h + v["depth"] * layer + merger
        return words + decoder_size(t, norms=2, qkv_bias=True) + tower
    h, i, out = v["hidden_size"], v["intermediate_size"], v["out_hidden_size"]
    layer = 4 * h * h + 4 * h + 2 * h * i + h + i + 4 * h
    wide = 4 * h
    joint = wide * wide + wide + wide * out + out
    mergers = (2 * h + joint) + len(v["deepstack_visual_indexes"]) * (2 * wide + joint)
    tower = patch * h + h + v["num_position_embeddings"] * h + v["depth"] * layer + mergers
    return words + decoder_size(t, norms=4, qkv_bias=False) + tower


@record
class Entry:
    """One of architectures.yaml."""

    repository: Text
    parameters: Positive
    image: dict[str, Positive]
    config: dict[str, Any]


def test_the_file_of_architectures_is_as_the_code_reads_it():
    """Here, and not where it is read: a machine with a GPU may lack what checks it."""
    entries = validate(dict[str, Entry], read_yaml(PATH), PATH.name)
    assert {name: one.repository for name, one in architectures().items()} == {
        name: entry.repository for name, entry in entries.items()
    }


@pytest.mark.parametrize("name", list(architectures()))
def test_published_architecture(name):
    published = architecture(name)
    assert published.counted_parameters == published.parameters == expected_size(published.values)
    layers = published.values["text_config"]["num_hidden_layers"]
    assert len(published.decoder_linears) == 7 * layers
    for linear in published.decoder_linears:  # every one takes the group size of the variants
        assert published.meta_model.get_submodule(linear).in_features % 128 == 0


@pytest.mark.parametrize(
    ("name", "stated"),
    [("qwen2-vl-2b", 2.21), ("qwen2-vl-7b", 8.29), ("qwen3-vl-8b", 8.77), ("llava-1.5-7b", 7.06)],
)
def test_published_size(name, stated):
    """Billions of parameters, as the hub prints them."""
    assert round(architecture(name).parameters / 1e9, 2) == stated


@pytest.mark.parametrize("name", list(architectures()))
def test_prompt_of_published_architecture(name):
    published = architecture(name)
    prompt = published.prompt(0, dtype=torch.bfloat16)
    image = published.config().image_token_id
    assert int((prompt["input_ids"] == image).sum()) == 576
    assert prompt["input_ids"].shape[1] == 576 + 64
    assert prompt["pixel_values"].dtype == torch.bfloat16


def test_unknown_names():
    with pytest.raises(InputError, match=r"llava-1\.5-7b"):
        architecture("llava-1.6")
    with pytest.raises(InputError, match="awq_unfused"):
        variant("int3")


def test_first_layers(tiny):
    one = tiny.first_layers(1)
    assert len(one.decoder_linears) == 7
    assert tiny.values["text_config"]["num_hidden_layers"] == 2, "the original is left alone"
    model = weights.random_model(one.config(), 0)
    generate(model, one.prompt(0, dtype=torch.bfloat16, text_tokens=8), 2)


# ------------------------------------------------------------------------------------ the weights


def test_noise_is_normal_and_depends_on_the_name():
    noise = weights.Noise(3, device=torch.device("cpu"), dtype=torch.float32, size=10007)
    first, again, other = (torch.empty(300, 100) for _ in range(3))
    noise.fill(first, "a")
    noise.fill(again, "a")
    noise.fill(other, "b")
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert abs(float(first.std()) - 0.02) < 0.0005
    assert abs(float(first.mean())) < 0.0005
    assert not torch.equal(first[0], first[1])


def test_random_model_is_complete_and_runs(tiny):
    model = weights.random_model(tiny.config(), 0)
    tensors = [*model.parameters(), *model.buffers()]
    assert not any(tensor.is_meta for tensor in tensors)
    assert all(torch.isfinite(t).all() for t in tensors if t.is_floating_point())
    assert all(p.dtype == torch.bfloat16 and not p.requires_grad for p in model.parameters())
    tied = model.get_submodule("lm_head").weight is model.get_input_embeddings().weight
    assert tied == bool(tiny.values.get("tie_word_embeddings"))
    prompt = tiny.prompt(0, dtype=torch.bfloat16, text_tokens=8)
    logits = model(**prompt).logits
    assert torch.isfinite(logits).all()
    assert float(logits.float().std()) > 0


def test_buffers_are_those_of_an_ordinary_model(tiny):
    """Rotary frequencies and positions: left unfilled, they would be garbage."""
    from transformers import AutoModelForImageTextToText

    plain = dict(AutoModelForImageTextToText.from_config(tiny.config()).named_buffers())
    filled = dict(weights.random_model(tiny.config(), 0).named_buffers())
    assert plain.keys() == filled.keys()
    assert plain, "there are buffers to compare"
    for name, buffer in plain.items():
        assert torch.equal(buffer, filled[name]), name


def test_same_seed_same_model(tiny):
    first, again = (weights.random_model(tiny.config(), 5).state_dict() for _ in range(2))
    other = weights.random_model(tiny.config(), 6).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_packed_layer_by_layer_is_the_model_packed_afterwards(tiny):
    from grace import int4

    built = weights.random_model(tiny.config(), 0, convert=variant("int4").convert)
    whole = weights.random_model(tiny.config(), 0)
    prepare(whole, QuantSpec(bits=4, group_size=128, init="max"))
    int4.pack(whole)
    prompt = tiny.prompt(0, dtype=torch.bfloat16, text_tokens=8)
    assert torch.equal(built(**prompt).logits, whole(**prompt).logits)
    for name in tiny.decoder_linears:
        assert torch.equal(built.get_submodule(name).codes(), whole.get_submodule(name).codes())


@pytest.mark.slow
def test_never_more_than_one_plain_linear(tiny):
    """What was converted is freed before the next linear is filled."""
    import gc
    import weakref

    alive: list[weakref.ref] = []
    most = 0

    def convert(linear: nn.Linear, name: str) -> nn.Module:
        nonlocal most
        gc.collect()
        most = max(most, sum(ref() is not None for ref in alive))
        alive.append(weakref.ref(linear.weight))
        return nn.Identity()

    weights.random_model(tiny.config(), 0, convert=convert)
    assert len(alive) == len(tiny.decoder_linears)
    assert most == 0


def test_stored_bytes_counts_shared_once():
    first, second = nn.Linear(4, 8, bias=False), nn.Linear(4, 8, bias=False)
    assert weights.stored_bytes(nn.Sequential(first, second)) == 2 * 4 * 8 * 4
    second.weight = first.weight
    assert weights.stored_bytes(nn.Sequential(first, second)) == 4 * 8 * 4


# ----------------------------------------------------------------------------------- the variants


@pytest.mark.parametrize("name", [name for name in VARIANTS if VARIANTS[name].convert])
def test_variant_approximates_the_linear(name):
    way = variant(name)
    if way.unavailable(torch.device("cpu")):
        pytest.skip(way.unavailable(torch.device("cpu")))
    linear = nn.Linear(256, 64).bfloat16().requires_grad_(False)
    x = torch.randn(3, 256, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    expected = linear(x).double()
    converted = way.convert(linear, "layer")
    with torch.no_grad():
        error = (converted(x).double() - expected).norm() / expected.norm()
    assert 0 < float(error) < (0.2 if way.bits == 4 else 0.02)
    stored = weights.stored_bytes(converted) - 64 * 2
    bits = 8 * stored / linear.weight.numel()
    assert way.bits <= bits < way.bits + 1


def test_unfused_awq_is_the_grid_exactly():
    """Against the layout read back nibble by nibble, in Python."""
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(-8, 8, (16, 256), generator=generator, dtype=torch.int8)
    scales = torch.rand(16, 2, generator=generator).bfloat16().float() + 0.0625
    layer = UnfusedAwqLinear(codes, scales, None, torch.float32)
    grid = (codes.float().unflatten(1, (2, 128)) * scales.unsqueeze(2)).flatten(1)
    assert torch.equal(layer.dequantized(), grid.t())
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # of the nibbles of a word, lowest first
    for row in (0, 77, 255):
        for word in (0, 1):
            bits = int(layer.qweight[row, word]) & 0xFFFFFFFF
            for place, column in enumerate(order):
                assert (bits >> (4 * place)) & 15 == int(codes[8 * word + column, row]) + 8


def test_a_peer_that_is_missing_says_so(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    reason = variant("torchao").unavailable(torch.device("cpu"))
    assert reason == "the package torchao is not installed"
    assert measure.measure(small("llava"), variant("torchao"), FAST) == {"not_run": reason}


@pytest.mark.slow
def test_a_peer_that_would_read_the_prompt_for_too_long_is_not_run():
    hasty = replace(FAST, prompt_seconds=1e-9)
    record = measure.measure(small("llava"), variant("awq_unfused"), hasty)
    assert "would read the prompt for about" in record["not_run"]
    assert "not_run" not in measure.measure(small("llava"), variant("int4"), hasty)


# -------------------------------------------------------------------------------- the measurement


@pytest.fixture(scope="module")
def record():
    return measure.measure(small("qwen2_vl"), variant("bf16"), FAST)


@pytest.mark.slow
def test_record(record):
    json.dumps(record)
    model = weights.random_model(small("qwen2_vl").config(), 0)
    assert record["weight_bytes"] == weights.stored_bytes(model)
    assert record["decoder_bits"] == 16
    assert record["prompt_tokens"] == 16 + 8
    assert len(record["time_to_first_token"]["values"]) == 2
    assert set(record["decode"]) == {"1", "2"}
    for batch, decoded in record["decode"].items():
        assert decoded["tokens"] == 3
        rates, seconds = decoded["tokens_per_second"], decoded["seconds_per_step"]
        assert len(rates["values"]) == len(seconds["values"]) == 3
        for rate, one in zip(rates["values"], seconds["values"], strict=True):
            assert math.isclose(rate * one, int(batch))
        assert rates["low"] <= rates["median"] <= rates["high"]
        expected = decoded["bytes_per_step"] / max(record["copy_bandwidth"])
        assert math.isclose(decoded["floor_seconds"], expected)
        assert math.isclose(decoded["fraction_of_floor"] * seconds["median"], expected)
    memory = record["peak_bytes"]
    phases = ["start", "build", "prefill", "batch 1", "batch 2"]
    assert list(memory) == phases
    assert [memory[phase] for phase in phases] == sorted(memory.values())


def test_bytes_of_a_step():
    """By hand: two layers, the last norm, the tied head once, and the cache."""
    tiny = small("qwen2_vl")
    model = weights.random_model(tiny.config(), 0)
    h, i, kv, words = 128, 256, 64, 256
    layer = 2 * h * h + 2 * h * kv + h + 2 * kv + 3 * h * i + 2 * h
    cache = 2 * 2 * 2 * 32 * 2 * 3 * 10  # keys and values, layers, heads, width, bytes, rows, slots
    expected = 2 * (2 * layer + h + words * h) + cache
    assert sizes.bytes_per_step(tiny, model, 3, 10) == expected
    assert sizes.bytes_per_step(tiny, model.float(), 3, 10) == 2 * expected


@pytest.mark.slow
def test_float32_is_the_same_model_in_twice_the_bytes():
    half, whole = (
        measure.measure(small("llava"), variant(name), FAST) for name in ("bf16", "float32")
    )
    buffers = (
        2 * half["weight_bytes"] - whole["weight_bytes"]
    )  # rotary frequencies, float32 in both
    assert 0 <= buffers < 0.001 * whole["weight_bytes"]
    assert (half["decoder_bits"], whole["decoder_bits"]) == (16, 32)
    for short, wide in zip(half["decode"].values(), whole["decode"].values(), strict=True):
        assert wide["bytes_per_step"] == 2 * short["bytes_per_step"]
        assert wide["cache_bytes"] == 2 * short["cache_bytes"]


@pytest.mark.slow
def test_what_does_not_fit_is_not_run(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**20)
    record = measure.measure(small("llava"), variant("bf16"), FAST)
    assert "0.0 GiB are free" in record["not_run"]
    record = {}
    monkeypatch.setattr(measure, "expected_bytes", lambda *_: -(2**40))
    record = measure.measure(small("llava"), variant("bf16"), FAST)
    assert all("not_run" in one for one in record["decode"].values())
    assert results.peak(record) is None


def test_expected_bytes_of_a_published_model():
    published = architecture("llava-1.5-7b")
    assert sizes.expected_bytes(published, variant("bf16")) == 2 * 7063427072
    assert sizes.expected_bytes(published, variant("float32")) == 4 * 7063427072
    int4 = sizes.expected_bytes(published, variant("int4"))
    assert 4.6e9 < int4 < 4.9e9  # the authors state 4.6 GB


@pytest.mark.parametrize(
    "change",
    [
        *({"batches": ()}, {"batches": (4, 1)}, {"repeats": 0}, {"layers": 0}, {"device": "tpu"}),
        *({"seed": "1"}, {"image": "no"}, {"repeat_seconds": 0}, {"prompt_seconds": math.nan}),
    ],
)
def test_bad_settings(change):
    with pytest.raises(InputError, match=next(iter(change))):
        read_settings(**change)


# ---------------------------------------------------------------------------------- side by side


@pytest.fixture
def parts(monkeypatch):
    """No processes: each part is made up, and what was asked for is kept."""
    asked = []

    def part(module, arguments, **_):
        name = arguments["name"]
        asked.append((arguments["model"]["name"], name))
        speed = {"bf16": 2.0, "int4": 7.0}.get(name)
        if speed is None:
            return {"not_run": "no reason"}
        rates = [speed * factor for factor in (0.9, 1.0, 1.1)]
        decode = {
            "tokens_per_second": spread(rates),
            "seconds_per_step": {**spread([1 / rate for rate in rates]), "p90": 1.0},
            "fraction_of_floor": 0.5,
            "tokens": 3,
        }
        seconds = [1.0, 2.0, 4.0] if name == "bf16" else [2.0, 2.5, 3.0]
        return {
            "weight_bytes": 80 if name == "bf16" else 25,
            "time_to_first_token": spread(seconds),
            "decode": {"1": decode, "4": {"not_run": "no room"}},
            "peak_bytes": {"start": 1, "batch 1": 100 if name == "bf16" else 40},
        }

    monkeypatch.setattr(harness, "measure_in_process", part)
    return asked


def go(out, *, settings=FAST, variants=("bf16", "int4", "nf4"), **more):
    ways = [variant(name) for name in variants]
    return benchmark.run([small("llava")], ways, settings, out, command="test", **more)


def test_report(tmp_path, parts):
    report = go(tmp_path, evidence="recorded")
    assert report == json.loads((tmp_path / "deploy.json").read_text(encoding="utf-8"))
    assert report["evidence"] == "recorded"
    assert report["provenance"]["command"] == "test"
    ratios = results.ratios(report["models"]["small-llava"]["variants"])
    assert math.isclose(ratios["throughput"].point, 3.5)
    assert math.isclose(ratios["throughput"].low, 7 * 0.9 / 2.2)
    assert math.isclose(ratios["throughput"].high, 7.7 / 1.8)
    assert ratios["prefill"].point == 0.8
    assert (ratios["prefill"].low, ratios["prefill"].high) == (1 / 3, 2)
    assert math.isclose(ratios["memory_reduction"].point, 60)
    assert math.isclose(ratios["weight_reduction"].point, 68.75)
    assert "throughput_4" not in ratios
    (table,) = benchmark.tables(report)
    assert list(table.rows[1])[4:] == ["7.00 [6.30, 7.70]", "50 %", "not run", ""]
    assert any("not run: no reason" in note for note in table.notes)
    assert any("INT4 against BF16: throughput 3.50" in note for note in table.notes)


def test_no_ratio_without_both(tmp_path, parts):
    variants = go(tmp_path, variants=("int4", "nf4"))["models"]["small-llava"]["variants"]
    assert results.ratios(variants) == {}
    assert results.ratios(go(tmp_path)["models"]["small-llava"]["variants"], "nf4") == {}


@pytest.mark.slow
def test_real_processes(tmp_path):
    """Two variants in two processes, from start to report."""
    settings = replace(FAST, batches=(1,), repeats=1, decode_repeats=2, tokens=2)
    report = go(tmp_path, settings=settings, variants=("bf16", "int4"))
    variants = report["models"]["small-llava"]["variants"]
    assert variants["int4"]["weight_bytes"] < variants["bf16"]["weight_bytes"]
    assert 4.2 < variants["int4"]["decoder_bits"] < 4.3
    assert "back end" in variants["int4"]["how"]
    assert set(results.ratios(variants)) >= {"throughput", "prefill", "memory_reduction"}


@pytest.mark.slow
def test_a_failing_process(tmp_path):
    broken = Architecture("broken", "", 0, {"grid": 8}, {"model_type": "gpt"})
    with pytest.raises(InputError, match=r"broken/bf16: .*Unrecognized model identifier: gpt"):
        benchmark.run([broken], [variant("bf16")], FAST, tmp_path, command="test")
    report = benchmark.run([broken], [variant("awq_unfused")], FAST, tmp_path, command="test")
    assert report["models"]["broken"]["variants"]["awq_unfused"]["not_run"]


def test_command(tmp_path, parts, capsys):
    words = ["speed", "--models", "qwen2-vl-2b", "--batches", "1,4", "--repeats", "2"]
    assert bench.main([*words, "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert parts == [("qwen2-vl-2b", "bf16"), ("qwen2-vl-2b", "int4")]
    assert "Qwen/Qwen2-VL-2B-Instruct, random weights" in capsys.readouterr().out
    report = json.loads((tmp_path / "deploy.json").read_text(encoding="utf-8"))
    assert report["settings"]["batches"] == [1, 4]
    assert report["settings"]["repeats"] == 2
    assert report["provenance"]["command"].startswith("python -m replication.bench speed --models")


@pytest.mark.parametrize(
    "words", [["--models", "gpt-5"], ["--variants", "int3"], ["--batches", "one"]]
)
def test_command_refuses(tmp_path, capsys, parts, words):
    assert bench.main(["speed", *words, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert parts == [] == list(tmp_path.iterdir())


@pytest.mark.slow
def test_needs_neither_the_evaluation_nor_the_pipeline():
    """What the rest of the replication needs may be missing where the benchmark runs."""
    missing = ["dvc", "lmms_eval", "pandas", "pyarrow", "scipy", "llmcompressor", "datasets"]
    code = (
        "import sys\n"
        f"for name in {missing!r}: sys.modules[name] = None\n"
        "import replication.bench, replication.measure.harness\n"
        "import replication.measure.speed.benchmark\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
