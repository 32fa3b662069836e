"""The map of regimes: its numbers, what it says of each cell, and the sentences that follow."""

import json

import numpy as np
import pytest
import regime_results as made
from repository import ROOT

from replication.report.figures import FIGURES, Inputs, NotRun
from replication.report.tables import findings
from replication.report.tables.files import build_table
from replication.report.tables.regimes import RUNS, Regime, distance, regimes_of
from replication.results.scores import ResultSet
from replication.settings.checks import parse_params
from replication.settings.scales import scale_params
from replication.stats.verdict import Interval

PLACES = {
    ("all", "clean", "same"): made.COSTS,
    ("quarter", "clean", "same"): made.NO_GAIN,
    ("little", "clean", "same"): made.BEATS_KD,
    ("both_little", "noisy", "fresh"): made.KD_ENOUGH,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("regimes")
    return root, made.write_regimes(root, PLACES, seed=3)


@pytest.fixture(scope="module")
def table(world):
    root, cells = world
    return build_table("regimes", root, "small", None, cells)


def test_effects_are_differences_of_the_score_files(world, table):
    root, cells = world
    results = ResultSet(root, "small")
    names = ["MMBench", "SEED-Bench", "ScienceQA"]
    for cell, row in zip(cells, table.data["rows"], strict=True):
        folder, base = cell.baseline.split("/")
        level = np.mean([results.scores(folder, base).score(name) for name in names])
        assert row["cells"]["Baseline"]["measured"] == pytest.approx(level)
        for run, column in RUNS.items():
            own = np.mean([results.scores(cell.group, run).score(name) for name in names])
            effect = row["cells"][column]
            assert effect["measured"] == pytest.approx(own - level)
            assert effect["low"] <= effect["measured"] <= effect["high"]
        for name, *pair in (("GRACE − KD", "grace", "kd"), ("KD − SFT", "kd", "sft")):
            first, second = (row["cells"][RUNS[run]]["measured"] for run in pair)
            assert row["cells"][name]["measured"] == pytest.approx(first - second)


def test_a_cell_s_outcome_is_that_of_its_accuracies(table):
    found = [row["outcome"] for row in table.data["rows"]]
    assert found == ["costs", "no gain", "beats KD", "KD is enough"]


def test_doubt_and_loss_are_those_of_the_training_log(table):
    row = table.data["rows"][2]["cells"]
    names = ("Entropy", "Gate", "GDKD, start", "GDKD, end", "τ")
    found = [row[name]["measured"] for name in names]
    assert found == [pytest.approx(value) for value in (0.27, 0.956, 6.0, 2.0, 0.35)]


def test_the_paper_s_controls_place_a_cell(table):
    """Reported: gap 7.6, QAT −1.4, KD +2.1 (Tables 3 and 4)."""
    controls = table.data["controls"]
    assert controls == {
        "Gap": pytest.approx(7.6), "SFT": 0.0, "QAT, 4 bits": pytest.approx(-1.4),
        "KD": pytest.approx(2.1),
    }  # fmt: skip
    away = []
    for row in table.data["rows"]:
        values = [row["cells"][name]["measured"] - value for name, value in controls.items()]
        away.append(np.sqrt(np.mean(np.square(values))))
        printed = row["cells"]["Distance from the paper's controls"]["measured"]
        assert printed == pytest.approx(away[-1])
    group = table.data["cells"][int(np.argmin(away))][0]
    assert table.data["placed"] == group
    marked = [row for row in table.data["rows"] if "nearest to" in row["labels"][2]]
    assert marked == [table.data["rows"][int(np.argmin(away))]]


def test_sentences_say_what_the_intervals_say(table):
    said = " ".join(table.data["findings"])
    assert "Use GRACE: in 1 of 4 cells" in said
    assert "a twenty-fifth seen, clean labels, same data" in said
    assert "Plain KD is enough: in 1 of 4 cells" in said
    assert "Do not use GRACE with the code's coefficients: in 1 of 4 cells" in said
    assert "In 1 of 4 cells no gain is resolved" in said


def measured(effect, half=0.5):
    """A cell in which GRACE has this effect, and KD none."""
    intervals = {
        findings.GRACE: Interval(effect, effect - half, effect + half),
        findings.KD: Interval(0.0, -half, half),
        findings.OVER_KD: Interval(effect, effect - half, effect + half),
    }
    return type(
        "Cell", (), {"regime": Regime("regime_all_clean_same", "", ""), "intervals": intervals,
                     "numbers": {}}
    )  # fmt: skip


def test_a_gain_that_the_labels_give_alone_needs_no_teacher():
    cell = measured(0.4)
    cell.intervals[findings.KD] = Interval(1.0, 0.5, 1.5)
    assert findings.outcome(cell) == "KD is enough"
    cell.intervals[findings.SFT] = Interval(0.9, 0.4, 1.4)
    cell.intervals[findings.OVER_SFT] = Interval(0.1, -0.2, 0.4)
    assert findings.outcome(cell) == "SFT is enough"
    assert "No teacher is needed: in 1 of 1 cells" in findings.sentences([cell])[0]
    cell.intervals[findings.OVER_SFT] = Interval(0.5, 0.2, 0.8)
    assert findings.outcome(cell) == "KD is enough"


def test_a_sentence_needs_an_interval_that_supports_it():
    assert findings.outcome(measured(0.6)) == "beats KD"
    assert findings.outcome(measured(0.4)) == "no gain"
    assert findings.outcome(measured(-0.6)) == "costs"
    said = findings.sentences([measured(0.4)])
    assert len(said) == 1 and "no gain is resolved" in said[0]
    assert findings.sentences([]) == [
        "The map was not run: no cell has results of GRACE, KD and their baseline."
    ]


def test_a_rank_relation_is_that_of_ranks():
    first, second = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 8.0, 27.0, 64.0, 125.0, 100.0]
    found = findings.rank_relation(first, second)
    ranks = np.corrcoef(first, [1, 2, 3, 4, 6, 5])[0, 1]
    assert found.point == pytest.approx(ranks)
    assert -1 < found.low < found.point < found.high < 1
    assert findings.rank_relation(first[:4], second[:4]) is None
    assert findings.rank_relation([1.0] * 6, second) is None


