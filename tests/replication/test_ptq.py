"""Post-training quantization: values against float64 by hand, and what each method leaves alone."""

import copy
import dataclasses
import hashlib
import importlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from shapes import TEXTS, VISIONS

from grace.errors import InputError
from grace.models import FAMILIES, decoder_linears, family_of, load_model, load_processor
from grace.quantization import CODES_FILE, QuantSpec, dequantize
from grace.quantization import quantize as codes_of
from replication.data.world.models import build_model, build_processor
from replication.settings.checks import parse_params
from replication.settings.paths import Layout
from replication.settings.ptq_methods import BITS, check_method
from replication.settings.scales import scale_params
from replication.train.ptq import Calibration, quantize

SHAPE = {"num_key_value_heads": 2, "intermediate_size": 256}
FOLDED = ("input_layernorm.weight", "post_attention_layernorm.weight", "v_proj.bias")
SAMPLES = 10


def unsettle(model):
    """Norms and biases as after training: a random model's are ones and zeros, which hide much."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise.mul(0.7).exp() if "norm" in name else noise * 0.1)
    return model


def save(model, processor, path: Path) -> Path:
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def source(make_model, processor, tmp_path_factory):
    """A model directory to quantize."""
    return save(unsettle(make_model(0, **SHAPE)), processor, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def calibration(conversations):
    return Calibration(conversations, SAMPLES, seed=7)


@pytest.fixture(scope="module")
def made(source, calibration, tmp_path_factory):
    """A function that quantizes once: the directory and the record of a method at a bit width."""
    done = {}

    def make(method: str, bits: int):
        if (method, bits) not in done:
            path = tmp_path_factory.mktemp("made") / f"{method}{bits}"
            given = calibration if method in ("awq", "gptq") else None
            done[method, bits] = path, quantize(source, path, method, bits, calibration=given)
        return done[method, bits]

    return make


def weights(path: Path) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in load_model(path).state_dict().items()}


def digest(path: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(path.iterdir())
    }


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """To eight significant bits, half to even, in float64."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.rint(mantissa * 256) / 256, exponent)


# --------------------------------------------------------------------------------- round to nearest


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rtn_is_the_textbook_s(source, made, bits):
    path, record = made("rtn", bits)
    before, after, kept = weights(source), weights(path), load_file(path / CODES_FILE)
    names = decoder_linears(load_model(source))
    assert sorted(kept) == sorted(f"{n}.{part}" for n in names for part in ("codes", "scales"))
    top = 2 ** (bits - 1) - 1
    for name in names:
        groups = before[f"{name}.weight"].double().numpy().reshape(-1, 128)
        scales = to_bfloat16(np.abs(groups).max(1, keepdims=True) / top)
        steps = groups / scales
        codes = np.clip(np.rint(steps), -top - 1, top)
        found = kept[f"{name}.codes"].numpy().reshape(-1, 128)
        tie = np.abs(np.abs(steps - np.floor(steps)) - 0.5) < 1e-4
        assert (np.abs(found - codes) <= tie).all()
        np.testing.assert_array_equal(kept[f"{name}.scales"].double().numpy().ravel(), scales[:, 0])
        np.testing.assert_array_equal(
            after[f"{name}.weight"].double().numpy().reshape(-1, 128), found * scales
        )
    assert record["bits"] == bits
    assert record["seconds"] > 0


# ------------------------------------------------------------------ what all methods have in common


@pytest.mark.slow
@pytest.mark.parametrize(("method", "bits"), [("rtn", 4), ("awq", 4), ("gptq", 4), ("nf4", 4)])
def test_decoder_linears_only(source, made, method, bits):
    before, after = weights(source), weights(made(method, bits)[0])
    linears = {f"{name}.weight" for name in decoder_linears(load_model(source))}
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    folded = {name for name in changed if method == "awq" and name.endswith(FOLDED)}
    assert all(name.startswith("model.language_model.layers.") for name in folded)
    assert changed - folded == linears


