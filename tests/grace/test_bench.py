"""`grace bench`: formats of one model side by side, and none of two."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import done, refused, save, trained_directory
from exported import trained
from PIL import Image
from tiny_families import tiny_model, tiny_processor
from transformers import AutoModelForImageTextToText

from grace.bench import directory
from grace.bench.candidates import candidate, check_same
from grace.bench.settings import Settings
from grace.bench.table import table
from grace.errors import InputError
from grace.export import save_gguf
from grace.machine import instruction_set
from grace.quantization import CODES_FILE, CodesFile, QuantSpec, bake

LLAMA_CPP = importlib.util.find_spec("xllamacpp") and importlib.util.find_spec("gguf")


@pytest.fixture
def student(family, tmp_path):
    return trained_directory(family("qwen2_vl"), tmp_path)


@pytest.fixture
def settings(tmp_path):
    picture = tmp_path / "picture.png"
    Image.new("RGB", (64, 64), "red").save(picture)
    return Settings("cpu", torch.get_num_threads(), str(picture), "what is it", 2, 3, 2)


@pytest.mark.slow
def test_bytes_are_those_of_the_tensors(student, settings, tmp_path):
    done("pack", student, "--out", tmp_path / "packed")
    found = {
        name: directory.measure(str(path), settings)
        for name, path in (("plain", student), ("packed", tmp_path / "packed"))
    }
    before, after = found["plain"], found["packed"]
    dtype = getattr(torch, before["runs"])
    plain = AutoModelForImageTextToText.from_pretrained(student, dtype=dtype)
    stored = {p.data_ptr(): p.numel() * p.element_size() for p in plain.parameters()}
    assert sum(stored.values()) <= before["weight_bytes"] <= sum(stored.values()) + 4096
    exact = CodesFile(student / CODES_FILE)
    size = dtype.itemsize
    saved = sum(size * c.numel() - c.numel() / 2 - 4 * s.numel() for c, s in exact.values())
    if dtype == torch.bfloat16:
        assert before["weight_bytes"] - after["weight_bytes"] == pytest.approx(saved, rel=0.02)
    for one in found.values():
        for key in ("tokens_per_second", "first_token_seconds"):
            assert 0 < one[key]["low"] <= one[key]["median"] <= one[key]["high"]
    assert after["runs"].startswith("INT4 and ")


def test_quotients_are_with_the_first():
    def one(rate, first, weights):
        return {
            "runs": "x", "weight_bytes": weights * 2**20, "peak_bytes": 2**22,
            "tokens_per_second": {"median": rate, "low": rate - 1, "high": rate + 1},
            "first_token_seconds": {"median": first, "low": first, "high": first},
        }  # fmt: skip

    lines = table({"a": one(10.0, 3.0, 8), "b": one(25.0, 1.5, 2)})
    assert len(lines) == 3 and len({line.index("[") for line in lines[1:]}) == 1
    assert "10.00 [9.00, 11.00]" in lines[1] and " x" not in lines[1].replace("x  ", "", 1)
    assert "2.50 x" in lines[2] and "2.00 x as fast" in lines[2] and "2.0 (−75 %)" in lines[2]


@pytest.mark.slow
def test_the_command_measures_every_format(student, tmp_path, capsys):
    done("pack", student, "--out", tmp_path / "packed")
    capsys.readouterr()
    done("bench", student, tmp_path / "packed", "--tokens", 2, "--repeats", 1, "--device", "cpu",
         "--json", tmp_path / "bench.json")  # fmt: skip
    told = capsys.readouterr().out
    assert "peak memory, MiB" in told and f"{torch.get_num_threads()} threads, 1 row" in told
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["machine"]["instructions"] == instruction_set()
    assert found["models"][str(tmp_path / "packed")]["peak_bytes"] > 2**26
    assert found["settings"]["tokens"] == 2


def exported(folder, name="qwen2_vl", seed=0):
    """A tiny model of a family as transformers has it and as GGUF."""

    class Tiny:
        processor = tiny_processor(name)

        @staticmethod
        def model(_, **text):
            return tiny_model(name, seed=seed, **text)

    model = trained(Tiny, QuantSpec(4, 32), seed=seed)
    save_gguf(model, folder / "gguf", processor=Tiny.processor)
    bake(model)
    model.save_pretrained(folder / "plain")
    Tiny.processor.save_pretrained(folder / "plain")
    return folder / "plain", folder / "gguf"


@pytest.mark.skipif(not importlib.util.find_spec("gguf"), reason="GGUF is written with gguf")
def test_a_model_is_known_again_in_its_gguf_file(tmp_path):
    plain, gguf = exported(tmp_path / "first")
    _, other = exported(tmp_path / "second", seed=1)
    file = next(gguf.glob("model-*.gguf"))
    check_same([candidate(str(path)) for path in (plain, gguf, file)])
    with pytest.raises(InputError, match="these are different models"):
        check_same([candidate(str(plain)), candidate(str(other))])
    next(gguf.glob("mmproj-*.gguf")).unlink()
    with pytest.raises(InputError, match=r"has 0 files mmproj-\*.gguf where one is needed"):
        candidate(str(file))
    file.write_bytes(b"GGUF and nothing more")
    shutil.copy(next(other.glob("mmproj-*.gguf")), gguf)
    with pytest.raises(InputError, match=r"no readable GGUF file"):
        check_same([candidate(str(plain)), candidate(str(gguf))])


@pytest.mark.slow
@pytest.mark.skipif(not LLAMA_CPP, reason="llama.cpp is asked through xllamacpp, files by gguf")
def test_llama_cpp_is_measured_beside_the_packed_model(tmp_path, capsys):
    plain, gguf = exported(tmp_path)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "picture.png")
    done("bench", plain, gguf, "--tokens", 3, "--repeats", 1, "--device", "cpu", "--batch-size", 2,
         "--prompt", "what is it", "--image", tmp_path / "picture.png",
         "--json", tmp_path / "bench.json")  # fmt: skip
    assert "llama.cpp, Q4_0" in capsys.readouterr().out
    found = json.loads((tmp_path / "bench.json").read_text())["models"]
    one, other = found[str(plain)], found[str(gguf)]
    assert other["prompt_tokens"] == one["prompt_tokens"]
    assert other["weight_bytes"] == sum(f.stat().st_size for f in gguf.glob("*.gguf"))
    assert other["tokens_per_second"]["median"] > 0


def test_formats_of_two_models_are_refused(family, tmp_path, capsys):
    small = family("qwen2_vl")
    plain = Path(save(small, tmp_path / "plain"))
    other = small.model(seed=9)
    other.save_pretrained(tmp_path / "other")
    small.processor.save_pretrained(tmp_path / "other")
    assert "different models" in refused(capsys, "bench", plain, tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    config.get("text_config", config)["intermediate_size"] = 7
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    told = refused(capsys, "bench", plain, tmp_path / "other")
    assert "intermediate_size 7" in told and "give formats of one model" in told
    assert "is given twice" in refused(capsys, "bench", plain, plain)
    assert "correct the path" in refused(capsys, "bench", plain, tmp_path / "none.gguf")
