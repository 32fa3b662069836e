"""The path from a model to a score: official scorers, batch invariance, failures, no traces."""

import dataclasses
import functools
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from pyarrow import parquet

from grace.errors import InputError
from replication import benchmarks as tasks
from replication.evaluate.official import ScoringError
from replication.evaluate.score import COLUMNS, evaluate_model

lmms_model = pytest.importorskip("grace.evaluation.lmms", reason="lmms-eval is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")

NAMES = ["mmbench", "seedbench", "scienceqa"]
# --------------------------------------------------------------------------------- a little data


def picture(i):
    from PIL import Image

    noise = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def question_text(i):
    return " ".join((["What color is the square left of the circle ?"] * 3)[: 1 + i % 3])


def columns_of(name, n):
    """n questions in the official schema; the answer of question i is the letter i mod 4."""
    letters = ["ABCD"[i % 4] for i in range(n)]
    words = ["red", "green", "blue", "two"]
    texts = [question_text(i) for i in range(n)]
    if name == "mmbench":
        return {
            "index": list(range(1, n + 1))[::-1],  # the official evaluator sorts by index
            "question": texts,
            "hint": ["nan" if i % 2 else "Context there" for i in range(n)],
            **{letter: [word] * n for letter, word in zip("ABCD", words, strict=True)},
            "answer": letters,
            "category": [["attribute", "counting"][i % 2] for i in range(n)],
            "L2-category": ["perception"] * n,
            "source": ["made"] * n,
            "split": ["dev"] * n,
            "image": [picture(i) for i in range(n)],
        }
    if name == "seedbench":
        return {
            "answer": letters,
            **{f"choice_{x}": [word] * n for x, word in zip("abcd", words, strict=True)},
            "data_id": [str(i) for i in range(n)],
            "data_type": ["image"] * n,
            "image": [[picture(i)] for i in range(n)],
            "question": texts,
            "question_id": [f"q{i}" for i in range(n)],
            "question_type_id": [1 + i % 3 for i in range(n)],
            "segment": [[] for _ in range(n)],
        }
    return {
        "image": [None if i == 1 else picture(i) for i in range(n)],
        "question": texts,
        "choices": [words[: 4 if i % 4 > 1 else 2] for i in range(n)],
        "answer": [i % 4 for i in range(n)],
        "hint": ["" if i % 2 else "there" for i in range(n)],
        **{x: ["x"] * n for x in ("task", "grade", "subject", "topic", "category")},
        "skill": [["count", "compare"][i % 2] for i in range(n)],
        **{x: [""] * n for x in ("lecture", "solution")},
    }


def features_of(name):
    from datasets import Features, Image, List, Value

    text, whole = Value("string"), Value("int64")
    special = {
        "mmbench": {"index": whole, "image": Image()},
        "seedbench": {"question_type_id": whole, "image": List(Image()), "segment": List(whole)},
        "scienceqa": {"answer": whole, "image": Image(), "choices": List(text)},
    }[name]
    return Features({c: special.get(c, text) for c in columns_of(name, 1)})


def write(folder, name, columns):
    from datasets import Dataset

    Dataset.from_dict(columns, features=features_of(name)).to_parquet(folder / f"{name}.parquet")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name in NAMES:
        write(folder, name, columns_of(name, 24))
    return folder


@pytest.fixture
def run(speaker, processor, data):
    return functools.partial(evaluate_model, speaker, data=data, processor=processor)


# ------------------------------------------------------------------------- the official scorers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "right", "readable"),
    [
        ("{}", NAMES, NAMES),
        ("{}.", NAMES, NAMES),
        (" {}\n", NAMES, NAMES),
        ("{}. red", NAMES, NAMES),
        ("{lower}", ["seedbench", "scienceqa"], ["seedbench", "scienceqa"]),
        ("({})", ["mmbench"], ["mmbench"]),
        # SEED-Bench takes the first letter: an explanation is read as an answer only by MMBench.
        ("The answer is {}", ["mmbench"], ["mmbench"]),
        ("?!", [], []),
        ("", [], []),
    ],
)
def test_official_verdict_on_known_answers(run, answering, template, right, readable):
    def answer(benchmark, row):
        letter = "ABCD"[row % 4]
        return template.format(letter, lower=letter.lower())

    answering(answer)
    result = run(NAMES)
    for name in NAMES:
        score = result.scores[name]
        outcomes = result.outcomes.query("benchmark == @name")
        assert score["score"] == (100.0 if name in right else 0.0), name
        assert score["unparsed"] == (0 if name in readable else score["n"]), name
        assert outcomes["credit"].tolist() == [float(name in right)] * score["n"]


