"""At full scale: every reported cell, and its difference from the baseline, against its band.

The verdict is one of the statuses of `replication.stats.verdict`: REPRODUCED where the whole 95 %
interval lies in the band (a difference also on the reported side of zero, where it claims one),
CONTRADICTED where it lies outside, INCONCLUSIVE where it straddles an end, NOT RUN where a result
is missing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from grace.errors import InputError
from replication.base.scales import FULL_SCALE
from replication.paper import (
    Ledger,
    Reported,
    ReportedRow,
    ReportedTable,
    load_ledger,
    load_tables,
)
from replication.paper.bands import Facts, band, difference_band, difference_rule, load_facts
from replication.results.scores import NOT_IN_AVERAGE, ResultSet, RunScores
from replication.stats import bootstrap, verdict
from replication.stats.bootstrap import Resamples
from replication.stats.verdict import Band, Interval, Rule, Status

_WITHIN = Rule(within_band=True)


@dataclass(frozen=True)
class Cell:
    """A reported cell that a run of ours measures, or its difference from another's.

    Attributes:
        table: where it stands.
        row: its row.
        column: its column, as printed.
        against: the row that a difference is taken from; None: the cell itself.
    """

    table: ReportedTable
    row: ReportedRow
    column: str
    against: ReportedRow | None = None

    @property
    def id(self) -> str:
        """As in `table2[grace_int4-gqa]`, `table2[grace_int4-vs-baseline-gqa]`."""
        return f"{self.table.short}[{self.name}]"

    @property
    def name(self) -> str:
        """Its name within the table."""
        other = f"-vs-{self.against.key}" if self.against else ""
        return f"{self.row.key}{other}-{self.column.lower()}"

    @property
    def runs(self) -> list[str]:
        """The runs it needs, the row's first."""
        base = "baseline" if self.table.quantity == "retention" else None
        other = self.against.run if self.against else base
        return [run for run in (self.row.run, other) if run is not None]

    @property
    def benchmarks(self) -> list[str]:
        """Those that it is, or is the average, of."""
        return self.table.benchmarks_of(self.column)

    @property
    def reported(self) -> float:
        """The printed number, or the difference of the two."""
        value = self.row.values[self.column]
        other = self.against.values[self.column] if self.against else 0.0
        assert value is not None and other is not None  # such cells are not made
        return value - other

    @property
    def unit(self) -> str:
        """Of the value: "%", or points for differences and for MME."""
        points = self.against is not None or set(self.benchmarks) & NOT_IN_AVERAGE
        return "points" if points else "%"


@dataclass(frozen=True)
class CellResult:
    """The verdict on a cell.

    Attributes:
        cell: the cell.
        band: what it was judged by.
        rule: what its interval must satisfy.
        status: the verdict.
        interval: None where nothing was measured, or there is no value.
        questions: how many were answered.
        seeds: by run, those of its trainings.
        note: why it was not run, or what a reader should know.
    """

    cell: Cell
    band: Band
    rule: Rule
    status: Status
    interval: Interval | None = None
    questions: int | None = None
    seeds: dict[str, list[int]] = field(default_factory=dict)
    note: str = ""

    @property
    def failed(self) -> bool:
        """Whether it is contradicted: no deviation of a cell is known."""
        return self.status is Status.CONTRADICTED


def cells_of(reported: Reported) -> Iterator[Cell]:
    """Every printed cell that a run of ours measures, in the tables' order.

    Each is followed by its difference from the table's baseline where both are printed.
    """
    for table in reported.tables.values():
        base = next((row for row in table.rows if row.role == "baseline"), None)
        for row in table.rows:
            for column in table.columns:
                if row.run is None or row.values[column] is None:
                    continue
                yield Cell(table, row, column)
                if base is not None and row is not base and base.values[column] is not None:
                    yield Cell(table, row, column, against=base)


