"""The decoder in other engines: what they are given, and what is made of their times."""

import importlib
import inspect
import json
import math
import time
from dataclasses import asdict, replace

import pytest
import torch

from replication.measure import harness
from replication.measure.speed import benchmark, engines
from replication.measure.speed.settings import Settings
from replication.measure.speed.variants import VARIANTS, variant
from replication.plan.architectures import architecture
from replication.report.tables.deployments import OWN

SETTINGS = Settings(
    batches=(1, 4), repeats=3, decode_repeats=2, tokens=8, layers=1, image=False, text_tokens=32
)


@pytest.mark.parametrize("name", ["llava-1.5-7b", "qwen2-vl-2b", "qwen3-vl-2b"])
def test_the_text_model_has_the_decoder_s_sizes(name):
    """transformers builds it, and its layers have the shapes of the published decoder's."""
    from transformers import AutoConfig, AutoModelForCausalLM

    whole = architecture(name).first_layers(1)
    values = engines.text_config(whole)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values))
    decoder = whole.family.decoder_layers
    expected = {
        key.removeprefix(decoder): tuple(value.shape)
        for key, value in whole.meta_model.state_dict().items()
        if key.startswith(decoder)
    }
    found = {
        key.removeprefix("model.layers"): tuple(value.shape)
        for key, value in model.state_dict().items()
        if key.startswith("model.layers")
    }
    assert found == expected
    assert model.lm_head.weight.shape == whole.meta_model.lm_head.weight.shape
    assert values["tie_word_embeddings"] == (
        model.lm_head.weight is model.model.embed_tokens.weight
    )


@pytest.mark.slow
def test_the_file_has_every_tensor_of_the_decoder(tmp_path, monkeypatch):
    gguf = pytest.importorskip("gguf")
    from replication.measure.speed import llama_cpp

    whole = architecture("qwen2-vl-2b").first_layers(1)
    small = {**engines.text_config(whole), "vocab_size": 512}
    monkeypatch.setattr(engines, "text_config", lambda _: small)
    llama_cpp.write_decoder(whole, tmp_path / "model.gguf", 3)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    width, deep = small["hidden_size"], small["intermediate_size"]
    assert tensors["blk.0.ffn_down.weight"].shape.tolist() == [deep, width]  # columns first
    assert tensors["blk.0.ffn_down.weight"].tensor_type.name == "Q4_0"
    assert tensors["token_embd.weight"].tensor_type.name == "BF16"
    assert {"blk.0.attn_q.bias", "blk.0.attn_norm.weight", "output_norm.weight"} <= tensors.keys()
    assert "output.weight" not in tensors  # tied
    codes = gguf.quants.dequantize(
        tensors["blk.0.ffn_down.weight"].data, tensors["blk.0.ffn_down.weight"].tensor_type
    )
    assert set((codes / codes[codes > 0].min()).round().ravel().tolist()) == set(range(-8, 8))
    assert reader.fields["qwen2.block_count"].contents() == 1


def test_rates_follow_from_the_times():
    calls = []

    def decode(rows, tokens):
        calls.append((rows, tokens))
        return 0.25 * rows * tokens

    settings = replace(SETTINGS, repeat_seconds=4.0)
    record = engines.measured(
        architecture("qwen2-vl-2b").first_layers(1), settings, lambda: None, decode, bits=4.5,
        how="x", build_seconds=1.0, weight_bytes=10, memory={"start": 1},
    )  # fmt: skip
    assert calls == [(1, 1), (1, 8), (1, 8), (4, 1), (4, 4), (4, 4)]
    for batch, step in record["decode"].items():
        assert step["tokens_per_second"]["values"] == pytest.approx([4.0, 4.0])
        assert step["seconds_per_step"]["median"] == pytest.approx(0.25 * int(batch))
        floor = step["bytes_per_step"] / max(record["copy_bandwidth"])
        assert math.isclose(step["fraction_of_floor"], floor / step["seconds_per_step"]["median"])
    assert len(record["time_to_first_token"]["values"]) == 3
    assert list(record["peak_bytes"]) == ["start", "prefill", "batch 1", "batch 4"]


def test_an_engine_that_reads_the_prompt_for_too_long_is_not_run():
    def prefill():
        time.sleep(0.05)

    def decode(rows, tokens):
        pytest.fail("it is decoded")

    settings = replace(SETTINGS, prompt_seconds=0.01)
    record = engines.measured(
        architecture("qwen2-vl-2b").first_layers(1), settings, prefill, decode, bits=4.5, how="x",
        build_seconds=1.0, weight_bytes=10, memory={"start": 1},
    )  # fmt: skip
    assert record == {"not_run": f"it reads the prompt of {SETTINGS.text_tokens} words for 0 s"}


def test_bytes_of_a_step_are_counted_by_hand():
    whole = architecture("llava-1.5-7b")
    linears = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    cache = 2 * 32 * 4096 * 2 * 4 * 100
    expected = linears * 4.5 / 8 + 2 * 32064 * 4096 + cache
    assert engines.step_bytes(whole, 4.5, 4, 100) == expected