@pytest.mark.slow
def test_mixed_answers_give_the_hand_counted_score(run, answering):
    """Six questions: right, right with a point, wrong, wrong, garbage, empty."""
    given = ["A", "B.", "A", "C", "?!", ""]
    answering(lambda _, row: given[row])
    result = run(NAMES, limit=6)
    for name in NAMES:
        score = result.scores[name]
        rows = result.outcomes.query("benchmark == @name")
        assert rows["credit"].tolist() == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
        assert rows["prediction"].tolist() == given
        assert rows["target"].tolist() == list("ABCDAB")
        assert score["score"] == pytest.approx(100 / 3, abs=1e-9)
        assert score["n"] == 6
        assert score["unparsed"] == 2
        assert score["standard_error"] == pytest.approx(100 * (2 / 9 / 6) ** 0.5)
        assert score["metric"] == tasks.get(name).metric
        assert len(score["task_sha256"]) == 64
    assert result.scores["mmbench"]["scorer"].startswith("rule-based")
    assert result.scores["seedbench"]["scorer"] == "official"
    assert result.scores["mmbench"]["chance"] == 25
    # two options for the rows 0, 1, 4 and 5; four for the rows 2 and 3
    assert result.scores["scienceqa"]["chance"] == pytest.approx(100 * (4 / 2 + 2 / 4) / 6)


@pytest.mark.slow
def test_outcomes_carry_id_and_skill(run, answering):
    answering(lambda *_: "A")
    outcomes = run(NAMES, limit=4).outcomes
    assert tuple(outcomes.columns) == COLUMNS
    assert outcomes["credit"].dtype == np.float64
    first = {name: outcomes.query("benchmark == @name") for name in NAMES}
    assert first["mmbench"]["question_id"].tolist() == ["24", "23", "22", "21"]
    assert first["mmbench"]["skill"].tolist() == ["attribute", "counting"] * 2
    assert first["seedbench"]["question_id"].tolist() == ["q0", "q1", "q2", "q3"]
    assert first["seedbench"]["skill"].tolist() == [
        *("scene understanding", "instance identity", "instance attributes"),
        "scene understanding",
    ]
    assert first["scienceqa"]["question_id"].tolist() == ["0", "1", "2", "3"]
    assert first["scienceqa"]["skill"].tolist() == ["count", "compare"] * 2


def test_task_file_replaces_the_data_source_and_nothing_else(tmp_path):
    """GQA's images lie in a second dataset; HallusionBench's judge is the one scorer replaced."""
    more = {"gqa": {"process_docs"}, "hallusionbench": {"metric_list"}}
    for benchmark in tasks.BENCHMARKS.values():
        assert benchmark.official_path.is_file()
        source = tasks.Standins(str(tmp_path / "x.parquet"))
        path = tasks.write_task_file(benchmark, source, tmp_path, tmp_path / "c")
        config = yaml.load(path.read_text().replace("!function ", ""), yaml.SafeLoader)
        assert config.pop("include") == str(benchmark.official_path)
        assert config.pop("task") == benchmark.name
        data = {"dataset_path", "dataset_name", "dataset_kwargs"}
        assert set(config) == data | more.get(benchmark.name, set())
        for function in [line for line in _official_text(benchmark) if "!function" in line]:
            module = function.split("!function")[1].split(".")[0].strip()
            parent = pathlib.PurePath(benchmark.official_yaml).parent
            assert str(parent / f"{module}.py") in benchmark.sources


def _official_text(benchmark):
    files = [benchmark.official_yaml, *(s for s in benchmark.sources if s.endswith("yaml"))]
    read = {f: (tasks.official_root() / f).read_text() for f in files}
    read.pop("mmbench/mmbench.yaml", None)  # read for its prompt only, never as a task
    return [line for text in read.values() for line in text.splitlines()]


# ------------------------------------------------------------------------------ the model's part


