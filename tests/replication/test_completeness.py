"""Complete, cell by cell: what is reported, the tables that are built, the runs that are named.

The checks are functions of the names they are given: `lacking_runs` of any set of models,
`lacking_results` of any folder of results.
"""

import pytest
from synthetic_results import BENCHMARKS, write_results

from replication import paper as reported
from replication.benchmarks import PRINTED
from replication.evaluate.jobs import jobs_of
from replication.report.tables import files as tables
from replication.results.scores import ResultSet
from replication.results.tuning import tuned_name
from replication.settings.checks import parse_params
from replication.settings.scales import scale_params

REPORTED = reported.load_tables()
LEDGER = reported.load_ledger()
FAMILIES = {"llava", "qwen2_vl", "qwen3_vl"}


def named_models():
    """{"<family>-<run>": where it is needed} for every run that a table or a claim needs."""
    needed = {}
    for where, family, run in (*REPORTED.named_runs(), *LEDGER.named_runs(REPORTED)):
        needed.setdefault(f"{family}-{run}", []).append(where)
    return needed


def lacking_runs(models):
    """What tables and claims need and `models`, names "<family>-<run>", lack: {model: where}."""
    return {model: where for model, where in named_models().items() if model not in models}


def lacking_results(root, scale):
    """What tables and claims need and has no score file under `root`: {model: where}."""
    results = ResultSet(root, scale)
    there = {f"{family}-{run}" for family in FAMILIES for run in results.runs(family)}
    return lacking_runs(there)


def models_of(params):
    """The names of all models that a scale trains or makes; of candidates, those of the rows that
    are chosen from them."""
    made = {
        f"{job.pair}-{job.name}"
        for folder in params.evaluate.benchmarks
        for job in jobs_of(params, folder)
        if job.pair in FAMILIES and not folder.endswith("_tuning")
    }
    return made | {
        f"{pair}-{tuned_name(method, 4)}"
        for pair in params.tuning.pairs
        for method in params.tuning.candidates
    }


def unneeded_runs(models):
    """Models that no table and no claim needs."""
    return set(models) - set(named_models())


def test_the_runs_of_a_family_are_those_that_tables_and_claims_need():
    params = parse_params(scale_params("small"))
    models = models_of(params)
    assert unneeded_runs(models) == set()
    lacking = {model.split("-")[0] for model in lacking_runs(models)}
    assert lacking == FAMILIES - set(params.families)


def test_the_benchmarks_of_a_run_are_those_of_its_tables():
    params = parse_params(scale_params("small"))
    asked = {}
    for folder, names in params.evaluate.benchmarks.items():
        for job in jobs_of(params, folder):
            asked[job.pair, job.name] = {PRINTED[name] for name in names}
    for table in (*REPORTED.tables.values(), *REPORTED.own_tables.values()):
        for run in table.runs:
            if table.family in params.families:
                needed = {name for c in table.columns for name in tables_benchmarks(table, c)}
                assert needed <= asked[table.family, run], (table.short, run)


def tables_benchmarks(table, column):
    return table.averaged_benchmarks if column == "Avg" else [table.benchmark(column)]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("none")
    return {table.name: table.data for table in tables.build_tables(root, "small")}


def test_every_table_is_built_under_its_name(built):
    assert list(built) == REPORTED.short_names()
    assert set(built) == {
        *("table1", "table2", "table3", "table4", "table5", "retention", "qwen3vl"),
        *("controls", "bits", "groups", "gates", "nontarget", "qad", "stages", "controller"),
        *("regimes", "effects", "cost", "flips", "contrasts", "tuned", "deploy"),
    }


def test_every_reported_cell_stands_in_its_table_and_no_other_number_does(built):
    for table in REPORTED.tables.values():
        data = built[table.short]
        assert [column["name"] for column in data["columns"]] == list(table.columns)
        rows = {(row["run"], row["method"]): row for row in data["rows"] if not row["ours"]}
        assert len(rows) == len(table.rows)
        for row in table.rows:
            cells = rows[row.run, row.method]["cells"]
            assert {name: cell["reported"] for name, cell in cells.items()} == dict(row.values)
        ours = [row for row in data["rows"] if row["ours"]]
        assert {row["run"] for row in ours} == {row.run for row in table.controls}
        assert all(cell["reported"] is None for row in ours for cell in row["cells"].values())


def test_own_tables_repeat_what_the_paper_prints_for_the_same_model(built):
    printed = {
        row.run: row.values
        for table in ("table3", "table4")
        for row in REPORTED.table(table).rows
        if row.run is not None
    }
    for name in REPORTED.own_tables:
        for row in built[name]["rows"]:
            expected = printed.get(row["run"], dict.fromkeys(row["cells"]))
            found = {column: cell["reported"] for column, cell in row["cells"].items()}
            assert found == dict(expected), (name, row["run"])


def test_rows_have_the_bits_that_their_runs_names_say():
    for table in (*REPORTED.tables.values(), *REPORTED.own_tables.values()):
        for row in (*table.rows, *table.controls):
            if row.run in (None, "teacher", "baseline"):
                assert row.bits == 16
                continue
            ends = [part for part in row.run.split("_") if part[:3] == "int" or part == "bf16"]
            assert row.bits == (16 if ends == ["bf16"] else int(ends[0][3:])), row.run


def test_bit_widths_are_a_full_grid():
    runs = set(REPORTED.own_tables["bits"].runs) - {"teacher", "baseline"}
    assert runs == {
        f"{method}_int{bits}"
        for method in ("rtn", "awq", "qat", "kd", "grace")
        for bits in (2, 3, 4, 8)
    }


def test_every_named_run_is_of_a_known_family():
    for model, where in named_models().items():
        assert model.split("-", 1)[0] in FAMILIES, where


def test_every_claim_s_runs_stand_in_a_table():
    shown = {(family, run) for _, family, run in REPORTED.named_runs()}
    for part, family, run in LEDGER.named_runs(REPORTED):
        assert (family, run) in shown, part


def test_a_model_that_is_lacking_or_superfluous_is_named(tmp_path):
    models = set(named_models())
    assert lacking_runs(models) == {}
    assert unneeded_runs(models) == set()
    assert unneeded_runs({*models, "llava-tuned_int4"}) == {"llava-tuned_int4"}
    found = lacking_runs(models - {"llava-grace_int4"})
    assert list(found) == ["llava-grace_int4"]
    assert {"table2", "retention", "C01.difference", "C17.mmbench"} <= set(
        found["llava-grace_int4"]
    )
    write_results(tmp_path, {"baseline": 0.6}, seed=1, n=5, benchmarks=BENCHMARKS)
    assert "qwen2_vl-baseline" not in lacking_results(tmp_path, "small")
    assert len(lacking_results(tmp_path, "small")) == len(models) - 1
