"""The paper's numbers as data: complete, consistent but for the known discrepancies, validated."""

import copy
import hashlib
import json

import pytest

from grace.errors import InputError
from replication import paper as reported
from replication.paper import consistency


@pytest.fixture(scope="module")
def tables():
    return reported.load_tables()


@pytest.fixture(scope="module")
def ledger():
    return reported.load_ledger()


@pytest.fixture
def raw_tables():
    return copy.deepcopy(reported.read_yaml(reported.FOLDER / "tables.yaml"))


@pytest.fixture
def raw_ledger():
    return copy.deepcopy(reported.read_yaml(reported.FOLDER / "claims.yaml"))


# --- the numbers


def test_all_tables_are_there(tables):
    shapes = {name: (len(t.rows), len(t.columns)) for name, t in tables.tables.items()}
    assert shapes == {
        "table1_kd_llava": (6, 9),
        "table2_quant_llava": (7, 8),
        "table3_ablation_qwen2vl": (10, 4),
        "table4_quant_ablation_qwen2vl": (8, 4),
        "table5_quant_qwen2vl": (1, 8),
        "table_retention_llava": (1, 5),
        "table_qwen3vl_release": (5, 8),
    }
    assert tables.deployment["throughput_ratio_int4_over_bf16"] == 3.0
    assert tables.figures["figure2_entropy_vs_error"]["pearson_r"] == 0.484


def test_no_printed_value_has_changed(tables):
    """A transcription is not edited: change this digest only with the source in hand."""
    values = {n: [list(r.values.values()) for r in t.rows] for n, t in tables.tables.items()}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    assert digest[:16] == "cfc35c7660e4105a"


def test_table4_names_its_runs(tables):
    table = tables.table("table4")
    assert table is tables.table("table4_quant_ablation_qwen2vl")
    assert [row.run for row in table.rows] == [
        "teacher",
        "baseline",
        "qat_int8",
        "kd_int8",
        "grace_int8",
        "qat_int4",
        "kd_int4",
        "grace_int4",
    ]
    launcher = [f"grace_launcher_{width}" for width in ("bf16", "int8", "int4")]
    assert [control.run for control in table.controls] == ["sft_bf16", "grace_bf16", *launcher]
    assert table.cell("grace_int4", "MMBench") == 76.9
    with pytest.raises(InputError, match="did you mean 'grace_int4'"):
        table.cell("grace_in4", "MMBench")
    with pytest.raises(InputError, match="did you mean"):
        tables.table("tabel4")


# --- do they agree with each other?


def test_every_printed_average_is_recomputed(tables):
    done = consistency.averages(tables)
    rows = sum(reported.AVERAGE in t.columns for t in tables.tables.values() for _ in t.rows)
    assert len(done) == rows == 36
    assert [one.check for one in done if not one.agrees] == ["average:table1:grace_bf16"]
    (wrong,) = consistency.mismatches(done)
    assert (wrong.printed, wrong.recomputed) == (69.0, pytest.approx(481.9 / 7))


def test_cells_that_several_tables_print_agree(tables):
    done = consistency.cells(tables)
    assert len(done) == 25
    assert all(one.agrees for one in done)
    assert any(one.check == "cell:table5:table3:grace_bf16:MMBench" for one in done)


def test_the_mismatches_are_exactly_the_known_discrepancies(tables):
    found = [
        mismatch
        for check in reported.CONSISTENCY_CHECKS
        for mismatch in consistency.mismatches(consistency.run_check(tables, check))
    ]
    known = [mismatch for entry in tables.discrepancies for mismatch in entry.mismatches]
    assert sorted(one.check for one in found) == sorted(one.check for one in known)
    for mismatch in found:
        assert consistency.discrepancy_of(mismatch, tables) is not None
    assert [entry.id for entry in tables.discrepancies if entry.mismatches] == [
        "D01",
        "D02",
        "D03",
        "D04",
    ]
    assert len(tables.discrepancies) == 8


def test_a_new_discrepancy_is_found(raw_tables):
    row = raw_tables["tables"]["table4_quant_ablation_qwen2vl"]["rows"][7]
    row["values"][0] = 75.9  # the average no longer follows, nor does the abstract's figure
    changed = reported.parse_tables(raw_tables)
    (average,) = consistency.mismatches(consistency.averages(changed, "table4"))
    assert average.check == "average:table4:grace_int4"
    assert consistency.discrepancy_of(average, changed) is None
    found = consistency.mismatches(consistency.statements(changed))
    assert "statement:abstract_int4_mmbench" in [one.check for one in found]


