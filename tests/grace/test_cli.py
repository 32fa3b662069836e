"""The `grace` command, on small models of every family's real classes."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from commands import done, refused, save, trained_directory
from PIL import ExifTags, Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from grace.cli import COMMANDS, generate, main
from grace.cli.models import open_image, processor_of
from grace.errors import InputError
from grace.export import load_packed, load_released, load_student, save_packed
from grace.export.packed import PACKED_FILE
from grace.int4 import PackedLinear, pack
from grace.models.questions import question
from grace.quantization import (
    CODES_FILE,
    CodesFile,
    QuantSpec,
    fake_quant_layers,
    prepare,
)

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "how many letters are there"


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (64, 64, 3), generator=rng, dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(path)
    return str(path)


@pytest.fixture
def trained(small, tmp_path):
    return str(trained_directory(small, tmp_path))


@pytest.fixture
def trained_qwen(family, tmp_path):
    return str(trained_directory(family("qwen2_vl"), tmp_path))


# -------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches(name, capsys):
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert f"examples:\n  grace {name}" in text
    assert "default" in text
    assert "ritten" in text, "it says what is written"


def test_no_help_imports_torch():
    code = """
import sys
from grace.cli import COMMANDS, main
for words in ([], ["--version"], ["--help"], *([name, "--help"] for name in COMMANDS)):
    try:
        main(words)
    except SystemExit as end:
        assert not end.code, words
print("loaded:", [m for m in ("torch", "transformers", "numpy", "PIL") if m in sys.modules])
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout.endswith("loaded: []\n")


def test_without_a_command_there_is_help(capsys):
    assert main([]) == 2
    text = capsys.readouterr().err
    for name in COMMANDS:
        assert f"\n    {name} " in text


def test_the_version_is_the_package_s(capsys):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"grace {project['version']}\n"


def test_interrupted(monkeypatch, capsys):
    def interrupt(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "run", interrupt)
    assert main(["generate", "model", "--prompt", "why"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["generate", "model", "--prompt", "why"]])
def test_a_reader_that_leaves_is_told_nothing(words, unbuffered):
    code = (
        "import sys; from grace.cli import generate, main; generate.run = lambda _: print('x')\n"
        f"sys.exit(main({words}))"
    )
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert ended.stderr == b""
    # argparse of some Pythons passes over a write that fails at once
    passed_over = words == ["--help"] and unbuffered
    assert ended.returncode in ((0, 141) if passed_over else (141,))


# ------------------------------------------------------------------------------------------- train


@pytest.mark.slow
def test_from_training_to_an_answer(small, conversations, picture, tmp_path, capsys):
    student = save(small, tmp_path / "small")
    teacher = save(small, tmp_path / "large", seed=2, num_hidden_layers=3)
    out = tmp_path / "student"
    done("train", student, "--teacher", teacher, "--data", conversations, "--out", out,
         "--steps", 2, "--batch-size", 4, "--learning-rate", 0.01, "--group-size", 64,
         "--set", "tau=0.2", "--device", "cpu")  # fmt: skip
    log = json.loads((out / "training.json").read_text())
    assert log["method"]["method"] == "grace"
    assert log["method"]["distillation"]["tau"] == 0.2
    assert log["history"][-1]["step"] == 2
    assert not Path(f"{out}.checkpoints").exists()
    exact = CodesFile(out / CODES_FILE)
    assert exact.bits == 4
    before, after = (
        load_file(tmp_path / "small" / "model.safetensors"),
        load_file(out / "model.safetensors"),
    )
    assert any(not torch.equal(before[name], after[name]) for name in before)
    model = AutoModelForImageTextToText.from_pretrained(out)
    for name, (codes, scales) in exact.items():
        dense = (codes.float().unflatten(1, (-1, 64)) * scales[..., None]).flatten(1)
        assert torch.equal(model.get_submodule(name).weight, dense), name
    done("pack", out, "--out", tmp_path / "packed", "--backend", "reference")
    assert f"{len(exact)} linears, no code differs" in capsys.readouterr().out
    for layer in load_packed(tmp_path / "packed").modules():
        if isinstance(layer, PackedLinear):
            assert torch.equal(layer.codes(), exact[layer.name][0])
    done("generate", tmp_path / "packed", "--image", picture, "--prompt", PROMPT,
         "--max-new-tokens", 4, "--device", "cpu")  # fmt: skip


# ------------------------------------------------------------------------------- pack and generate


