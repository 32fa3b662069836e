"""Calibration: its rows, what is measured of them, and what the command says and records."""

import math
import re

import numpy as np
import pytest
import yaml

from grace.errors import InputError
from replication import calibrate
from replication.base import provenance
from replication.base.terminal import as_text
from replication.base.validation import validate
from replication.measure.calibration import PairCalibration
from replication.paper import calibration, load_tables
from replication.paper.calibration import Asked, CalibrationRow, load_calibration
from replication.results.calibration import MeasuredRow, read_calibrations, write_calibration
from replication.results.scores import ResultSet, benchmark_score, write_outcomes, write_scores
from replication.settings.checks import parse_params
from replication.settings.scales import scale_params
from replication.stats.association import calibration_error, cluster_interval, mean
from replication.stats.verdict import Interval

PARAMS = parse_params(scale_params("small"))
ROWS = load_calibration().families["qwen2_vl"]


def test_the_reported_values_are_those_of_the_tables():
    """Every value that a row asks and a table prints, recomputed from the table's own cells."""
    reported = load_tables()
    places = {
        "qwen2_vl": [reported.table("table4"), reported.table("table3")],
        "llava": [reported.table("table2")],
        "qwen3_vl": [reported.table("qwen3vl")],
    }
    for family, own in load_calibration().families.items():
        for row in own.rows:
            if row.asked.value is None or row.quantity == "entropy_error" or row.run == "sft_bf16":
                continue
            table = next(t for t in places[family] if row.run in [r.run for r in t.rows])
            value = table.cell(row.run, "Avg")
            if row.quantity == "difference":
                value -= table.cell(row.against, "Avg")
            assert row.asked.value == pytest.approx(value), (family, row.name)


def test_no_row_reads_grace():
    for own in load_calibration().families.values():
        for row in own.rows:
            assert "grace" not in f"{row.run} {row.against}"


@pytest.mark.parametrize(
    ("asked", "bounds"),
    [
        ({"value": 2.0, "tolerance": 1.5}, (0.5, 3.5)),
        ({"low": 5.0}, (5.0, math.inf)),
        ({"high": 0.1}, (-math.inf, 0.1)),
        ({"low": 1.0, "high": 3.0}, (1.0, 3.0)),
    ],
)
def test_what_is_asked_has_bounds(asked, bounds):
    assert Asked(**asked).bounds == bounds


@pytest.mark.parametrize(
    "asked", [{}, {"value": 1.0}, {"tolerance": 1.0}, {"value": 1.0, "tolerance": 1.0, "low": 0.0}]
)
def test_half_a_demand_is_refused(asked):
    with pytest.raises(InputError, match="give a value and its tolerance"):
        validate(Asked, asked, "asked")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"quantity": "difference", "run": "a"}, "needs key 'against'"),
        ({"quantity": "level"}, "needs key 'run'"),
        ({"quantity": "passes", "run": "a"}, "takes no key 'run'"),
    ],
)
def test_a_row_has_the_keys_of_its_quantity(row, told):
    with pytest.raises(InputError, match=told):
        validate(
            CalibrationRow, {"asked": {"low": 1.0}, "source": "x", "reason": "y", **row}, "row"
        )


def make(root, pair, run, accuracies, *, family="qwen2_vl", folder=None, seeds=(0,), chance=25.0):
    """A run's files, the first questions of every benchmark answered right."""
    count, benchmarks, columns = 400, {}, []
    for name in ROWS.benchmarks:
        right = (np.arange(count) < count * accuracies / 100).astype(float)
        benchmarks[name] = benchmark_score(100 * right.mean(), right, chance)
        for seed in seeds:
            for number, credit in enumerate(right):
                columns.append((seed, name, f"q{number:04d}", "s", "a", "a", credit))
    names = ("seed", "benchmark", "question_id", "skill", "prediction", "target", "credit")
    folder = folder or pair
    write_outcomes(
        root, "small", family, run,
        dict(zip(names, zip(*columns, strict=True), strict=True)), folder=folder,
    )  # fmt: skip
    record = {
        **{"family": family, "pair": pair, "run": run, "method": run, "bits": 16},
        **{"scale": "small", "standin": True, "provenance": {"commit": "0"}},
        "seeds": {str(seed): {"benchmarks": benchmarks} for seed in seeds},
    }
    write_scores(root, record, folder)


@pytest.fixture
def measured(tmp_path):
    """The rows of a pair whose baseline is at 70, beside a second pair that must not be read."""
    for run, level in (("teacher", 80), ("baseline", 70), ("sft_bf16", 70.5), ("kd_bf16", 76)):
        make(tmp_path, "qwen2_vl", run, level)
        make(tmp_path, "qwen2_vl_pair2", run, 50)
    results = ResultSet(tmp_path, "small")
    rows = PairCalibration(PARAMS, results, "qwen2_vl", ROWS)
    return {(row["quantity"], row["name"]): row for row in rows.table()}


def test_rows_are_met_where_the_point_is_within(measured):
    level = measured["level", "baseline"]
    assert level["measured"]["point"] == pytest.approx(70)
    assert level["measured"]["low"] < 70 < level["measured"]["high"]
    assert level["status"] == "met"
    found = {name: row["status"] for (_, name), row in measured.items()}
    assert found["teacher - baseline"] == "met"
    assert found["sft_bf16 - baseline"] == "met"
    assert found["kd_bf16 - baseline"] == "not met"  # 6 points, where 2.1 ± 1.5 are asked
    assert found["qat_int4 - baseline"] == found["kd_int4 - baseline"] == "not run"
    assert measured["difference", "kd_bf16 - baseline"]["measured"]["point"] == pytest.approx(6)


