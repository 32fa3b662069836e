"""A table of scores: the paper's or one of our own, reported and measured side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from replication.judge.claims import POWER
from replication.judge.quantities import Sources
from replication.paper import AVERAGE, CONTROL, OwnRow, ReportedRow, ReportedTable
from replication.report.tables.text import NOT_RUN, QUOTED
from replication.results.elsewhere import Recording
from replication.results.scores import FULL_SCALE, NOT_IN_AVERAGE, RunScores
from replication.stats import bootstrap as compare
from replication.stats.bootstrap import generator

OURS = "ours, not in the paper"

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
_RETENTION_NOTE = (
    "Measured retention with its 95 % interval: paired bootstrap over questions, and over seeds "
    "where there are several."
)
_POINTS_NOTE = "{columns}: points (of 2,000), not percent; in no average, and without an interval."
_RESOLVABLE_NOTE = (
    "Smallest difference from the baseline that these questions and seeds would have resolved "
    "(95 % interval, power 0.8), in points, from row to row: {columns}."
)
_AVERAGE_NOTE = "Avg is the mean of {columns}."
_SPREAD_NOTE = "± is the standard deviation over seeds."
_OURS_NOTE = "Rows marked † are of our own: not in the paper's table, as far as that could be read."
_RECORDED_NOTE = (
    "Recorded: trained on {device}, evaluated on {evaluated}; commit {commits}, {versions}. Shown "
    "beside what was measured, Δ from the recording's own baseline; no status follows from it."
)
_OWN_TABLE_NOTE = (
    "A table of our own. Its reported values are those that the paper prints for the same model in "
    "other tables (arXiv 2601.22709)."
)


def _benchmarks(table: ReportedTable, column: str) -> list[str]:
    return table.averaged_benchmarks if column == AVERAGE else [table.benchmark(column)]


class Comparisons:
    """Bootstrap draws of pairs of runs, each pair drawn once for all tables that compare it."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self._drawn: dict[tuple[str, str, str], tuple[list[str], np.ndarray, np.ndarray]] = {}

    def draws(
        self, family: str, run: str, against: str
    ) -> tuple[list[str], np.ndarray, np.ndarray]:
        """The accuracy benchmarks that both runs have, their scores (2, benchmarks) and resamples
        (resamples, 2, benchmarks), of `run` first."""
        key = (family, run, against)
        if key not in self._drawn:
            results, ledger = self.sources.results, self.sources.ledger
            scores = [results.scores(family, one) for one in (run, against)]
            names = [] if None in scores else [
                name
                for name in scores[0].benchmarks  # type: ignore[union-attr]
                if name in scores[1].benchmarks and name not in NOT_IN_AVERAGE  # type: ignore[union-attr]
            ]  # fmt: skip
            if not names:
                return [], np.empty((2, 0)), np.empty((0, 2, 0))
            answers = results.answers(family, [run, against], names)
            assert answers is not None
            rng = generator(ledger.seed, f"{family}:{run}:{against}")
            drawn = compare.bootstrap_benchmarks(answers, names, rng, ledger.resamples)
            self._drawn[key] = (names, *drawn)
        return self._drawn[key]


@dataclass(frozen=True)
class Recorded:
    """Results of another device, and the comparisons among them."""

    recording: Recording
    comparisons: Comparisons


_NO_INTERVAL = ("measured_low", "measured_high", "delta_measured", "delta_low", "delta_high",
                "resolvable")  # fmt: skip


