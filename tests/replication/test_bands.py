"""Bands of the reported cells: complete, never narrower than the sampling error, applied at full
scale to cells and paired differences, and asserted by `pytest -m reported`."""

import copy
import itertools
import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from repository import ROOT, python
from synthetic_results import write_exact, write_results

from grace.errors import InputError
from replication import paper as reported
from replication import verify
from replication.benchmarks import PRINTED
from replication.judge.cells import Judge, cells_of, verify_cells
from replication.paper import bands
from replication.results.scores import (
    NOT_IN_AVERAGE,
    benchmark_score,
    read_outcomes,
    write_outcomes,
    write_scores,
)
from replication.stats.verdict import Interval, Status, judge

REPORTED = reported.load_tables()
FACTS = bands.load_facts()
Z = 1.959963984540054
TABLE4 = REPORTED.table("table4")


def printed_cells():
    return [
        (table, row, column)
        for table in REPORTED.tables.values()
        for row in table.rows
        for column in table.columns
        if row.values[column] is not None
    ]


def differences():
    return [
        (table, row, against, column)
        for table in REPORTED.tables.values()
        if table.quantity == "score"
        for row, against in itertools.permutations(table.rows, 2)
        for column in table.columns
        if row.values[column] is not None and against.values[column] is not None
    ]


def half(band):
    return (band.high - band.low) / 2


# --- complete


def test_every_reported_cell_has_a_band_with_its_reason():
    found = printed_cells()
    assert len(found) == 54 + 56 + 40 + 32 + 1 + 1 + 40
    for table, row, column in found:
        band = bands.band(table, row, column)
        assert band.low < row.values[column] < band.high
        for word in ("sampling", "harness", "training", "print"):
            assert word in band.reason, (table.short, row.key, column)


def test_no_band_is_narrower_than_its_sampling_error():
    for table, row, column in printed_cells():
        if table.quantity == "score":
            error = bands.sampling_error(table, row, column)
            assert error > 0
            assert half(bands.band(table, row, column)) > Z * error
    for table, row, against, column in differences():
        errors = [bands.sampling_error(table, one, column) for one in (row, against)]
        paired = math.sqrt(errors[0] ** 2 + errors[1] ** 2 - errors[0] * errors[1])
        assert half(bands.difference_band(table, row, against, column)) > Z * paired


def test_the_facts_are_of_exactly_the_papers_benchmarks():
    assert set(FACTS.benchmarks) == set(PRINTED.values())
    points = {name for name, one in FACTS.benchmarks.items() if one.unit == "points"}
    assert points == NOT_IN_AVERAGE
    mme = FACTS.benchmark("MME")
    assert mme.questions == 2 * sum(mme.score.images.values())  # two questions of every image
    assert mme.top == 2000


def test_no_reading_is_a_known_fault():
    readings = [
        reading
        for benchmark in FACTS.benchmarks.values()
        for reading in (*benchmark.harness, *benchmark.training, *benchmark.differences)
    ]
    assert len(readings) > 40
    assert all(reading.apart > 0 for reading in readings)
    assert not {58.70, 60.5, 14.23, 44.8} & {value for one in readings for value in one.values}


def test_every_cell_and_difference_has_a_name_of_its_own():
    cells = list(cells_of(REPORTED))
    ids = [cell.id for cell in cells]
    assert len(set(ids)) == len(ids)
    assert {"table2[grace_int4-gqa]", "table2[grace_int4-vs-baseline-gqa]"} <= set(ids)
    measured = [
        (table, row, column) for table, row, column in printed_cells() if row.run is not None
    ]
    assert [(c.table, c.row, c.column) for c in cells if c.against is None] == measured


