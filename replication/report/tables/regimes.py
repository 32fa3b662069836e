"""The map of regimes: when does the method help? One row a cell, one column a measure.

A cell is a group of runs with a teacher and a baseline of its own: how much of the teacher's data
the student has seen, whether a share of the labels is wrong, and whether the methods' data are the
student's own or fresh ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from replication.base.files import is_number, read_json
from replication.judge.quantities import Sources
from replication.paper import AVERAGE
from replication.report.tables import findings
from replication.report.tables.grids import cell, column, row
from replication.report.tables.scores import standin_notes
from replication.results.training_logs import logs_path
from replication.settings.schema import Params
from replication.stats import bootstrap as compare
from replication.stats.verdict import Interval

SHARES = {
    "all": "all of the teacher's data",
    "quarter": "a quarter of it",
    "little": "a twenty-fifth of it",
    "both_little": "a twenty-fifth, and the teacher no more",
}
LABELS = {"clean": "clean", "noisy": "a fifth wrong"}
DATA = {"same": "the student's own", "fresh": "fresh"}
RUNS = {
    "sft": "SFT",
    "qat_int4": "QAT, 4 bits",
    "kd": "KD",
    "kd_tuned": "KD, tuned",
    "grace": "GRACE, code's coefficients",
    "grace_launcher": "GRACE, launcher's coefficients",
    "grace_nckd1": "GRACE, β_dkd = 1",
    "grace_int4": "GRACE, 4 bits",
}
"""The runs of every cell, as columns; 16 bits where nothing is said."""
PAIRS = {
    findings.OVER_SFT: ("kd", "sft"),
    findings.OVER_KD: ("grace", "kd"),
    findings.OVER_QAT: ("grace_int4", "qat_int4"),
}
HEADLINE = "table4"
"""The paper's table whose benchmarks the average is of, and whose controls place a cell."""
CAPACITY_BOUND = "regime_all_clean_same"
"""The cell of a student that has seen what its sure teacher has, and cannot hold more."""
_NAME = re.compile(rf"regime_({'|'.join(SHARES)})_({'|'.join(LABELS)})_({'|'.join(DATA)})")


@dataclass(frozen=True)
class Regime:
    """A cell of the map.

    Attributes:
        group: Its group of runs.
        teacher: <folder>/<name> of its teacher.
        baseline: <folder>/<name> of its baseline.
    """

    group: str
    teacher: str
    baseline: str

    @property
    def place(self) -> tuple[str, str, str]:
        """Share of the teacher's data, labels, methods' data, as in the group's name."""
        found = _NAME.fullmatch(self.group)
        assert found is not None
        return found[1], found[2], found[3]

    @property
    def order(self) -> tuple[int, ...]:
        """Where it stands among the others."""
        kinds = zip((SHARES, LABELS, DATA), self.place, strict=True)
        return tuple(list(kind).index(name) for kind, name in kinds)


def regimes_of(params: Params) -> list[Regime]:
    """The map's cells among the groups of runs, in the map's order."""
    cells = [
        Regime(name, *("/".join(params.model_of(group, kind)) for kind in ("teacher", "baseline")))
        for name, group in params.runs.items()
        if _NAME.fullmatch(name)
    ]
    return sorted(cells, key=lambda cell: cell.order)


@dataclass(frozen=True)
class Measured:
    """What was measured of a cell; an interval or number that was not is missing."""

    regime: Regime
    intervals: Mapping[str, Interval]
    numbers: Mapping[str, float]


class _Reader:
    """Reads the cells' results."""

    def __init__(self, sources: Sources, benchmarks: Sequence[str]) -> None:
        self.sources, self.benchmarks = sources, list(benchmarks)

    def interval(
        self, regime: Regime, runs: Sequence[str], statistic: compare.Statistic
    ) -> Interval | None:
        """A statistic of some runs' averages, questions drawn together; None without a run."""
        results, level = self.sources.results, self.sources.ledger.level
        answers = results.answers(regime.group, runs, self.benchmarks)
        if answers is None:
            return None
        name = ":".join(["regimes", regime.group, *runs])
        scores = self.sources.resample(answers, self.benchmarks, name)
        return compare.interval(scores, statistic, level)

    def read(self, regime: Regime) -> Measured:
        teacher, baseline = regime.teacher, regime.baseline
        found = {
            "Teacher": self.interval(regime, [teacher], compare.score),
            "Baseline": self.interval(regime, [baseline], compare.score),
            "Gap": self.interval(regime, [teacher, baseline], compare.difference),
        }
        for run, name in RUNS.items():
            found[name] = self.interval(regime, [run, baseline], compare.difference)
        for name, pair in PAIRS.items():
            found[name] = self.interval(regime, pair, compare.difference)
        return Measured(
            regime,
            {name: one for name, one in found.items() if one is not None},
            self._numbers(regime),
        )

    def _numbers(self, regime: Regime) -> dict[str, float]:
        """What the training log of GRACE says: the teacher's doubt, and the loss against τ."""
        results = self.sources.results
        folder = logs_path(results.results, results.scale, regime.group, "grace")
        logs = [read_json(path) for path in sorted(folder.glob("seed*.json"))]
        log: dict[str, Any] = logs[0] if logs else {}
        teacher, controller = log.get("teacher") or {}, log.get("controller") or {}
        courses = [entry for entry in log.get("history") or [] if is_number(entry.get("gdkd"))]
        numbers = {
            "Entropy": teacher.get("entropy"),
            "Gate": teacher.get("gate"),
            "GDKD, start": courses[0]["gdkd"] if courses else None,
            "GDKD, end": courses[-1]["gdkd"] if courses else None,
            "τ": controller.get("tau"),
        }
        return {name: float(value) for name, value in numbers.items() if is_number(value)}


