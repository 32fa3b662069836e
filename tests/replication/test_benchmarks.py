"""Every stand-in through the official task: the truth earns everything, a wrong answer nothing."""

import dataclasses
import importlib
import random

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from grace.errors import InputError
from replication import benchmarks as tasks
from replication.data.world.benchmarks import SKILLS, write_benchmark
from replication.data.world.questions import LETTERS
from replication.data.world.scenes import Drawing
from replication.evaluate.official import ScoringError
from replication.evaluate.score import evaluate_model
from replication.paper import load_tables
from replication.results import scores as results

lmms_model = pytest.importorskip("grace.evaluation.lmms", reason="lmms-eval is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")

NAMES = sorted(SKILLS)
COUNT = 60


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("standins")
    for name in NAMES:
        write_benchmark(
            name,
            folder / f"{name}.parquet",
            split="evaluation",
            count=COUNT,
            seed=8,
            drawing=Drawing(),
        )
    return folder


@pytest.fixture(scope="module")
def rows(data):
    return {name: pq.read_table(data / f"{name}.parquet").to_pylist() for name in NAMES}


@pytest.fixture
def run(speaker, processor, data, answering):
    """Evaluate with known answers: a function of the benchmark and the row."""

    def evaluate(answer, names, **options):
        answering(answer)
        return evaluate_model(speaker, names, data, processor=processor, **options)

    return evaluate


def truth(name, row):
    """The right answer, from the data alone."""
    if name in ("vqav2", "textvqa", "vizwiz"):
        given = [a["answer"] if isinstance(a, dict) else a for a in row["answers"]]
        return max(set(given), key=given.count)
    if name == "hallusionbench":
        return {"1": "yes", "0": "no"}[row["gt_answer"]]
    if name == "scienceqa":
        return LETTERS[row["answer"]]
    if name == "ai2d":
        return LETTERS[int(row["answer"])]
    return row["answer"][0] if name == "ocrbench" else row["answer"]


def falsehood(name, row):
    """An answer that is certainly wrong."""
    right = truth(name, row)
    flipped = {"yes": "no", "no": "yes", "Yes": "No", "No": "Yes"}
    if name in ("pope", "mme", "hallusionbench"):
        return flipped[right]
    if right in LETTERS:
        return "B" if right == "A" else "A"
    return "zebra"


def top(name, rows):
    return 200.0 * len({row["category"] for row in rows}) if name == "mme" else 100.0


def test_there_are_fourteen_and_each_has_a_printed_name():
    assert set(SKILLS) == set(tasks.BENCHMARKS) == set(tasks.PRINTED)
    assert len(set(tasks.PRINTED.values())) == 14


def test_the_reported_tables_use_the_printed_names():
    tables = load_tables().tables.values()
    used = {table.benchmark(column) for table in tables for column in table.benchmark_columns}
    assert used == set(tasks.PRINTED.values())


@pytest.mark.slow
def test_the_truth_earns_the_full_official_score(run, rows):
    result = run(lambda name, row: truth(name, rows[name][row]), NAMES)
    for name in NAMES:
        score = result.scores[name]
        outcomes = result.outcomes.query("benchmark == @name")
        assert score["score"] == pytest.approx(top(name, rows[name]), abs=1e-9), name
        assert outcomes["credit"].tolist() == [1.0] * COUNT, name
        assert outcomes["credit"].dtype == np.float64
        assert outcomes["prediction"].tolist() == outcomes["target"].tolist(), name
        assert outcomes["question_id"].is_unique
        assert score["unparsed"] == 0
        assert score["n"] == COUNT
        assert score["standard_error"] == 0.0


@pytest.mark.slow
def test_a_wrong_answer_earns_nothing(run, rows):
    result = run(lambda name, row: falsehood(name, rows[name][row]), NAMES)
    for name in NAMES:
        assert result.scores[name]["score"] == 0.0, name
        assert (result.outcomes.query("benchmark == @name")["credit"] == 0.0).all(), name