def test_above_chance_is_decided_by_the_lower_end(measured, tmp_path):
    [above] = [row for (kind, _), row in measured.items() if kind == "above_chance"]
    assert above["measured"]["point"] == pytest.approx(45)
    assert above["status"] == "met"
    make(tmp_path / "low", "qwen2_vl", "baseline", 31)  # 6 above chance, give or take 4
    results = ResultSet(tmp_path / "low", "small")
    rows = PairCalibration(PARAMS, results, "qwen2_vl", ROWS).table()
    [above] = [row for row in rows if row["quantity"] == "above_chance"]
    assert above["measured"]["point"] == pytest.approx(6)
    assert above["measured"]["low"] < 5
    assert above["status"] == "not met"


def test_passes_are_steps_times_batch_over_records(measured):
    portion = PARAMS.methods["qwen2_vl"].records
    expected = PARAMS.train.steps * PARAMS.train.batch_size / (portion[1] - portion[0])
    [row] = [row for (kind, _), row in measured.items() if kind == "passes"]
    assert row["measured"]["point"] == row["measured"]["low"] == pytest.approx(expected)


# --- the teacher's doubt


def test_the_calibration_error_is_that_of_a_plain_loop():
    draw = np.random.default_rng(0)
    confidence = draw.uniform(size=500)
    right = (draw.uniform(size=500) < confidence**2).astype(float)
    total = 0.0
    for index in range(10):
        inside = (confidence >= index / 10) & (confidence < (index + 1) / 10)
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    found = cluster_interval(calibration_error(confidence, right), draw, resamples=500)
    assert found.point == pytest.approx(total)
    assert found.low < found.high


def test_a_teacher_that_knows_is_off_by_nothing_and_one_that_is_always_sure_by_its_errors():
    right = np.repeat([1.0, 0.0], [70, 30])
    sure = cluster_interval(calibration_error(np.ones(100), right), np.random.default_rng(1))
    assert sure.point == pytest.approx(0.3)
    honest = cluster_interval(calibration_error(np.full(100, 0.7), right), np.random.default_rng(1))
    assert honest.point == pytest.approx(0.0, abs=1e-12)


def test_the_mean_over_clusters_is_the_mean_over_items():
    values, clusters = np.arange(10.0), np.array([0] * 7 + [1] * 2 + [2])
    found = cluster_interval(mean(values, clusters), np.random.default_rng(2))
    assert found.point == pytest.approx(4.5)


# --- the file, the table and the commit


def content(**changes):
    row = {
        **{"quantity": "level", "name": "teacher", "status": "met", "source": "s", "reason": "r"},
        "asked": {"value": 80.3, "tolerance": 5.0, "low": None, "high": None},
        "measured": {
            **{"point": 78.0, "low": 77.0, "high": 79.0, "level": 0.95, "standard_error": 0.5}
        },
    }
    pair = {"pair": "qwen2_vl", "family": "qwen2_vl", "world": "first", "provenance": {"a": 1}}
    return {**pair, "rows": [{**row, **changes}]}


def test_a_file_comes_back_and_a_wrong_one_is_refused(tmp_path):
    write_calibration(tmp_path, "small", content())
    found = read_calibrations(tmp_path, "small")["qwen2_vl"]
    assert found.rows[0].measured.interval() == Interval(78.0, 77.0, 79.0, 0.95, 0.5)
    with pytest.raises(InputError, match=r"rows\[0\]\.status"):
        write_calibration(tmp_path, "small", content(status="fine"))
    assert read_calibrations(tmp_path, "smoke") == {}


def test_the_table_shows_what_was_asked_and_measured(tmp_path):
    write_calibration(tmp_path, "small", content())
    text = as_text(calibrate.family_table(read_calibrations(tmp_path, "small").values()))
    assert "80.3 ± 5" in text
    assert "78.00 [77.00, 79.00]" in text
    assert text.split()[-1] == "met"


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"value": None, "low": 5.0, "high": None, "tolerance": None}, "at least 5"),
        ({"value": None, "low": None, "high": 0.1, "tolerance": None}, "at most 0.1"),
        ({"value": None, "low": 1.0, "high": 3.0, "tolerance": None}, "1 to 3"),
    ],
)
def test_bounds_in_words(asked, text):
    assert calibrate.asked_text(asked) == text


def test_a_row_that_was_not_run_shows_no_number():
    row = MeasuredRow("passes", "passes", {}, None, "not run", "s", "r")
    assert calibrate.measured_text(row) == ""


def test_the_commit_of_a_new_world_is_recorded_once(tmp_path, monkeypatch):
    path = tmp_path / "calibration.yaml"
    known = calibration.PATH.read_text()
    path.write_text(re.sub(r"(?m)^(world_\w+): .*$", r"\1: null", known))
    state = {"commit": "c0ffee" * 6, "dirty": True}
    monkeypatch.setattr(provenance, "git_state", lambda: state)
    assert "No commit is recorded" in calibrate.note_world(PARAMS, path)
    state["dirty"] = False
    assert state["commit"] in calibrate.note_world(PARAMS, path)
    found = yaml.safe_load(path.read_text())
    assert found["world_commit"] == state["commit"]
    assert found["families"] == yaml.safe_load(calibration.PATH.read_text())["families"]
    before = path.read_bytes()
    state["commit"] = "f00d" * 10  # the same world, later
    assert "c0ffee" in calibrate.note_world(PARAMS, path)
    assert path.read_bytes() == before
