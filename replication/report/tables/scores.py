"""A table of scores: the paper's or one of our own, reported and measured side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from replication.base.scales import FULL_SCALE
from replication.judge.claims import POWER
from replication.judge.quantities import Sources
from replication.paper import AVERAGE, CONTROL, OwnRow, ReportedRow, ReportedTable
from replication.report.names import read_models
from replication.report.tables.text import NOT_RUN, QUOTED
from replication.results.elsewhere import Recording
from replication.results.scores import NOT_IN_AVERAGE, RunScores
from replication.stats import bootstrap as compare
from replication.stats.bootstrap import Resamples, generator

OURS = "ours, not in the paper"

_STANDIN_NOTE = (
    "* stand-in benchmark written in the official schema, scored by the official scorer; not the "
    "benchmark itself."
)
_REDUCED_NOTE = (
    "Measured at scale {scale} on small models of the published classes, trained from scratch "
    "(stand-ins). The measured level says nothing about the reported level; compare signs and "
    "order of the differences."
)
_DELTA_NOTE = (
    "Δ is the difference from the row of role baseline, in the column's unit. Measured Δ with its "
    "95 % interval: paired bootstrap over questions, stratified by benchmark, and over seeds, and "
    "pairs of teacher and baseline, where there are several. A level is the mean over pairs and "
    "seeds, Δ the mean over pairs of the difference from the pair's own baseline."
)
_RETENTION_NOTE = (
    "Measured retention with its 95 % interval: paired bootstrap over questions, and over seeds "
    "where there are several."
)
_RESOLVABLE_NOTE = (
    "Minimum detectable difference from the baseline with these questions and seeds, at 80 % power "
    "and a 95 % interval, in points, from row to row: {columns}."
)
_RECORDED_NOTE = (
    "Recorded: trained on {device}, evaluated on {evaluated}; commit {commits}, {versions}. Shown "
    "beside what was measured, Δ from the recording's own baseline; no status follows from it. "
    "Questions: {sizes}."
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
        """Scores of two runs that were evaluated.

        Returns:
            The accuracy benchmarks that both have, their scores (2, benchmarks) and resamples
            (resamples, 2, benchmarks), of ``run`` first.
        """
        key = (family, run, against)
        if key not in self._drawn:
            results, ledger = self.sources.results, self.sources.ledger
            first, second = results.scores(family, run), results.scores(family, against)
            assert first is not None and second is not None
            shared = set(second.benchmarks) - NOT_IN_AVERAGE
            names = [name for name in first.benchmarks if name in shared]
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


def _mean_score(scores: Sequence[RunScores], name: str) -> float:
    """Mean over pairs of a benchmark's score."""
    return float(np.mean([own.score(name) for own in scores]))


class _Measurements:
    """The measured numbers of one table."""

    def __init__(self, table: ReportedTable, comparisons: Comparisons) -> None:
        self.table, self.comparisons = table, comparisons
        self.results = comparisons.sources.results
        self.level = comparisons.sources.ledger.level
        self.baseline = table.baseline

    def scores(self, run: str | None, column: str, *others: str) -> list[RunScores]:
        """The run's scores in every pair that has it, and other runs, on all the column needs."""
        if run is None:
            return []
        needed = set(_benchmarks(self.table, column))
        pairs = self.results.pairs(self.table.family, [run, *others])
        found = [self.results.scores(pair, run) for pair in pairs]
        return [one for one in found if one is not None and needed <= set(one.benchmarks)]

    def cell(self, run: str | None, column: str) -> dict[str, Any]:
        """Everything measured of a cell."""
        if self.table.quantity == "retention":
            return self.retention(run, column)
        return {**self.value(run, column), **self.delta(run, column)}

    def value(self, run: str | None, column: str) -> dict[str, Any]:
        """measured, seed_spread, n, pairs, seeds and evidence of a cell: the mean over pairs of the
        mean over seeds, and the spread within pairs. What compares it is still null."""
        empty = dict.fromkeys(("measured", "seed_spread", "n", *_NO_INTERVAL))
        scores = self.scores(run, column)
        if not scores:
            return {**empty, "pairs": [], "seeds": [], "evidence": NOT_RUN}
        names = _benchmarks(self.table, column)
        trainings = [
            [
                float(np.mean([entries[name]["score"] for name in names]))
                for entries in own.seeds.values()
            ]
            for own in scores
        ]
        spreads = [np.var(own, ddof=1) for own in trainings if len(own) > 1]
        return {
            **empty,
            "measured": float(np.mean([np.mean(own) for own in trainings])),
            "seed_spread": float(np.sqrt(np.mean(spreads))) if spreads else None,
            "n": sum(scores[0].questions(name) for name in names),
            "pairs": [own.owner for own in scores],
            "seeds": sorted({seed for own in scores for seed in own.seeds}),
            "evidence": scores[0].evidence,
        }

    def _pair(self, run: str, against: str, column: str) -> Resamples:
        """The column's scores of both runs (2,) and their resamples (resamples, 2)."""
        names, points, drawn = self.comparisons.draws(self.table.family, run, against)
        columns = [names.index(name) for name in _benchmarks(self.table, column)]
        return Resamples(points[:, columns].mean(axis=1), drawn[:, :, columns].mean(axis=2))

    def delta(self, run: str | None, column: str) -> dict[str, float | None]:
        """The measured difference from the baseline, with its paired interval."""
        if self.baseline is None or run is None or run == self.baseline:
            return {}
        first = self.scores(run, column, self.baseline)
        second = self.scores(self.baseline, column, run)
        if not first or not second:
            return {}
        names = _benchmarks(self.table, column)
        if set(names) & NOT_IN_AVERAGE:  # no mean of right answers: no paired interval
            difference = float(
                np.mean([_mean_score(first, n) - _mean_score(second, n) for n in names])
            )
            return {"delta_measured": difference}
        pair = self._pair(run, self.baseline, column)
        interval = compare.interval(pair, compare.difference, self.level)
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
        first = self.scores(run, column, "baseline")
        second = self.scores("baseline", column, *([] if run is None else [run]))
        if run is None or not first or not second:
            none = {"pairs": [], "seeds": [], "evidence": NOT_RUN}
            return {**cell, "measured": None, "n": None, **none}
        name = self.table.benchmark(column)
        base = _mean_score(second, name)
        if base == 0:  # nothing to retain
            return {**cell, "measured": None}
        cell["measured"] = 100.0 * _mean_score(first, name) / base
        if name in NOT_IN_AVERAGE:
            return cell
        interval = compare.find_interval(
            self._pair(run, "baseline", column), compare.ratio, self.level
        )
        if interval is not None:
            cell |= {"measured_low": interval.low, "measured_high": interval.high}
        return cell


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