@pytest.mark.slow
@pytest.mark.parametrize("method", ["awq", "gptq"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_calibrated_weights_are_scales_times_codes(source, made, method, bits):
    path, record = made(method, bits)
    after, kept, spec = weights(path), load_file(path / CODES_FILE), QuantSpec(bits=bits)
    names = decoder_linears(load_model(source))
    assert sorted(kept) == sorted(f"{n}.{part}" for n in names for part in ("codes", "scales"))
    used = set()
    for name in names:
        codes, scales = kept[f"{name}.codes"], kept[f"{name}.scales"]
        assert codes.dtype == torch.int8
        assert scales.shape == (codes.shape[0], codes.shape[1] // 128)
        assert torch.equal(scales, scales.to(torch.bfloat16).float())
        expected = codes.double() * scales.double().repeat_interleave(128, dim=1)
        assert torch.equal(after[f"{name}.weight"].double(), expected)
        used |= set(codes.unique().tolist())
    assert used == set(range(spec.qmin, spec.qmax + 1))
    with safe_open(path / CODES_FILE, "pt") as file:
        settings = json.loads(file.metadata()["quantization"])
    assert settings == {
        "method": method,
        "bits": bits,
        "group_size": 128,
        "scale_dtype": "bfloat16",
    }
    assert record["calibration"]["samples"] == SAMPLES
    assert record["versions"]["llmcompressor"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_same_seed_same_bytes_and_another_seed_another_model(
    source, made, calibration, method, tmp_path
):
    path, record = made(method, 4)
    again = quantize(source, tmp_path / "again", method, 4, calibration=calibration)
    assert digest(tmp_path / "again") == digest(path)
    assert again["calibration"] == record["calibration"]
    other = dataclasses.replace(calibration, seed=8)
    drawn = quantize(source, tmp_path / "other", method, 4, calibration=other)
    assert drawn["calibration"]["sha256"] != record["calibration"]["sha256"]
    assert digest(tmp_path / "other")[CODES_FILE] != digest(path)[CODES_FILE]


@pytest.mark.slow
def test_a_row_can_be_a_group(source, calibration, tmp_path):
    quantize(source, tmp_path / "row", "gptq", 4, group_size="row", calibration=calibration)
    kept = load_file(tmp_path / "row" / CODES_FILE)
    assert {value.shape[1] for name, value in kept.items() if name.endswith("scales")} == {1}


# -------------------------------------------------------------------------------------- calibration


@pytest.mark.slow
def test_the_draw_is_of_training_conversations_with_an_image(
    source, conversations, processor, tmp_path
):
    table = pq.read_table(conversations)
    images = table["image"].to_pylist()
    texts = [
        [{**turn, "value": turn["value"].replace("<image>\n", "")} for turn in record]
        if index % 2
        else record
        for index, record in enumerate(table["conversations"].to_pylist())
    ]
    mixed = pa.table(
        {
            "id": table["id"],
            "image": pa.array([None if i % 2 else x for i, x in enumerate(images)]),
            "conversations": pa.array(texts),
        }
    )
    pq.write_table(mixed, tmp_path / "mixed.parquet")
    config = load_model(source).config
    drawn = Calibration(tmp_path / "mixed.parquet", 24, 0).draw(processor, config)
    ids = [drawn.data.ids[index] for index in drawn.indices]
    assert sorted(ids) == sorted(table["id"].to_pylist()[::2])
    few = Calibration(tmp_path / "mixed.parquet", 5, 0).draw(processor, config)
    assert [few.data.ids[index] for index in few.indices] == ids[:5] != sorted(ids)[:5]
    with pytest.raises(InputError, match=r"samples is 25.* only 24 conversations with an image"):
        Calibration(tmp_path / "mixed.parquet", 25, 0).draw(processor, config)


@pytest.mark.slow
def test_batches_hold_what_the_model_takes(source, calibration, processor):
    model = load_model(source)
    batches = list(calibration.draw(processor, model.config).batches(model))
    assert len(batches) == SAMPLES
    for batch in batches:
        assert {"input_ids", "attention_mask", "pixel_values", "image_grid_thw"} <= set(batch)
        assert "labels" not in batch
        assert batch["attention_mask"].all()
        assert model(**batch).logits.isfinite().all()


# ------------------------------------------------------------------------------------- GPTQ and AWQ


def inputs_of(model, names, batches) -> dict[str, torch.Tensor]:
    """What linears are given, (tokens, in), in float64."""
    seen = {name: [] for name in names}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen[name].append(args[0].flatten(0, -2).double())
        )
        for name in names
    ]
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_errs_less_than_rounding_to_the_same_grid(source, made, calibration, processor, bits):
    """|X (W - W^)^T|² on the calibration activations, which is what GPTQ minimizes. The first
    layer's projections, whose inputs no quantization has touched."""
    path, _ = made("gptq", bits)
    model = load_model(source)
    names = [f"model.language_model.layers.0.self_attn.{x}_proj" for x in "qkv"]
    seen = inputs_of(model, names, calibration.draw(processor, model.config).batches(model))
    kept, after, spec = load_file(path / CODES_FILE), weights(path), QuantSpec(bits=bits)
    rounding = weights(made("rtn", bits)[0])
    for name in names:
        weight, scales = model.get_submodule(name).weight.detach(), kept[f"{name}.scales"]
        nearest = dequantize(codes_of(weight, scales, spec), scales, spec)

        def error(found, name=name, weight=weight):
            return float(((weight - found).double() @ seen[name].T).square().sum())

        ours = error(after[f"{name}.weight"])
        assert ours < 0.9 * error(nearest)
        assert ours < error(rounding[f"{name}.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_awq_smooths_without_changing_the_function(family, conversations, tmp_path):
    """Before anything is rounded: the decoder's weights are others, the logits are not, and
    nothing outside the decoder layers is touched."""
    from replication.train.ptq.compressor import compress, take

    vision, text = VISIONS[family], {**TEXTS[family], **SHAPE}
    turns = pq.read_table(conversations)["conversations"].to_pylist()
    words = [turn["value"] for record in turns for turn in record]
    processor = build_processor(family, words, 400, vision)
    plain = unsettle(build_model(family, processor, text, vision, 0))
    path = save(plain, processor, tmp_path / "model")
    plain, smooth = load_model(path).eval(), load_model(path)
    draw = Calibration(conversations, SAMPLES, 7).draw(load_processor(path), plain.config)
    batches = draw.batches(plain)
    spec = QuantSpec(bits=3)
    exact = compress(smooth, processor, "awq", spec, batches)
    assert list(exact) == decoder_linears(plain)

    before = {name: value.clone() for name, value in plain.state_dict().items()}
    folded = copy.deepcopy(plain)
    folded.load_state_dict({name: smooth.state_dict()[name] for name in before})
    layers = family_of(family).decoder_layers
    changed = {k for k, v in folded.state_dict().items() if not torch.equal(v, before[k])}
    assert all(name.startswith(f"{layers}.") for name in changed)
    for index in range(len(family_of(family).layers(plain))):
        assert any(name.startswith(f"{layers}.{index}.") for name in changed)
    # the search may leave a place as it is, but not a kind of places
    for kind in ("input_layernorm", "o_proj", "post_attention_layernorm", "down_proj"):
        assert any(name.endswith(f"{kind}.weight") for name in changed)

    with torch.no_grad():
        for batch in batches:
            exactly = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
            expected = plain.double()(**exactly).logits
            found = folded.double()(**exactly).logits
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max())

    take(plain.float(), smooth, exact, spec)
    for name, (codes, scales) in exact.items():
        weight = plain.get_submodule(name).weight
        assert torch.equal(weight, dequantize(codes, scales, spec))
        error = (
            weight - folded.get_submodule(name).weight
        ).detach().norm() / weight.detach().norm()
        assert error < 0.5


@pytest.mark.slow
def test_awq_errs_less_than_round_to_nearest(source, made, calibration, processor):
    """On what it is calibrated on, the logits at 3 bits."""
    plain = load_model(source).eval()
    batches = list(calibration.draw(processor, plain.config).batches(plain))

    def error(path):
        model = load_model(path).eval()
        with torch.no_grad():
            return sum(
                float((model(**batch).logits - plain(**batch).logits).square().sum())
                for batch in batches
            )

    nearest = error(made("rtn", 3)[0])
    assert error(made("awq", 3)[0]) < nearest
    assert error(made("gptq", 3)[0]) < nearest


# ------------------------------------------------------------------------------------- bitsandbytes

# arXiv 2305.14314, Appendix E
NORMAL_FLOAT = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)


@pytest.mark.slow
def test_nf4_is_the_nearest_of_sixteen_values(source, made):
    path, record = made("nf4", 4)
    before, after = weights(source), weights(path)
    for name in decoder_linears(load_model(source)):
        blocks = before[f"{name}.weight"].double().numpy().reshape(-1, 64)
        largest = np.abs(blocks).max(1, keepdims=True)
        distance = np.abs((blocks / largest)[..., None] - NORMAL_FLOAT)
        nearest = NORMAL_FLOAT[distance.argmin(-1)] * largest
        tie = np.diff(np.sort(distance, -1)[..., :2])[..., 0] < 1e-5
        found = after[f"{name}.weight"].double().numpy().reshape(-1, 64)
        close = np.abs(found - nearest) <= 1e-6 * largest
        assert (close | tie).all()
        assert tie.mean() < 0.01
    assert not (path / CODES_FILE).exists()
    assert "calibration" not in record


@pytest.mark.slow
def test_llm_int8_is_evaluated_with_its_own_modules(source, made):
    """The directory loads, through the path that evaluates it, with int8 linears in the decoder
    and nowhere else, and they compute what arXiv 2208.07339 says."""
    from bitsandbytes.nn import Linear8bitLt

    from replication.evaluate.score import load_directory

    path, _ = made("llm_int8", 8)
    loaded, _ = load_directory(path, dtype=torch.float32, device="cpu")
    model, plain = loaded.eval(), load_model(source).eval()
    names = [name for name, module in model.named_modules() if isinstance(module, Linear8bitLt)]
    assert names == decoder_linears(plain)
    others = {k: v for k, v in plain.state_dict().items() if k.rpartition(".")[0] not in names}
    for name, value in others.items():
        assert torch.equal(model.state_dict()[name], value), name

    name = "model.language_model.layers.1.self_attn.q_proj"
    x = torch.randn(1, 6, 128, generator=torch.Generator().manual_seed(0))
    x = x.clamp(-3, 3).half().float()  # activations are cast to float16 first
    x[0, 2, 5] = 9.0  # an outlier: its column is not rounded
    with torch.no_grad():
        found = model.get_submodule(name)(x)[0].double().numpy()
    weight = plain.get_submodule(name).weight.detach().half().double().numpy()
    row = np.abs(weight).max(1, keepdims=True)
    rounded = np.rint(weight / row * 127) * row / 127
    values = x[0].double().numpy()
    rest = np.delete(values, 5, axis=1)
    most = np.abs(rest).max(1, keepdims=True)
    rest = np.rint(rest / most * 127) * most / 127
    expected = rest @ np.delete(rounded, 5, axis=1).T + values[:, 5:6] @ rounded[:, 5:6].T
    expected += plain.get_submodule(name).bias.detach().double().numpy()
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())

    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        quantized, full = model(input_ids=ids).logits, plain(input_ids=ids).logits
    error = float((quantized - full).norm() / full.norm())
    assert 1e-4 < error < 0.1


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "bits", "text"),
    [
        ("rnt", 4, "'rnt' is unknown; did you mean 'rtn'"),
        ("rtn", 1, "rtn at 1 bits: it has 2 to 8"),
    ],
)
def test_a_method_that_does_not_exist_is_refused(source, tmp_path, method, bits, text):
    with pytest.raises(InputError, match=text):
        quantize(source, tmp_path / "out", method, bits)
    assert not list(tmp_path.iterdir())


