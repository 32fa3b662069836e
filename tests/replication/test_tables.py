"""Tables: four forms of one content, nothing blank, stand-ins and controls marked."""

import csv
import io
import json
import re

import numpy as np
import pytest
from synthetic_results import BENCHMARKS, GOOD, write_results

from grace.errors import InputError
from replication import paper as reported
from replication.judge.claims import verify
from replication.report.tables import files as tables
from replication.report.tables.forms import tex_escape
from replication.results import scores as results
from replication.stats.verdict import Status

RUNS = {name: value for name, value in GOOD.items() if name != "kd_int8"}  # others are missing
SCORE = ("measured", "seed_spread")
DELTA = ("delta_measured", "delta_low", "delta_high")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    seeds = {"grace_int4": (0, 1, 2)}
    return write_results(tmp_path_factory.mktemp("tables"), RUNS, seed=1, n=200, seeds=seeds)


@pytest.fixture(scope="module")
def table(root):
    return tables.build_table("table4", root, "small")


def row_of(table, run):
    return next(row for row in table.data["rows"] if row["run"] == run)


def csv_lines(table):
    return list(csv.DictReader(io.StringIO(table.csv())))


def md_grids(text):
    """Each grid of a markdown text: its lines of cells, the head first."""
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.M)
    grids = [[line.strip("|").split("|") for line in block.splitlines()] for block in blocks]
    return [[[cell.strip() for cell in line] for line in (g[0], *g[2:])] for g in grids]


def tex_grids(text):
    """The rows of each tabular of a LaTeX text."""
    bodies = re.findall(r"\\midrule\n(.*?)\n\\bottomrule", text, re.S)
    return [[row.removesuffix(r" \\").split(" & ") for row in one.splitlines()] for one in bodies]


# --- numbers --------------------------------------------------------------------------------------


def test_measured_numbers_are_those_of_the_score_files(table, root):
    for run in RUNS:
        scores = results.read_scores(root, "small", "qwen2_vl", run)
        cells = row_of(table, run)["cells"]
        by_seed = [
            [entries[name]["score"] for name in BENCHMARKS] for entries in scores.seeds.values()
        ]
        for name, values in zip(BENCHMARKS, np.transpose(by_seed), strict=True):
            cell = cells[name]
            assert cell["measured"] == pytest.approx(np.mean(values))
            assert (cell["n"], cell["seeds"]) == (200, list(scores.seeds))
            spread = pytest.approx(np.std(values, ddof=1)) if len(values) > 1 else None
            assert cell["seed_spread"] == spread
        assert cells["Avg"]["measured"] == pytest.approx(np.mean(by_seed))
        assert cells["Avg"]["n"] == 600


def test_reported_numbers_are_the_papers(table):
    paper = reported.load_tables().table("table4")
    for row in paper.rows:
        for column, value in row.values.items():
            cell = row_of(table, row.run)["cells"][column]
            assert cell["reported"] == value
            difference = pytest.approx(value - paper.cell("baseline", column))
            assert cell["delta_reported"] == (None if row.role == "baseline" else difference)


def test_differences_are_run_minus_baseline_with_their_interval(table):
    base = row_of(table, "baseline")["cells"]
    for row in table.data["rows"]:
        for column, cell in row["cells"].items():
            if row["run"] == "baseline" or row["run"] not in RUNS:
                assert cell["delta_measured"] is None
                continue
            expected = cell["measured"] - base[column]["measured"]
            assert cell["delta_measured"] == pytest.approx(expected)
            assert cell["delta_low"] < cell["delta_measured"] < cell["delta_high"]
    assert row_of(table, "grace_int4")["cells"]["Avg"]["delta_low"] > 0


def test_the_smallest_resolvable_difference_stands_in_cells_and_under_the_table(table):
    known = [row["cells"]["Avg"]["resolvable"] for row in table.data["rows"]]
    known = [value for value in known if value is not None]
    assert len(known) == len(RUNS) - 1  # every run but the baseline
    cell = row_of(table, "qat_int4")["cells"]["Avg"]
    error = (cell["delta_high"] - cell["delta_low"]) / (2 * 1.96)
    assert cell["resolvable"] == pytest.approx((1.96 + 0.842) * error, rel=0.05)
    text = f"Avg {min(known):.1f} to {max(known):.1f}"
    assert any(text in note for note in table.data["footnotes"])


def test_retention_is_percent_of_the_baseline(tmp_path):
    names = ("MMBench", "GQA", "POPE", "ScienceQA")
    pair = {"baseline": 0.6, "grace_int4": 0.66}
    write_results(tmp_path, pair, seed=2, n=400, family="llava", benchmarks=names)
    built = tables.build_table("retention", tmp_path, "small")
    cells = row_of(built, "grace_int4")["cells"]
    runs = [results.read_scores(tmp_path, "small", "llava", r) for r in ("grace_int4", "baseline")]
    ratio = runs[0].score("MMBench") / runs[1].score("MMBench")
    assert cells["MMB"]["measured"] == pytest.approx(100 * ratio)
    assert cells["MMB"]["reported"] == 101.1
    assert cells["MMB"]["delta_measured"] is None
    assert cells["MME"]["measured"] is None
    cell = cells["GQA"]
    assert 90 < cell["measured_low"] < cell["measured"] < cell["measured_high"] < 130
    text = "{measured:.1f} [{measured_low:.1f}, {measured_high:.1f}]".format(**cell)
    assert text in built.markdown()