def test_a_cell_that_differs_between_tables_is_found(raw_tables):
    raw_tables["tables"]["table4_quant_ablation_qwen2vl"]["rows"][1]["values"][1] = 72.8
    found = consistency.mismatches(consistency.cells(reported.parse_tables(raw_tables)))
    assert [one.check for one in found] == ["cell:table4:table3:baseline:SEED-Bench"]


def test_half_a_unit_agrees_and_more_does_not():
    assert consistency.Comparison("x", 1.0, 1.05, 0.1).agrees
    assert consistency.Comparison("x", 1.0, 0.95, 0.1).agrees
    assert not consistency.Comparison("x", 1.0, 1.0501, 0.1).agrees
    assert not consistency.Comparison("x", 1.0, 0.9499, 0.1).agrees


# --- the ledger


def test_the_ledger_holds_every_claim(ledger):
    names = [claim.id for claim in ledger.claims]
    assert names == [f"C{i:02}" for i in range(1, 18)] + [f"R{i:02}" for i in range(1, 11)]
    abstract = [claim.id for claim in ledger.claims if claim.abstract]
    assert abstract == ["C01", "C02", "C09", "C10"]


def test_reported_numbers_of_the_ledger_follow_from_the_tables(ledger, tables):
    """Each part's reported number is that of its runs' printed cells."""

    def table_of(part):
        over = part.quantity["over"]
        if isinstance(over, dict):
            return tables.table(over["average_of"]), reported.AVERAGE
        for table in tables.tables.values():
            runs = {row.run for row in table.rows}
            if table.family != part.quantity["family"] or table.quantity != "score":
                continue
            for column in table.benchmark_columns:
                if table.benchmark(column) == over and part.quantity["run"] in runs:
                    return table, column
        raise AssertionError(part.id)

    def printed(family, run, table, column):
        if run in {row.run for row in table.rows}:
            return table.cell(run, column)
        for other in tables.tables.values():  # the same columns in another table
            same = set(other.averaged_benchmarks) == set(table.averaged_benchmarks)
            if other.family == family and same and run in {row.run for row in other.rows}:
                return other.cell(run, column)
        raise AssertionError((family, run))

    checked = 0
    for part in (part for claim in ledger.claims for part in claim.parts):
        quantity = part.quantity
        if part.twin is not None:  # of the launcher's coefficients: the same printed cell
            assert (part.reported, part.band) == (part.twin.reported, part.twin.band)
            continue
        elsewhere = ("measurement", "counted", "deployment", "internal_consistency")
        if part.reported is None or part.kind in elsewhere:
            continue
        table, column = table_of(part)
        if part.kind == "main_effect":
            on = {chosen: table.cell(run, column) for chosen, run in table.design().items()}
            sides = {
                side: [v for chosen, v in on.items() if (quantity["component"] in chosen) is side]
                for side in (True, False)
            }
            expected = sum(sides[True]) / 4 - sum(sides[False]) / 4
            assert part.reported == pytest.approx(expected, abs=1e-6), part.id
            checked += 1
            continue
        run, *others = (
            printed(quantity["family"], quantity[key], table, column)
            for key in ("run", "against", "baseline", "teacher")
            if key in quantity
        )
        if part.kind == "gap_closed":
            expected = (run - others[0]) / (others[1] - others[0])
        elif part.kind == "ratio":
            expected = 100 * run / others[0]
        else:
            expected = run - (others[0] if others else 0)
        tolerance = 0.05 if part.kind == "ratio" else 1e-6
        assert part.reported == pytest.approx(expected, abs=tolerance), part.id
        checked += 1
    assert checked == 40


def test_every_band_holds_its_reported_number_and_has_a_reason(ledger):
    for claim in ledger.claims:
        for part in claim.parts:
            if part.band is None:
                rules = [rule for rule in (part.full, part.reduced) if rule]
                assert part.reported is None
                assert not any(rule.within_band for rule in rules)
                continue
            assert part.band.low <= part.reported <= part.band.high
            assert len(part.band.reason) > 30
            for expectation in part.expected.values():
                assert len(expectation.reason) > 20