def reference(model, processor, text, images, budget=8):
    """One question asked on its own, without lmms-eval, batches or padding."""
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    inputs = processor(text=[prompt], images=images or None, return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=budget, do_sample=False)
    row = out[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(row, skip_special_tokens=True).strip()


@pytest.fixture(scope="module")
def one_by_one(speaker, processor):
    """What the model answers to each question on its own, in the order of the data."""
    from lmms_eval.tasks.mmbench import en_utils
    from lmms_eval.tasks.scienceqa import utils as sqa
    from lmms_eval.tasks.seedbench import utils as seed

    post = "\nAnswer with the option's letter from the given choices directly."
    ask = {
        "mmbench": lambda q: en_utils.mmbench_doc_to_text(q, {"post_prompt": post}),
        "seedbench": seed.seed_doc_to_text,
        "scienceqa": lambda q: sqa.sqa_doc_to_text(
            q, {"format": "default", "pre_prompt": "", "post_prompt": post}
        ),
    }
    answers = []
    for name in NAMES:
        columns = columns_of(name, 24)
        for i in range(24):
            question = {key: values[i] for key, values in columns.items()}
            images = question["image"] if name == "seedbench" else [question["image"]]
            images = [image for image in images if image is not None]
            said = reference(speaker, processor, ask[name](question), images)
            answers.append(said.partition("\n\n")[0])  # where lmms-eval ends an answer
    return answers


@pytest.mark.slow
def test_answers_are_those_given_one_by_one_in_order(run, one_by_one):
    result = run(NAMES, batch_size=5)
    assert len(set(one_by_one)) > 20, "answers have to differ for this test to see anything"
    assert result.outcomes["prediction"].tolist() == one_by_one
    assert result.settings["batch_size"] == 5


@pytest.mark.slow
def test_directory_and_memory_agree(run, speaker_dir, data):
    loaded = evaluate_model(speaker_dir, NAMES, data)
    here = run(NAMES)
    pd.testing.assert_frame_equal(loaded.outcomes, here.outcomes)
    assert loaded.scores == here.scores


@pytest.mark.slow
def test_token_limit_is_kept_and_recorded(run, one_by_one):
    result = run(["seedbench"], max_new_tokens=2)
    answers = list(zip(result.outcomes["prediction"], one_by_one[24:48], strict=True))
    # half of a character in bytes ends as the replacement character
    assert all(whole.startswith(cut.rstrip("\ufffd")) for cut, whole in answers)
    assert any(len(cut) < len(whole) for cut, whole in answers)
    assert result.settings["max_new_tokens"] == 2
    assert result.settings["dtype"] == "float32"
    assert result.settings["lmms_eval"]


@pytest.mark.parametrize(
    ("text", "until", "kept"),
    [
        ("A ASSISTANT: B", ["ASSISTANT:"], "A "),
        ("A\nB", "\n", "A"),
        ("A", None, "A"),
        ("A", [""], "A"),
    ],
)
def test_stop_strings(text, until, kept):
    assert lmms_model._up_to_stop(text, until) == kept


@pytest.mark.slow
def test_caller_keeps_its_model_and_its_random_state(run, speaker):
    speaker.train()
    random.seed(7)
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()
    run(["mmbench", "seedbench"], limit=3)
    assert speaker.training
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert (np.random.get_state()[1] == before[2]).all()
    speaker.eval()


# ---------------------------------------------------------------------------------- failing well


@pytest.fixture
def official(tmp_path, monkeypatch):
    """Put a task file and scorer of our own in the place of SEED-Bench's official ones."""

    def install(process="return {'seed_all': 0.0}", aggregate="return sum(values) / len(values)"):
        folder = tmp_path / "official"
        folder.mkdir()
        (folder / "scoring.py").write_text(
            "def process(doc, results):\n"
            f"    {process}\n\ndef aggregate(values):\n    {aggregate}\n"
        )
        real = tasks.get("seedbench").official_path
        (folder / "seedbench.yaml").write_text(
            f"include: {real}\nprocess_results: !function scoring.process\nmetric_list:\n"
            "  - metric: seed_all\n    aggregation: !function scoring.aggregate\n"
            "    higher_is_better: true\n"
        )
        benchmark = dataclasses.replace(
            tasks.get("seedbench"), official_yaml=str(folder / "seedbench.yaml")
        )
        monkeypatch.setitem(tasks.BENCHMARKS, "seedbench", benchmark)

    return install


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        (
            {"process": "return {'seed_all': 1 / (doc['question_id'] != 'q3')}"},
            r"seedbench, question q3.*ZeroDivisionError",
        ),
        (
            {
                "process": "return {'seed_all': doc['question_id']}",
                "aggregate": "return sum(1 / (v != 'q5') for v in values) / len(values)",
            },
            r"seedbench, question q5.*ZeroDivisionError",
        ),
        (
            {
                "process": "return {'seed_all': 1.0}",
                "aggregate": "return 1.0 if len(values) == 1 else 0.5",
            },
            r"seedbench: .*give 100.* 50",
        ),
        ({"process": "return {'seed_all': -0.5}"}, "seedbench, question q0"),
        ({"process": "return {'seed_all': 1.5}"}, "seedbench, question q0"),
    ],
    ids=["scorer fails", "aggregation fails", "no mean of credits", "below 0", "above 1"],
)
def test_a_faulty_scorer_names_benchmark_and_question(run, answering, official, scorer, message):
    official(**scorer)
    answering(lambda *_: "A")
    with pytest.raises(ScoringError, match=message):
        run(["seedbench"])