def test_nothing_is_retained_of_a_baseline_that_scores_zero(tmp_path):
    accuracies = {"baseline": 0.0, "grace_int4": 0.5}
    root = write_results(tmp_path, accuracies, seed=3, n=40, family="llava")
    (row,) = tables.build_table("retention", root, "small").data["rows"]
    assert row["cells"]["MMB"]["measured"] is None
    (claim,) = verify(root, "small", only=["C17"])
    (part,) = [part for part in claim.parts if part.part.id == "C17.mmbench"]
    assert part.status is Status.INCONCLUSIVE


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
    built = tables.build_table("table1", root, "small")
    cells = row_of(built, "grace_bf16")["cells"]
    assert (cells["MME"]["measured"], cells["MME"]["delta_measured"]) == (1450.5, 50.5)
    assert cells["MME"]["delta_low"] is cells["MME"]["resolvable"] is None
    averaged = ("VQAv2", "GQA", "TextVQA", "VizWiz", "POPE", "SQA", "MMB")
    mean = np.mean([cells[name]["measured"] for name in averaged])
    assert cells["Avg"]["measured"] == pytest.approx(mean)
    units = {column["name"]: column["unit"] for column in built.data["columns"]}
    assert {name for name, unit in units.items() if unit != "%"} == {"MME"}
    assert "MME: points" in built.markdown()


# --- forms ----------------------------------------------------------------------------------------


def numbers(text):
    plain = text.replace("−", "-").replace("$-$", "-")
    return [float(one) for one in re.findall(r"[-+]?\d+\.\d+", plain)]


def rounded(cell, keys):
    values = [cell[key] for key in keys if cell[key] is not None]
    return [pytest.approx(value, abs=0.0500001) for value in values]


@pytest.mark.parametrize("form", ["markdown", "tex"])
def test_grids_hold_the_numbers_of_the_json_cell_by_cell(table, form):
    data = json.loads(table.json())
    grids = tex_grids(table.tex())
    if form == "markdown":
        grids = [grid[1:] for grid in md_grids(table.markdown())]
    others = [row for row in data["rows"] if row["role"] != "baseline"]
    scores, deltas = grids
    for grid, rows, keys in ((scores, data["rows"], SCORE), (deltas, others, DELTA)):
        for line, row in zip(grid, rows, strict=True):
            assert all(line)
            for index, column in enumerate(data["columns"]):
                cell, (left, right) = row["cells"][column["name"]], line[2 + 2 * index :][:2]
                assert numbers(left) == rounded(cell, [keys[0].replace("measured", "reported")])
                assert numbers(right) == rounded(cell, keys)


def test_csv_agrees_with_the_json_cell_by_cell(table):
    data = json.loads(table.json())
    pairs = [(row, column) for row in data["rows"] for column in data["columns"]]
    for line, (row, column) in zip(csv_lines(table), pairs, strict=True):
        cell = row["cells"][column["name"]]
        assert (line["run"], line["column"]) == (row["run"], column["name"])
        assert all(line.values())
        for key in ("reported", "delta_reported", "n", *SCORE, *DELTA):
            if cell[key] is None:
                assert line[key] in ("not run", "not reported", "none")
            else:
                assert float(line[key]) == cell[key]


