"""Candidates: equal budgets, and the best of each method."""

import copy

import pytest
import yaml
from synthetic_results import write_results

from grace.errors import InputError
from replication.base.files import ROOT
from replication.measure.tuning import candidates_of, choose, settings_of
from replication.report.tables.files import build_table
from replication.results.scores import ResultSet
from replication.results.tuning import read_tuning, tuning_path, write_tuning
from replication.settings.checks import parse_params
from replication.settings.scales import scale_params

COMMITTED = yaml.safe_load((ROOT / "params.yaml").read_text())
PARAMS = parse_params(scale_params("small"))


@pytest.mark.parametrize("pair", PARAMS.tuning.pairs)
def test_every_method_has_as_many_candidates_and_the_first_is_the_headline_row(pair):
    found = candidates_of(PARAMS, pair)
    methods = [one.run.method for one in found]
    assert {methods.count(method) for method in ("qat", "kd", "grace")} == {len(found) // 3}
    assert {one.run.bits for one in found} == {4}
    for method in ("qat", "kd", "grace"):
        first = found[methods.index(method)]
        assert first.name == f"{method}_int4"
        assert first.folder in (f"{pair}_controls", f"{pair}_runs")
        assert settings_of(PARAMS, first.run) == "as in the other tables"


def test_all_pairs_are_tuned_over_the_same_settings():
    by_pair = [
        [(one.name, settings_of(PARAMS, one.run)) for one in candidates_of(PARAMS, pair)]
        for pair in PARAMS.tuning.pairs
    ]
    assert PARAMS.tuning.pairs == PARAMS.families
    assert by_pair[0] == by_pair[1] == by_pair[2]
    words = dict(by_pair[0])
    assert words["grace_launcher_int4"] == "coefficients of the launcher"
    assert words["kd_int4_weight3"] == "weight 3"
    assert words["qat_int4_rate3"] == "learning rate 0.003"


def test_the_questions_are_not_those_of_the_benchmarks():
    assert PARAMS.tuning.seed != PARAMS.standins.seed


def test_the_best_of_every_method_is_chosen_and_of_equal_ones_the_first():
    methods = ["qat", "kd", "qat", "qat", "kd"]
    assert choose(methods, [3.0, 5.0, 4.0, 4.0, 4.9]) == [False, True, True, False, False]


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("qat", ["qat_int4"], "the same number"),
        ("qat", ["qat_int4", "qat_int4", "qat_int4_rate3"], "each once"),
        ("qat", ["qat_int4", "qat_int4_rat3", "qat_int8"], "did you mean 'qat_int4_rate3'"),
        ("qat", ["qat_int4", "kd_int4", "qat_int4_rate3"], "has the method 'kd'"),
        ("kd", ["kd_int4", "kd_int8", "kd_int4_weight3"], "differ in bits"),
        (None, ["qwen2_vl_pair2"], "no group qwen2_vl_pair2_tuning"),
        (None, ["qwen2vl"], "did you mean 'qwen2_vl'"),
    ],
)
def test_a_wrong_candidate_is_named(key, value, told):
    content = copy.deepcopy(COMMITTED)
    if key is None:
        content["tuning"]["pairs"] = value
    else:
        content["tuning"]["candidates"][key] = value
    with pytest.raises(InputError, match="tuning") as caught:
        parse_params(content)
    assert told in str(caught.value)


def record(pair="qwen2_vl"):
    tried = [("qat", "qat_int4", 60.0, True), ("grace", "grace_int4", 55.0, False),
             ("grace", "grace_int4_nckd1", 65.0, True)]  # fmt: skip
    return {
        **{"scale": "small", "pair": pair, "bits": 4, "questions": 100, "provenance": {}},
        "benchmarks": ["MMBench", "ScienceQA"],
        "candidates": [
            {"method": m, "run": run, "settings": "x", "score": score, "chosen": chosen}
            for m, run, score, chosen in tried
        ],
    }


def test_a_record_is_read_as_it_was_written_and_a_wrong_one_is_refused(tmp_path):
    path = tuning_path(tmp_path, "small", "qwen2_vl")
    write_tuning(path, record())
    [found] = read_tuning(tmp_path, "small")
    assert [one.run for one in found.candidates if one.chosen] == ["qat_int4", "grace_int4_nckd1"]
    wrong = record()
    wrong["candidates"][0]["score"] = 101
    with pytest.raises(InputError, match="score"):
        write_tuning(path, wrong)


def test_the_table_shows_every_candidate_and_the_difference_of_the_best(tmp_path):
    """The difference is that of the means of the answers themselves."""
    runs = {"baseline": 0.5, "qat_int4": 0.6, "grace_int4": 0.55, "grace_int4_nckd1": 0.7}
    runs |= {"qat_int4_tuned": 0.6, "grace_int4_tuned": 0.7}
    write_results(tmp_path, runs, seed=3, n=400, benchmarks=("MMBench", "ScienceQA"))
    write_tuning(tuning_path(tmp_path, "small", "qwen2_vl"), record())
    table = build_table("tuned", tmp_path, "small").data
    assert [row["labels"][1:] for row in table["rows"]] == [
        ["QAT", "x", "best"], ["GRACE", "x", "no"], ["GRACE", "x", "best"]]  # fmt: skip
    results = ResultSet(tmp_path, "small")

    def mean(run):
        scores = results.scores("qwen2_vl", run).seeds[0]
        return sum(scores[name]["score"] for name in ("MMBench", "ScienceQA")) / 2

    best = table["rows"][2]["cells"]
    assert best["Benchmarks"]["measured"] == pytest.approx(mean("grace_int4_nckd1"))
    gain = mean("grace_int4_tuned") - mean("qat_int4_tuned")
    difference = best["Tuned − tuned QAT"]
    assert difference["measured"] == pytest.approx(gain)
    assert difference["low"] < gain < difference["high"]
    assert table["rows"][1]["cells"]["Tuned − baseline"]["measured"] is None


def test_a_contrast_is_the_first_run_minus_the_second(tmp_path):
    runs = {"kd_int4": 0.7, "qad_int4": 0.6, "baseline": 0.5}
    write_results(tmp_path, runs, seed=4, n=300, benchmarks=("MMBench", "SEED-Bench", "ScienceQA"))
    table = build_table("contrasts", tmp_path, "small").data
    rows = {tuple(row["labels"]): row["cells"] for row in table["rows"]}
    results = ResultSet(tmp_path, "small")
    first, second = (results.scores("qwen2_vl", run).seeds[0] for run in ("kd_int4", "qad_int4"))
    for column, name in (("MMBench", "MMBench"), ("ScienceQA", "ScienceQA")):
        expected = first[name]["score"] - second[name]["score"]
        assert rows["kd_int4", "qad_int4"][column]["measured"] == pytest.approx(expected)
    assert rows["grace_int8", "qad_int8"]["Avg"]["measured"] is None