@pytest.mark.slow
def test_pack_then_generate(small, trained, picture, tmp_path, capsys):
    """The answer is that of the model packed in memory."""
    out = tmp_path / "packed"
    done("pack", trained, "--out", out, "--dtype", "float32")
    said = capsys.readouterr().out
    assert "14 linears, no code differs" in said
    assert said.splitlines()[0].startswith("14 x Int4Linear: ") and len(said.splitlines()) <= 3
    words = ("--image", picture, "--prompt", PROMPT, "--max-new-tokens", 6, "--device", "cpu")
    done("generate", out, *words, "--backend", "reference")
    said = capsys.readouterr().out.strip()
    model = AutoModelForImageTextToText.from_pretrained(trained).eval()
    pack(model, CodesFile(Path(trained) / CODES_FILE), backend="reference")
    processor = processor_of(trained)
    inputs = question(processor, [open_image(picture)], PROMPT)
    tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    new = tokens[0, inputs["input_ids"].shape[1] :]
    assert said == processor.tokenizer.decode(new, skip_special_tokens=True).strip()
    assert len(new) == 6 or said
    done("generate", trained, *words, "--dtype", "float32")
    assert capsys.readouterr().out.strip() == said  # unpacked: the same function


def test_a_photo_is_asked_about_as_it_is_seen(family, tmp_path):
    """A phone writes it lying on its side, with a note of how to turn it."""
    processor = family("qwen2_vl").processor
    upright = Image.effect_mandelbrot((64, 128), (-2, -1, 1, 1), 30).convert("RGB")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=exif)
    found = question(processor, [open_image(str(tmp_path / "a.png"))], PROMPT)
    expected = question(processor, [upright], PROMPT)
    lying = question(processor, [upright.transpose(Image.Transpose.ROTATE_90)], PROMPT)
    assert torch.equal(found["image_grid_thw"], expected["image_grid_thw"])
    assert torch.equal(found["pixel_values"], expected["pixel_values"])
    assert not torch.equal(lying["image_grid_thw"], expected["image_grid_thw"])


@pytest.mark.parametrize("words", [("pack",), ("export", "--format", "awq")])
def test_a_place_that_cannot_be_written_is_refused_before_work(trained_qwen, capsys, words):
    command, *options = words
    error = refused(capsys, command, trained_qwen, *options, "--out", "/proc/nowhere/packed")
    assert "/proc/nowhere/packed: /proc cannot be written" in error