OFFICIAL = {
    "vqav2": ("lmms_eval.tasks.vqav2.utils", "vqav2_process_results_val"),
    "textvqa": ("lmms_eval.tasks.textvqa.utils", "textvqa_process_results"),
    "vizwiz": ("lmms_eval.tasks.vizwiz_vqa.utils", "vizwiz_vqa_process_results"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_soft_credits_are_those_of_the_official_scorer(run, rows, name):
    """Answers that one or two annotators gave earn a part of the credit."""

    def minority(row):
        right, source = truth(name, row), row["answers"]
        given = [a["answer"] if isinstance(a, dict) else a for a in source]
        return next((a for a in given if a != right), right)

    module, function = OFFICIAL[name]
    process = getattr(importlib.import_module(module), function)
    result = run(lambda _, row: minority(rows[name][row]), [name])
    expected, by_hand = [], []
    for row in rows[name]:
        answer = minority(row)
        given = [a["answer"] if isinstance(a, dict) else a for a in row["answers"]]
        by_hand.append(
            np.mean([min(1, (given[:i] + given[i + 1 :]).count(answer) / 3) for i in range(10)])
        )
        copied = {**row, "answers": [dict(a) if isinstance(a, dict) else a for a in row["answers"]]}
        expected.append(process(copied, [answer])["exact_match"])
    credits = result.outcomes["credit"].to_numpy()
    assert credits == pytest.approx(expected, abs=1e-12)
    assert credits == pytest.approx(by_hand, abs=1e-12)
    assert {0.3, 0.6, 1.0} <= set(np.round(credits, 9))
    assert result.scores[name]["score"] == pytest.approx(100 * np.mean(expected), abs=1e-9)
    spread = 100 * np.std(expected) / COUNT**0.5
    assert result.scores[name]["standard_error"] == pytest.approx(spread)


def half_right(name, rows, seed):
    rng = np.random.default_rng(seed)
    said = [truth(name, row) if rng.random() < 0.6 else falsehood(name, row) for row in rows[name]]
    return said, [a == truth(name, row) for a, row in zip(said, rows[name], strict=True)]


@pytest.mark.slow
def test_mme_points_are_accuracy_and_pairs_by_category(run, rows):
    said, right = half_right("mme", rows, 0)
    result = run(lambda _, row: said[row], ["mme"])
    points = {}
    for first in range(0, COUNT, 2):
        category = rows["mme"][first]["category"]
        assert rows["mme"][first + 1]["question_id"] == rows["mme"][first]["question_id"]
        pair = right[first] + right[first + 1]
        points.setdefault(category, []).append(50.0 * pair + 100.0 * (pair == 2))
    score = result.scores["mme"]
    assert score["score"] == pytest.approx(sum(np.mean(p) for p in points.values()), abs=1e-9)
    assert score["accuracy"] == pytest.approx(100 * np.mean(right), abs=1e-9)
    variance = sum(np.var(p) / len(p) for p in points.values())
    assert score["standard_error"] == pytest.approx(variance**0.5)
    assert score["chance"] == 75.0 * len(points) == 450.0
    assert result.outcomes["credit"].tolist() == [float(r) for r in right]


@pytest.mark.slow
def test_mmstar_is_the_mean_of_its_categories(run, rows):
    """60 questions over seven categories are not equally many of each."""
    said, right = half_right("mmstar", rows, 1)
    score = run(lambda _, row: said[row], ["mmstar"]).scores["mmstar"]
    frame = pd.DataFrame({"c": [r["l2_category"] for r in rows["mmstar"]], "right": right})
    assert score["score"] == pytest.approx(100 * frame.groupby("c")["right"].mean().mean())
    assert score["accuracy"] == pytest.approx(100 * np.mean(right))
    assert score["score"] != pytest.approx(score["accuracy"], abs=1e-6)


@pytest.mark.slow
def test_pope_has_its_f1_beside_the_accuracy(run, rows):
    said, right = half_right("pope", rows, 2)
    score = run(lambda _, row: said[row], ["pope"]).scores["pope"]
    gold = [row["answer"] for row in rows["pope"]]
    hits = sum(a == g == "yes" for a, g in zip(said, gold, strict=True))
    f1 = 2 * hits / (said.count("yes") + gold.count("yes"))
    assert score["score"] == pytest.approx(100 * np.mean(right))
    assert score["other_metrics"]["pope_f1_score"] == pytest.approx(f1)
    assert "accuracy" not in score


@pytest.mark.slow
def test_hallusionbench_has_pairs_beside_the_questions(run, rows):
    said, right = half_right("hallusionbench", rows, 3)
    score = run(lambda _, row: said[row], ["hallusionbench"]).scores["hallusionbench"]
    pairs = np.array(right).reshape(-1, 2).all(axis=1)
    assert score["score"] == pytest.approx(100 * np.mean(right))
    assert score["other_metrics"]["qAcc"] == pytest.approx(pairs.mean())
    assert score["scorer"].startswith("rule-based")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gqa", "ocrbench", "mmmu", "ai2d"])
def test_the_score_is_the_share_of_right_answers(run, rows, name):
    """OCRBench divides by 1,000 officially, MMMU rounds: neither shows in the score."""
    said, right = half_right(name, rows, 4)
    for _ in range(2):  # OCRBench counts in a global: a second evaluation must not add to it
        score = run(lambda _, row: said[row], [name]).scores[name]
        assert score["score"] == pytest.approx(100 * np.mean(right), abs=1e-9)


@pytest.mark.slow
def test_mmmu_draws_the_same_option_whatever_else_is_evaluated(run, rows):
    """An answer without a letter is replaced by a random one: officially, but reproducibly."""
    random.seed(1)
    alone = run(lambda *_: "zebra", ["mmmu"]).outcomes["credit"].tolist()
    random.seed(2)
    both = run(lambda *_: "zebra", ["mmbench", "mmmu"]).outcomes.query("benchmark == 'mmmu'")
    assert alone == both["credit"].tolist()
    assert 0 < sum(alone) < COUNT / 2


@pytest.mark.slow
def test_a_constant_answer_earns_the_chance_of_a_yes_no_benchmark(run):
    for name, answer in (("pope", "yes"), ("pope", "no"), ("hallusionbench", "no")):
        score = run(lambda *_, said=answer: said, [name]).scores[name]
        assert score["score"] == score["chance"] == 50.0
    for answer in ("Yes", "No"):  # half of the answers, no pair
        assert run(lambda *_, said=answer: said, ["mme"]).scores["mme"]["score"] == 300.0


@pytest.mark.slow
def test_chance_of_open_questions_is_the_best_answer_without_looking(run, rows):
    score = run(lambda *_: "zebra", ["gqa"]).scores["gqa"]
    kinds = {}
    for row in rows["gqa"]:
        kind = (row["types"]["structural"], row["types"]["semantic"])
        kinds.setdefault(kind, []).append(row["answer"])
    best = sum(max(map(given.count, given)) for given in kinds.values())
    assert score["chance"] == pytest.approx(100 * best / COUNT)


@pytest.mark.slow
def test_a_score_that_does_not_follow_from_the_credits_is_refused(run, rows, monkeypatch):
    for name in ("mme", "mmstar", "ocrbench", "vqav2"):
        wrong = dataclasses.replace(
            tasks.get(name), recompute=lambda frame: frame["credit"].sum() + 1e-3
        )
        monkeypatch.setitem(tasks.BENCHMARKS, name, wrong)
        with pytest.raises(ScoringError, match=f"{name}: the credits"):
            run(lambda name, row: truth(name, rows[name][row]), [name])


def test_official_files_of_every_benchmark_are_there_and_hashed():
    for benchmark in tasks.BENCHMARKS.values():
        assert len(benchmark.sha256()) == 64


@pytest.mark.slow
def test_outcomes_and_scores_of_all_benchmarks_agree_on_disk(run, rows, tmp_path):
    """What is measured can be written, read and checked against each other."""
    said = {name: half_right(name, rows, 5)[0] for name in NAMES}
    result = run(lambda name, row: said[name][row], NAMES)
    frame = result.outcomes.assign(
        seed=0, benchmark=result.outcomes["benchmark"].map(tasks.PRINTED)
    )
    results.write_outcomes(tmp_path, "small", "llava", "teacher", {c: frame[c] for c in frame})
    record = {
        **{"family": "llava", "run": "teacher", "method": "teacher", "bits": 16},
        **{"scale": "small", "standin": True, "provenance": {}},
        "seeds": {
            "0": {"benchmarks": {tasks.PRINTED[n]: entry for n, entry in result.scores.items()}}
        },
    }
    results.write_scores(tmp_path, record)
    answers = results.ResultSet(tmp_path, "small").answers(
        "llava", ["teacher"], list(tasks.PRINTED.values())
    )
    assert answers is not None
    for name in NAMES:
        credits = result.outcomes.query("benchmark == @name")["credit"]
        found = answers[0].values[tasks.PRINTED[name]]
        assert sorted(found[0]) == sorted(credits)
    # a changed credit is noticed, MME's too
    frame.loc[frame["benchmark"] == "MME", "credit"] = 1.0
    results.write_outcomes(tmp_path, "small", "llava", "teacher", {c: frame[c] for c in frame})
    with pytest.raises(InputError, match="MME, seed 0"):
        results.ResultSet(tmp_path, "small").answers("llava", ["teacher"], ["MMBench"])