class _Measurements:
    """The measured numbers of one table."""

    def __init__(self, table: ReportedTable, comparisons: Comparisons) -> None:
        self.table, self.comparisons = table, comparisons
        self.results = comparisons.sources.results
        self.level = comparisons.sources.ledger.level
        self.baseline = table.baseline

    def scores(self, run: str | None, column: str) -> RunScores | None:
        """The run's scores if it was measured on everything the column needs."""
        if run is None:
            return None
        scores = self.results.scores(self.table.family, run)
        if scores is None or not set(_benchmarks(self.table, column)) <= set(scores.benchmarks):
            return None
        return scores

    def cell(self, run: str | None, column: str) -> dict[str, Any]:
        """Everything measured of a cell."""
        if self.table.quantity == "retention":
            return self.retention(run, column)
        return {**self.value(run, column), **self.delta(run, column)}

    def value(self, run: str | None, column: str) -> dict[str, Any]:
        """measured, seed_spread, n, seeds, evidence of a cell; what compares it is still null."""
        empty = dict.fromkeys(("measured", "seed_spread", "n", *_NO_INTERVAL))
        scores = self.scores(run, column)
        if scores is None:
            return {**empty, "seeds": [], "evidence": NOT_RUN}
        names = _benchmarks(self.table, column)
        by_seed = [
            float(np.mean([entries[name]["score"] for name in names]))
            for entries in scores.seeds.values()
        ]
        return {
            **empty,
            "measured": float(np.mean(by_seed)),
            "seed_spread": float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None,
            "n": sum(scores.questions(name) for name in names),
            "seeds": list(scores.seeds),
            "evidence": scores.evidence,
        }

    def _pair(self, run: str, against: str, column: str) -> tuple[np.ndarray, np.ndarray]:
        """The column's scores of both runs (2,) and their resamples (resamples, 2)."""
        names, points, drawn = self.comparisons.draws(self.table.family, run, against)
        columns = [names.index(name) for name in _benchmarks(self.table, column)]
        return points[:, columns].mean(axis=1), drawn[:, :, columns].mean(axis=2)

    def delta(self, run: str | None, column: str) -> dict[str, float | None]:
        """The measured difference from the baseline, with its paired interval."""
        if self.baseline is None or run is None or run == self.baseline:
            return {}
        first, second = self.scores(run, column), self.scores(self.baseline, column)
        if first is None or second is None:
            return {}
        names = _benchmarks(self.table, column)
        if set(names) & NOT_IN_AVERAGE:  # no mean of right answers: no paired interval
            difference = float(np.mean([first.score(n) - second.score(n) for n in names]))
            return {"delta_measured": difference}
        points, drawn = self._pair(run, self.baseline, column)
        interval = compare.percentile_interval(
            points[0] - points[1], drawn[:, 0] - drawn[:, 1], self.level
        )
        return {
            "delta_measured": interval.point,
            "delta_low": interval.low,
            "delta_high": interval.high,
            "resolvable": compare.minimum_detectable_difference(
                interval.standard_error, POWER, self.level
            ),
        }

    def retention(self, run: str | None, column: str) -> dict[str, Any]:
        """A retention cell: percent of the baseline, with its interval."""
        cell = {**self.value(run, column), "seed_spread": None}
        first, second = self.scores(run, column), self.scores("baseline", column)
        if run is None or first is None or second is None:
            return {**cell, "measured": None, "n": None, "seeds": [], "evidence": NOT_RUN}
        name = self.table.benchmark(column)
        if second.score(name) == 0:  # nothing to retain
            return {**cell, "measured": None}
        cell["measured"] = 100.0 * first.score(name) / second.score(name)
        if name in NOT_IN_AVERAGE:
            return cell
        _, drawn = self._pair(run, "baseline", column)
        if (drawn[:, 1] > 0).all():
            ratio = 100.0 * drawn[:, 0] / drawn[:, 1]
            interval = compare.percentile_interval(cell["measured"], ratio, self.level)
            cell |= {"measured_low": interval.low, "measured_high": interval.high}
        return cell