def test_the_documented_table_is_that_of_the_facts():
    text = (ROOT / "docs" / "statistics.md").read_text()
    rows = {
        cells[0]: cells
        for line in text.splitlines()
        if (cells := [cell.strip() for cell in line.strip("| ").split("|")])[0] in FACTS.benchmarks
    }
    assert set(rows) == set(FACTS.benchmarks)
    for name, row in rows.items():
        one = FACTS.benchmark(name)
        spreads = (one.harness_spread, FACTS.difference_spread(name), FACTS.training_spread(name))
        assert row[1] == f"{one.questions:,} ({one.split})"
        assert row[4:7] == [f"{value:.2f}" for value in spreads]
        if row[3]:  # OCRBench has no reported value
            table, base = next(
                (table, row.values[column])
                for table in REPORTED.tables.values()
                if table.quantity == "score"
                for column in table.benchmark_columns
                if table.benchmark(column) == name
                for row in table.rows
                if row.role == "baseline"
            )
            assert row[3] == f"{one.standard_error(base):.2f}", table.short


# --- sampling errors, by what they stand for


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_credits_vary_no_more_than_right_or_wrong_of_the_same_mean(credits):
    mean = float(np.mean(credits))
    error = FACTS.benchmark("TextVQA").standard_error(100 * mean)
    assert 100 * np.std(credits) / math.sqrt(5000) <= error + 1e-6


@given(st.floats(0, 100))
def test_an_accuracy_has_the_binomial_error(score):
    benchmark = FACTS.benchmark("ScienceQA")
    p = score / 100
    assert benchmark.standard_error(score) == pytest.approx(
        100 * math.sqrt(p * (1 - p) / 2017), abs=1e-9
    )


@pytest.mark.parametrize(("missed", "wrong"), [(0.21, 0.05), (0.1, 0.1), (0.3, 0.0), (0.02, 0.3)])
def test_f1_varies_no_more_than_its_bound(missed, wrong):
    """Three categories share the positives; their negatives are their own."""
    rng = np.random.default_rng(7)
    benchmark = FACTS.benchmark("POPE")
    positives = benchmark.score.positives
    negatives = (benchmark.questions - 3 * positives) // 3
    hits = positives - rng.binomial(positives, missed, size=(20_000, 1))
    false = rng.binomial(negatives, wrong, size=(20_000, 3))
    scores = 100 * (2 * hits / (hits + positives + false)).mean(axis=1)
    bound = benchmark.standard_error(scores.mean())
    assert scores.std() <= 1.02 * bound
    if wrong == 0:  # the case that the bound is made of
        assert scores.std() == pytest.approx(bound, rel=0.03)


@pytest.mark.parametrize("shares", [(0.1, 0.2, 0.7), (0.3, 0.0, 0.7), (0.0, 0.6, 0.4)])
def test_points_vary_no_more_than_their_bound(shares):
    rng = np.random.default_rng(8)
    benchmark = FACTS.benchmark("MME")
    total = np.zeros(20_000)
    for images in benchmark.score.images.values():
        drawn = rng.multinomial(images, shares, size=20_000)
        total += drawn @ np.array([0.0, 50.0, 200.0]) / images
    bound = benchmark.standard_error(total.mean())
    assert total.std() <= 1.02 * bound
    if shares[1] == 0:
        assert total.std() == pytest.approx(bound, rel=0.03)


def test_a_mean_of_shares_has_the_mean_of_their_errors():
    found = FACTS.benchmark("HallusionBench").standard_error(50.0)
    assert found == pytest.approx(50 / 3 * sum(n**-0.5 for n in (951, 346, 455)))


def test_what_is_no_score_has_no_error():
    for name, value in (("GQA", 101.0), ("GQA", -1.0), ("MME", 2001.0)):
        with pytest.raises(InputError, match="not a score"):
            FACTS.benchmark(name).standard_error(value)
    with pytest.raises(InputError, match="did you mean 'MMBench'"):
        FACTS.benchmark("MMBnch")


# --- the bands, by hand


def test_a_cells_band_is_the_sum_of_its_parts():
    table = REPORTED.table("table2")
    sampling = Z * 100 * math.sqrt(0.701 * 0.299 / 2017)
    harness, training = 66.8 - 63.91, 70.8 - 67.97
    band = bands.band(table, table.row("grace_int4"), "SQA")
    assert half(band) == pytest.approx(sampling + harness + training + 0.05)
    assert (band.low + band.high) / 2 == pytest.approx(70.1)
    sampling = Z * 100 * math.sqrt(0.668 * 0.332 / 2017)
    published = bands.band(table, table.row("baseline"), "SQA")
    assert half(published) == pytest.approx(sampling + harness + 0.05)
    assert "published weights" in published.reason


