"""`grace eval`, and lmms-eval's own command with the model `grace`."""

import io
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from commands import done, refused
from conftest import speaking
from datasets import Features, Value
from datasets import Image as ImageFeature
from installed import ROOT
from test_lmms_model import by_the_library
from tiny_families import picture, save

from grace.evaluation import table
from grace.export import save_awq, save_compressed_tensors, save_packed
from grace.int4 import pack
from grace.models import load_model
from grace.quantization import CodesFile, QuantSpec, bake, prepare, write_codes

lmms_eval = pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")
from lmms_eval.api.task import ConfigurableTask  # noqa: E402

OFFICIAL = Path(lmms_eval.__file__).parent / "tasks" / "realworldqa" / "realworldqa.yaml"
QUESTIONS = 6
RIGHT = 4  # of the questions' answers are those of the model


@pytest.fixture(scope="module")
def student(family, tmp_path_factory):
    """What `grace train` leaves, without the training."""
    small, path = family("qwen2_vl"), tmp_path_factory.mktemp("eval") / "student"
    model, spec = speaking(small), QuantSpec(4, 64)
    prepare(model, spec)
    exact = bake(model)
    save(model, small.processor, path)
    write_codes(path, exact, spec.to_dict())
    return path


@pytest.fixture(scope="module")
def tasks(family, student, tmp_path_factory):
    """A folder with the task `own`: an official one over questions of which the student, as the
    library runs it, answers two thirds right."""
    folder = tmp_path_factory.mktemp("tasks")
    model, processor = load_model(student).eval(), family("qwen2_vl").processor
    features = Features(
        {"question": Value("string"), "answer": Value("string"), "image": ImageFeature()}
    )
    rows = []
    for index in range(QUESTIONS):
        image, question = picture(index, 64, 64), f"how many {index} shapes are in the image ?"
        answer = by_the_library(model, processor, {"text": question, "images": [image]})
        content = io.BytesIO()
        image.save(content, "PNG")
        rows.append(
            {
                "question": question,
                "answer": answer.lower().rstrip(".") if index < RIGHT else "another answer",
                "image": {"bytes": content.getvalue(), "path": None},
            }
        )
    assert len({row["answer"] for row in rows}) > 2
    pq.write_table(pa.Table.from_pylist(rows, schema=features.arrow_schema), folder / "own.parquet")
    task = {
        "include": str(OFFICIAL),
        "task": "own",
        "dataset_path": "parquet",
        "dataset_kwargs": {
            "data_files": {"test": str(folder / "own.parquet")},
            "cache_dir": str(folder / "cache"),
        },
        "generation_kwargs": {"max_new_tokens": 5},
        "metadata": {"version": 3},
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(task))
    return folder


def score(tasks, model, out, *words):
    done("eval", model, "--tasks", "own", "--include_path", tasks, "--device", "cpu",
         "--dtype", "float32", "--out", out, *words)  # fmt: skip
    return json.loads(out.read_text())


@pytest.mark.slow
def test_every_kind_of_directory_has_the_same_scores(tasks, student, tmp_path, family, capsys):
    report = score(tasks, student, tmp_path / "student.json")
    own = report["tasks"]["own"]
    assert (own["version"], own["questions"]) == (3, QUESTIONS)
    assert own["metrics"]["exact_match"] == RIGHT / QUESTIONS
    assert own["metrics"]["exact_match_stderr"] == pytest.approx(0.2108, abs=1e-4)
    assert report["versions"]["lmms-eval"] == metadata.version("lmms-eval")
    assert len(report["model_sha256"]) == 64
    shown = capsys.readouterr().out.splitlines()
    assert shown == table(report).splitlines()
    assert shown[1].split()[:4] == ["own", str(QUESTIONS), "exact_match", "0.6667"]

    exact, processor = CodesFile(student / "quantized.safetensors"), family("qwen2_vl").processor
    packed = load_model(student)
    pack(packed, exact, backend="reference")
    save_packed(packed, tmp_path / "packed", processor=processor)
    codes = {"codes": exact, "bits": exact.bits, "processor": processor}
    save_awq(load_model(student), tmp_path / "awq", dtype=torch.float32, **codes)
    save_compressed_tensors(load_model(student), tmp_path / "ct", **codes)
    for name in ("packed", "awq", "ct"):
        out = tmp_path / f"{name}.json"
        other = score(tasks, tmp_path / name, out, "--backend", "reference", "--batch_size", 4)
        assert other["tasks"] == report["tasks"], name
        assert other["model_sha256"] != report["model_sha256"]

    limited = score(tasks, student, tmp_path / "limited.json", "--limit", 2)
    assert limited["tasks"]["own"]["questions"] == 2
    assert limited["tasks"]["own"]["metrics"]["exact_match"] == 1.0


