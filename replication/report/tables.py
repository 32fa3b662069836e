"""The paper's tables with what was measured beside what was reported.

    table = build_table("table4", "results", "small")
    write(table, "results/small/tables")      # table4.json, table4.md, table4.csv, table4.tex

The JSON is the source: the other three are made from it and hold the same numbers.

JSON: {"id", "short", "title", "source", "scale", "family", "quantity", "columns", "rows",
"footnotes", ...}. A row has one cell per column:

    reported, measured                  numbers, or null: nothing is reported / not run
    evidence                            "measured", "recorded" or "not run"
    delta_reported, delta_measured      row − baseline (null for the baseline itself, and where
                                        either number is missing)
    delta_low, delta_high               the measured difference's 95 % interval: paired bootstrap
                                        over questions, and over seeds where there are several
    seed_spread                         standard deviation over seeds (null for one seed)
    n, seeds                            questions and seeds behind `measured`

CSV: tidy, one line per row and column, the same fields; a number that is missing says "not run" or
"not reported", and a difference that has no meaning "none". No field is ever empty.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from replication import compare
from replication.io import json_text, write_text_atomic
from replication.reported import (
    AVERAGE,
    ControlRow,
    ReportedRow,
    ReportedTable,
    load_ledger,
    load_tables,
)
from replication.results import FULL_SCALE, NOT_IN_AVERAGE, ResultSet, RunScores, check_scale
from replication.verify import generator

NOT_RUN = "not run"
NOT_REPORTED = "not reported"
NONE = "none"
OURS = "ours, not in the paper"
QUOTED = "reported"

_STANDIN_NOTE = (
    "stand-in benchmark written in the official schema, scored by the official scorer; not the "
    "benchmark itself"
)
_REDUCED_NOTE = (
    "Measured at scale {scale}: small models of the same classes, trained from scratch, named "
    "after the models they stand for. The measured level says nothing about the reported level; "
    "compare signs and order of the differences."
)
_DELTA_NOTE = (
    "Δ is the difference from the row of role baseline, in the column's unit. Measured Δ with its "
    "95 % interval: paired bootstrap over questions, stratified by benchmark, and over seeds where "
    "there are several."
)
_AVERAGE_NOTE = "Avg is the mean of {columns}."
_SPREAD_NOTE = "± is the standard deviation over seeds."
_OURS_NOTE = "Rows marked † are controls of our own; they are not in the paper."


@dataclass(frozen=True)
class Table:
    """A finished table: `data` is the content of its JSON file."""

    data: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The file name without suffix."""
        return str(self.data["short"])

    def json(self) -> str:
        return json_text(dict(self.data), self.name)

    def markdown(self) -> str:
        return _markdown(self.data)

    def csv(self) -> str:
        return _csv(self.data)

    def tex(self) -> str:
        return _tex(self.data)


def write(table: Table, folder: str | Path) -> list[Path]:
    """Write <folder>/<short name>.{json,md,csv,tex}; returns the four paths.

    Each file is written whole or not at all, and none before all four could be made.
    """
    texts = {
        "json": table.json(),
        "md": table.markdown(),
        "csv": table.csv(),
        "tex": table.tex(),
    }
    folder = Path(folder)
    return [
        write_text_atomic(folder / f"{table.name}.{suffix}", text) for suffix, text in texts.items()
    ]


# --- building -------------------------------------------------------------------------------------


def _benchmarks(table: ReportedTable, column: str) -> list[str]:
    return table.averaged_benchmarks if column == AVERAGE else [table.benchmark(column)]