def test_an_averages_parts_are_pooled():
    errors = [100 * math.sqrt(p * (1 - p) / n) for p, n in
              ((0.716, 1164), (0.727, 14233), (0.737, 2017))]  # fmt: skip
    root = math.hypot
    expected = Z * root(*errors) / 3 + root(1.5, 66.16 - 58.6, 66.8 - 63.91) / 3 + 0.05
    assert half(bands.band(TABLE4, TABLE4.row("baseline"), "Avg")) == pytest.approx(expected)


def test_a_misprinted_averages_band_reaches_both_numbers():
    table = REPORTED.table("table1")
    row = table.row("grace_bf16")
    band = bands.band(table, row, "Avg")
    cells = sum(row.values[column] for column in table.averaged) / 7
    width = 69.0 - band.low - (69.0 - cells)
    assert band.high - 69.0 == pytest.approx(width)
    assert band.low == pytest.approx(cells - width)
    assert "0.16 further" in band.reason


def test_a_differences_band_by_assumption_and_by_measurement():
    row, base = TABLE4.row("grace_int4"), TABLE4.row("baseline")
    first, second = (bands.sampling_error(TABLE4, one, "MMBench") for one in (row, base))
    shifts = FACTS.kept * 1.5 + 1.0 + 0.1
    assumed = bands.difference_band(TABLE4, row, base, "MMBench")
    paired = math.sqrt(first**2 + second**2 - first * second)
    assert half(assumed) == pytest.approx(Z * paired + shifts)
    assert (assumed.low + assumed.high) / 2 == pytest.approx(5.3)
    measured = bands.difference_band(TABLE4, row, base, "MMBench", standard_error=0.5)
    assert half(measured) == pytest.approx(Z * 0.5 + shifts)
    assert "as measured" in measured.reason
    wild = bands.difference_band(TABLE4, row, base, "MMBench", standard_error=50.0)
    assert half(wild) == pytest.approx(Z * math.hypot(first, second) + shifts)
    turned = bands.difference_band(TABLE4, base, row, "MMBench")
    assert (turned.low, turned.high) == pytest.approx((-assumed.high, -assumed.low))


def test_a_shift_that_no_one_read_in_differences_is_the_largest_share_seen():
    assert FACTS.kept == pytest.approx((4.8 - 3.1) / (66.8 - 63.91))
    assert FACTS.difference_spread("SEED-Bench") == pytest.approx(0.48)
    assert FACTS.difference_spread("AI2D") == pytest.approx(FACTS.kept * 3.0)
    assert FACTS.training_spread("MME") == pytest.approx(42.3)
    assert FACTS.training_spread("GQA") == 1.0  # 0.6 was read, 1.0 is assumed


def test_a_difference_beyond_its_sampling_error_claims_its_side():
    sides = {}
    for table, run, column in (
        ("table2", "grace_int4", "SQA"),
        ("table2", "rtn_int4", "VQAv2"),
        ("table2", "grace_int4", "GQA"),
    ):
        one = REPORTED.table(table)
        rule = bands.difference_rule(one, one.row(run), one.row("baseline"), column)
        sides[run, column] = (rule.above, rule.below)
        assert rule.within_band
    assert sides == {
        ("grace_int4", "SQA"): (0.0, None),
        ("rtn_int4", "VQAv2"): (None, 0.0),
        ("grace_int4", "GQA"): (None, None),  # -0.8, of which 0.8 is noise
    }
    row, base = TABLE4.row("grace_int4"), TABLE4.row("baseline")
    band = bands.difference_band(TABLE4, row, base, "ScienceQA")
    rule = bands.difference_rule(TABLE4, row, base, "ScienceQA")
    flipped = Interval(-0.6, -0.9, -0.3)
    assert band.contains(flipped)  # inside the band, and yet not what is reported
    assert judge(flipped, rule, band, full=True) is Status.CONTRADICTED