def test_tex_is_well_formed(table):
    text = table.tex()
    for name in ("table", "tabular", "minipage"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") > 0
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count(rf"\{rule}") == 2
    assert text.count("{") == text.count("}")
    assert text.isascii()
    for columns, body in re.findall(
        r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.S
    ):
        for line in body.splitlines():
            if line.endswith(r"\\"):
                spans = [int(one) for one in re.findall(r"\\multicolumn\{(\d)\}", line)]
                assert line.count(" & ") + 1 + sum(spans) - len(spans) == len(columns)


def test_tex_escapes_what_latex_would_read():
    assert tex_escape("a_b & 5 % #1 {x} ~^\\ $") == (
        r"a\_b \& 5 \% \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} \$"
    )


def test_write_makes_four_files_that_do_not_change(table, root, tmp_path):
    names = ["table4.csv", "table4.json", "table4.md", "table4.tex"]
    first = tables.write(table, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    before = [path.read_bytes() for path in first]
    again = tables.build_table("table4_quant_ablation_qwen2vl", root, "small")  # its long name
    assert [path.read_bytes() for path in tables.write(again, tmp_path)] == before


def test_wrong_names_are_refused(root):
    with pytest.raises(InputError, match="table4"):
        tables.build_table("tabel4", root, "small")
    with pytest.raises(InputError, match="tiny"):
        tables.build_table("table4", root, "tiny")


# --- marks ----------------------------------------------------------------------------------------


def test_a_run_that_is_missing_is_not_run_everywhere(table):
    row = row_of(table, "kd_int8")
    assert row["evidence"] == "not run"
    assert all(cell["measured"] is None for cell in row["cells"].values())
    scores, deltas = md_grids(table.markdown())
    name = ["INT8", "QAT+NaiveKD"]
    reported_scores = ["73.8", "73.2", "76.3", "74.4"]
    pairs = [text for score in reported_scores for text in (score, "not run")]
    assert [*name, *pairs, "not run"] in scores
    (line,) = [line for line in deltas if line[:2] == name]
    assert line[3::2] == ["not run"] * 4
    assert r"INT8 & QAT+NaiveKD & 73.8 & not run" in table.tex()
    for one in csv_lines(table):
        if one["run"] == "kd_int8":
            assert one["measured"] == one["n"] == one["delta_measured"] == "not run"


@pytest.mark.slow
def test_no_results_at_all_still_make_a_table(tmp_path):
    for name in reported.load_tables().tables:
        empty = tables.build_table(name, tmp_path, "small")
        assert all(row["evidence"] in ("not run", "reported") for row in empty.data["rows"])
        assert len(tables.write(empty, tmp_path / "out")) == 4
        assert "*" not in empty.data["footnotes"][0]


def test_standins_are_marked_everywhere(table, tmp_path):
    assert all("MMBench*" in text for text in (table.markdown(), table.tex()))
    for head, *_ in md_grids(table.markdown()):
        assert all(("*" in cell) == ("measured" in cell) for cell in head)
    assert {one["standin"] for one in csv_lines(table)} == {"true"}
    pair = {name: GOOD[name] for name in ("baseline", "grace_int4")}
    write_results(tmp_path, pair, seed=1, n=50, scale="paper", standin=False)
    real = tables.build_table("table4", tmp_path, "paper").markdown()
    assert "*" not in real and "stand-in" not in real


def test_our_controls_are_marked(table):
    for run in ("sft_bf16", "grace_bf16"):
        row = row_of(table, run)
        assert (row["role"], row["ours"]) == ("control", True)
        assert all(cell["reported"] is None for cell in row["cells"].values())
    assert "SFT †" in table.markdown()


def test_quoted_and_recorded_rows_say_so(tmp_path):
    quoted = tables.build_table("table1", tmp_path, "small").markdown()
    line = next(line for line in quoted.splitlines() if "HAWAII" in line)
    assert "reported, not rerun" in line
    pair = {name: GOOD[name] for name in ("baseline", "grace_int4")}
    write_results(tmp_path, pair, seed=1, n=50)
    path = results.scores_path(tmp_path, "small", "qwen2_vl", "grace_int4")
    record = json.loads(path.read_text())
    results.write_scores(tmp_path, {**record, "evidence": "recorded"})
    built = tables.build_table("table4", tmp_path, "small")
    assert row_of(built, "grace_int4")["evidence"] == "recorded"
    assert row_of(built, "baseline")["evidence"] == "measured"
    assert "recorded, 1 seed" in built.markdown()


@pytest.mark.slow
def test_rows_of_our_own_may_be_teacher_and_baseline(root):
    built = tables.build_table("table5", root, "small")
    assert [(row["run"], row["ours"]) for row in built.data["rows"]] == [
        *(("teacher", True), ("baseline", True)),
        *(("grace_bf16", False), ("grace_launcher_bf16", True)),
        *(("grace_int8", True), ("grace_launcher_int8", True)),
        *(("grace_int4", True), ("grace_launcher_int4", True)),
    ]
    cells = row_of(built, "grace_int4")["cells"]
    assert cells["MMB"]["delta_low"] < cells["MMB"]["delta_measured"] < cells["MMB"]["delta_high"]
    assert cells["MMStar"]["measured"] is None


def test_a_table_of_our_own_marks_no_row(root):
    built = tables.build_table("controls", root, "small")
    assert not any(row["ours"] for row in built.data["rows"])
    assert "†" not in built.markdown()
    assert row_of(built, "qat_int4")["cells"]["Avg"]["reported"] == 71.3
    assert row_of(built, "shuffled_int4")["cells"]["Avg"]["reported"] is None


@pytest.mark.slow
def test_a_pair_is_drawn_once_for_all_tables(root):
    alone = {name: tables.build_table(name, root, "small") for name in ("table4", "controls")}
    together = {table.name: table.json() for table in tables.build_tables(root, "small")}
    for name, table in alone.items():
        assert together[name] == table.json()
    lows = {row_of(one, "qat_int4")["cells"]["MMBench"]["delta_low"] for one in alone.values()}
    assert len(lows) == 1