def test_written_files_have_the_permissions_of_the_umask(family, trained_qwen, tmp_path):
    before = os.umask(0o027)
    try:
        done("pack", trained_qwen, "--out", tmp_path / "packed")
        for name in ("awq", "compressed-tensors"):
            done("export", trained_qwen, "--format", name, "--out", tmp_path / name)
    finally:
        os.umask(before)
    for name in ("packed", "awq", "compressed-tensors"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o750
        for file in (tmp_path / name).rglob("*"):
            assert file.stat().st_mode & 0o777 == 0o640, file


@pytest.mark.slow
def test_generate_does_what_the_generation_config_asks_for(
    family, trained_qwen, picture, tmp_path, capsys
):
    """A penalty, by the model's own generate, said on standard error; --greedy leaves it out."""
    folder = Path(trained_qwen)
    words = ("generate", folder, "--image", picture, "--image", picture, "--prompt", PROMPT,
             "--max-new-tokens", 12, "--dtype", "float32", "--device", "cpu")  # fmt: skip
    done(*words)
    plain = capsys.readouterr()
    assert "note" not in plain.err
    config = json.loads((folder / "generation_config.json").read_text())
    config |= {"repetition_penalty": 5.0, "temperature": 0.3, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(config))
    done(*words)
    other = capsys.readouterr()
    assert "asks for repetition_penalty = 5.0: its own generate runs" in other.err
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = processor_of(folder)
    inputs = question(processor, [open_image(picture)] * 2, PROMPT)
    tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    new = tokens[0, inputs["input_ids"].shape[1] :]
    assert other.out.strip() == processor.tokenizer.decode(new, skip_special_tokens=True).strip()
    assert other.out != plain.out
    done(*words, "--greedy")
    again = capsys.readouterr()
    assert again.out == plain.out and "note" not in again.err
    done(*words, "--sample", "--seed", 3)
    sampled = capsys.readouterr().out
    done(*words, "--sample", "--seed", 3)
    assert capsys.readouterr().out == sampled


@pytest.mark.slow
def test_an_invalid_generation_config_stops_nothing(trained_qwen, tmp_path, capsys):
    """As it is published: greedy, and yet with a temperature."""
    config = {"do_sample": False, "temperature": 0.9, "top_p": 0.6}
    (Path(trained_qwen) / "generation_config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match=r"temperature = 0\.9, top_p = 0\.6 left out"):
        done("pack", trained_qwen, "--out", tmp_path / "packed")
        done("export", trained_qwen, "--format", "awq", "--out", tmp_path / "awq")
        done("generate", trained_qwen, "--prompt", PROMPT, "--max-new-tokens", 2)
    done("generate", tmp_path / "packed", "--prompt", PROMPT, "--max-new-tokens", 2)
    done("generate", tmp_path / "awq", "--prompt", PROMPT, "--max-new-tokens", 2)


@pytest.mark.slow
def test_activations_beyond_float16_are_one_line(trained_qwen, tmp_path, capsys):
    file = Path(trained_qwen) / "model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        if name.endswith("norm.weight"):
            tensors[name] *= 1000
    save_file(tensors, file, {"format": "pt"})
    done("pack", trained_qwen, "--out", tmp_path / "packed", "--dtype", "float16")
    for folder in (trained_qwen, tmp_path / "packed"):
        words = ("generate", folder, "--prompt", PROMPT, "--device", "cpu")
        assert "not finite: in torch.float16" in refused(capsys, *words, "--dtype", "float16")
    done("generate", trained_qwen, "--prompt", PROMPT, "--device", "cpu", "--max-new-tokens", 2)


def test_a_packed_directory_is_the_packed_model(small, trained, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(trained).eval()
    names = pack(model, CodesFile(Path(trained) / CODES_FILE))
    save_packed(model, tmp_path / "packed")
    loaded = load_packed(tmp_path / "packed")
    state, other = model.state_dict(), loaded.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[key], other[key]) for key in state)
    buffers = dict(loaded.named_buffers())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    assert len(names) == sum(isinstance(m, PackedLinear) for m in loaded.modules())
    dense = {f"{name}.weight" for name in names}
    assert not dense & load_file(tmp_path / "packed" / PACKED_FILE).keys()
    with pytest.raises((InputError, OSError)):  # never half a model
        AutoModelForImageTextToText.from_pretrained(tmp_path / "packed")


@pytest.mark.parametrize(
    ("native", "asked", "runs"),
    [
        (torch.float32, "auto", torch.float32),
        (torch.bfloat16, "auto", torch.bfloat16),
        (torch.bfloat16, "float32", torch.float32),
        (torch.float32, "bfloat16", torch.bfloat16),
    ],
)
def test_a_packed_model_runs_in_the_format_that_is_asked_for(
    native, asked, runs, trained, tmp_path, monkeypatch
):
    model = AutoModelForImageTextToText.from_pretrained(trained, dtype=torch.bfloat16).eval()
    names = pack(model, CodesFile(Path(trained) / CODES_FILE))
    save_packed(model, tmp_path / "packed")
    monkeypatch.setattr("grace.export.loading.native_dtype", lambda device: native)
    loaded = load_student(tmp_path / "packed", dtype=asked)
    assert loaded.dtype == loaded.lm_head.weight.dtype == runs
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight.to(runs))
    for name in names:
        before, after = model.get_submodule(name), loaded.get_submodule(name)
        assert torch.equal(before.codes(), after.codes())
        assert torch.equal(before.scales(), after.scales())


def changed(tensors, how):
    name = next(key for key in sorted(tensors) if key.endswith("q_proj.packed"))
    stem = name.removesuffix(".packed")
    if how == "missing":
        del tensors[f"{stem}.scales"]
    elif how == "nan":
        tensors[f"{stem}.scales"][0, 0] = float("nan")
    elif how == "shape":
        tensors[name] = tensors[name][:, :8].contiguous()
    elif how == "norm":
        del tensors["model.language_model.norm.weight"]
        return "model.language_model.norm.weight"
    elif how == "strange":
        tensors["other.weight"] = torch.zeros(1)
        return "other.weight"
    return stem


