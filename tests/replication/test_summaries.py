"""Tables that hold no scores: every number from the files it comes from."""

import csv
import io
import json
import re

import numpy as np
import pytest
from synthetic_results import SKILLS, write_results
from test_controls import ALL, FAMILY, cost, log

from replication import paper as reported
from replication.judge.claims import verify
from replication.report.tables import files as tables
from replication.report.tables.summaries import printed_effect
from replication.results import scores as results
from replication.results.question_types import answers_by_skill, flips, question_skills
from replication.stats.bootstrap import Answers


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("summaries")
    runs = {name: value for name, value in ALL.items() if "int2" not in name}
    seeds = {"grace_int4": (0, 1)}
    write_results(folder, {**runs, "rtn_int4": 0.59}, seed=7, n=300, seeds=seeds)
    for seed, jitter in enumerate((1.0, 1.1)):
        log(folder, "qat_int4", seed=seed, cost=cost(10 * jitter))
        log(folder, "grace_int4", seed=seed, cost=cost(15 * jitter, memory=3 * 2**20))
    return folder


def build(root, name):
    return tables.build_table(name, root, "small")


def cells(table):
    return {tuple(row["labels"]): row["cells"] for row in table.data["rows"]}


# --- effects


def test_printed_effects_are_those_worked_by_hand():
    table = reported.load_tables().table("table3")
    # averages: none 74.8, G 76.6, R 76.8, I 75.5, GR 77.5, GI 77.1, RI 77.2, all 78.2
    assert printed_effect(table, "Avg", ["gdkd"]) == pytest.approx((309.4 - 304.3) / 4)
    g_with_r, g_without_r = (77.5 - 76.8 + 78.2 - 77.2) / 2, (76.6 - 74.8 + 77.1 - 75.5) / 2
    assert printed_effect(table, "Avg", ["gdkd", "rcka"]) == pytest.approx(
        (g_with_r - g_without_r) / 2
    )


@pytest.mark.slow
def test_effects_are_those_of_the_score_files_and_of_the_claim(root):
    found = cells(build(root, "effects"))
    assert list(found)[:3] == [("GDKD",), ("RCKA",), ("IB",)]
    assert len(found) == 7
    design = reported.load_tables().table("table3").design()
    scores = {
        on: results.read_scores(root, "small", FAMILY, run).score("MMBench")
        for on, run in design.items()
    }
    mean = {
        on: np.mean([s for k, s in scores.items() if ("ib" in k) is on]) for on in (True, False)
    }
    cell = found[("IB",)]["MMBench"]
    assert cell["measured"] == pytest.approx(mean[True] - mean[False])
    assert cell["low"] < cell["measured"] < cell["high"]
    assert cell["reported"] == pytest.approx((75.3 + 76.8 + 76.9 + 77.9) / 4
                                             - (74.2 + 76.1 + 76.5 + 77.1) / 4)  # fmt: skip
    (claim,) = verify(root, "small", only=["C07"])
    part = next(part for part in claim.parts if part.part.id == "C07.ib")
    average = found[("IB",)]["Avg"]
    assert (part.interval.low, part.interval.high) == (average["low"], average["high"])


# --- cost


def test_costs_are_means_over_the_logs(root):
    found = cells(build(root, "cost"))
    row = found[("grace_int4", 2)]
    assert row["Wall time"]["measured"] == pytest.approx(15.75)
    assert row["Wall time"]["seed_spread"] == pytest.approx(np.std([15, 16.5], ddof=1))
    assert row["Time a step"]["measured"] == pytest.approx(157.5)
    assert row["Time a step, qat_int4 = 1"]["measured"] == pytest.approx(1.5)
    assert row["Tokens"]["measured"] == pytest.approx(np.mean([9000 / 15, 9000 / 16.5]))
    assert row["Peak memory"]["measured"] == 3
    assert row["Trained parameters"]["measured"] == 500
    assert all(cell["measured"] is None for cell in found[("kd_int8", 0)].values())


# --- flips


def test_flips_are_counted_by_hand():
    first = Answers((0,), {"s": np.array([[1, 1, 0, 0, 0.6]])})
    second = Answers((0,), {"s": np.array([[0, 1, 1, 1, 0.3]])})
    found = flips(first, second, "s")
    assert (found.questions, found.lost, found.gained) == (5, 2, 2)
    two = Answers((0, 1), {"s": np.array([[0, 1, 1, 1, 0.3], [1, 1, 0, 0, 1]])})
    found = flips(first, two, "s")
    assert (found.lost, found.gained) == (1, 1)


def test_flips_by_type_are_those_of_the_outcomes(root):
    found = cells(build(root, "flips"))
    rows = {key: row for key, row in found.items() if key[0] == "baseline → grace_int4"}
    assert {skill for _, skill in rows} == set(SKILLS)
    for (_, skill), row in rows.items():
        change = row["Wrong → right"]["measured"] - row["Right → wrong"]["measured"]
        count = row["Questions"]["measured"]
        assert count == 300
        assert row["Change"]["measured"] == pytest.approx(100 * change / count), skill
        assert row["Change"]["low"] < row["Change"]["measured"] < row["Change"]["high"]


def test_types_are_those_that_the_outcomes_give(root):
    found = results.ResultSet(root, "small")
    skills = question_skills(found, FAMILY, "grace_int4")
    assert list(skills["MMBench"][:4]) == [*SKILLS, SKILLS[0]]
    answers = found.answers(FAMILY, ["grace_int4"], ["MMBench", "ScienceQA"])[0]
    (by_skill,) = answers_by_skill(found, FAMILY, ["grace_int4"], ["MMBench", "ScienceQA"])
    third = [answers.values[name][:, 1::3] for name in ("MMBench", "ScienceQA")]
    assert np.array_equal(by_skill.values[SKILLS[1]], np.concatenate(third, axis=1))
    assert answers_by_skill(found, FAMILY, ["grace_int2"], ["MMBench"]) is None


# --- the texts


@pytest.mark.parametrize("name", ["effects", "cost", "flips"])
def test_texts_hold_the_numbers_of_the_json(root, name):
    table = build(root, name)
    data = json.loads(table.json())
    fields = ("reported", "measured", "low", "high", "seed_spread")
    pairs = [(row, column["name"]) for row in data["rows"] for column in data["columns"]]
    lines = list(csv.DictReader(io.StringIO(table.csv())))
    for line, (row, column) in zip(lines, pairs, strict=True):
        assert all(line.values())
        for field in fields:
            if (value := row["cells"][column][field]) is None:
                assert line[field] in ("not run", "not reported", "none")
            else:
                assert float(line[field]) == value
    grid = [line for line in table.markdown().splitlines() if line.startswith("|")][2:]
    tex = re.search(r"\\midrule\n(.*?)\n\\bottomrule", table.tex(), re.S)[1].splitlines()
    for text, latex, row in zip(grid, tex, data["rows"], strict=True):
        cells = [row["cells"][column["name"]] for column in data["columns"]]
        expected = [cell[field] for cell in cells for field in fields if cell[field] is not None]
        numbers = text.replace("−", "-").replace(",", "").split("|", len(data["labels"]) + 1)[-1]
        printed = [float(one) for one in re.findall(r"[-+]?\d+(?:\.\d+)?", numbers)]
        assert printed == [pytest.approx(value, abs=0.51) for value in expected]
        assert latex.count(" & ") == text.count("|") - 2
    assert table.tex().isascii()


def test_summaries_without_results_say_not_run(tmp_path):
    for name in ("effects", "cost", "flips"):
        table = build(tmp_path, name)
        assert "not run" in table.markdown()
        assert "*" not in table.markdown()
