"""The table of tuned rows: every method's candidates, in every pair that was tuned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from replication.judge.quantities import Sources
from replication.report.names import classes_text
from replication.report.tables.grids import cell, column, row
from replication.report.tables.scores import standin_notes
from replication.results.tuning import Candidate, Tuned, read_tuning, tuned_name
from replication.stats import bootstrap
from replication.stats.verdict import Interval

_VALIDATION, _SCORE = "Validation", "Benchmarks"
_BASELINE, _QAT = "Tuned − baseline", "Tuned − tuned QAT"


def tuned(sources: Sources) -> dict[str, Any]:
    """Labels, columns, rows and footnotes, with everything measured at the results' scale."""
    results = sources.results
    found = read_tuning(results.results, results.scale)
    runs = [results.scores(pair.pair, one.run) for pair in found for one in pair.candidates]
    standin = any(one.standin for one in runs if one is not None)
    columns = [
        column(_VALIDATION, standin=standin),
        column(_SCORE, standin=standin),
        column(_BASELINE, "points", signed=True, standin=standin),
        column(_QAT, "points", signed=True, standin=standin),
    ]
    rows = [
        row(columns, [classes_text(pair.pair), *_labels(one)], _cells(pair, one, sources))
        for pair in found
        for one in pair.candidates
    ]
    return {
        "labels": ["Pair", "Method", "Settings", "Chosen"],
        "columns": columns,
        "rows": rows,
        "footnotes": [*standin_notes(standin, bool(found), results.scale), *_notes(found)],
    }


def _labels(one: Candidate) -> list[str]:
    return [one.method.upper(), one.settings, "best" if one.chosen else "no"]


def _cells(pair: Tuned, one: Candidate, sources: Sources) -> dict[str, Any]:
    scores = sources.results.scores(pair.pair, one.run)
    measured = None
    if scores is not None:
        first = scores.seeds[min(scores.seeds)]
        measured = float(np.mean([first[name]["score"] for name in pair.benchmarks]))
    cells = {_VALIDATION: cell(one.score), _SCORE: cell(measured)}
    if one.chosen:
        name, qat = tuned_name(one.method, pair.bits), tuned_name("qat", pair.bits)
        cells[_BASELINE] = cell(interval=_difference(pair, name, "baseline", sources))
        if one.method != "qat":
            cells[_QAT] = cell(interval=_difference(pair, name, qat, sources))
    return cells


def _difference(pair: Tuned, run: str, against: str, sources: Sources) -> Interval | None:
    """The first minus the second, on average; None where one was not evaluated on all of them."""
    answers = sources.results.answers(pair.pair, [run, against], pair.benchmarks)
    if answers is None:
        return None
    scores = sources.resample(answers, list(pair.benchmarks), f"tuned:{pair.pair}:{run}:{against}")
    return bootstrap.interval(scores, bootstrap.difference, sources.ledger.level)


def _notes(found: Sequence[Tuned]) -> list[str]:
    if not found:
        return []
    questions = sorted({f"{pair.questions:,}" for pair in found})
    asked = "; ".join(f"{classes_text(pair.pair)}: {', '.join(pair.benchmarks)}" for pair in found)
    return [
        f"INT{found[0].bits}, the same number of candidates of every method; the best is the one "
        f"with the highest score on {' or '.join(questions)} validation questions of each "
        "benchmark, whose scenes are in neither the training data nor the benchmarks.",
        f"Averages of one seed. {asked}.",
        "Differences of the best: averages over the same benchmarks, with their 95 % intervals "
        "(paired bootstrap over questions, and over seeds where there are several).",
    ]