def _difference(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value - base


def _reported(
    table: ReportedTable, row: ReportedRow | OwnRow, sources: Sources
) -> dict[str, float | None]:
    """The row's printed cells; in a table of our own those that another table prints."""
    if isinstance(row, ReportedRow):
        return dict(row.values)
    if table.printed:
        return {}
    return {
        column: sources.reported.printed_cell(table.family, row.run, _benchmarks(table, column))
        for column in table.columns
    }


def _recording_data(
    table: ReportedTable, rows: Sequence[Mapping[str, Any]], recording: Recording
) -> dict[str, Any]:
    """What a table says of a recording that it shows."""
    slug = recording.slug
    shown = [one for run in table.runs if (one := recording.results.scores(table.family, run))]
    trained = [one for one in shown if one.run not in ("teacher", "baseline")] or shown
    sizes = {
        column: next(
            (n for row in rows if (n := row["cells"][column]["recorded"][slug]["n"])), None
        )
        for column in table.columns
    }
    return {
        "id": slug,
        "device": recording.device,
        "standin": any(one.standin for one in shown),
        "seeds": [min(len(one.seeds) for one in trained), max(len(one.seeds) for one in trained)],
        "n": sizes,
        "evaluated_on": sorted({str(one.provenance["device"]) for one in shown}),
        "commits": sorted({str(one.provenance["commit"]) for one in shown}),
        "versions": {
            name: sorted({str(one.provenance["versions"].get(name)) for one in shown})
            for name in ("torch", "transformers")
        },
    }


def score_table(
    table: ReportedTable, comparisons: Comparisons, recorded: Sequence[Recorded] = ()
) -> dict[str, Any]:
    """The content of a table of scores with everything measured at the results' scale, and what
    was recorded of its runs on other devices."""
    sources = comparisons.sources
    results, scale = sources.results, sources.results.scale
    measured = _Measurements(table, comparisons)
    elsewhere = [
        (one.recording, _Measurements(table, one.comparisons))
        for one in recorded
        if any(one.recording.results.scores(table.family, run) for run in table.runs)
    ]
    rows: list[dict[str, Any]] = []
    all_rows: list[ReportedRow | OwnRow] = [*table.rows, *table.controls]
    base_row = next((row for row in all_rows if row.role == "baseline"), None)
    base = _reported(table, base_row, sources) if base_row else {}

    def add(row: ReportedRow | OwnRow, note: str) -> None:
        run, printed = row.run, _reported(table, row, sources)
        cells: dict[str, Any] = {}
        for column in table.columns:
            reference = None if row is base_row else base.get(column)
            cells[column] = {
                "reported": printed.get(column),
                "delta_reported": _difference(printed.get(column), reference),
                **measured.cell(run, column),
            }
            if elsewhere:
                cells[column]["recorded"] = {
                    recording.slug: other.cell(run, column) for recording, other in elsewhere
                }
        kinds = {cell["evidence"] for cell in cells.values()} - {NOT_RUN}
        evidence = sorted(kinds)[0] if kinds else (QUOTED if run is None else NOT_RUN)
        rows.append(
            {
                "method": row.method,
                "bits": row.bits,
                "role": row.role,
                "ours": table.printed and isinstance(row, OwnRow),
                "run": run,
                "evidence": evidence,
                "seeds": sorted({seed for cell in cells.values() for seed in cell["seeds"]}),
                "note": note,
                "cells": cells,
            }
        )

    for row in table.rows:
        add(row, "quoted, not rerun" if row.run is None else "")
    for control in table.controls:
        ours = [OURS] if table.printed and control.role == CONTROL else []
        add(control, ": ".join([*ours, *([control.note] if control.note else [])]))
    order = {"teacher": 0, "baseline": 1}
    rows.sort(key=lambda one: (order.get(one["role"], 2), -one["bits"]))  # stable

    found = [results.scores(table.family, run) for run in table.runs]
    standin = any(scores.standin for scores in found if scores is not None)
    sizes: dict[str, int | None] = {
        column: next((r["cells"][column]["n"] for r in rows if r["cells"][column]["n"]), None)
        for column in table.columns
    }
    data = {
        "kind": "scores",
        "id": table.id,
        "short": table.short,
        "title": table.title,
        "source": table.source,
        "family": table.family,
        "scale": scale,
        "quantity": table.quantity,
        "interval_level": measured.level,
        "power": POWER,
        "columns": [
            {
                "name": column,
                "benchmarks": _benchmarks(table, column),
                "standin": standin,
                "n": sizes[column],
                "unit": "points" if column in table.not_in_average else "%",
            }
            for column in table.columns
        ],
        "rows": rows,
    }
    if elsewhere:
        shown = [_recording_data(table, rows, recording) for recording, _ in elsewhere]
        data["recordings"] = shown
        standin = standin or any(one["standin"] for one in shown)
    return {**data, "footnotes": _footnotes(table, data, standin, any(found) or bool(elsewhere))}


def _all_cells(data: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """Measured and recorded cells."""
    for row in data["rows"]:
        for cell in row["cells"].values():
            yield cell
            yield from cell.get("recorded", {}).values()


def _recorded_note(recording: Mapping[str, Any]) -> str:
    versions = [f"{name} {'/'.join(found)}" for name, found in recording["versions"].items()]
    note = _RECORDED_NOTE.format(
        device=recording["device"],
        evaluated=" and ".join(recording["evaluated_on"]),
        commits=", ".join(commit[:12] for commit in recording["commits"]),
        versions=", ".join(versions),
    )
    sizes = [f"{column} {n}" for column, n in recording["n"].items() if n]
    return f"{note} Questions: {', '.join(sizes)}."


def _resolvable(data: Mapping[str, Any]) -> list[str]:
    """For each column, from which to which row the smallest resolvable difference goes."""
    found = []
    for column in data["columns"]:
        values = [row["cells"][column["name"]]["resolvable"] for row in data["rows"]]
        known = [value for value in values if value is not None]
        if known:
            low, high = f"{min(known):.1f}", f"{max(known):.1f}"
            found.append(f"{column['name']} {low if low == high else f'{low} to {high}'}")
    return found


def standin_notes(standin: bool, measured: bool, scale: str) -> list[str]:
    """What must be said under every table that holds measured scores."""
    notes = [f"* {_STANDIN_NOTE}."] if standin else []
    if measured and scale != FULL_SCALE:
        notes.append(_REDUCED_NOTE.format(scale=scale))
    return notes


def _footnotes(
    table: ReportedTable, data: Mapping[str, Any], standin: bool, measured: bool
) -> list[str]:
    notes = standin_notes(standin, measured, data["scale"])
    if table.quantity == "score" and table.baseline is not None:
        notes.append(_DELTA_NOTE)
    if table.quantity == "retention":
        notes.append(_RETENTION_NOTE)
    resolvable = _resolvable(data)
    if resolvable:
        notes.append(_RESOLVABLE_NOTE.format(columns=", ".join(resolvable)))
    if any(cell["seed_spread"] is not None for cell in _all_cells(data)):
        notes.append(_SPREAD_NOTE)
    points = [column for column in table.columns if column in table.not_in_average]
    if points:
        notes.append(_POINTS_NOTE.format(columns=", ".join(points)))
    if AVERAGE in table.columns:
        notes.append(_AVERAGE_NOTE.format(columns=", ".join(table.averaged)))
    if table.printed and table.controls:
        notes.append(_OURS_NOTE)
    notes += map(_recorded_note, data.get("recordings", []))
    mark = "† " if table.printed else ""
    notes += [
        f"{mark}{one.method}, {one.bits} bits: {one.note}." for one in table.controls if one.note
    ]
    if table.printed:
        notes.append(f"Reported values: arXiv 2601.22709, {table.source}.")
    else:
        notes.append(_OWN_TABLE_NOTE)
    return notes
