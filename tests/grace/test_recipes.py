"""Every recipe is read by the command's own parser, and trains two steps on tiny models; the one of
five minutes runs as its script runs it, shortened."""

import importlib.util
import json
from pathlib import Path

import pytest
from commands import done
from tiny_families import FAMILIES, NEEDS, picture, save, tiny_model, tiny_processor

from grace.quantization import CODES_FILE
from grace.training import read_options
from grace.training.run import method_of

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
FILES = sorted(RECIPES.glob("*.yaml"))
FIRST, SECOND = (RECIPES / f"two-stages-{stage}.yaml" for stage in ("1-bf16", "2-int4"))
MODELS = {
    "llava-hf/llava-1.5-": "llava",
    "Qwen/Qwen2-VL-": "qwen2_vl",
    "Qwen/Qwen2.5-VL-": "qwen2_5_vl",
    "Qwen/Qwen3-VL-": "qwen3_vl",
    "HuggingFaceTB/SmolVLM2-": "smolvlm",
    "five-minutes/": "qwen2_vl",
    "students/two-stages-bf16": "qwen3_vl",
}
"""How a name in a recipe begins, and the family of such models."""


def family(name):
    (found,) = {model_type for start, model_type in MODELS.items() if name.startswith(start)}
    return found


def by_name(file):
    return file.stem


@pytest.mark.parametrize("file", FILES, ids=by_name)
def test_its_settings_go_together(file):
    options = read_options([str(file)])
    method, trainer = method_of(options.method), options.trainer
    student, teacher = options.model.model, options.model.teacher
    assert family(student) in dict(FAMILIES)
    assert (teacher is not None) == (method.method == "grace")
    if teacher is not None:
        assert family(teacher) == family(student) and teacher != student
    assert (options.run.out, options.data.image_folder) != (None, None)
    assert method.bits == (16 if file == FIRST else 4)
    assert trainer.warmup_steps == 0.03 and trainer.lr_scheduler_type == "cosine"


def test_the_papers_families_have_the_papers_batch_and_rate():
    for name, student in {
        "llava-1.5-7b": "llava-hf/llava-1.5-7b-hf",
        "qwen2-vl-2b": "Qwen/Qwen2-VL-2B-Instruct",
        "qwen3-vl-2b": "Qwen/Qwen3-VL-2B-Instruct",
    }.items():
        options = read_options([str(RECIPES / f"{name}.yaml")])
        trainer = options.trainer
        batch = trainer.per_device_train_batch_size * trainer.gradient_accumulation_steps
        assert batch * 16 == 512  # GPUs
        assert trainer.learning_rate == 1e-5 and trainer.gradient_checkpointing
        assert options.model.model == student


def test_the_second_stage_starts_where_the_first_ends():
    first, second = (read_options([str(file)]) for file in (FIRST, SECOND))
    assert second.model.model == first.run.out
    assert second.model.teacher == first.model.teacher
    assert second.data == first.data


@pytest.fixture(scope="module")
def conversations(tmp_path_factory):
    """Four records in the chat schema, with pictures of several sizes."""
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for number, (width, height) in enumerate([(40, 40), (32, 48), (48, 32), (40, 32)]):
        picture(number, width, height).save(folder / f"{number}.png")
        turns = (("user", "What is in the picture?"), ("assistant", "A red circle."))
        messages = [{"role": role, "content": text} for role, text in turns]
        lines.append(json.dumps({"messages": messages, "images": [f"{number}.png"]}) + "\n")
    (folder / "train.jsonl").write_text("".join(lines))
    return folder


def rehearse(file, folder, conversations, model=None):
    """Two steps of a recipe on tiny models; the directory that they end with."""
    options = read_options([str(file)])
    name = family(options.model.model)
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{name}'s processor needs {NEEDS[name]}")
    out = folder / "student"
    if model is None:
        model = save(tiny_model(name), tiny_processor(name), folder / "model")
    words = ["--model", model, "--out", out, "--group_size", 32, "--teacher_bits", 16]
    if options.model.teacher is not None:
        teacher = save(tiny_model(name, seed=1, larger=True), tiny_processor(name), folder / "7B")
        words += ["--teacher", teacher]
    words += ["--data", conversations / "train.jsonl", "--image_folder", conversations]
    words += ["--max_steps", 2, "--gradient_accumulation_steps", 1, "--batch_size", 2]
    if options.data.eval_share:
        words += ["--eval_share", 0.25]
    done("train", file, *words, "--device", "cpu", "--dataloader_num_workers", 0)
    assert (out / "model.safetensors").is_file()
    assert (out / CODES_FILE).is_file() == (method_of(options.method).bits < 16)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted({*FILES} - {FIRST, SECOND}), ids=by_name)
def test_it_trains(file, tmp_path, conversations):
    rehearse(file, tmp_path, conversations)


@pytest.mark.slow
def test_two_stages_train_one_after_the_other(tmp_path, conversations):
    (tmp_path / "second").mkdir()
    first = rehearse(FIRST, tmp_path, conversations)
    rehearse(SECOND, tmp_path / "second", conversations, model=first)


@pytest.mark.slow
def test_the_recipe_of_five_minutes(tmp_path, monkeypatch, capsys):
    path = RECIPES / "five_minutes.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def run(*words):
        if words[0] == "train" and words[1] == script.RECIPE:
            words = (*words, "--max_steps", 2)
        capsys.readouterr()
        done(*words)
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "run", run)
    monkeypatch.setattr(script, "RECIPE", str(RECIPES / "five-minutes.yaml"))
    monkeypatch.setattr(script, "RECORDS", {"train": 48, "held-out": 8})
    monkeypatch.setattr(script, "STEPS", {"tower": 2, "teacher": 2, "baseline": 2})
    script.main()
    said = capsys.readouterr().out
    assert "picture:  five-minutes/images/held-out-" in said
    for name in ("teacher", "baseline", "student-int4"):
        assert f"  {name:<13}" in said
    with pytest.raises(SystemExit, match="five-minutes is there already"):
        script.main()
