"""Score and outcome files: what is written is what is read, and wrong files are refused."""

import json
import math

import numpy as np
import pytest
from synthetic_results import GOOD, write_results

from grace.errors import InputError
from replication.base import files as io
from replication.results import scores as results

PAIR = {name: GOOD[name] for name in ("baseline", "grace_int4")}


@pytest.fixture
def root(tmp_path):
    return write_results(tmp_path, PAIR, seed=1, n=40, seeds={"grace_int4": (0, 3)})


def edit(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_round_trip(root):
    scores = results.read_scores(root, "small", "qwen2_vl", "grace_int4")
    outcomes = results.read_outcomes(root, "small", "qwen2_vl", "grace_int4")
    assert list(scores.seeds) == [0, 3]
    assert outcomes.answers.seeds == (0, 3)
    assert (scores.bits, scores.method, scores.evidence) == (4, "grace", "measured")
    for name in scores.benchmarks:
        assert outcomes.answers.values[name].shape == (2, 40)
        assert scores.score(name) == pytest.approx(100 * outcomes.answers.values[name].mean())
        assert scores.questions(name) == 40
    assert results.ResultSet(root, "small").runs("qwen2_vl") == ["baseline", "grace_int4"]


def test_equal_content_gives_equal_bytes_and_leaves_no_temporary_file(tmp_path):
    trees = []
    for name in ("one", "two"):
        folder = write_results(tmp_path / name, PAIR, seed=2, n=30)
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        trees.append([(path.relative_to(folder), path.read_bytes()) for path in files])
        assert not [path for path in files if path.name.startswith(".")]
    assert trees[0] == trees[1]


def test_standard_error_and_n_of_a_benchmark():
    entry = results.benchmark_score(75.0, [1, 1, 1, 0], 25.0, metric="accuracy")
    assert entry["n"] == 4
    assert entry["standard_error"] == pytest.approx(100 * math.sqrt(0.75 * 0.25 / 4))
    assert entry["metric"] == "accuracy"
    with pytest.raises(InputError, match="without answers"):
        results.benchmark_score(0.0, [], 25.0)


def test_soft_credits_survive_and_have_their_standard_error(tmp_path):
    credits = [0.3, 1.0, 0.0, 0.6]
    results.write_outcomes(tmp_path, "small", "f", "r", columns(4, credit=credits))
    found = results.read_outcomes(tmp_path, "small", "f", "r")
    assert found.answers.values["MMBench"].tolist() == [credits]
    entry = results.benchmark_score(47.5, credits, 25.0)
    assert entry["standard_error"] == pytest.approx(100 * np.std(credits) / 2)


@pytest.mark.parametrize("accuracy", [75.0, 80.0])
def test_a_score_that_is_no_mean_is_checked_by_its_accuracy(tmp_path, accuracy):
    """MME in points: 75 % of the answers are right, whatever the points."""
    credits = [1.0, 1.0, 1.0, 0.0]
    given = columns(4, benchmark=["MME"] * 4, credit=credits)
    more = columns(4, credit=credits)
    results.write_outcomes(
        tmp_path, "small", "f", "r", {key: given[key] + more[key] for key in given}
    )
    entries = {
        "MME": results.benchmark_score(125.0, credits, 75.0, accuracy=accuracy),
        "MMBench": results.benchmark_score(75.0, credits, 25.0),
    }
    record = {
        **{"family": "f", "run": "r", "method": "m", "bits": 16, "scale": "small"},
        **{"standin": True, "provenance": {}, "seeds": {"0": {"benchmarks": entries}}},
    }
    results.write_scores(tmp_path, record)
    found = results.ResultSet(tmp_path, "small")
    if accuracy == 75.0:
        assert found.answers("f", ["r"], ["MME"])[0].values["MME"].tolist() == [credits]
    else:
        with pytest.raises(InputError, match="MME, seed 0: the score is 80"):
            found.answers("f", ["r"], ["MME"])


def test_mme_enters_no_average():
    entries = {"MME": {"score": 1500.0}, "GQA": {"score": 60.0}, "POPE": {"score": 80.0}}
    assert results.average_score(entries) == 70.0
    with pytest.raises(InputError, match="no accuracy"):
        results.average_score({"MME": {"score": 1500.0}})


def first(record):
    return next(iter(record["seeds"].values()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("bits"), "lacks the key 'bits'"),
        (lambda r: r.update(bits="4"), "bits is '4'"),
        (lambda r: r.update(scale="large"), "scale 'large' is unknown"),
        (lambda r: r.update(runn="x"), "did you mean 'run'"),
        (lambda r: r.update(run="other"), "lies under"),
        (lambda r: r.update(seeds={}), "seeds"),
        (lambda r: r["seeds"].update(x=first(r)), r"seeds.*'x'"),
        (lambda r: first(r).update(average=1.0), "average is 1.0, but its benchmarks average"),
        (lambda r: first(r)["benchmarks"]["MMBench"].pop("chance"), "MMBench lacks the key"),
        (lambda r: first(r)["benchmarks"]["MMBench"].update(score=101), "score is 101"),
        (lambda r: first(r)["benchmarks"]["MMBench"].update(n=0), "n is 0"),
        (lambda r: first(r)["benchmarks"]["MMBench"].update(n=7), "differ from the first"),
    ],
)
def test_a_wrong_score_file_is_refused_with_its_place(root, change, message):
    path = results.scores_path(root, "small", "qwen2_vl", "grace_int4")
    edit(path, change)
    with pytest.raises(InputError, match=message):
        results.read_scores(root, "small", "qwen2_vl", "grace_int4")