def spread_of(*values):
    return {"median": sorted(values)[len(values) // 2], "low": min(values), "high": max(values),
            "values": list(values)}  # fmt: skip


def record_of(rate, bandwidth=400.0, peak=9):
    step = {"tokens": 8, "tokens_per_second": spread_of(rate),
            "seconds_per_step": {**spread_of(1 / rate), "p90": 1 / rate},
            "bytes_per_step": 100, "floor_seconds": 0.0, "fraction_of_floor": 0.0}  # fmt: skip
    return {"time_to_first_token": spread_of(1 / rate), "decode": {"1": step, "4": step},
            "peak_bytes": {"build": peak}, "copy_bandwidth": [bandwidth]}  # fmt: skip


def test_rounds_are_pooled():
    other = record_of(4.0, 800.0, 7)
    other["decode"]["4"] = {"not_run": "no room"}
    found = benchmark.pooled([record_of(2.0), other])
    step = found["decode"]["1"]
    assert step["tokens_per_second"]["values"] == [2.0, 4.0]
    assert step["seconds_per_step"]["p90"] == 0.5
    assert step["floor_seconds"] == 100 / 800
    assert step["fraction_of_floor"] == pytest.approx(0.125 / step["seconds_per_step"]["median"])
    assert found["decode"]["4"] == {"not_run": "no room"}
    assert found["peak_bytes"] == {"build": 9} and found["copy_bandwidth"] == [400.0, 800.0]
    assert benchmark.pooled([other, {"not_run": "gone"}]) == {"not_run": "gone"}


def test_rounds_take_turns_without_what_was_not_run(tmp_path, monkeypatch):
    asked = []

    def measure(module, arguments, **_):
        asked.append((arguments["name"], module))
        return {"not_run": "made up"} if module == theirs else record_of(len(asked))

    own, theirs = "replication.measure.speed.measure", "replication.measure.speed.llama_cpp"
    monkeypatch.setattr(harness, "measure_in_process", measure)
    ways = [variant(name) for name in ("bf16", "llama_cpp")]
    small = architecture("qwen2-vl-2b").first_layers(1)
    report = benchmark.run([small], ways, replace(SETTINGS, rounds=2), tmp_path, command="test")
    assert asked == [("bf16", own), ("llama_cpp", theirs), ("bf16", own)]
    (model,) = report["models"].values()
    assert model["variants"]["llama_cpp"]["not_run"] == "made up"
    assert model["variants"]["bf16"]["decode"]["1"]["tokens_per_second"]["values"] == [1, 3]


def test_the_report_is_written_after_every_round(tmp_path, monkeypatch):
    """A run that is ended in its second round leaves the first one's report."""
    asked = []

    def measure(module, arguments, **_):
        asked.append(module)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return record_of(1.0)

    monkeypatch.setattr(harness, "measure_in_process", measure)
    small = architecture("qwen2-vl-2b").first_layers(1)
    with pytest.raises(KeyboardInterrupt):
        benchmark.run(
            [small], [variant("bf16")], replace(SETTINGS, rounds=2), tmp_path, command="test"
        )
    report = json.loads((tmp_path / "deploy.json").read_text())
    assert report["settings"]["rounds"] == 1


def test_without_the_engines_environment_the_reason_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = asdict(architecture("qwen2-vl-2b").first_layers(1))
    part = harness.Part(
        "llama_cpp", "replication.measure.speed.llama_cpp",
        {"model": small, "name": "llama_cpp", "settings": SETTINGS.to_dict()},
        optional=True, python=".venv-engines/bin/python",
    )  # fmt: skip
    found = harness.Benchmark("this").run([part], tmp_path / "parts")
    assert "make bench-engines installs it" in found["llama_cpp"]["not_run"]


def test_a_refused_batch_is_not_decoded_and_says_why():
    asked = []

    def decode(rows, tokens):
        asked.append(rows)
        return 1.0

    record = engines.measured(
        architecture("qwen2-vl-2b").first_layers(1), SETTINGS, lambda: None, decode, bits=4.5,
        refuse=lambda rows: f"{rows} rows take too long" if rows > 1 else None, how="an engine",
        build_seconds=1.0, weight_bytes=1, memory={"start": 1},
    )  # fmt: skip
    assert set(asked) == {1}
    assert record["decode"]["4"] == {"not_run": "4 rows take too long"}
    assert record["decode"]["1"]["floor_seconds"] > 0
    assert set(record["peak_bytes"]) == {"start", "prefill", "batch 1"}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_s_module_takes_what_its_part_is_given(name):
    part = benchmark._part(architecture("qwen2-vl-2b"), variant(name), SETTINGS, 0)
    measure_part = importlib.import_module(part.module).measure_part
    inspect.signature(measure_part).bind(**part.arguments)
    assert part.optional == (name not in ("bf16", "int4", "int4_float32", "int8"))
    assert variant(name).ours == (name in OWN)