def test_every_method_has_its_bit_widths():
    for method, widths in BITS.items():
        for bits in range(-1, 18):
            if bits in widths:
                check_method(method, bits)
            else:
                with pytest.raises(InputError):
                    check_method(method, bits)


@pytest.mark.slow
def test_bad_directories_and_data_are_refused(source, conversations, calibration, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"nowhere.* does not exist"):
        quantize(tmp_path / "nowhere", out, "rtn", 4)
    for method, data in (("rtn", None), ("awq", calibration), ("gptq", calibration)):
        with pytest.raises(InputError, match="group size 256 does not divide its 128 input"):
            quantize(source, out, method, 4, group_size=256, calibration=data)
    with pytest.raises(InputError, match="group_size is 100"):
        quantize(source, out, "rtn", 4, group_size=100)
    assert not out.exists()
    assert not out.with_name("out.tmp").exists()


# ----------------------------------------------------------------------------- parameters and stage


def with_ptq(**groups) -> dict:
    content = scale_params("smoke")
    content["ptq"] = {
        "group_size": 128,
        "calibration": {"samples": SAMPLES, "seed": 16},
        "groups": {name: {"pair": "qwen2_vl", "models": found} for name, found in groups.items()},
    }
    asked = content["evaluate"]["benchmarks"]
    del asked["llava_ptq"]
    asked.update({name: ["mmbench"] for name in groups})
    return content