class Judge:
    """Judges cells by the results of one folder; every pair of runs is drawn once.

    Args:
        results: the folder that holds paper/scores.
        scale: the full one.
        reported: default: the paper's tables.
        ledger: default: the project's.
        facts: default: what is known of the benchmarks.

    Raises:
        InputError: for another scale: the bands are those of the full scale.
    """

    def __init__(
        self,
        results: str | Path,
        scale: str = FULL_SCALE,
        *,
        reported: Reported | None = None,
        ledger: Ledger | None = None,
        facts: Facts | None = None,
    ) -> None:
        if scale != FULL_SCALE:
            raise InputError(
                f"cells are judged at scale {FULL_SCALE} alone, not {scale!r}: the bands are those "
                "of the published models and benchmarks"
            )
        self.results = ResultSet(results, scale)
        self.reported = load_tables() if reported is None else reported
        self.ledger = load_ledger() if ledger is None else ledger
        self.facts = load_facts() if facts is None else facts
        self._resamples: dict[tuple[str, ...], tuple[list[str], Resamples]] = {}

    def __call__(self, cell: Cell) -> CellResult:
        """The verdict on one cell.

        Raises:
            InputError: for results that are wrong in themselves.
        """
        rule = _WITHIN
        if cell.against is not None:
            rule = difference_rule(cell.table, cell.row, cell.against, cell.column, self.facts)
        runs = [self.results.scores(cell.table.family, run) for run in cell.runs]
        missing = self._missing(cell, runs)
        if missing:
            return CellResult(cell, self._band(cell, None), rule, Status.NOT_RUN, note=missing)
        scores = [run for run in runs if run is not None]
        interval = self._interval(cell, scores)
        if interval is None:
            note = "the baseline scores zero, or does in a resample: there is nothing to retain"
            return CellResult(cell, self._band(cell, None), rule, Status.INCONCLUSIVE, note=note)
        tolerance = self._band(cell, interval)
        return CellResult(
            cell,
            tolerance,
            rule,
            verdict.judge(interval, rule, tolerance, full=True),
            interval,
            sum(scores[0].questions(name) for name in cell.benchmarks),
            {run.run: list(run.seeds) for run in scores},
            self._note(cell, scores[0]),
        )

    def all(self) -> list[CellResult]:
        """The verdicts on all cells, in the tables' order."""
        return [self(cell) for cell in cells_of(self.reported)]

    def _band(self, cell: Cell, interval: Interval | None) -> Band:
        if cell.against is None:
            return band(cell.table, cell.row, cell.column, self.facts, self.reported)
        error = None if interval is None else interval.standard_error
        return difference_band(
            cell.table, cell.row, cell.against, cell.column, self.facts, standard_error=error
        )

    def _missing(self, cell: Cell, runs: Sequence[RunScores | None]) -> str:
        for run, scores in zip(cell.runs, runs, strict=True):
            where = f"{cell.table.family}/{run}"
            if scores is None:
                return f"no results of {where}"
            absent = [name for name in cell.benchmarks if name not in scores.benchmarks]
            if absent:
                return f"{where} has no score on {', '.join(absent)}"
            if scores.standin:
                return f"the scores of {where} are of stand-ins, not of the benchmarks"
        return ""

    def _note(self, cell: Cell, scores: RunScores) -> str:
        """What of the published benchmarks was not asked."""
        fewer = []
        for name in cell.benchmarks:
            asked, whole = scores.questions(name), self.facts.benchmark(name).measured.questions
            if asked < whole:
                fewer.append(f"{asked:,} of {whole:,} questions of {name}")
        return ", ".join(fewer)

    # --- intervals

    def _interval(self, cell: Cell, runs: Sequence[RunScores]) -> Interval | None:
        names = cell.benchmarks
        if set(names) & NOT_IN_AVERAGE:
            return self._from_errors(cell, runs, names[0])
        known, (accuracies, drawn) = self._resample(cell.table.family, cell.runs)
        chosen = [known.index(name) for name in names]
        # the official score, where it is not the mean of the credits, varies as that mean does
        points = np.array([np.mean([run.score(name) for name in names]) for run in runs])
        moved = drawn[:, :, chosen].mean(axis=2) + points - accuracies[:, chosen].mean(axis=1)
        statistic = bootstrap.score if cell.against is None else bootstrap.difference
        if cell.table.quantity == "retention":
            statistic = bootstrap.ratio
        return bootstrap.find_interval(Resamples(points, moved), statistic, self.ledger.level)

    def _resample(self, family: str, runs: Sequence[str]) -> tuple[list[str], Resamples]:
        """The accuracy benchmarks that all runs have, and the bootstrap of the mean credits."""
        key = (family, *runs)
        if key not in self._resamples:
            scores = [self.results.scores(family, run) for run in runs]
            shared = set.intersection(*(set(run.benchmarks) for run in scores if run is not None))
            names = sorted(shared - NOT_IN_AVERAGE)
            answers = self.results.answers(family, runs, names)
            assert answers is not None
            rng = bootstrap.generator(self.ledger.seed, ":".join(key))
            self._resamples[key] = (
                names,
                bootstrap.bootstrap_benchmarks(answers, names, rng, self.ledger.resamples),
            )
        return self._resamples[key]

    def _from_errors(self, cell: Cell, runs: Sequence[RunScores], name: str) -> Interval:
        """The normal interval of a score that is no mean of credits, from its files' own errors.

        Two runs are taken as unpaired, which is wider than paired.
        """
        variance = 0.0
        for run in runs:
            entries = [benchmarks[name] for benchmarks in run.seeds.values()]
            variance += float(np.mean([entry["standard_error"] ** 2 for entry in entries]))
            if len(entries) > 1:
                values = [entry["score"] for entry in entries]
                variance += float(np.var(values, ddof=1)) / len(values)
        error = math.sqrt(variance)
        level = self.ledger.level
        reach = NormalDist().inv_cdf((1 + level) / 2) * error
        point = runs[0].score(name) - (runs[1].score(name) if cell.against else 0.0)
        return Interval(point, point - reach, point + reach, level, error)


def verify_cells(
    results: str | Path,
    scale: str,
    ledger: Ledger | None = None,
    reported: Reported | None = None,
) -> list[CellResult]:
    """The verdict on every cell at full scale; none at another, where levels mean nothing."""
    if scale != FULL_SCALE:
        return []
    return Judge(results, scale, reported=reported, ledger=ledger).all()


# --- as data --------------------------------------------------------------------------------------


def _cell_data(result: CellResult) -> dict[str, Any]:
    cell, interval = result.cell, result.interval
    return {
        "id": cell.id,
        "table": cell.table.short,
        "run": cell.row.run,
        "against": cell.against.run if cell.against else None,
        "column": cell.column,
        "unit": cell.unit,
        "reported": cell.reported,
        "measured": interval and asdict(interval),
        "band": asdict(result.band),
        "rule": {"above": result.rule.above, "below": result.rule.below, "within_band": True},
        "questions": result.questions,
        "seeds": result.seeds or None,
        "status": result.status.value,
        "note": result.note,
    }


def cells_data(results: Sequence[CellResult]) -> dict[str, Any]:
    """The verdicts as a part of claims.json: `cells`, and how many have each status."""
    counts = Counter(result.status for result in results)
    return {
        "cell_summary": {status.value: counts.get(status, 0) for status in Status},
        "cells": [_cell_data(result) for result in results],
    }
