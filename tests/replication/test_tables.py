"""Tables: four forms of one content, nothing blank, stand-ins and controls marked."""

import csv
import io
import json
import re

import pytest
from synthetic_results import BENCHMARKS, GOOD, write_results

from grace.errors import InputError
from replication import paper as reported
from replication.judge.claims import verify
from replication.report.tables import files as tables
from replication.report.tables.forms import tex_escape
from replication.results import scores as results
from replication.stats.verdict import Status

RUNS = {name: value for name, value in GOOD.items() if name != "kd_int8"}  # one run is missing


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    seeds = {"grace_int4": (0, 1, 2)}
    return write_results(tmp_path_factory.mktemp("tables"), RUNS, seed=1, n=200, seeds=seeds)


@pytest.fixture(scope="module")
def table(root):
    return tables.build_table("table4", root, "small")


def row_of(table, run):
    return next(row for row in table.data["rows"] if row["run"] == run)


def md_rows(text):
    """Each grid of a markdown text: (head, rows)."""
    grids, current = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            current.append([cell.strip() for cell in line.strip("|").split("|")])
        elif current:
            grids.append((current[0], current[2:]))
            current = []
    return grids


def test_names_are_interchangeable(table, root):
    other = tables.build_table("table4_quant_ablation_qwen2vl", root, "small")
    assert other.json() == table.json()
    assert table.name == "table4"


def test_measured_numbers_are_those_of_the_score_files(table, root):
    for run in RUNS:
        scores = results.read_scores(root, "small", "qwen2_vl", run)
        cells = row_of(table, run)["cells"]
        for name in BENCHMARKS:
            assert cells[name]["measured"] == pytest.approx(scores.score(name))
            assert cells[name]["n"] == 200
            assert cells[name]["seeds"] == list(scores.seeds)
            assert cells[name]["evidence"] == "measured"
        mean = sum(scores.score(name) for name in BENCHMARKS) / 3
        assert cells["Avg"]["measured"] == pytest.approx(mean)
        assert cells["Avg"]["n"] == 600


def test_reported_numbers_are_the_papers(table):
    paper = reported.load_tables().table("table4")
    for row in paper.rows:
        cells = row_of(table, row.run)["cells"]
        for column, value in row.values.items():
            assert cells[column]["reported"] == value
            if row.role == "baseline":
                assert cells[column]["delta_reported"] is None
            else:
                base = paper.cell("baseline", column)
                assert cells[column]["delta_reported"] == pytest.approx(value - base)


def test_differences_are_run_minus_baseline_with_their_interval(table):
    base = row_of(table, "baseline")["cells"]
    for row in table.data["rows"]:
        for column, cell in row["cells"].items():
            if row["run"] in ("baseline", "kd_int8"):
                assert cell["delta_measured"] is None
                continue
            expected = cell["measured"] - base[column]["measured"]
            assert cell["delta_measured"] == pytest.approx(expected)
            assert cell["delta_low"] < cell["delta_measured"] < cell["delta_high"]
    assert row_of(table, "grace_int4")["cells"]["Avg"]["delta_low"] > 0


def test_a_run_that_is_missing_is_not_run_everywhere(table):
    row = row_of(table, "kd_int8")
    assert row["evidence"] == "not run"
    assert all(cell["measured"] is None for cell in row["cells"].values())
    (_, scores), (_, deltas) = md_rows(table.markdown())
    line = next(one for one in scores if one[:2] == ["INT8", "QAT+NaiveKD"])
    assert line == ["INT8", "QAT+NaiveKD", "73.8", "not run", "73.2", "not run", "76.3", "not run",
                    "74.4", "not run", "not run"]  # fmt: skip
    line = next(one for one in deltas if one[:2] == ["INT8", "QAT+NaiveKD"])
    assert line[3::2] == ["not run"] * 4
    assert r"INT8 & QAT+NaiveKD & 73.8 & not run" in table.tex()
    for one in csv.DictReader(io.StringIO(table.csv())):
        if one["run"] == "kd_int8":
            assert one["measured"] == one["n"] == one["delta_measured"] == "not run"


