"""Every cell of a released checkpoint against the reported one, and the verdicts as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from replication import compare
from replication.compare import Band, Interval, Rule, Status
from replication.released.checkpoints import Checkpoint
from replication.released.evaluation import Attempt
from replication.reported import AVERAGE, load_ledger, load_tables
from replication.reported.bands import band
from replication.results import ResultSet
from replication.tasks import PRINTED


@dataclass(frozen=True)
class Cell:
    """One cell: what is reported, what was measured, and what follows."""

    column: str
    reported: float | None
    interval: Interval | None
    band: Band | None
    status: Status
    reason: str = ""


def cell_band(table: str, run: str, column: str) -> Band:
    """The band of a printed cell."""
    found = load_tables().table(table)
    return band(found, found.row(run), column)


def judge(attempt: Attempt, results: ResultSet) -> list[Cell]:
    """A checkpoint's cells, in the order of the table's columns.

    REPRODUCED if the whole 95 % interval of the score lies in the band, CONTRADICTED if all of it
    lies outside, otherwise INCONCLUSIVE; NOT RUN, with the reason, for what was not measured.
    """
    checkpoint, table = attempt.checkpoint, attempt.checkpoint.reported
    names = {shown: name for name, shown in PRINTED.items()}
    cells = []
    for column in table.columns:
        average = column == AVERAGE
        benchmarks = table.averaged_benchmarks if average else [table.benchmark(column)]
        reported = table.row(checkpoint.run).values[column]
        interval = _interval(results, checkpoint, benchmarks, column)
        if interval is None:
            reasons = [
                attempt.missing.get(""),
                *(attempt.missing.get(names[b]) for b in benchmarks),
            ]
            reason = next((one for one in reasons if one), "")
            if not reason or (average and "" not in attempt.missing):
                reason = "not every benchmark was run" if average else "not asked for"
            cells.append(Cell(column, reported, None, None, Status.NOT_RUN, reason))
            continue
        found = cell_band(table.id, checkpoint.run, column)
        status = compare.judge(interval, Rule(within_band=True), found, Status.REPRODUCED)
        cells.append(Cell(column, reported, interval, found, status, found.reason))
    return cells


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
    rng = compare.generator(ledger.seed, f"released.{checkpoint.name}.{column}")
    found = compare.score_interval(
        answers[0], benchmarks, rng, resamples=ledger.resamples, level=ledger.level
    )
    point = sum(scores.score(name) for name in benchmarks) / len(benchmarks)
    moved = point - found.point
    return Interval(point, found.low + moved, found.high + moved, found.level, found.standard_error)


def to_data(attempts: Sequence[Attempt], cells: Mapping[str, list[Cell]]) -> dict[str, Any]:
    """The verdicts as JSON data."""
    return {
        attempt.checkpoint.name: {
            "repository": attempt.checkpoint.repository,
            "table": attempt.checkpoint.table,
            "run": attempt.checkpoint.run,
            "bits": attempt.checkpoint.bits,
            "cells": [
                {
                    "column": cell.column,
                    "reported": cell.reported,
                    "measured": None
                    if cell.interval is None
                    else [cell.interval.point, cell.interval.low, cell.interval.high],
                    "band": None if cell.band is None else [cell.band.low, cell.band.high],
                    "status": cell.status.value,
                    "reason": cell.reason,
                }
                for cell in cells[attempt.checkpoint.name]
            ],
        }
        for attempt in attempts
    }


def as_text(attempts: Sequence[Attempt], cells: Mapping[str, list[Cell]]) -> str:
    """One line per cell: column, reported, measured with interval, band, status, and why not."""
    lines = []
    for attempt in attempts:
        checkpoint = attempt.checkpoint
        lines.append(f"{checkpoint.name} ({checkpoint.repository}), {checkpoint.table}")
        for cell in cells[checkpoint.name]:
            reported = "" if cell.reported is None else f"{cell.reported:.1f}"
            if cell.interval is None:
                lines.append(f"  {cell.column:<15} {reported:>6}  {'not run':<20} {cell.reason}")
                continue
            i, b = cell.interval, cell.band
            measured = f"{i.point:.1f} [{i.low:.1f}, {i.high:.1f}]"
            band = f"[{b.low:.1f}, {b.high:.1f}]" if b else "no band"
            lines.append(
                f"  {cell.column:<15} {reported:>6}  {measured:<20} {band:<14} {cell.status.value}"
            )
        lines.append("")
    return "\n".join(lines)