GPTQ3 = {"method": "gptq", "bits": 3}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"method": "gtpq"}, "some_ptq.models.gptq_int3.*did you mean 'gptq'"),
        ({"method": "nf4"}, "nf4 at 3 bits: it has 4"),
        ({"bit": 3}, "key 'bit' is unknown; did you mean 'bits'"),
    ],
)
def test_bad_parameters_are_refused(change, text):
    parse_params(with_ptq(some_ptq={"gptq_int3": GPTQ3}))
    with pytest.raises(InputError, match=text):
        parse_params(with_ptq(some_ptq={"gptq_int3": GPTQ3 | change}))


def test_a_group_has_a_pair_and_names_of_its_own():
    content = with_ptq(some_ptq={"gptq_int3": GPTQ3})
    content["ptq"]["groups"]["some_ptq"]["pair"] = "qwen2vl"
    with pytest.raises(InputError, match=r"ptq\.groups\.some_ptq\.pair.*did you mean 'qwen2_vl'"):
        parse_params(content)
    with pytest.raises(InputError, match="'qwen2_vl_runs'"):
        parse_params(with_ptq(qwen2_vl_runs={"gptq_int3": GPTQ3}))
    with pytest.raises(InputError, match="a run of this name in qwen2_vl_runs"):
        parse_params(with_ptq(some_ptq={"grace_int4": GPTQ3}))