def _note(table: ReportedTable, row: ReportedRow | OwnRow) -> str:
    if isinstance(row, ReportedRow):
        return "quoted, not rerun" if row.run is None else ""
    ours = [OURS] if table.printed and row.role == CONTROL else []
    return ": ".join([*ours, *filter(None, [row.note])])


class _Rows:
    """The rows of a table: what is reported, measured here, and recorded elsewhere."""

    def __init__(
        self,
        table: ReportedTable,
        sources: Sources,
        measured: _Measurements,
        recorded: Mapping[str, _Measurements],
    ) -> None:
        self.table, self.sources, self.measured, self.recorded = table, sources, measured, recorded
        self.all: list[ReportedRow | OwnRow] = [*table.rows, *table.controls]
        self.baseline = next((row for row in self.all if row.role == "baseline"), None)
        self.base = _reported(table, self.baseline, sources) if self.baseline else {}

    def build(self) -> list[dict[str, Any]]:
        """The teacher's row, the baseline's, then the others by falling bit width."""
        order = {"teacher": 0, "baseline": 1}
        rows = map(self._row, self.all)
        return sorted(rows, key=lambda row: (order.get(row["role"], 2), -row["bits"]))  # stable

    def _row(self, row: ReportedRow | OwnRow) -> dict[str, Any]:
        printed = _reported(self.table, row, self.sources)
        cells = {column: self._cell(row, column, printed) for column in self.table.columns}
        kinds = {cell["evidence"] for cell in cells.values()} - {NOT_RUN}
        return {
            "method": row.method,
            "bits": row.bits,
            "role": row.role,
            "ours": self.table.printed and isinstance(row, OwnRow),
            "run": row.run,
            "evidence": min(kinds, default=QUOTED if row.run is None else NOT_RUN),
            "pairs": sorted({pair for cell in cells.values() for pair in cell["pairs"]}),
            "seeds": sorted({seed for cell in cells.values() for seed in cell["seeds"]}),
            "note": _note(self.table, row),
            "cells": cells,
        }

    def _cell(
        self, row: ReportedRow | OwnRow, column: str, printed: Mapping[str, float | None]
    ) -> dict[str, Any]:
        value = printed.get(column)
        base = None if row is self.baseline else self.base.get(column)
        cell = {
            "reported": value,
            "delta_reported": None if value is None or base is None else value - base,
            **self.measured.cell(row.run, column),
        }
        if self.recorded:
            others = self.recorded.items()
            cell["recorded"] = {slug: other.cell(row.run, column) for slug, other in others}
        return cell


def _sizes(
    rows: Sequence[Mapping[str, Any]], columns: Iterable[str], *place: str
) -> dict[str, int | None]:
    """How many questions stand behind each column, by the first row that was measured."""

    def size(row: Mapping[str, Any], column: str) -> int | None:
        cell = row["cells"][column]
        for key in place:
            cell = cell[key]
        return cell["n"] or None

    return {c: next(filter(None, (size(row, c) for row in rows)), None) for c in columns}