def test_retention_is_the_difference_in_percent_of_the_baseline():
    table, scores = REPORTED.table("retention"), REPORTED.table("table2")
    found = bands.band(table, table.row("grace_int4"), "MMB")
    difference = bands.difference_band(
        scores, scores.row("grace_int4"), scores.row("baseline"), "MMB"
    )
    assert half(found) == pytest.approx((half(difference) - 0.1) / 0.643 + 0.05)


LEDGER = reported.load_ledger()
PARTS = {part.id: part for claim in LEDGER.claims for part in claim.parts}


def same_cell(part):
    """The cell, or difference from the baseline, that is the part's quantity; None without one."""
    for cell in cells_of(REPORTED):
        quantity = part.quantity
        wanted = (quantity["family"], quantity["run"], quantity.get("against"), part.benchmarks)
        against = cell.against.run if cell.against else None
        if cell.table.quantity == "retention" and part.kind == "ratio":
            against = "baseline"
        elif part.kind != ("difference" if cell.against else "value"):
            continue
        found = (cell.table.family, cell.row.run, against, tuple(cell.benchmarks))
        if found == wanted:
            return cell
    return None


def test_a_claims_band_is_that_of_its_cells():
    """Wherever the ledger and the cells judge one quantity. C14's margin is the claim itself."""
    checked = set()
    for part in PARTS.values():
        if part.kind not in ("value", "difference", "ratio") or part.band is None:
            continue
        assert part.of_cells, part.id
        cell = same_cell(part)
        if cell is None:
            continue
        if cell.against is None:
            found = bands.band(cell.table, cell.row, cell.column)
        else:
            found = bands.difference_band(cell.table, cell.row, cell.against, cell.column)
        assert (part.band.low, part.band.high) == pytest.approx((found.low, found.high)), part.id
        assert part.band.reason == found.reason
        checked.add(part.id)
    assert checked == {
        *("C01.difference", "C01.int4", "C02.difference", "C02.int4"),
        *("C03.qwen2_vl", "C03.llava", "C03.qwen3_vl", "C08.llava", "C08.llava.value"),
        "C17.mmbench",
    }
    assert not PARTS["C14.qwen3_vl"].of_cells


def test_bands_of_what_follows_from_several_cells():
    table, average = REPORTED.table("table3"), "Avg"
    runs = table.design().values()
    errors = [bands.sampling_error(table, table.row(run), average) for run in runs]
    signs = [1 if "gdkd" in components else -1 for components in table.design()]
    weighted = [sign / 4 * error for sign, error in zip(signs, errors, strict=True)]
    spread = sum(
        a * b * (1 if i == k else 0.5)
        for i, a in enumerate(weighted)
        for k, b in enumerate(weighted)
    )
    shifts = [FACTS.difference_spread(name) for name in table.averaged]
    trained = [FACTS.training_spread(name) for name in table.averaged]
    expected = Z * math.sqrt(spread) + math.hypot(*shifts) / 3 + math.hypot(*trained) / 6 + 0.1
    effect = PARTS["C07.gdkd"]
    assert half(effect.band) == pytest.approx(expected)
    assert (effect.band.low + effect.band.high) / 2 == pytest.approx(effect.reported)

    gap = PARTS["C04.qwen2_vl"].band  # of 7.6 points
    difference = PARTS["C03.qwen2_vl"].band
    assert (gap.low * 7.6, gap.high * 7.6) == pytest.approx((difference.low, difference.high))

    ratio = PARTS["C17.gqa"].band  # printed nowhere: two rounded cells
    table = REPORTED.table("table2")
    difference = bands.difference_band(table, table.row("grace_int4"), table.row("baseline"), "GQA")
    assert half(ratio) == pytest.approx(half(difference) / 0.62)
    assert (ratio.low + ratio.high) / 2 == pytest.approx(100 * 61.2 / 62.0)

    apart = PARTS["R01.llava"].band  # of two tables; Table 1's average is not its cells'
    row = REPORTED.table("table1").row("grace_bf16")
    cells = sum(row.values[name] for name in REPORTED.table("table1").averaged) / 7
    assert apart.high - 1.8 == pytest.approx(cells - 67.2 - apart.low)