def test_a_best_run_becomes_a_pair_with_every_other(ledger):
    claim = next(one for one in ledger.claims if one.id == "C07")
    parts = [part for part in claim.parts if part.id.startswith("C07.best")]
    pairs = [(part.quantity["run"], part.quantity["against"]) for part in parts]
    parts_on = ("kd", "gdkd", "rcka", "ib", "gdkd_rcka", "gdkd_ib", "rcka_ib")
    assert pairs == [("grace_bf16", f"{name}_bf16") for name in parts_on]
    assert [part.reported for part in parts] == [3.4, 1.6, 1.4, 2.7, 0.7, 1.1, 1.0]


# --- wrong data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(txt="x"), r"claims\[1\].*'txt'.*did you mean 'text'"),
        (lambda c: c.pop("where"), r"claims\[1\] lacks the key 'where'"),
        (lambda c: c.update(combine="any"), r"claims\[1\].combine 'any' is unknown"),
        (lambda c: c["parts"][0].update(reported="5.3"), r"parts\[0\].reported is '5.3'"),
        (lambda c: c["parts"][0]["quantity"].update(kind="diference"), "did you mean 'difference'"),
        (lambda c: c["parts"][0]["quantity"].pop("against"), "quantity lacks the key 'against'"),
        (lambda c: c["parts"][0]["quantity"].update(table="table4"), "'table' is unknown"),
        (lambda c: c["parts"][0]["quantity"].update(over="MMBnch"), "did you mean 'MMBench'"),
        (lambda c: c["parts"][0]["quantity"].update(over={"averag": "x"}), "'average_of'"),
        (lambda c: c["parts"][0].update(band={"half_width": 1}), "band lacks the key 'reason'"),
        (lambda c: c["parts"][0].update(band={"low": 2, "reason": "r"}), "low and high"),
        (lambda c: c["parts"][0].update(band={"low": 2, "high": 1, "reason": "r"}), "above high"),
        (lambda c: c["parts"][0].update(band="cell"), "band 'cell'.*did you mean 'cells'"),
        (lambda c: c["parts"][0]["quantity"].update(run="sft_bf16"), "no table prints sft_bf16"),
        (lambda c: c["parts"][0]["quantity"].update(kind="equivalence"), "kind 'equivalence'"),
        (lambda c: c["parts"][0].pop("band"), "no band"),
        (lambda c: c["parts"][0]["rule"].pop("reduced"), "lacks 'reduced'"),
        (lambda c: c["parts"][0]["rule"].pop("full"), "rule lacks the key 'full'"),
        (lambda c: c["parts"][0]["rule"].update(reduced={"above": -2}), "needs a reason"),
        (lambda c: c["parts"].append(c["parts"][0]), "appears twice"),
        (lambda c: c["expected"].pop("small"), "what is expected at scale 'small'"),
    ],
)
def test_a_wrong_claim_is_refused_with_its_place(raw_ledger, tables, change, message):
    change(next(claim for claim in raw_ledger["claims"] if claim["id"] == "C02"))
    with pytest.raises(InputError, match=message):
        reported.parse_ledger(raw_ledger, tables)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(colums=[]), "did you mean 'columns'"),
        (lambda t: t["rows"][0]["values"].pop(), r"rows\[0\] has 3 values for 4 columns"),
        (lambda t: t["rows"][0].update(role="techer"), "did you mean 'teacher'"),
        (lambda t: t["rows"][0].update(run="baseline"), "'baseline' appears twice"),
        (lambda t: t["rows"][0].pop("method"), r"rows\[0\]: give a method"),
        (lambda t: t["rows"][0].update(gdkd=True), "not both"),
        (lambda t: t["controls"][0].update(note=" "), "lacks a note"),
        (lambda t: t.update(short="table3"), "'table3' appears twice"),
    ],
)
def test_a_wrong_table_is_refused_with_its_place(raw_tables, change, message):
    change(raw_tables["tables"]["table4_quant_ablation_qwen2vl"])
    with pytest.raises(InputError, match=message):
        reported.parse_tables(raw_tables)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["summaries"]["cost"].pop("against"), "cost needs 'against'"),
        (lambda d: d["summaries"]["effects"].update(runs=["x"]), "effects takes no 'runs'"),
        (lambda d: d["summaries"]["effects"].update(table="table9"), "did you mean"),
        (lambda d: d["statements"][0]["from"].update(kind="cel"), "did you mean 'cell'"),
    ],
)
def test_what_is_wrong_elsewhere_is_refused(raw_tables, change, message):
    change(raw_tables)
    with pytest.raises(InputError, match=message):
        reported.parse_tables(raw_tables)