@pytest.mark.slow
def test_no_results_at_all_still_make_a_table(tmp_path):
    for name in reported.load_tables().tables:
        empty = tables.build_table(name, tmp_path, "small")
        assert all(row["evidence"] in ("not run", "reported") for row in empty.data["rows"])
        assert len(tables.write(empty, tmp_path / "out")) == 4
        assert "*" not in empty.data["footnotes"][0]


def test_no_field_is_blank(table):
    for one in csv.DictReader(io.StringIO(table.csv())):
        assert all(value not in ("", None) for value in one.values())
    for _, rows in md_rows(table.markdown()):
        assert all(cell for row in rows for cell in row)


def test_standins_are_marked_everywhere(table):
    assert all(column["standin"] for column in table.data["columns"])
    for text in (table.markdown(), table.tex()):
        assert "MMBench*" in text
        assert "not the benchmark itself" in text
    (head, _), (delta_head, _) = md_rows(table.markdown())
    assert all(("*" in cell) == ("measured" in cell) for cell in head[2:-1] + delta_head[2:])
    assert {one["standin"] for one in csv.DictReader(io.StringIO(table.csv()))} == {"true"}


def test_real_benchmarks_are_not_marked(tmp_path):
    pair = {name: GOOD[name] for name in ("baseline", "grace_int4")}
    write_results(tmp_path, pair, seed=1, n=50, scale="paper", standin=False)
    real = tables.build_table("table4", tmp_path, "paper")
    assert "*" not in real.markdown()
    assert "stand-in" not in real.markdown()


def test_our_controls_are_marked(table):
    for run in ("sft_bf16", "grace_bf16"):
        row = row_of(table, run)
        assert row["role"] == "control"
        assert row["note"].startswith("ours, not in the paper")
        assert all(cell["reported"] is None for cell in row["cells"].values())
    text = table.markdown()
    assert "SFT †" in text
    assert "not in the paper" in text


def test_quoted_rows_are_reported_and_not_rerun(tmp_path):
    text = tables.build_table("table1", tmp_path, "small").markdown()
    line = next(line for line in text.splitlines() if "HAWAII" in line)
    assert "reported, not rerun" in line
    assert "not run" in line


def test_recorded_results_say_so(tmp_path):
    pair = {name: GOOD[name] for name in ("baseline", "grace_int4")}
    write_results(tmp_path, pair, seed=1, n=50)
    path = results.scores_path(tmp_path, "small", "qwen2_vl", "grace_int4")
    record = json.loads(path.read_text())
    results.write_scores(tmp_path, {**record, "evidence": "recorded"})
    found = tables.build_table("table4", tmp_path, "small")
    assert row_of(found, "grace_int4")["evidence"] == "recorded"
    assert row_of(found, "baseline")["evidence"] == "measured"
    assert "recorded, 1 seed" in found.markdown()


def plain(text):
    return text.replace("−", "-").replace("$-$", "-").replace(r"$\pm$", "±")


def numbers(text):
    return [float(one) for one in re.findall(r"[-+]?\d+\.\d+", plain(text))]


def test_markdown_agrees_with_the_json_cell_by_cell(table):
    data = json.loads(table.json())
    (_, scores), (_, deltas) = md_rows(table.markdown())
    assert len(scores) == len(data["rows"])
    others = [row for row in data["rows"] if row["role"] != "baseline"]
    assert len(deltas) == len(others)
    check_scores(data["rows"], data["columns"], [line[2:-1] for line in scores])
    check_deltas(others, data["columns"], [line[2:] for line in deltas])


def test_tex_agrees_with_the_json_cell_by_cell(table):
    data = json.loads(table.json())
    grids = re.findall(r"\\midrule\n(.*?)\n\\bottomrule", table.tex(), re.S)
    assert len(grids) == 2
    parsed = [
        [line.removesuffix(r" \\").split(" & ")[2:] for line in grid.splitlines()] for grid in grids
    ]
    check_scores(data["rows"], data["columns"], parsed[0])
    others = [row for row in data["rows"] if row["role"] != "baseline"]
    check_deltas(others, data["columns"], parsed[1])


def rounded(*values):
    return [pytest.approx(value, abs=0.0500001) for value in values if value is not None]