class _Measurements:
    """The measured numbers of one table."""

    def __init__(self, table: ReportedTable, results: ResultSet) -> None:
        self.table, self.results = table, results
        ledger = load_ledger()
        self.seed, self.resamples, self.level = ledger.seed, ledger.resamples, ledger.level
        baselines = [row.run for row in table.rows if row.role == "baseline" and row.run]
        self.baseline = baselines[0] if baselines else None

    def scores(self, run: str | None, column: str) -> RunScores | None:
        """The run's scores if it was measured on everything the column needs."""
        if run is None:
            return None
        scores = self.results.scores(self.table.family, run)
        if scores is None or not set(_benchmarks(self.table, column)) <= set(scores.benchmarks):
            return None
        return scores

    def value(self, run: str | None, column: str) -> dict[str, Any]:
        """measured, seed_spread, n, seeds, evidence of a cell."""
        scores = self.scores(run, column)
        if scores is None:
            missing = dict.fromkeys(("measured", "seed_spread", "n"))
            return {**missing, "seeds": [], "evidence": NOT_RUN}
        names = _benchmarks(self.table, column)
        by_seed = [
            float(np.mean([entries[name]["score"] for name in names]))
            for entries in scores.seeds.values()
        ]
        return {
            "measured": float(np.mean(by_seed)),
            "seed_spread": float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None,
            "n": sum(scores.questions(name) for name in names),
            "seeds": list(scores.seeds),
            "evidence": scores.evidence,
        }

    def delta(self, run: str | None, column: str) -> dict[str, float | None]:
        """The measured difference from the baseline, with its paired interval."""
        empty = dict.fromkeys(("delta_measured", "delta_low", "delta_high"))
        if self.baseline is None or run == self.baseline:
            return empty
        first, second = self.scores(run, column), self.scores(self.baseline, column)
        if first is None or second is None:
            return empty
        names = _benchmarks(self.table, column)
        if set(names) & NOT_IN_AVERAGE:  # no mean of right answers: no paired interval
            difference = float(np.mean([first.score(n) - second.score(n) for n in names]))
            return {**empty, "delta_measured": difference}
        assert run is not None
        answers = self.results.answers(self.table.family, [run, self.baseline], names)
        assert answers is not None
        interval = compare.difference_interval(
            answers[0],
            answers[1],
            names,
            generator(self.seed, f"{self.table.short}:{run}:{column}"),
            resamples=self.resamples,
            level=self.level,
        )
        return {
            "delta_measured": interval.point,
            "delta_low": interval.low,
            "delta_high": interval.high,
        }

    def retention(self, run: str | None, column: str) -> dict[str, Any]:
        """A retention cell: percent of the baseline, with its interval in delta's place."""
        cell = self.value(run, column)
        cell |= dict.fromkeys(("delta_measured", "delta_low", "delta_high", "seed_spread"))
        first, second = self.scores(run, column), self.scores("baseline", column)
        if first is None or second is None:
            return {**cell, "measured": None, "n": None, "seeds": [], "evidence": NOT_RUN}
        name = self.table.benchmark(column)
        return {**cell, "measured": 100.0 * first.score(name) / second.score(name)}


