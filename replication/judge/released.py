"""Every cell of a released checkpoint against the reported one, and the verdicts as text."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    """One cell: what is reported, what was measured, and what follows."""

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
    checkpoint, table = attempt.checkpoint, attempt.checkpoint.reported
    row = table.row(checkpoint.run)
    names = {shown: name for name, shown in PRINTED.items()}
    cells = []
    for column in table.columns:
        average = column == AVERAGE
        benchmarks = table.averaged_benchmarks if average else [table.benchmark(column)]
        reported = row.values[column]
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
        found = band(table, row, column)
        status = verdict.judge(interval, Rule(within_band=True), found, Status.REPRODUCED)
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
    rng = generator(ledger.seed, f"released.{checkpoint.name}.{column}")
    drawn = bootstrap_scores(answers, benchmarks, rng, ledger.resamples)
    found = interval(drawn, score, ledger.level)
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
    """A line for each cell that was measured; what was not run, once for every reason; counts."""
    lines, statuses = [], Counter[Status]()
    for attempt in attempts:
        checkpoint, own = attempt.checkpoint, cells[attempt.checkpoint.name]
        statuses.update(cell.status for cell in own)
        lines.append(
            f"{checkpoint.name}: {checkpoint.repository}, against row {checkpoint.run} of "
            f"{checkpoint.table}"
        )
        measured = [_line(cell) for cell in own if cell.interval is not None]
        if measured:
            failed = attempt.missing.get("")
            lines += _wrapped(f"measured before, not this time: {failed}") if failed else []
            lines.append(
                f"  {'cell':<15} {'reported':>8}  {'measured [95 %]':<20} {'band':<14} status"
            )
        lines += measured
        reasons: dict[str, list[str]] = {}
        for cell in own:
            if cell.interval is None:
                reasons.setdefault(cell.reason, []).append(cell.column)
        for reason, columns in reasons.items():
            which = "all cells" if len(columns) == len(own) else ", ".join(columns)
            lines += _wrapped(f"not run: {which}: {reason}")
        lines.append("")
    counts = [f"{statuses[one]} {one.value}" for one in Status if statuses[one]]
    lines.append(f"{statuses.total()} cells of {len(attempts)} checkpoints: {', '.join(counts)}")
    return "\n".join(lines)


def _line(cell: Cell) -> str:
    reported = "" if cell.reported is None else f"{cell.reported:.1f}"
    interval, ends = cell.interval, cell.band
    assert interval is not None and ends is not None  # it was measured
    measured = f"{interval.point:.1f} [{interval.low:.1f}, {interval.high:.1f}]"
    tolerated = f"[{ends.low:.1f}, {ends.high:.1f}]"
    return f"  {cell.column:<15} {reported:>8}  {measured:<20} {tolerated:<14} {cell.status.value}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(
        text,
        96,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