@pytest.fixture
def workspace(source, conversations, tmp_path, monkeypatch):
    """A directory with what the stage reads."""
    content = with_ptq(
        drawn_ptq={"gptq_int3": GPTQ3}, plain_ptq={"rtn_int4": {"method": "rtn", "bits": 4}}
    )
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    layout = Layout(parse_params(content))
    (tmp_path / layout.conversations).parent.mkdir(parents=True)
    shutil.copy(conversations, tmp_path / layout.conversations)
    shutil.copytree(source, tmp_path / layout.model("qwen2_vl", "baseline"))
    monkeypatch.chdir(tmp_path)
    return layout


def run(monkeypatch, capfd, name) -> tuple[int, str]:
    stage = importlib.import_module("replication.stages.ptq")
    monkeypatch.setattr(sys, "argv", ["ptq", name])
    try:
        stage.main()
        return 0, capfd.readouterr().err
    except SystemExit as stop:
        return stop.code, capfd.readouterr().err


@pytest.mark.slow
def test_the_stage_writes_a_model_and_a_record(workspace, source, monkeypatch, capfd, tmp_path):
    monkeypatch.setattr(sys, "argv", ["ptq", "drawn_ptq"])
    importlib.import_module("replication.stages.ptq").main()
    assert capfd.readouterr().out == ""
    record = json.loads(workspace.training_log("drawn_ptq", "gptq_int3", "ptq").read_text())
    assert record["calibration"]["seed"] == 16
    drawn = Calibration(workspace.conversations, SAMPLES, 16)
    quantize(source, tmp_path / "direct", "gptq", 3, calibration=drawn)
    assert digest(workspace.model("drawn_ptq", "gptq_int3")) == digest(tmp_path / "direct")


@pytest.mark.slow
def test_the_stage_refuses_what_is_missing(workspace, monkeypatch, capfd):
    code, text = run(monkeypatch, capfd, "drawn_pt")
    assert code == 2
    assert "did you mean 'drawn_ptq'" in text
    workspace.conversations.unlink()
    assert run(monkeypatch, capfd, "plain_ptq")[0] == 0  # looks at no data
    code, text = run(monkeypatch, capfd, "drawn_ptq")
    assert code == 2
    assert "train.parquet' does not exist; run the stage standins first" in text
    shutil.rmtree(workspace.model("qwen2_vl", "baseline"))
    code, text = run(monkeypatch, capfd, "plain_ptq")
    assert code == 2
    assert "baseline' does not exist" in text


@pytest.mark.slow
def test_llm_compressor_is_not_imported_by_other_stages():
    import subprocess

    script = (
        "import sys, replication.stages.train, replication.stages.evaluate, replication.train.ptq, "
        "replication.stages.ptq\n"
        "print([m for m in ('llmcompressor', 'compressed_tensors', 'bitsandbytes') "
        "if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300
    )
    assert found.stdout.strip() == "[]"