def test_a_broken_or_missing_file_is_refused(root):
    path = results.scores_path(root, "small", "qwen2_vl", "baseline")
    path.write_text("{")
    with pytest.raises(InputError, match="JSON"):
        results.read_scores(root, "small", "qwen2_vl", "baseline")
    with pytest.raises(InputError, match="no such file"):
        results.read_scores(root, "small", "qwen2_vl", "absent")
    with pytest.raises(InputError, match="no such file"):
        results.read_outcomes(root, "small", "qwen2_vl", "absent")
    broken = results.outcomes_path(root, "small", "qwen2_vl", "baseline")
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(InputError, match="parquet"):
        results.read_outcomes(root, "small", "qwen2_vl", "baseline")


def columns(n=4, **changes):
    base = {
        "seed": [0] * n,
        "benchmark": ["MMBench"] * n,
        "question_id": [str(i) for i in range(n)],
        "skill": ["counting"] * n,
        "prediction": ["A"] * n,
        "target": ["A"] * n,
        "credit": [1.0] * n,
    }
    return {**base, **changes}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"question_id": ["1"] * 4}, "twice"),
        ({"credit": [1.0, 0.5, 1.5, 0.0]}, "not from 0 to 1"),
        ({"credit": [1.0, 0.5, math.nan, 0.0]}, "not from 0 to 1"),
        ({"skill": [None, "a", "a", "a"]}, "empty values"),
        ({"seed": [0, 0, 1, 1]}, "other questions"),
    ],
)
def test_wrong_outcomes_are_not_written(tmp_path, wrong, message):
    with pytest.raises(InputError, match=message):
        results.write_outcomes(tmp_path, "small", "f", "r", columns(**wrong))
    assert not list(tmp_path.rglob("*.parquet"))


def test_no_rows_are_refused(tmp_path):
    with pytest.raises(InputError, match="no rows"):
        results.write_outcomes(tmp_path, "small", "f", "r", columns(0))


def test_the_order_of_rows_does_not_matter(tmp_path):
    data = columns(6, credit=[1.0, 0.0, 0.3, 1.0, 0.6, 0.0])
    path = results.write_outcomes(tmp_path / "a", "small", "f", "r", data)
    mixed = {name: list(np.array(values)[[3, 1, 5, 0, 2, 4]]) for name, values in data.items()}
    other = results.write_outcomes(tmp_path / "b", "small", "f", "r", mixed)
    assert path.read_bytes() == other.read_bytes()


def test_scores_and_outcomes_of_different_evaluations_are_noticed(root, tmp_path):
    other = write_results(tmp_path / "other", PAIR, seed=9, n=40, seeds={"grace_int4": (0, 3)})
    source = results.outcomes_path(other, "small", "qwen2_vl", "grace_int4")
    results.outcomes_path(root, "small", "qwen2_vl", "grace_int4").write_bytes(source.read_bytes())
    with pytest.raises(InputError, match="different evaluations"):
        results.ResultSet(root, "small").answers("qwen2_vl", ["grace_int4"], ["MMBench"])


def test_runs_that_answered_other_questions_are_not_paired(root):
    for run in PAIR:
        outcome = results.read_outcomes(root, "small", "qwen2_vl", run)
        if run == "baseline":
            values = outcome.answers.values["MMBench"][0]
            data = columns(40, credit=list(values), question_id=[f"x{i}" for i in range(40)])
            for name in ("SEED-Bench", "ScienceQA"):
                extra = outcome.answers.values[name][0]
                more = columns(40, benchmark=[name] * 40, credit=list(extra))
                data = {key: data[key] + more[key] for key in data}
            results.write_outcomes(root, "small", "qwen2_vl", run, data)
    found = results.ResultSet(root, "small")
    with pytest.raises(InputError, match="different questions"):
        found.answers("qwen2_vl", list(PAIR), ["MMBench"])


def test_what_was_not_run_is_none_and_not_an_error(root):
    found = results.ResultSet(root, "small")
    assert found.answers("qwen2_vl", ["teacher"], ["MMBench"]) is None
    assert found.answers("qwen2_vl", ["baseline"], ["GQA"]) is None
    assert found.scores("llava", "baseline") is None


def test_json_refuses_nan_names_its_place_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    io.write_json_atomic(path, {"b": 1, "a": [1.5]})
    assert path.read_text() == '{\n  "a": [\n    1.5\n  ],\n  "b": 1\n}\n'
    with pytest.raises(InputError, match=r"a\[1\].b is nan"):
        io.write_json_atomic(path, {"a": [1, {"b": math.nan}]})
    assert json.loads(path.read_text()) == {"a": [1.5], "b": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["x.json"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = io.write_text_atomic(tmp_path / "x.txt", "old")
    with pytest.raises(RuntimeError), io.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["x.txt"]