def test_a_claim_is_judged_by_the_band_that_judges_its_cell(mixed):
    """With the paired error as measured, by each with draws of its own."""
    judged = {part.part.id: part for claim in verify.verify(mixed, "paper") for part in claim.parts}
    cells = {cell.cell.id: cell for cell in Judge(mixed).all()}
    for part, cell in (
        ("C02.difference", "table4[grace_int4-vs-baseline-mmbench]"),
        ("C02.int4", "table4[grace_int4-mmbench]"),
        ("C03.qwen2_vl", "table4[grace_int4-vs-baseline-avg]"),
    ):
        found, expected = judged[part].band, cells[cell].band
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.05)
        assert found.reason.partition("(")[2] == expected.reason.partition("(")[2]
    assert "as measured" in judged["C02.difference"].band.reason
    assert half(judged["C02.difference"].band) < half(PARTS["C02.difference"].band)


def test_nothing_is_retained_of_a_baseline_that_scores_zero(tmp_path):
    cell = next(one for one in cells_of(REPORTED) if one.table.short == "retention")
    nothing = {name: 0.0 for name in cell.benchmarks}
    write_exact(tmp_path, dict.fromkeys(cell.runs, nothing), family=cell.table.family, n=40)
    found = Judge(tmp_path, "paper")(cell)
    assert (found.status, found.interval) == (Status.INCONCLUSIVE, None)
    assert "nothing to retain" in found.note


# --- wrong data


def test_wrong_columns_rows_and_values_are_refused():
    with pytest.raises(InputError, match="did you mean 'MMBench'"):
        bands.band(TABLE4, TABLE4.row("baseline"), "MMBnch")
    table = REPORTED.table("table5")
    with pytest.raises(InputError, match="no value is reported"):
        bands.band(table, table.row("grace_bf16"), "MMMU")
    table = REPORTED.table("retention")
    with pytest.raises(InputError, match="holds no scores"):
        bands.sampling_error(table, table.row("grace_int4"), "MMB")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(correlation=1.0), "correlation is 1.0"),
        (lambda d: d["benchmarks"]["GQA"].update(harnes=[]), "did you mean 'harness'"),
        (lambda d: d["benchmarks"]["GQA"]["score"].update(positives=3), "takes no 'positives'"),
        (lambda d: d["benchmarks"]["MME"]["score"].pop("images"), "needs 'images'"),
        (lambda d: d["benchmarks"]["GQA"].update(unit="points"), "GQA: .*is not in points"),
        (lambda d: [one.pop("differences", 0) for one in d["benchmarks"].values()], "differences"),
    ],
)
def test_wrong_facts_are_refused_with_their_place(change, message):
    raw = copy.deepcopy(reported.read_yaml(reported.FOLDER / "benchmarks.yaml"))
    change(raw)
    with pytest.raises(InputError, match=message):
        bands.parse_facts(raw)


# --- judged


BASELINE = {"MMBench": 71.6, "SEED-Bench": 72.7, "ScienceQA": 73.7}
GRACE = {"MMBench": 76.9, "SEED-Bench": 75.6, "ScienceQA": 79.1}
REACH = 1.6  # more than half an interval of 4,000 questions


def statuses(root):
    return {one.cell.id: one for one in Judge(root).all()}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """INT4 GRACE inside one band, across the end of one and outside one; INT8 GRACE with a gain
    that became a loss; QAT without one benchmark."""
    high = {name: bands.band(TABLE4, TABLE4.row("grace_int4"), name).high for name in GRACE}
    scores = {
        "baseline": BASELINE,
        "grace_int4": {
            "MMBench": high["MMBench"] - REACH,
            "SEED-Bench": high["SEED-Bench"],
            "ScienceQA": high["ScienceQA"] + REACH,
        },
        "grace_int8": {**BASELINE, "SEED-Bench": 72.7 - 0.5},
        "qat_int4": {"MMBench": 70.4, "ScienceQA": 72.2},
    }
    return write_exact(tmp_path_factory.mktemp("mixed"), scores)