# --- where the paper's controls would place it ----------------------------------------------------


def reported_controls(sources: Sources) -> dict[str, float]:
    """What the paper prints of the rows that are not GRACE, in points; SFT is not reported: a
    published model is at its plateau, so that more of the same training gains nothing."""
    table, components = (sources.reported.table(name) for name in (HEADLINE, "table3"))
    base = table.cell("baseline", AVERAGE)
    return {
        "Gap": table.cell("teacher", AVERAGE) - base,
        "SFT": 0.0,
        "QAT, 4 bits": table.cell("qat_int4", AVERAGE) - base,
        "KD": components.cell("kd_bf16", AVERAGE) - components.cell("baseline", AVERAGE),
    }


def distance(measured: Measured, controls: Mapping[str, float]) -> float | None:
    """Root mean square difference of a cell's controls from the reported ones, in points; None
    where one of them was not run."""
    if not controls.keys() <= measured.intervals.keys():
        return None
    away = [measured.intervals[name].point - value for name, value in controls.items()]
    return float(np.sqrt(np.mean(np.square(away))))


# --- the table ------------------------------------------------------------------------------------


def _columns(standin: bool) -> list[dict[str, Any]]:
    effects = [*RUNS.values(), *PAIRS]
    return [
        column("Teacher", "%", standin=standin),
        column("Baseline", "%", standin=standin),
        column("Gap", "points", signed=True, standin=standin),
        column("Entropy", "nats", places=2),
        column("Gate", places=3),
        *(column(n, "points", signed=True, standin=standin, axis="effects") for n in effects),
        column("GDKD, start", places=2),
        column("GDKD, end", places=2),
        column("τ", places=2),
        column("Distance from the paper's controls", "points"),
    ]


def _labels(regime: Regime, placed: str | None) -> list[str]:
    share, labels, data = regime.place
    marks = {CAPACITY_BOUND: "capacity-bound", placed: "nearest to the paper's controls"}
    if placed == CAPACITY_BOUND:
        marks[placed] = "capacity-bound, and nearest to the paper's controls"
    mark = f" ({marks[regime.group]})" if regime.group in marks else ""
    return [SHARES[share], LABELS[labels], DATA[data] + mark]


def regimes(sources: Sources, cells: Sequence[Regime]) -> dict[str, Any]:
    """The rows, columns and words of the table.

    Args:
        sources: Where everything is read from.
        cells: The map's cells, see `regimes_of`; none at a scale without a map.
    """
    results, table = sources.results, sources.reported.table(HEADLINE)
    reader = _Reader(sources, table.averaged_benchmarks)
    every = [reader.read(regime) for regime in cells]
    controls = reported_controls(sources)
    away = {one.regime.group: distance(one, controls) for one in every}
    known = {group: value for group, value in away.items() if value is not None}
    placed = min(known, key=lambda group: known[group]) if known else None
    scores = [s for one in cells if (s := results.scores(one.group, "grace")) is not None]
    standin = any(one.standin for one in scores)
    columns, rows = _columns(standin), []
    for one in every:
        values = {name: cell(interval=value) for name, value in one.intervals.items()}
        values |= {name: cell(value) for name, value in one.numbers.items()}
        values["Distance from the paper's controls"] = cell(away[one.regime.group])
        line = row(columns, _labels(one.regime, placed), values)
        rows.append({**line, "outcome": findings.outcome(one)})
    return {
        "labels": ["Student has seen", "Labels", "Methods' data"],
        "columns": columns,
        "rows": rows,
        "cells": [[one.regime.group, *one.regime.place] for one in every],
        "placed": placed,
        "capacity_bound": CAPACITY_BOUND,
        "controls": controls,
        "findings": findings.sentences(every),
        "footnotes": [*standin_notes(standin, bool(scores), results.scale), *_notes(controls)],
    }


def _notes(controls: Mapping[str, float]) -> list[str]:
    said = ", ".join(f"{name} {value:+.1f}".replace("-", "−") for name, value in controls.items())
    return [
        "Effects are points against the cell's baseline on the average of the benchmarks, with "
        "their 95 % interval: paired bootstrap over questions, one seed a run. Every other run has "
        "16 bits. The cells share teachers and questions: they are not independent.",
        "Entropy and gate: of the teacher at the supervised tokens of the methods' data. GDKD: the "
        "mean of the first and of the last logged steps of GRACE with the code's coefficients, "
        "whose budget is τ.",
        f"Distance: root mean square difference of the cell's controls from the paper's ({said}; "
        "SFT is not reported, a published model is taken to be at its plateau), in points.",
        "Where GRACE loses against the baseline it costs; where it gains over KD, its further "
        "terms pay.",
    ]