def _recording_data(
    table: ReportedTable, rows: Sequence[Mapping[str, Any]], recording: Recording
) -> dict[str, Any]:
    """What a table says of a recording that it shows."""
    scores = [s for run in table.runs if (s := recording.results.scores(table.family, run))]
    trained = [run for run in scores if run.run not in ("teacher", "baseline")] or scores
    seeds = [len(run.seeds) for run in trained]
    origins = [run.provenance for run in scores]
    return {
        "id": recording.slug,
        "device": recording.device,
        "standin": any(run.standin for run in scores),
        "seeds": [min(seeds), max(seeds)],
        "n": _sizes(rows, table.columns, "recorded", recording.slug),
        "evaluated_on": sorted({str(origin["device"]) for origin in origins}),
        "commits": sorted({str(origin["commit"]) for origin in origins}),
        "versions": {
            name: sorted({str(origin["versions"].get(name)) for origin in origins})
            for name in ("torch", "transformers")
        },
    }


def score_table(
    table: ReportedTable, comparisons: Comparisons, recorded: Sequence[Recorded] = ()
) -> dict[str, Any]:
    """The JSON content of a table of scores, with everything measured at the results' scale.

    Args:
        table: The paper's table, or one of our own.
        comparisons: Of the results of this machine.
        recorded: Results of other devices, which the table shows where they have one of its runs.
    """
    sources = comparisons.sources
    results = sources.results
    measured = _Measurements(table, comparisons)
    elsewhere = [
        other
        for other in recorded
        if any(other.recording.results.scores(table.family, run) for run in table.runs)
    ]
    others = {o.recording.slug: _Measurements(table, o.comparisons) for o in elsewhere}
    rows = _Rows(table, sources, measured, others).build()
    scores = [own for run in table.runs if (own := results.scores(table.family, run)) is not None]
    standin = any(own.standin for own in scores)
    sizes = _sizes(rows, table.columns)
    data: dict[str, Any] = {
        "kind": "scores",
        "id": table.id,
        "short": table.short,
        "title": table.title,
        "source": table.source,
        "family": table.family,
        "scale": results.scale,
        "models": read_models(results.results, results.scale, table.family).record(),
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
        recordings = [_recording_data(table, rows, other.recording) for other in elsewhere]
        data["recordings"] = recordings
        standin = standin or any(recording["standin"] for recording in recordings)
    notes = standin_notes(standin, bool(scores or elsewhere), results.scale)
    return {**data, "footnotes": [*notes, *_footnotes(table, data)]}


# --- footnotes ------------------------------------------------------------------------------------


def standin_notes(standin: bool, measured: bool, scale: str) -> list[str]:
    """What must be said under every table that holds measured scores."""
    notes = [_STANDIN_NOTE] if standin else []
    if measured and scale != FULL_SCALE:
        notes.append(_REDUCED_NOTE.format(scale=scale))
    return notes


def _recorded_note(recording: Mapping[str, Any]) -> str:
    return _RECORDED_NOTE.format(
        device=recording["device"],
        evaluated=" and ".join(recording["evaluated_on"]),
        commits=", ".join(commit[:12] for commit in recording["commits"]),
        versions=", ".join(f"{name} {'/'.join(v)}" for name, v in recording["versions"].items()),
        sizes=", ".join(f"{column} {n}" for column, n in recording["n"].items() if n),
    )


def _resolvable(data: Mapping[str, Any]) -> list[str]:
    """For each column, from which to which row the smallest resolvable difference goes."""
    ranges = []
    for column in data["columns"]:
        values = [row["cells"][column["name"]]["resolvable"] for row in data["rows"]]
        if known := [value for value in values if value is not None]:
            low, high = f"{min(known):.1f}", f"{max(known):.1f}"
            ranges.append(f"{column['name']} {low if low == high else f'{low} to {high}'}")
    return ranges


def _has_spread(data: Mapping[str, Any]) -> bool:
    """Whether a measured or recorded cell rests on several seeds."""
    cells = [cell for row in data["rows"] for cell in row["cells"].values()]
    cells += [other for cell in cells for other in cell.get("recorded", {}).values()]
    return any(cell["seed_spread"] is not None for cell in cells)


def _footnotes(table: ReportedTable, data: Mapping[str, Any]) -> list[str]:
    notes = []
    if table.quantity == "score" and table.baseline is not None:
        notes.append(_DELTA_NOTE)
    if table.quantity == "retention":
        notes.append(_RETENTION_NOTE)
    if resolvable := _resolvable(data):
        notes.append(_RESOLVABLE_NOTE.format(columns=", ".join(resolvable)))
    if _has_spread(data):
        notes.append("± is the standard deviation over seeds.")
    if points := [column for column in table.columns if column in table.not_in_average]:
        notes.append(
            f"{', '.join(points)}: points (of 2,000), not percent; in no average, and without an "
            "interval."
        )
    if AVERAGE in table.columns:
        notes.append(f"Avg is the mean of {', '.join(table.averaged)}.")
    if table.printed and table.controls:
        notes.append(
            "Rows marked † are of our own: not in the paper's table, as far as that could be read."
        )
    notes += map(_recorded_note, data.get("recordings", []))
    mark = "† " if table.printed else ""
    notes += [f"{mark}{r.method}, {r.bits} bits: {r.note}." for r in table.controls if r.note]
    printed = f"Reported values: arXiv 2601.22709, {table.source}."
    return [*notes, printed if table.printed else _OWN_TABLE_NOTE]