@pytest.mark.slow
@pytest.mark.parametrize("how", ["missing", "nan", "shape", "norm", "strange", "cut", "bits"])
def test_a_damaged_packed_directory_is_refused(family, tmp_path, how):
    small = family("qwen2_vl")
    model = small.model(seed=3)
    prepare(model, QuantSpec(4, 64))
    pack(model)
    file = save_packed(model, tmp_path / "packed") / PACKED_FILE
    bits = {n: m.bits for n, m in model.named_modules() if isinstance(m, PackedLinear)}
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-100])
        told = "corrupt or truncated"
    elif how == "bits":
        save_file(load_file(file), file, {"bits": "{}"})
        told = "how many bits"
    else:
        tensors = load_file(file)
        told = changed(tensors, how)
        save_file(tensors, file, {"bits": json.dumps(bits)})
    with pytest.raises(InputError, match=told.replace(".", r"\.")) as error:
        load_packed(tmp_path / "packed")
    assert how == "nan" or PACKED_FILE in str(error.value)


# ------------------------------------------------------------------------------------------ export


@pytest.mark.slow
def test_export_in_both_formats(trained, picture, tmp_path, capsys):
    exact = CodesFile(Path(trained) / CODES_FILE)
    done("export", trained, "--format", "awq", "--out", tmp_path / "awq")
    done("export", trained, "--format", "compressed-tensors", "--out", tmp_path / "ct")
    assert "exported 14 linears of 4 bits" in capsys.readouterr().out
    for name, layer in fake_quant_layers(load_released(tmp_path / "awq")):
        assert torch.equal(layer.codes(), exact[name][0])
        assert torch.equal(layer.scales(), exact[name][1])
    config = json.loads((tmp_path / "ct" / "config.json").read_text())
    assert config["quantization_config"]["format"] == "pack-quantized"
    assert config["dtype"] == "bfloat16"
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "ct")
    loaded.hf_quantizer.compressor.decompress_model(loaded)
    for name, (codes, scales) in exact.items():
        dense = (codes.float().unflatten(1, (-1, 64)) * scales[..., None]).flatten(1)
        assert torch.equal(loaded.get_submodule(name).weight, dense.bfloat16()), name
    model = load_student(tmp_path / "awq", dtype="float32")  # packed when it is loaded
    assert sum(isinstance(module, PackedLinear) for module in model.modules()) == 14


# --------------------------------------------------------------------------------------- bad input


def test_bad_input_is_one_line_and_exit_code_2(family, tmp_path, capsys):
    small = family("qwen2_vl")
    plain = save(small, tmp_path / "plain")
    (tmp_path / "not.png").write_text("no picture")
    narrow = tmp_path / "narrow.png"
    Image.new("RGB", (300, 1)).save(narrow)
    out = tmp_path / "out"
    for words, told in (
        (("pack", tmp_path / "none", "--out", out), "none"),
        (("pack", plain, "--out", out), CODES_FILE),
        (("export", plain, "--format", "awq", "--out", out), CODES_FILE),
        (("generate", plain, "--prompt", "x", "--image", tmp_path / "not.png"), "not.png"),
        (("generate", tmp_path / "none", "--prompt", "x"), "none"),
        (("bench", plain, plain), "is given twice"),
        (("generate", plain, "--prompt", "x", "--max-new-tokens", 10**6), "positions"),
        (("generate", plain, "--prompt", "x", "--image", narrow), "image 1 of 1, 300 x 1 pixels"),
    ):  # fmt: skip
        assert told in refused(capsys, *words), words
        assert not out.exists()


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (None, "does not have a chat template"),
        ("{% for m in messages %}{{ 'USER: ' + m['content'] }}{% endfor %}", "can only concat"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "list of parts as it is"),
        ("{{ raise_exception('no') }}", "cannot render"),
        ("{{ messages[0]['content'][-1]['text'] }}", "writes no image|refuses"),
    ],
)
def test_a_template_that_cannot_ask_is_one_line(family, picture, tmp_path, capsys, template, told):
    small = family("llava")
    folder = save(small, tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").unlink()
    if template is not None:
        (tmp_path / "plain" / "chat_template.jinja").write_text(template)
    line = refused(capsys, "generate", folder, "--prompt", "why", "--image", picture)
    assert re.search(told, line) and "chat template" in line


@pytest.mark.parametrize("value", ["0", "-3", "1.5", "many", "1e9", ""])
@pytest.mark.parametrize("option", ["--max-new-tokens", "--tokens", "--repeats", "--batch-size"])
def test_numbers_that_are_none_are_refused(option, value, capsys):
    command = ("generate", "m", "--prompt", "x") if "max" in option else ("bench", "a", "b")
    with pytest.raises(SystemExit) as left:
        main([*command, f"{option}={value}"])
    assert left.value.code == 2
    assert f"argument {option}: {value!r} is no whole number from 1" in capsys.readouterr().err
