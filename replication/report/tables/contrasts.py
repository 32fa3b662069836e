"""The table of contrasts: pairs of runs, the first minus the second."""

from __future__ import annotations

from typing import Any

from replication.judge.quantities import Sources
from replication.paper import ReportedTable, Summary
from replication.report.tables.grids import cell, column, row
from replication.report.tables.scores import standin_notes
from replication.stats import bootstrap
from replication.stats.verdict import Interval


def contrasts(summary: Summary, table: ReportedTable, sources: Sources) -> dict[str, Any]:
    """Labels, columns, rows and footnotes, with everything measured at the results' scale."""
    results = sources.results
    scores = [results.scores(table.family, run) for run in sorted(summary.named)]
    standin = any(one.standin for one in scores if one is not None)
    columns = [column(name, "points", signed=True, standin=standin) for name in table.columns]
    rows = [
        row(
            columns,
            [first, second],
            {
                name: cell(interval=_difference(table, name, first, second, sources))
                for name in table.columns
            },
        )
        for first, second in summary.pairs
    ]
    measured = any(one is not None for one in scores)
    return {
        "labels": ["Run", "minus"],
        "columns": columns,
        "rows": rows,
        "footnotes": [
            *standin_notes(standin, measured, results.scale),
            "95 % intervals: paired bootstrap over questions, and over seeds and pairs of teacher "
            "and baseline where both runs have several.",
        ],
    }


def _difference(
    table: ReportedTable, name: str, first: str, second: str, sources: Sources
) -> Interval | None:
    """The difference on a column; None where a run was not evaluated on all of it."""
    benchmarks = table.benchmarks_of(name)
    answers = sources.results.answers(table.family, [first, second], benchmarks)
    if answers is None:
        return None
    scores = sources.resample(answers, benchmarks, f"contrasts:{first}:{second}:{name}")
    return bootstrap.interval(scores, bootstrap.difference, sources.ledger.level)