@pytest.mark.slow
def test_exception_in_the_model_is_no_wrong_answer(run, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(lmms_model.ChatModel, "_answer", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(["mmbench"])


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


def without_a_column(path):
    parquet.write_table(parquet.read_table(path).drop_columns(["category"]), path)


def without_features(path):
    parquet.write_table(parquet.read_table(path).replace_schema_metadata(None), path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (pathlib.Path.unlink, r"mmbench\.parquet does not exist; build"),
        (cut_short, r"mmbench\.parquet cannot be read as parquet"),
        (without_a_column, "lacks category"),
        (without_features, "column image holds no images"),
    ],
)
def test_bad_data_are_refused_before_the_model_runs(
    tmp_path, speaker, processor, answering, spoil, message
):
    answering(lambda *_: pytest.fail("the model ran"))
    write(tmp_path, "mmbench", columns_of("mmbench", 6))
    spoil(tmp_path / "mmbench.parquet")
    with pytest.raises(InputError, match=message):
        evaluate_model(speaker, ["mmbench"], tmp_path, processor=processor)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"benchmarks": ["mmbenhc"]}, "unknown benchmark 'mmbenhc'; known: .*mmbench"),
        ({"benchmarks": []}, "name each once"),
        ({"benchmarks": ["mmbench", "mmbench"]}, "name each once"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"limit": 0}, "limit is 0"),
        ({"limit": 3, "benchmarks": ["mme"]}, "mme asks its questions in pairs"),
        ({"dtype": "int4"}, "dtype is 'int4'; choose"),
        ({"dtype": "bfloat16"}, "weights are float32, the evaluation is to run in bfloat16"),
        ({"processor": None}, "needs its processor"),
        ({"model": "/nowhere/model"}, "/nowhere/model does not exist"),
    ],
)
def test_bad_settings_are_refused_before_the_model_runs(run, answering, changes, message):
    answering(lambda *_: pytest.fail("the model ran"))
    arguments = {**run.keywords, "model": run.args[0], "benchmarks": ["mmbench"], **changes}
    with pytest.raises(InputError, match=message):
        evaluate_model(**arguments)


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage", ["config", "no config", "weights", "fewer weights", "processor", "template"]
)
def test_broken_model_directory_is_refused(tmp_path, speaker_dir, data, answering, damage):
    answering(lambda *_: pytest.fail("the model ran"))
    broken = shutil.copytree(speaker_dir, tmp_path / "model")
    if damage == "config":
        (broken / "config.json").write_text(json.dumps({"model_type": "no_such_model"}))
    elif damage == "no config":
        (broken / "config.json").unlink()
    elif damage == "weights":
        (broken / "model.safetensors").write_bytes(b"nothing")
    elif damage == "fewer weights":
        from safetensors.torch import load_file, save_file

        weights = load_file(broken / "model.safetensors")
        weights.pop(sorted(weights)[0])
        save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    elif damage == "processor":
        for name in ("processor_config.json", "tokenizer.json"):
            (broken / name).unlink()
    else:
        (broken / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match=r"model|chat template"):
        evaluate_model(broken, ["mmbench"], data)


# --------------------------------------------------------------------------------------- no traces


@pytest.mark.slow
def test_fresh_process_is_offline_and_leaves_nothing_behind(tmp_path, speaker_dir, data):
    """No connection is tried, and home, working and temporary folders stay empty."""
    program = textwrap.dedent(
        f"""
        import socket
        def refuse(self, address):
            print("CONNECT", address)
            raise OSError("no network")
        socket.socket.connect = refuse
        from replication.evaluate.score import evaluate_model
        result = evaluate_model({str(speaker_dir)!r}, {NAMES!r}, {str(data)!r}, limit=4)
        print(len(result.outcomes))
        """
    )
    folders = {name: tmp_path / name for name in ("home", "work", "temporary")}
    for folder in folders.values():
        folder.mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_", "TORCH"))}
    environment = {
        **kept,
        "HOME": str(folders["home"]),
        "TMPDIR": str(folders["temporary"]),
        "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folders["work"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "12\n"  # nothing else: no tables, no attempts to connect
    assert "questions: 100%" in done.stderr
    left = [str(p) for f in folders.values() for p in f.rglob("*") if p.is_file()]
    assert left == []