def check_scores(rows, columns, lines):
    for row, line in zip(rows, lines, strict=True):
        for index, column in enumerate(columns):
            cell = row["cells"][column["name"]]
            assert numbers(line[2 * index]) == rounded(cell["reported"])
            assert numbers(line[2 * index + 1]) == rounded(cell["measured"], cell["seed_spread"])


def check_deltas(rows, columns, lines):
    for row, line in zip(rows, lines, strict=True):
        for index, column in enumerate(columns):
            cell = row["cells"][column["name"]]
            assert numbers(line[2 * index]) == rounded(cell["delta_reported"])
            measured = (cell["delta_measured"], cell["delta_low"], cell["delta_high"])
            assert numbers(line[2 * index + 1]) == rounded(*measured)


def test_csv_agrees_with_the_json_cell_by_cell(table):
    data = json.loads(table.json())
    lines = list(csv.DictReader(io.StringIO(table.csv())))
    assert len(lines) == len(data["rows"]) * len(data["columns"])
    pairs = [(row, column) for row in data["rows"] for column in data["columns"]]
    for one, (row, column) in zip(lines, pairs, strict=True):
        cell = row["cells"][column["name"]]
        assert (one["run"], one["column"]) == (row["run"], column["name"])
        for field in ("reported", "measured", "seed_spread", "delta_reported", "delta_measured",
                      "delta_low", "delta_high", "n"):  # fmt: skip
            if cell[field] is None:
                assert one[field] in ("not run", "not reported", "none")
            else:
                assert float(one[field]) == cell[field]


def test_tex_is_well_formed(table):
    text = table.tex()
    for name in ("table", "tabular", "minipage"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") > 0
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count(rf"\{rule}") == 2
    assert text.count("{") == text.count("}")
    assert text.isascii()
    for grid in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.S):
        for line in grid[1].splitlines():
            if line.endswith(r"\\"):
                spans = [int(one) for one in re.findall(r"\\multicolumn\{(\d)\}", line)]
                assert line.count(" & ") + 1 + sum(spans) - len(spans) == len(grid[0])


def test_tex_escapes_what_latex_would_read():
    assert tex_escape("a_b & 5 % #1 {x} ~^\\ $") == (
        r"a\_b \& 5 \% \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} \$"
    )


def test_retention_is_percent_of_the_baseline(tmp_path):
    write_results(
        tmp_path, {"baseline": 0.6, "grace_int4": 0.66}, seed=2, n=400, family="llava",
        benchmarks=("MMBench", "GQA", "POPE", "ScienceQA"),
    )  # fmt: skip
    found = tables.build_table("retention", tmp_path, "small")
    cell = row_of(found, "grace_int4")["cells"]["MMB"]
    runs = [results.read_scores(tmp_path, "small", "llava", r) for r in ("grace_int4", "baseline")]
    ratio = runs[0].score("MMBench") / runs[1].score("MMBench")
    assert cell["measured"] == pytest.approx(100 * ratio)
    assert cell["reported"] == 101.1
    assert row_of(found, "grace_int4")["cells"]["MME"]["measured"] is None
    assert cell["delta_measured"] is None


def test_write_makes_four_files_that_do_not_change(table, tmp_path):
    first = tables.write(table, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "table4.csv",
        "table4.json",
        "table4.md",
        "table4.tex",
    ]
    before = [path.read_bytes() for path in first]
    assert [path.read_bytes() for path in tables.write(table, tmp_path)] == before


def test_wrong_names_are_refused(root):
    with pytest.raises(InputError, match="did you mean 'table4'"):
        tables.build_table("tabel4", root, "small")
    with pytest.raises(InputError, match="is unknown"):
        tables.build_table("table4", root, "tiny")


# --- power, units, tables of our own


def test_the_smallest_resolvable_difference_stands_in_cells_and_under_the_table(table):
    found = [row["cells"]["Avg"]["resolvable"] for row in table.data["rows"]]
    known = [value for value in found if value is not None]
    assert len(known) == len(RUNS) - 1  # every run but the baseline
    cell = row_of(table, "qat_int4")["cells"]["Avg"]
    error = (cell["delta_high"] - cell["delta_low"]) / (2 * 1.96)
    assert cell["resolvable"] == pytest.approx((1.96 + 0.842) * error, rel=0.05)
    (note,) = [note for note in table.data["footnotes"] if note.startswith("Smallest")]
    assert f"Avg {min(known):.1f} to {max(known):.1f}" in note
    assert "power 0.8" in note