EXPECTED = {
    "table4[baseline-mmbench]": Status.REPRODUCED,
    "table4[grace_int4-mmbench]": Status.REPRODUCED,
    "table4[grace_int4-seed-bench]": Status.INCONCLUSIVE,
    "table4[grace_int4-scienceqa]": Status.CONTRADICTED,
    "table4[grace_int8-seed-bench]": Status.REPRODUCED,
    "table4[grace_int8-vs-baseline-seed-bench]": Status.CONTRADICTED,
    "table4[qat_int4-seed-bench]": Status.NOT_RUN,
    "table4[qat_int4-avg]": Status.NOT_RUN,
    "table4[qat_int4-vs-baseline-mmbench]": Status.REPRODUCED,
    "table4[teacher-mmbench]": Status.NOT_RUN,
    "table2[grace_int4-gqa]": Status.NOT_RUN,
}


def test_cells_are_judged_by_their_bands(mixed):
    found = statuses(mixed)
    assert {name: found[name].status for name in EXPECTED} == EXPECTED
    assert "no score on SEED-Bench" in found["table4[qat_int4-seed-bench]"].note
    assert "no results of llava/grace_int4" in found["table2[grace_int4-gqa]"].note
    assert found["table4[baseline-seed-bench]"].note == "4,000 of 14,233 questions of SEED-Bench"
    one = found["table4[grace_int8-vs-baseline-seed-bench]"]
    assert one.interval.point == pytest.approx(-0.5)
    assert one.cell.reported == pytest.approx(2.8)


def test_results_as_reported_are_reproduced(tmp_path):
    found = statuses(write_exact(tmp_path, {"baseline": BASELINE, "grace_int4": GRACE}))
    run = {name: one for name, one in found.items() if one.status is not Status.NOT_RUN}
    assert len(run) == 4 + 4 + 4 + 4  # the baseline in two tables, GRACE, its differences
    assert {one.status for one in run.values()} == {Status.REPRODUCED}
    average = run["table4[grace_int4-vs-baseline-avg]"].interval
    assert average.point == pytest.approx(4.5333, abs=0.02)
    assert average.low < average.point < average.high


def test_stand_ins_and_other_scales_are_not_judged(tmp_path):
    write_exact(tmp_path, {"baseline": BASELINE}, standin=True)
    found = statuses(tmp_path)
    assert {one.status for one in found.values()} == {Status.NOT_RUN}
    assert "stand-ins" in found["table4[baseline-mmbench]"].note
    assert verify_cells(tmp_path, "small") == []
    with pytest.raises(InputError, match="scale paper alone"):
        Judge(tmp_path, "small")


def points_run(root, run, score, error):
    """A run's MME: its credits say nothing of its points."""
    credits = [1.0, 0.0, 1.0, 1.0]
    columns = {
        "seed": [0] * 4,
        "benchmark": ["MME"] * 4,
        "question_id": ["a Yes", "a No", "b Yes", "b No"],
        "skill": ["count"] * 4,
        "prediction": ["Yes"] * 4,
        "target": ["Yes"] * 4,
        "credit": credits,
    }
    entry = {**benchmark_score(score, credits, 750.0, accuracy=75.0), "standard_error": error}
    other = benchmark_score(50.0, [1.0, 0.0], 25.0)
    for key, value in (("benchmark", "GQA"), ("skill", "x"), ("prediction", "A"), ("target", "A")):
        columns[key] = [*columns[key], value, value]
    columns["seed"] += [0, 0]
    columns["question_id"] += ["0", "1"]
    columns["credit"] = [*credits, 1.0, 0.0]
    write_outcomes(root, "paper", "llava", run, columns)
    record = {"family": "llava", "run": run, "method": run, "bits": 16, "scale": "paper",
              "standin": False, "provenance": {},
              "seeds": {"0": {"benchmarks": {"MME": entry, "GQA": other}}}}  # fmt: skip
    write_scores(root, record)
    assert read_outcomes(root, "paper", "llava", run)