def _difference(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value - base


def build_table(table_id: str, results_dir: str | Path, scale: str) -> Table:
    """One of the paper's tables with everything measured at `scale`.

    table_id: the id or short name ("table4"). results_dir: the folder that holds
    <scale>/scores and <scale>/outcomes; runs that are missing there are "not run".

    Raises InputError for an unknown table or scale, or result files that are wrong in themselves.
    """
    table = load_tables().table(table_id)
    results = ResultSet(results_dir, check_scale(scale))
    measured = _Measurements(table, results)
    baseline = next((row for row in table.rows if row.role == "baseline"), None)
    rows: list[dict[str, Any]] = []

    def add(
        row: ReportedRow | ControlRow, role: str, reported: Mapping[str, float | None], note: str
    ) -> None:
        run = row.run
        cells: dict[str, Any] = {}
        for column in table.columns:
            base = baseline.values[column] if baseline and run != baseline.run else None
            if table.quantity == "retention":
                found = measured.retention(run, column)
            else:
                found = {**measured.value(run, column), **measured.delta(run, column)}
            cells[column] = {
                "reported": reported.get(column),
                "delta_reported": _difference(reported.get(column), base),
                **found,
            }
        kinds = {cell["evidence"] for cell in cells.values()} - {NOT_RUN}
        evidence = sorted(kinds)[0] if kinds else (QUOTED if run is None else NOT_RUN)
        seeds = sorted({seed for cell in cells.values() for seed in cell["seeds"]})
        rows.append(
            {
                "method": row.method,
                "bits": row.bits,
                "role": role,
                "run": run,
                "evidence": evidence,
                "seeds": seeds,
                "note": note,
                "cells": cells,
            }
        )

    for row in table.rows:
        note = "quoted, not rerun" if row.run is None else ""
        add(row, row.role, row.values, note)
    for control in table.controls:
        add(control, "control", {}, f"{OURS}: {control.note}")
    order = {"teacher": 0, "baseline": 1}
    rows.sort(key=lambda one: (order.get(one["role"], 2), -one["bits"]))  # stable

    runs = [row["run"] for row in rows if row["run"]]
    found = [results.scores(table.family, run) for run in runs]
    standin = any(scores.standin for scores in found if scores is not None)
    sizes: dict[str, int | None] = {
        column: next((r["cells"][column]["n"] for r in rows if r["cells"][column]["n"]), None)
        for column in table.columns
    }
    return Table(
        {
            "id": table.id,
            "short": table.short,
            "title": table.title,
            "source": table.source,
            "family": table.family,
            "scale": scale,
            "quantity": table.quantity,
            "interval_level": measured.level,
            "columns": [
                {
                    "name": column,
                    "benchmarks": _benchmarks(table, column),
                    "standin": standin,
                    "n": sizes[column],
                }
                for column in table.columns
            ],
            "rows": rows,
            "footnotes": _footnotes(
                table,
                scale,
                standin,
                any(found),
                any(cell["seed_spread"] is not None for r in rows for cell in r["cells"].values()),
            ),
        }
    )


def _footnotes(
    table: ReportedTable, scale: str, standin: bool, measured: bool, spread: bool
) -> list[str]:
    notes = []
    if standin:
        notes.append(f"* {_STANDIN_NOTE}.")
    if measured and scale != FULL_SCALE:
        notes.append(_REDUCED_NOTE.format(scale=scale))
    if table.quantity == "score" and any(row.role == "baseline" for row in table.rows):
        notes.append(_DELTA_NOTE)
    if spread:
        notes.append(_SPREAD_NOTE)
    if AVERAGE in table.columns:
        notes.append(_AVERAGE_NOTE.format(columns=", ".join(table.averaged)))
    if table.controls:
        notes.append(_OURS_NOTE)
        notes += [f"† {one.method}, {one.bits} bits: {one.note}." for one in table.controls]
    notes.append(f"Reported values: arXiv 2601.22709, {table.source}.")
    return notes


# --- writing --------------------------------------------------------------------------------------


def _number(value: float | None, missing: str) -> str:
    return missing if value is None else f"{value:.1f}"


def signed(value: float) -> str:
    """A difference to one decimal, with its sign (a true minus), and no negative zero."""
    text = f"{value:+.1f}"
    return "+0.0" if text == "-0.0" else text.replace("-", "−")


def _is_ours(row: Mapping[str, Any]) -> bool:
    return bool(row["role"] == "control")


def _reported_text(row: Mapping[str, Any], cell: Mapping[str, Any]) -> str:
    return _number(cell["reported"], NONE if _is_ours(row) else NOT_REPORTED)


def _measured_text(cell: Mapping[str, Any]) -> str:
    text = _number(cell["measured"], NOT_RUN)
    return text if cell["seed_spread"] is None else f"{text} ± {cell['seed_spread']:.1f}"


def _delta_reported_text(row: Mapping[str, Any], cell: Mapping[str, Any]) -> str:
    if cell["delta_reported"] is None:
        return NONE if _is_ours(row) else NOT_REPORTED
    return signed(cell["delta_reported"])


def _delta_measured_text(cell: Mapping[str, Any]) -> str:
    if cell["delta_measured"] is None:
        return NOT_RUN
    text = signed(cell["delta_measured"])
    if cell["delta_low"] is None:
        return text
    return f"{text} [{signed(cell['delta_low'])}, {signed(cell['delta_high'])}]"


def _bits(row: Mapping[str, Any]) -> str:
    return "BF16" if row["bits"] == 16 else f"INT{row['bits']}"


def _method(row: Mapping[str, Any]) -> str:
    if row["role"] in ("teacher", "baseline"):
        return f"{row['method']} ({row['role']})"
    return f"{row['method']}{' †' if _is_ours(row) else ''}"


def _evidence(row: Mapping[str, Any]) -> str:
    if row["evidence"] == QUOTED:
        return "reported, not rerun"
    if row["evidence"] == NOT_RUN:
        return NOT_RUN
    count = len(row["seeds"])
    return f"{row['evidence']}, {count} seed{'' if count == 1 else 's'}"


def _heading(column: Mapping[str, Any]) -> str:
    return f"{column['name']}{'*' if column['standin'] else ''}"


def _has_deltas(data: Mapping[str, Any]) -> bool:
    return data["quantity"] == "score" and any(row["role"] == "baseline" for row in data["rows"])


def _grid(lines: Sequence[Sequence[str]]) -> str:
    """A markdown table, its columns padded to equal width."""
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    padded = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([padded[0], rule, *padded[1:]])


def _markdown(data: Mapping[str, Any]) -> str:
    columns = data["columns"]
    names = [column["name"] for column in columns]
    score_lines = [["Bits", "Method"]]
    for column in columns:
        score_lines[0] += [f"{column['name']} reported", f"{_heading(column)} measured"]
    score_lines[0].append("Evidence")
    for row in data["rows"]:
        line = [_bits(row), _method(row)]
        for name in names:
            cell = row["cells"][name]
            line += [_reported_text(row, cell), _measured_text(cell)]
        score_lines.append([*line, _evidence(row)])
    sized = [f"{_heading(column)} {column['n']}" for column in columns if column["n"]]
    text = [f"# {data['title']}", "", f"Scale `{data['scale']}`, family `{data['family']}`."]
    if sized:
        text[-1] += f" Questions: {', '.join(sized)}."
    what = "Percent of the baseline" if data["quantity"] == "retention" else "Scores"
    text += ["", f"## {what}", "", _grid(score_lines)]
    if _has_deltas(data):
        delta_lines = [["Bits", "Method"]]
        for column in columns:
            delta_lines[0] += [f"{column['name']} Δ reported", f"{_heading(column)} Δ measured"]
        for row in data["rows"]:
            if row["role"] == "baseline":
                continue
            line = [_bits(row), _method(row)]
            for name in names:
                cell = row["cells"][name]
                line += [_delta_reported_text(row, cell), _delta_measured_text(cell)]
            delta_lines.append(line)
        text += ["", "## Difference from the baseline", "", _grid(delta_lines)]
    notes = [note.replace("*", "\\*", 1) if note[0] == "*" else note for note in data["footnotes"]]
    text += ["", *(f"- {note}" for note in notes)]
    return "\n".join(text) + "\n"


CSV_FIELDS = (
    "table",
    "scale",
    "family",
    "bits",
    "method",
    "role",
    "run",
    "column",
    "standin",
    "evidence",
    "reported",
    "measured",
    "seed_spread",
    "delta_reported",
    "delta_measured",
    "delta_low",
    "delta_high",
    "n",
    "seeds",
)


def _csv(data: Mapping[str, Any]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    for row in data["rows"]:
        for column in data["columns"]:
            cell = row["cells"][column["name"]]
            run = cell["measured"] is not None

            def show(value: Any, missing: str) -> Any:
                return missing if value is None else value

            measured = NONE if run else NOT_RUN
            reference = row["role"] == "baseline"
            nothing = NONE if _is_ours(row) else NOT_REPORTED
            writer.writerow(
                {
                    "table": data["short"],
                    "scale": data["scale"],
                    "family": data["family"],
                    "bits": row["bits"],
                    "method": row["method"],
                    "role": row["role"],
                    "run": show(row["run"], NONE),
                    "column": column["name"],
                    "standin": str(column["standin"]).lower(),
                    "evidence": QUOTED if row["evidence"] == QUOTED else cell["evidence"],
                    "reported": show(cell["reported"], nothing),
                    "measured": show(cell["measured"], NOT_RUN),
                    "seed_spread": show(cell["seed_spread"], measured),
                    "delta_reported": show(cell["delta_reported"], NONE if reference else nothing),
                    "delta_measured": show(cell["delta_measured"], NONE if reference else NOT_RUN),
                    "delta_low": show(cell["delta_low"], NONE if reference else measured),
                    "delta_high": show(cell["delta_high"], NONE if reference else measured),
                    "n": show(cell["n"], NOT_RUN),
                    "seeds": " ".join(map(str, cell["seeds"])) or NOT_RUN,
                }
            )
    return stream.getvalue()


_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
    "†": r"$\dagger$",
    "→": r"$\rightarrow$",
    "<": r"$<$",
    ">": r"$>$",
}


def tex_escape(text: str) -> str:
    """Text as LaTeX would print it."""
    return "".join(_TEX.get(character, character) for character in text.replace("->", "→"))


def _tex_tabular(head: Sequence[Sequence[str]], body: Sequence[Sequence[str]], left: int) -> str:
    """A booktabs tabular: `left` columns of text, then pairs of numbers."""
    width = len(body[0])
    top = " & ".join(
        [*[""] * left, *(rf"\multicolumn{{2}}{{c}}{{{tex_escape(one)}}}" for one in head[0])]
    )
    rules = " ".join(
        rf"\cmidrule(lr){{{left + 1 + 2 * i}-{left + 2 + 2 * i}}}" for i in range(len(head[0]))
    )
    lines = [
        rf"\begin{{tabular}}{{{'l' * left}{'r' * (width - left)}}}",
        r"\toprule",
        top + r" \\",
        rules,
        " & ".join(tex_escape(one) for one in head[1]) + r" \\",
        r"\midrule",
        # an opening bracket right after \\ would be read as its optional argument
        *(" & ".join("{}" + t if t[:1] == "[" else t for t in map(tex_escape, line)) + r" \\"
          for line in body),
        r"\bottomrule",
        r"\end{tabular}",
    ]  # fmt: skip
    return "\n".join(lines)


def _tex(data: Mapping[str, Any]) -> str:
    columns = data["columns"]
    names = [column["name"] for column in columns]
    heads = [_heading(column) for column in columns]
    second = ["Bits", "Method", *["reported", "measured"] * len(columns)]
    body = []
    for row in data["rows"]:
        line = [_bits(row), _method(row)]
        for name in names:
            cell = row["cells"][name]
            line += [_reported_text(row, cell), _measured_text(cell)]
        body.append(line)
    parts = [
        "% Needs \\usepackage{booktabs,graphicx}.",
        r"\begin{table}[htbp]",
        r"\centering",
        rf"\caption{{{tex_escape(data['title'])} (scale {tex_escape(data['scale'])}).}}",
        rf"\label{{tab:{data['short']}}}",
        r"\resizebox{\linewidth}{!}{%",
        _tex_tabular([heads, second], body, 2) + "}",
    ]
    if _has_deltas(data):
        deltas = []
        for row in data["rows"]:
            if row["role"] == "baseline":
                continue
            line = [_bits(row), _method(row)]
            for name in names:
                cell = row["cells"][name]
                line += [_delta_reported_text(row, cell), _delta_measured_text(cell)]
            deltas.append(line)
        second = ["Bits", "Method", *["Δ reported", "Δ measured"] * len(columns)]
        parts += [
            "",
            r"\medskip",
            r"\resizebox{\linewidth}{!}{%",
            _tex_tabular([heads, second], deltas, 2) + "}",
        ]
    parts += [
        "",
        r"\begin{minipage}{\linewidth}\footnotesize\raggedright",
        *(tex_escape(note) + r"\par" for note in data["footnotes"]),
        r"\end{minipage}",
        r"\end{table}",
    ]
    return "\n".join(parts) + "\n"