def test_without_results_every_cell_is_not_run(tmp_path):
    cells = made.cells_of(PLACES)
    table = build_table("regimes", tmp_path, "small", None, cells)
    assert all(row["outcome"] == "not run" for row in table.data["rows"])
    assert table.data["placed"] is None
    assert "not run" in table.data["findings"][0]
    assert distance(measured(1.0), {"Gap": 7.6}) is None
    for text in (table.markdown(), table.csv(), table.tex()):
        assert "not run" in text
    assert build_table("regimes", tmp_path, "small").data["rows"] == []


def test_the_parameters_cells_are_the_map():
    """Fresh data are tried under clean labels alone."""
    cells = regimes_of(parse_params(scale_params("small")))
    places = [place for place in made.everywhere() if place[1:] != ("noisy", "fresh")]
    assert [cell.place for cell in cells] == places
    params = json.loads(json.dumps(scale_params("small")))
    for cell in cells:
        group = params["runs"][cell.group]
        assert (cell.teacher, cell.baseline) == (group["teacher"], group["baseline"])
        assert set(group["models"]) >= set(RUNS)
    assert regimes_of(parse_params(scale_params("paper"))) == []


@pytest.mark.slow
def test_the_figure_draws_every_interval(world, table, tmp_path):
    folder = tmp_path / "small" / "tables"
    folder.mkdir(parents=True)
    (folder / "regimes.json").write_text(table.json())
    figure = FIGURES["regimes"](Inputs(tmp_path, "small", "qwen2_vl"))
    lines = {
        tuple(np.round(segment[:, 0], 6))
        for axes in figure.canvas.axes
        for container in axes.containers
        for segment in container[2][0].get_segments()
    }
    for row in table.data["rows"]:
        for column in RUNS.values():
            ends = (row["cells"][column]["low"], row["cells"][column]["high"])
            assert tuple(np.round(ends, 6)) in lines
    words = [axes.get_title("left") for axes in figure.canvas.axes]
    assert {"GRACE beats KD", "KD is enough", "GRACE costs", "no gain", "not run"} <= set(words)
    assert figure.data["placed"] == table.data["placed"]
    with pytest.raises(NotRun):
        FIGURES["regimes"](Inputs(ROOT / "nowhere", "small", "qwen2_vl"))