def test_points_are_judged_by_their_files_errors(tmp_path):
    points_run(tmp_path, "baseline", 1500.0, 3.0)
    points_run(tmp_path, "grace_bf16", 1520.0, 4.0)
    found = statuses(tmp_path)
    one = found["table1[grace_bf16-mme]"]
    assert one.status is Status.REPRODUCED
    assert one.interval.high - one.interval.point == pytest.approx(Z * 4.0)
    two = found["table1[grace_bf16-vs-baseline-mme]"]
    assert two.interval.point == pytest.approx(20.0)
    assert two.interval.high - two.interval.point == pytest.approx(Z * 5.0)


# --- reported by the commands


@pytest.mark.slow
def test_verify_claims_reports_cells_at_full_scale(mixed, capsys):
    assert verify.main(["--results", str(mixed), "--scale", "paper", "--long"]) == 1
    printed = capsys.readouterr().out.partition("\ntable4: ")[2].partition("\ntable5: ")[0]
    (line,) = re.findall(r"^ +grace_int4-scienceqa .*$", printed, re.MULTILINE)
    assert "CONTRADICTED" in line
    assert "reported 79.1" in line
    (line,) = re.findall(r"^ +grace_int8-vs-baseline-seed-bench .*$", printed, re.MULTILINE)
    for piece in ("CONTRADICTED", "reported +2.8", "measured −0.5", "and above 0"):
        assert piece in line
    data = json.loads((mixed / "paper" / "claims.json").read_text())
    cells = {one["id"]: one for one in data["cells"]}
    assert {name: cells[name]["status"] for name in EXPECTED} == {
        name: status.value for name, status in EXPECTED.items()
    }
    assert sum(data["cell_summary"].values()) == len(cells) == len(list(cells_of(REPORTED)))
    assert all(one["band"]["reason"] for one in cells.values())


@pytest.mark.slow
def test_a_contradicted_cell_alone_fails_the_command(tmp_path):
    """No claim of the ledger looks at this cell."""
    good = write_exact(tmp_path / "good", {"baseline": BASELINE})
    assert verify.main(["--results", str(good), "--scale", "paper"]) == 0
    bad = write_exact(tmp_path / "bad", {"baseline": {**BASELINE, "MMBench": 60.0}})
    assert verify.main(["--results", str(bad), "--scale", "paper"]) == 1


def test_a_reduced_scale_says_nothing_of_cells(tmp_path, capsys):
    root = write_results(tmp_path, {"baseline": 0.6, "grace_int4": 0.7}, seed=1, n=20)
    assert verify.main(["--results", str(root)]) == 0
    assert "-vs-" not in capsys.readouterr().out
    data = json.loads((root / "small" / "claims.json").read_text())
    assert "cells" not in data


def run_reported(*words):
    command = ("-m", "pytest", "tests/reported", "--confcutdir=tests/reported", "-p")
    return python(*command, "no:cacheprovider", "-rA", "--tb=line", *words, cwd=ROOT)


@pytest.mark.slow
def test_the_assertions_pass_fail_and_skip_as_the_results_say(mixed):
    done = run_reported(f"--results={mixed / 'paper'}")
    words = {
        Status.REPRODUCED: "PASSED",
        Status.INCONCLUSIVE: "XFAIL",
        Status.CONTRADICTED: "FAILED",
    }
    for name, status in EXPECTED.items():
        if status is not Status.NOT_RUN:
            pattern = rf"^{words[status]} \S+::test_cell\[{re.escape(name)}"
            assert re.search(pattern, done.stdout, re.M), (
                name,
                done.stdout[-3000:] + done.stderr,
            )
    assert done.returncode == 1
    assert "not run: no results of llava/grace_int4" in done.stdout
    assert "not run: qwen2_vl/qat_int4 has no score on SEED-Bench" in done.stdout


@pytest.mark.weekly
@pytest.mark.slow
def test_the_assertions_are_left_out_unless_asked_for(tmp_path):
    count = len(list(cells_of(REPORTED)))
    done = run_reported()
    assert f"{count} deselected" in done.stdout, done.stdout + done.stderr
    done = run_reported(f"--results={tmp_path / 'small'}")
    assert done.returncode == 4
    assert "full-scale results alone" in done.stderr
    done = run_reported(f"--results={tmp_path / 'paper'}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} skipped" in done.stdout
    assert "no such folder" in done.stdout
