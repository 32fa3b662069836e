"""Every cell of a released checkpoint against the reported one, and the verdicts as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from replication.base.terminal import as_text, table
from replication.benchmarks import PRINTED
from replication.evaluate.released import Attempt
from replication.paper import AVERAGE, load_ledger
from replication.paper.bands import band
from replication.paper.released import Checkpoint
from replication.results.scores import ResultSet
from replication.stats import verdict
from replication.stats.bootstrap import bootstrap_scores, generator, interval, score
from replication.stats.verdict import Band, Interval, Rule, Status


@dataclass(frozen=True)
class Cell:
    """One cell: what is reported, what was measured, and what follows.

    Attributes:
        column: as printed.
        reported: the printed score.
        interval: what was measured; None: nothing.
        band: what it was judged by.
        status: the verdict.
        reason: of the band, or why nothing was measured.
    """

    column: str
    reported: float | None
    interval: Interval | None
    band: Band | None
    status: Status
    reason: str = ""


def judge(attempt: Attempt, results: ResultSet) -> list[Cell]:
    """A checkpoint's cells, in the order of the table's columns.

    REPRODUCED if the whole 95 % interval of the score lies in the band, CONTRADICTED if all of it
    lies outside, otherwise INCONCLUSIVE; NOT RUN, with the reason, for what was not measured.
    """
    checkpoint, printed = attempt.checkpoint, attempt.checkpoint.reported
    row = printed.row(checkpoint.run)
    cells = []
    for column in printed.columns:
        reported = row.values[column]
        measured = _interval(results, checkpoint, printed.benchmarks_of(column), column)
        if measured is None:
            reason = _missing(attempt, column)
            cells.append(Cell(column, reported, None, None, Status.NOT_RUN, reason))
            continue
        tolerance = band(printed, row, column)
        status = verdict.judge(measured, Rule(within_band=True), tolerance, full=True)
        cells.append(Cell(column, reported, measured, tolerance, status, tolerance.reason))
    return cells


def _missing(attempt: Attempt, column: str) -> str:
    """Why a column was not measured."""
    if column == AVERAGE and "" not in attempt.missing:
        return "not every benchmark was run"
    names = {printed: name for name, printed in PRINTED.items()}
    benchmarks = attempt.checkpoint.reported.benchmarks_of(column)
    reasons = [attempt.missing.get(key) for key in ("", *(names[name] for name in benchmarks))]
    return next(filter(None, reasons), "not asked for")


def _interval(
    results: ResultSet, checkpoint: Checkpoint, benchmarks: Sequence[str], column: str
) -> Interval | None:
    """The official score with the interval of the credits' mean, moved to it where it is another
    mean of them (MMStar's)."""
    scores = results.scores(checkpoint.family, checkpoint.name)
    answers = results.answers(checkpoint.family, [checkpoint.name], benchmarks)
    if scores is None or answers is None:
        return None
    ledger = load_ledger()
    rng = generator(ledger.seed, f"released.{checkpoint.name}.{column}")
    resamples = bootstrap_scores(answers, benchmarks, rng, ledger.resamples)
    mean = interval(resamples, score, ledger.level)
    point = sum(scores.score(name) for name in benchmarks) / len(benchmarks)
    moved = point - mean.point
    return Interval(point, mean.low + moved, mean.high + moved, mean.level, mean.standard_error)


def to_data(attempts: Sequence[Attempt], cells: Mapping[str, list[Cell]]) -> dict[str, Any]:
    """The verdicts as JSON data."""
    return {
        attempt.checkpoint.name: {
            "repository": attempt.checkpoint.repository,
            "table": attempt.checkpoint.table,
            "run": attempt.checkpoint.run,
            "bits": attempt.checkpoint.bits,
            "cells": [_cell_data(cell) for cell in cells[attempt.checkpoint.name]],
        }
        for attempt in attempts
    }


def _cell_data(cell: Cell) -> dict[str, Any]:
    measured, tolerance = cell.interval, cell.band
    return {
        "column": cell.column,
        "reported": cell.reported,
        "measured": measured and [measured.point, measured.low, measured.high],
        "band": tolerance and [tolerance.low, tolerance.high],
        "status": cell.status.value,
        "reason": cell.reason,
    }


def verdicts_text(attempts: Sequence[Attempt], cells: Mapping[str, list[Cell]]) -> str:
    """A line for each cell that was measured; what was not run, once for every reason; counts."""
    parts, statuses = [], Counter[Status]()
    for attempt in attempts:
        checkpoint, own = attempt.checkpoint, cells[attempt.checkpoint.name]
        statuses.update(cell.status for cell in own)
        parts.append(
            f"{checkpoint.name}: {checkpoint.repository}, against row {checkpoint.run} of "
            f"{checkpoint.table}"
        )
        rows = [row for cell in own for row in _rows(cell)]
        if rows:
            if failed := attempt.missing.get(""):
                parts.append(f"  measured before, not this time: {failed}")
            header = ["cell", "reported", "measured [95 %]", "band", "status"]
            parts.append(as_text(table(header, rows, right=[1], indent=2)).rstrip("\n"))
        reasons: dict[str, list[str]] = {}
        for cell in own:
            if cell.interval is None:
                reasons.setdefault(cell.reason, []).append(cell.column)
        for reason, columns in reasons.items():
            which = "all cells" if len(columns) == len(own) else ", ".join(columns)
            parts.append(f"  not run: {which}: {reason}")
        parts.append("")
    counts = [f"{statuses[status]} {status.value}" for status in Status if statuses[status]]
    parts.append(f"{statuses.total()} cells of {len(attempts)} checkpoints: {', '.join(counts)}")
    return "\n".join(parts)


def _rows(cell: Cell) -> Iterator[list[str]]:
    """The cell's line in the table of what was measured; none if it was not."""
    measured, tolerance = cell.interval, cell.band
    if measured is not None and tolerance is not None:
        yield [
            cell.column,
            "" if cell.reported is None else f"{cell.reported:.1f}",
            f"{measured.point:.1f} [{measured.low:.1f}, {measured.high:.1f}]",
            f"[{tolerance.low:.1f}, {tolerance.high:.1f}]",
            cell.status.value,
        ]
