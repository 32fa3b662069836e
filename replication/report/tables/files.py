"""The paper's tables with what was measured beside what was reported.

    table = build_table("table4", "results", "small")
    write(table, "results/small/tables")      # table4.json, table4.md, table4.csv, table4.tex

The JSON is the source: the other three are made from it and hold the same numbers.

A table is one of the paper's, one of our own (own_tables of tables.yaml), or a summary that holds
no scores (`replication.report.tables.summaries`).

JSON: {"kind", "id", "short", "title", "scale", "family", "columns", "rows", "footnotes", ...}. A
row has one cell per column. Of a table of scores (kind "scores"):

    reported, measured                  numbers, or null: nothing is reported / not run
    evidence                            "measured", "recorded" or "not run"
    delta_reported, delta_measured      row − baseline (null for the baseline itself, and where
                                        either number is missing)
    delta_low, delta_high               the measured difference's 95 % interval: paired bootstrap
                                        over questions, seeds and pairs
    resolvable                          smallest difference that these questions and seeds would
                                        have resolved, with the file's "power"
    measured_low, measured_high         of retention: its 95 % interval
    seed_spread                         standard deviation over seeds, within pairs (null for one)
    n, seeds                            questions and seeds behind `measured`
    pairs                               of teacher and baseline, whose mean `measured` is (in JSON)

Where results of another device were recorded (`replication.results.elsewhere`), and only there,
the table has "recordings", one entry a device ("id", "device", "standin", "seeds", the smallest and
largest number of them, "n", "evaluated_on", "commits", "versions"), and a cell has "recorded", by
that id what the measured part of a cell holds, differences from the same recording's baseline.

Of a summary (kind "summary"): reported, measured, low, high, seed_spread.

CSV: tidy, one line per row and column, the same fields; a number that is missing says "not run" or
"not reported", and a difference that has no meaning "none". No field is ever empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grace.errors import InputError
from replication.base.files import json_text, write_text_atomic
from replication.base.messages import unknown
from replication.base.scales import check_scale
from replication.judge.quantities import Sources
from replication.paper import load_ledger, load_tables
from replication.report.tables import forms
from replication.report.tables.regimes import Regime
from replication.report.tables.scores import Comparisons, Recorded, score_table
from replication.report.tables.summaries import summary_table
from replication.results.elsewhere import read_recordings
from replication.results.scores import ResultSet

HEADLINES = ("qat_int4", "kd_int4", "grace_int4")
"""Runs whose differences from the baseline `dvc metrics show` prints: few enough for a terminal."""


def headlines(data: Mapping[str, Any]) -> dict[str, float]:
    """The few numbers of a table that `dvc metrics show` prints.

    Args:
        data: the content of a table's JSON file.

    Returns:
        "baseline", its average in percent, and by the run's name the difference of each of
        `HEADLINES` from it in points, where they were measured; empty for a table without one.
    """
    if data["kind"] != "scores":
        return {}
    cells = {row["run"]: row["cells"].get("Avg", {}) for row in data["rows"] if row["run"]}
    differences = {run: cells.get(run, {}).get("delta_measured") for run in HEADLINES}
    measured = {run: value for run, value in differences.items() if value is not None}
    return {"baseline": cells["baseline"]["measured"], **measured} if measured else {}


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
        return forms.markdown(self.data)

    def csv(self) -> str:
        return forms.csv(self.data)

    def tex(self) -> str:
        return forms.tex(self.data)


def write(table: Table, folder: str | Path) -> list[Path]:
    """Write <folder>/<short name>.{json,md,csv,tex}; returns the four paths.

    Each file is written whole or not at all, and none before all four could be made.
    """
    forms = {"json": table.json, "md": table.markdown, "csv": table.csv, "tex": table.tex}
    texts = {f"{table.name}.{suffix}": form() for suffix, form in forms.items()}
    return [write_text_atomic(Path(folder) / name, text) for name, text in texts.items()]


def _sources(results_dir: str | Path, scale: str, recorded: str | Path | None) -> Sources:
    results = ResultSet(results_dir, check_scale(scale))
    folder = None if recorded is None else Path(recorded)
    return Sources(results, load_ledger(), load_tables(), folder)


def _recorded(sources: Sources) -> list[Recorded]:
    if sources.recorded is None:
        return []
    return [
        Recorded(one, Comparisons(replace(sources, results=one.results)))
        for one in read_recordings(sources.recorded, sources.results.scale)
    ]


def _build(
    name: str,
    comparisons: Comparisons,
    recorded: Sequence[Recorded],
    cells: Sequence[Regime],
) -> Table:
    reported = comparisons.sources.reported
    if name in reported.summaries:
        return Table(summary_table(reported.summaries[name], comparisons, cells))
    return Table(score_table(reported.table(name), comparisons, recorded))


def build_table(
    table_id: str,
    results_dir: str | Path,
    scale: str,
    recorded: str | Path | None = None,
    cells: Sequence[Regime] = (),
) -> Table:
    """One table with everything measured at a scale.

    Args:
        table_id: The id or short name ("table4").
        results_dir: The folder that holds <scale>/scores, outcomes and training; runs that are
            missing there are "not run".
        scale: The scale's name.
        recorded: The folder of recorded results, if they are to be shown.
        cells: Of the map of regimes, see `replication.report.tables.regimes.regimes_of`.

    Raises:
        InputError: for an unknown table or scale, or result files that are wrong in themselves.
    """
    reported = load_tables()
    known = {*reported.tables, *reported.short_names()}
    if table_id not in known:
        raise InputError(unknown(f"table {table_id!r}", table_id, known))
    sources = _sources(results_dir, scale, recorded)
    return _build(table_id, Comparisons(sources), _recorded(sources), cells)


def build_tables(
    results_dir: str | Path,
    scale: str,
    recorded: str | Path | None = None,
    cells: Sequence[Regime] = (),
) -> list[Table]:
    """All tables, as `build_table` makes them one by one, each result file read once."""
    sources = _sources(results_dir, scale, recorded)
    comparisons, recordings = Comparisons(sources), _recorded(sources)
    names = sources.reported.short_names()
    return [_build(name, comparisons, recordings, cells) for name in names]