def test_points_are_no_percent_and_enter_no_average(tmp_path):
    names = ("VQAv2", "GQA", "TextVQA", "VizWiz", "POPE", "ScienceQA", "MMBench")
    root = write_results(
        tmp_path, {"baseline": 0.5, "grace_bf16": 0.7}, seed=3, n=60, family="llava",
        benchmarks=(*names, "MME"),
    )  # fmt: skip
    for run, points in (("baseline", 1400.0), ("grace_bf16", 1450.5)):
        path = results.scores_path(root, "small", "llava", run)
        record = json.loads(path.read_text())
        for entry in record["seeds"].values():
            mme = entry["benchmarks"]["MME"]
            mme |= {"accuracy": mme["score"], "score": points, "chance": 1000.0}
        results.write_scores(root, record)
    found = tables.build_table("table1", root, "small")
    row = row_of(found, "grace_bf16")
    cell = row["cells"]["MME"]
    assert (cell["measured"], cell["delta_measured"]) == (1450.5, 50.5)
    assert cell["delta_low"] is None
    assert cell["resolvable"] is None
    mean = sum(row["cells"][name]["measured"] for name in
               ("VQAv2", "GQA", "TextVQA", "VizWiz", "POPE", "SQA", "MMB")) / 7  # fmt: skip
    assert row["cells"]["Avg"]["measured"] == pytest.approx(mean)
    units = {column["name"]: column["unit"] for column in found.data["columns"]}
    assert units["MME"] == "points"
    assert {unit for name, unit in units.items() if name != "MME"} == {"%"}
    assert "MME: points (of 2,000)" in found.markdown()


@pytest.mark.slow
def test_rows_of_our_own_may_be_teacher_and_baseline(root):
    found = tables.build_table("table5", root, "small")
    assert [row["run"] for row in found.data["rows"]] == [
        *("teacher", "baseline", "grace_bf16", "grace_int8", "grace_int4")
    ]
    assert [row["ours"] for row in found.data["rows"]] == [True, True, False, True, True]
    cell = row_of(found, "grace_int4")["cells"]["MMB"]
    assert cell["delta_low"] < cell["delta_measured"] < cell["delta_high"]
    assert row_of(found, "grace_int4")["cells"]["MMStar"]["measured"] is None


def test_a_table_of_our_own_says_so_and_marks_no_row(root):
    found = tables.build_table("controls", root, "small")
    assert not any(row["ours"] for row in found.data["rows"])
    assert "†" not in found.markdown()
    assert "A table of our own" in found.markdown()
    assert row_of(found, "qat_int4")["cells"]["Avg"]["reported"] == 71.3
    assert row_of(found, "shuffled_int4")["cells"]["Avg"]["reported"] is None


@pytest.mark.slow
def test_a_pair_is_drawn_once_for_all_tables(root):
    alone = {
        name: tables.build_table(name, root, "small").json() for name in ("table4", "controls")
    }
    together = {table.name: table.json() for table in tables.build_tables(root, "small")}
    assert {name: together[name] for name in alone} == alone
    cells = [
        row_of(tables.build_table(name, root, "small"), "qat_int4")["cells"]["MMBench"]
        for name in ("table4", "controls")
    ]
    assert cells[0]["delta_low"] == cells[1]["delta_low"]


def test_nothing_is_retained_of_a_baseline_that_scores_zero(tmp_path):
    accuracies = {"baseline": 0.0, "grace_int4": 0.5}
    root = write_results(tmp_path, accuracies, seed=3, n=40, family="llava")
    (row,) = tables.build_table("retention", root, "small").data["rows"]
    assert row["cells"]["MMB"]["measured"] is None
    (claim,) = verify(root, "small", only=["C17"])
    (part,) = [part for part in claim.parts if part.part.id == "C17.mmbench"]
    assert part.status is Status.INCONCLUSIVE
    assert "scores zero" in part.note