@pytest.mark.slow
def test_what_cannot_be_evaluated_is_refused_before_weights_are_read(
    tasks, student, tmp_path, capsys, monkeypatch
):
    def never(*_, **__):
        raise AssertionError("weights are read")

    monkeypatch.setattr("grace.evaluation.lmms.load_student", never)
    monkeypatch.setattr(ConfigurableTask.download.retry, "sleep", lambda seconds: None)
    own_task = (tasks / "own.yaml").read_text()
    (tmp_path / "likely.yaml").write_text(
        own_task.replace("task: own", "task: likely")
        + "output_type: multiple_choice\ndoc_to_choice: ['yes', 'no']\n"
    )
    (tmp_path / "lost.yaml").write_text(
        own_task.replace("task: own", "task: lost").replace("own.parquet", "x")
    )
    (tmp_path / "there").write_text("")
    own = ("eval", student, "--include_path", tasks, "--tasks")
    here = ("eval", student, "--include_path", tmp_path, "--tasks")
    for words, told in (
        ((*own, "owm"), "did you mean 'own'"),
        ((*here, "likely"), "'likely' is of type multiple_choice"),
        ((*here, "lost"), "their data do not load: "),
        ((*own, "own", "--out", tmp_path / "there"), "there exists"),
        (("eval", tmp_path, *own[2:], "own"), "no config.json"),
        (("eval", student, "--tasks", "own", "--include_path", tmp_path / "none"), "no folder"),
    ):
        assert told in refused(capsys, *words)


def test_without_lmms_eval_there_is_one_line(student, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'grace-vlm[eval]'" in refused(capsys, "eval", student, "--tasks", "own")


@pytest.mark.weekly
def test_lmms_eval_s_own_command_has_the_model(tasks, student, tmp_path, installed):
    """In a process of its own, by the entry point alone."""
    words = ["--model", "grace", "--model_args", f"pretrained={student},dtype=float32",
             "--tasks", "own", "--include_path", tasks, "--batch_size", "2",
             "--output_path", tmp_path / "out"]  # fmt: skip
    path = os.pathsep.join(map(str, (installed, ROOT)))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-m", "lmms_eval", *map(str, words)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    # its table is printed at the very end, by a package that lmms-eval without dependencies lacks
    assert ran.returncode == 0 or "No module named 'pytablewriter'" in ran.stderr, ran.stderr[
        -2000:
    ]
    (file,) = (tmp_path / "out").rglob("*_results.json")
    results = json.loads(file.read_text())["results"]["own"]
    assert results["exact_match,none"] == RIGHT / QUESTIONS


@pytest.mark.weekly
def test_several_processes_have_the_scores_of_one(tasks, student, tmp_path):
    """Five questions over two processes, of which one writes."""
    words = ["eval", student, "--tasks", "own", "--include_path", tasks, "--dtype", "float32",
             "--limit", "5", "--out", tmp_path / "scores.json"]  # fmt: skip
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
              "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
              "--num_cpu_threads_per_process", "1", "--main_process_port", "0"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    ran = subprocess.run(
        [sys.executable, *launch, "-m", "grace", *map(str, words)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    own = json.loads((tmp_path / "scores.json").read_text())["tasks"]["own"]
    assert own["questions"] == 5
    assert own["metrics"]["exact_match"] == RIGHT / 5
