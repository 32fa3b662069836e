"""The tolerance band of every reported cell, and of what the ledger makes of several of them.

Data: benchmarks.yaml. The half-width of a cell's band is the sum of

    sampling   z · SE of the printed score at the benchmark's size and in its kind of score
    harness    the largest difference between two public readings of one model
    training   the same of two trainings of one recipe; nothing for a published checkpoint
    print      half a unit of the last printed digit

Sampling is noise; the others are shifts of unknown sign, so they are added and not taken in
quadrature. A measured interval of the same size then lies in the band exactly where the measured
score differs from the printed one by no more than the shifts. In an average the benchmarks'
errors and shifts are independent of each other: root of the sum of squares, over their number.

Nothing is rounded. What is measured takes no part in a cell's band.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Any

from grace.errors import InputError
from replication.base.yaml import read_yaml
from replication.paper.reading import (
    expect_choice,
    expect_list,
    expect_mapping,
    expect_number,
    expect_text,
    nearest,
)
from replication.paper.tables import (
    AVERAGE,
    FOLDER,
    PrintedCell,
    Reported,
    ReportedRow,
    ReportedTable,
    load_tables,
)
from replication.stats.verdict import LEVEL, Band, Rule

__all__ = [
    "Benchmark",
    "Facts",
    "Reading",
    "band",
    "difference_band",
    "difference_rule",
    "load_facts",
    "parse_facts",
    "quantity_band",
    "sampling_error",
]

UNIT = 0.1  # of the last printed digit, in every table
PUBLISHED = ("teacher", "baseline")  # roles whose weights are given
POINTS_A_CATEGORY = 200.0
_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
_SLACK = 1e-9

_SCORES: dict[str, tuple[str, ...]] = {
    "accuracy": (),
    "credit": (),
    "f1": ("positives",),
    "points": ("images",),
    "mean": ("units",),
}


@dataclass(frozen=True)
class Reading:
    """One public disagreement: where it stands, what was read, and the two values."""

    source: str
    what: str
    values: tuple[float, float]

    @property
    def apart(self) -> float:
        return abs(self.values[0] - self.values[1])


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: its size, its kind of score, and how far readings of it lie apart.

    `counts`: of an F1 score the different positives, of points the images of each category, of a
    mean of shares the size of each; empty otherwise. `measured`: split and questions of what can be
    measured here, where the printed score's answers are not public.
    """

    name: str
    split: str
    questions: int
    measured: tuple[str, int]
    unit: str
    kind: str
    counts: Mapping[str, int]
    harness: tuple[Reading, ...]
    training: tuple[Reading, ...]
    differences: tuple[Reading, ...]

    @property
    def top(self) -> float:
        """The largest possible score."""
        return POINTS_A_CATEGORY * len(self.counts) if self.kind == "points" else 100.0

    def standard_error(self, value: float) -> float:
        """The sampling error of a score, in its unit; an upper bound where the score alone does not
        decide it.

        accuracy, credit  100 · sqrt(p (1 − p) / n): a credit from 0 to 1 varies no more than right
                          or wrong of the same mean.
        f1                all errors missed positives, the case that varies most: with the share x
                          missed, F1 = 2 (1 − x) / (2 − x), so SE = 2 / (2 − x)² · sqrt(x (1 − x) /
                          positives). Wrong negatives would give less than half of it.
        points            an image earns 0, 50 or 200 points; it varies most between 0 and 200:
                          sqrt(sum over categories of m (200 − m) / images), m the mean category.
        mean              the mean of the parts' errors: the parts come from the same answers.

        Raises InputError for a value that is no score of the benchmark.
        """
        if not 0.0 <= value <= self.top:
            raise InputError(f"{self.name}: {value} is not a score from 0 to {self.top:g}")
        if self.kind == "points":
            mean = value / len(self.counts)
            spread = mean * (POINTS_A_CATEGORY - mean)
            return math.sqrt(sum(spread / images for images in self.counts.values()))
        p = value / 100.0
        if self.kind == "f1":
            missed = (2.0 - 2.0 * p) / (2.0 - p)
            slope = 2.0 / (2.0 - missed) ** 2
            return 100.0 * slope * math.sqrt(missed * (1.0 - missed) / self.counts["positives"])
        sizes = list(self.counts.values()) or [self.questions]
        errors = [100.0 * math.sqrt(p * (1.0 - p) / size) for size in sizes]
        return sum(errors) / len(errors)

    @property
    def harness_spread(self) -> float:
        return max(one.apart for one in self.harness)


@dataclass(frozen=True)
class Facts:
    """All of benchmarks.yaml, validated."""

    benchmarks: Mapping[str, Benchmark]
    trained_spread: float
    correlation: float
    faults: tuple[tuple[str, str], ...]

    def benchmark(self, name: str) -> Benchmark:
        """A benchmark by its name. Raises InputError with the nearest name."""
        if name not in self.benchmarks:
            raise InputError(f"no facts about benchmark {name!r}{nearest(name, self.benchmarks)}")
        return self.benchmarks[name]

    @property
    def kept(self) -> float:
        """The share of a harness's shift that a difference keeps, where it was not read itself: the
        largest that was seen of any benchmark."""
        return max(
            max(one.apart for one in benchmark.differences) / benchmark.harness_spread
            for benchmark in self.benchmarks.values()
            if benchmark.differences
        )

    def difference_spread(self, name: str) -> float:
        """How far readings of one difference lie apart."""
        benchmark = self.benchmark(name)
        if benchmark.differences:
            return max(one.apart for one in benchmark.differences)
        return self.kept * benchmark.harness_spread

    def training_spread(self, name: str) -> float:
        """How far trainings of one recipe lie apart: what was read, and at least what is assumed
        of all."""
        return max(self.trained_spread, *(one.apart for one in self.benchmark(name).training), 0.0)


def _parse_readings(data: Any, where: str) -> tuple[Reading, ...]:
    found = []
    for index, given in enumerate(expect_list(data, where)):
        place = f"{where}[{index}]"
        raw = expect_mapping(given, place, ("source", "what", "values"))
        values = expect_list(raw["values"], f"{place}.values")
        if len(values) != 2:
            raise InputError(f"{place}.values is {values}: give the two readings")
        first, second = (expect_number(value, f"{place}.values") for value in values)
        source, what = (expect_text(raw[key], f"{place}.{key}") for key in ("source", "what"))
        found.append(Reading(source, what, (first, second)))
    return tuple(found)


def _count(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{where} is {value!r}: expected a positive whole number")
    return value


def _parse_score(data: Any, where: str) -> tuple[str, dict[str, int]]:
    kind = expect_choice(
        data.get("kind") if isinstance(data, dict) else None, _SCORES, f"{where}.kind"
    )
    raw = expect_mapping(data, where, ("kind", *_SCORES[kind]))
    if kind == "f1":
        return kind, {"positives": _count(raw["positives"], f"{where}.positives")}
    if kind not in ("points", "mean"):
        return kind, {}
    (key,) = _SCORES[kind]
    if not isinstance(raw[key], dict) or not raw[key]:
        raise InputError(f"{where}.{key} must map names to numbers")
    return kind, {
        str(name): _count(value, f"{where}.{key}.{name}") for name, value in raw[key].items()
    }


def _parse_benchmark(name: str, data: Any) -> Benchmark:
    where = f"benchmarks.{name}"
    data = expect_mapping(
        data,
        where,
        ("split", "questions", "unit", "score", "harness"),
        ("measured", "training", "differences"),
    )
    split = expect_text(data["split"], f"{where}.split")
    questions = _count(data["questions"], f"{where}.questions")
    measured = (split, questions)
    if "measured" in data:
        raw = expect_mapping(data["measured"], f"{where}.measured", ("split", "questions"))
        measured = (
            expect_text(raw["split"], f"{where}.measured.split"),
            _count(raw["questions"], f"{where}.measured.questions"),
        )
    unit = expect_choice(data["unit"], ("percent", "points"), f"{where}.unit")
    kind, counts = _parse_score(data["score"], f"{where}.score")
    if (unit == "points") is not (kind == "points"):
        raise InputError(f"{where}: a score of kind {kind!r} is not in {unit}")
    readings = {
        key: _parse_readings(data[key], f"{where}.{key}") if key in data else ()
        for key in ("harness", "training", "differences")
    }
    return Benchmark(name, split, questions, measured, unit, kind, counts, **readings)


def parse_facts(data: Any) -> Facts:
    """The content of benchmarks.yaml as `Facts`. Raises InputError for anything ill-formed."""
    data = expect_mapping(
        data, "benchmarks.yaml", ("trained_spread", "correlation", "faults", "benchmarks")
    )
    trained = expect_number(data["trained_spread"], "trained_spread")
    correlation = expect_number(data["correlation"], "correlation")
    if trained < 0:
        raise InputError(f"trained_spread is {trained}: it cannot be negative")
    if not 0.0 <= correlation < 1.0:
        raise InputError(f"correlation is {correlation}: give a number from 0 to below 1")
    faults = []
    for index, given in enumerate(expect_list(data["faults"], "faults")):
        raw = expect_mapping(given, f"faults[{index}]", ("source", "what"))
        source, what = (expect_text(raw[k], f"faults[{index}].{k}") for k in ("source", "what"))
        faults.append((source, what))
    if not isinstance(data["benchmarks"], dict):
        raise InputError("benchmarks must be a mapping")
    benchmarks = {name: _parse_benchmark(name, raw) for name, raw in data["benchmarks"].items()}
    if not any(benchmark.differences for benchmark in benchmarks.values()):
        raise InputError("no benchmark has 'differences': a difference's spread is not known")
    return Facts(benchmarks, trained, correlation, tuple(faults))


@cache
def load_facts(path: str | Path = FOLDER / "benchmarks.yaml") -> Facts:
    """The benchmarks' facts. Errors: see `read_yaml` and `parse_facts`."""
    return parse_facts(read_yaml(path))


# --- bands ----------------------------------------------------------------------------------------


def _pooled(values: Sequence[float]) -> float:
    """Of the mean of independent numbers with these errors, or shifts."""
    return math.sqrt(sum(value**2 for value in values)) / len(values)


def _benchmarks(table: ReportedTable, column: str, facts: Facts) -> list[Benchmark]:
    names = table.averaged_benchmarks if column == AVERAGE else [table.benchmark(column)]
    return [facts.benchmark(name) for name in names]


def _value(table: ReportedTable, row: ReportedRow, column: str) -> float:
    if column not in row.values:
        raise InputError(f"{table.short} has no column {column!r}{nearest(column, row.values)}")
    value = row.values[column]
    if value is None:
        raise InputError(f"{table.short}: no value is reported for {row.key}, {column}")
    return value


def _scores(table: ReportedTable, row: ReportedRow, column: str) -> list[float]:
    """The printed scores of the column's benchmarks; the printed average where a cell is null."""
    if column != AVERAGE:
        return [_value(table, row, column)]
    average = _value(table, row, column)
    cells = [row.values[name] for name in table.averaged]
    return [average if cell is None else cell for cell in cells]


def sampling_error(
    table: ReportedTable, row: ReportedRow, column: str, facts: Facts | None = None
) -> float:
    """The standard error of a printed cell, in its unit.

    Raises InputError for a cell without a value, or a table that holds no scores.
    """
    facts = load_facts() if facts is None else facts
    if table.quantity != "score":
        raise InputError(f"{table.short} holds no scores: its cells have no error of their own")
    chosen, values = _benchmarks(table, column, facts), _scores(table, row, column)
    return _pooled([one.standard_error(v) for one, v in zip(chosen, values, strict=True)])


@dataclass(frozen=True)
class _Width:
    """The parts of a half-width, in the cell's unit, and what they rest on."""

    sampling: float
    harness: float
    training: float
    print: float
    basis: str
    harness_basis: str

    @property
    def total(self) -> float:
        return self.sampling + self.harness + self.training + self.print

    @property
    def reason(self) -> str:
        parts = [f"{self.sampling:.2f} sampling ({self.basis})"]
        parts.append(f"{self.harness:.2f} harness ({self.harness_basis})")
        parts.append(
            f"{self.training:.2f} training" if self.training else "published weights: no training"
        )
        return "; ".join([*parts, f"{self.print:.2f} print"])

    def times(self, factor: float) -> _Width:
        return _Width(
            self.sampling * factor,
            self.harness * factor,
            self.training * factor,
            self.print,
            self.basis,
            self.harness_basis,
        )


def _basis(chosen: Sequence[Benchmark]) -> str:
    if len(chosen) > 1:
        return f"mean of {len(chosen)} benchmarks"
    (one,) = chosen
    return f"{one.questions:,} questions, {one.split}"


def _furthest(readings: Sequence[Reading]) -> str:
    one = max(readings, key=lambda reading: reading.apart)
    return f"{one.source}: {one.values[0]:g} and {one.values[1]:g}"


Weighted = Sequence[tuple[PrintedCell, float]]


def _difference(first: PrintedCell, second: PrintedCell) -> Weighted:
    return [(first, 1.0), (second, -1.0)]


def _training(chosen: Sequence[Benchmark], facts: Facts) -> float:
    return _pooled([facts.training_spread(one.name) for one in chosen])


def _cell_width(cell: PrintedCell, facts: Facts) -> _Width:
    table, row, column = cell
    chosen = _benchmarks(table, column, facts)
    return _Width(
        sampling=_Z * sampling_error(table, row, column, facts),
        harness=_pooled([one.harness_spread for one in chosen]),
        training=0.0 if row.role in PUBLISHED else _training(chosen, facts),
        print=UNIT / 2,
        basis=_basis(chosen),
        harness_basis=_furthest(chosen[0].harness) if len(chosen) == 1 else "as of its cells",
    )


def _contrast_width(
    cells: Weighted, facts: Facts, *, standard_error: float | None = None
) -> _Width:
    """Of a sum of cells with weights that add up to none: 1 and −1 for a difference.

    Weights w and errors e of answers that correlate by ρ: the variance is
    (1 − ρ) Σ(w e)² + ρ (Σ w e)². A training's spread is that of two of them, so it counts
    sqrt(Σw² / 2) times, wholly in a difference and half in the mean of four. A harness's shift of a
    difference is none of chance and does not average out.
    """
    first = cells[0][0]
    chosen = _benchmarks(first.table, first.column, facts)
    errors = [weight * sampling_error(*cell, facts) for cell, weight in cells]
    unpaired = math.hypot(*errors)
    if standard_error is None:
        shared = facts.correlation * (sum(errors) ** 2 - unpaired**2)
        error = math.sqrt(unpaired**2 + shared)
        basis = f"{_basis(chosen)}, answers taken to correlate by {facts.correlation:g}"
    elif not (math.isfinite(standard_error) and standard_error >= 0):
        raise InputError(f"standard error is {standard_error}: give a number that is not negative")
    else:
        error = min(standard_error, unpaired)  # no less alike than unpaired answers
        basis = f"{_basis(chosen)}, paired error as measured"
    single = chosen[0] if len(chosen) == 1 else None
    if single is None:
        source = "as of its cells"
    elif single.differences:
        source = _furthest(single.differences)
    else:
        source = f"{facts.kept:.2f} of {_furthest(single.harness)}"
    trained = any(cell.row.role not in PUBLISHED for cell, _ in cells)
    counted = math.sqrt(sum(weight**2 for _, weight in cells) / 2)
    return _Width(
        sampling=_Z * error,
        harness=_pooled([facts.difference_spread(one.name) for one in chosen]),
        training=_training(chosen, facts) * counted if trained else 0.0,
        print=sum(abs(weight) for _, weight in cells) * UNIT / 2,
        basis=basis,
        harness_basis=source,
    )


def _contrast_band(cells: Weighted, facts: Facts, *, standard_error: float | None = None) -> Band:
    value = sum(weight * _value(*cell) for cell, weight in cells)
    excess = sum(weight * _misprint(*cell) for cell, weight in cells)
    return _around(value, excess, _contrast_width(cells, facts, standard_error=standard_error))


def _misprint(table: ReportedTable, row: ReportedRow, column: str) -> float:
    """By how much a printed average exceeds the mean of its cells; 0 if it follows from them."""
    if column != AVERAGE:
        return 0.0
    cells = [row.values[name] for name in table.averaged]
    if any(cell is None for cell in cells):
        return 0.0
    excess = _value(table, row, column) - sum(_scores(table, row, column)) / len(cells)
    return excess if abs(excess) > UNIT / 2 + _SLACK else 0.0


def _around(value: float, excess: float, width: _Width) -> Band:
    """The band around a printed number, and around the one that its cells give if they differ."""
    reason = width.reason
    if excess:
        reason += f"; reaches {abs(excess):.2f} further: the printed average is not its cells'"
    low, high = min(value, value - excess), max(value, value - excess)
    return Band(low - width.total, high + width.total, reason)


def _ratio_band(
    run: PrintedCell, base: PrintedCell, facts: Facts, printed: float | None = None
) -> Band:
    """Of 100 · run / base = 100 · (1 + difference / base): the difference's, in percent of the
    baseline. printed: the ratio where it is printed itself, and so rounded once."""
    factor = 100.0 / _value(*base)
    width = _contrast_width(_difference(run, base), facts).times(factor)
    width = replace(width, print=width.print * factor if printed is None else UNIT / 2)
    return _around(factor * _value(*run) if printed is None else printed, 0.0, width)


def band(
    table: ReportedTable,
    row: ReportedRow,
    column: str,
    facts: Facts | None = None,
    reported: Reported | None = None,
) -> Band:
    """The tolerance band of a reported cell, in its unit, with its reason.

    Raises InputError for a column that the table lacks, a cell without a value, or a benchmark
    that nothing is known of.
    """
    facts = load_facts() if facts is None else facts
    value = _value(table, row, column)
    if table.quantity != "score":
        tables = load_tables() if reported is None else reported
        benchmarks = [table.benchmark(column)]
        run = _cell(tables, table.family, row.key, benchmarks)
        base = _cell(tables, table.family, "baseline", benchmarks)
        return _ratio_band(run, base, facts, value)
    cell = PrintedCell(table, row, column)
    return _around(value, _misprint(*cell), _cell_width(cell, facts))


def difference_band(
    table: ReportedTable,
    row: ReportedRow,
    against: ReportedRow,
    column: str,
    facts: Facts | None = None,
    *,
    standard_error: float | None = None,
) -> Band:
    """The tolerance band of the difference row − against of two cells of one column.

    standard_error: of the paired difference, where the answers were measured; it is used up to that
    of unpaired answers. None: by the two cells' errors and `Facts.correlation`. Errors: see `band`;
    also for a standard error that is no number, or a table that holds no scores.
    """
    facts = load_facts() if facts is None else facts
    cells = _difference(PrintedCell(table, row, column), PrintedCell(table, against, column))
    return _contrast_band(cells, facts, standard_error=standard_error)


def quantity_band(
    quantity: Mapping[str, Any],
    benchmarks: Sequence[str],
    reported: Reported,
    facts: Facts | None = None,
    *,
    standard_error: float | None = None,
) -> Band:
    """The tolerance band of a quantity of the ledger that follows from printed cells: a value, a
    difference or a ratio of two (also of different tables), the share of a gap, a main effect.

    quantity: see `replication.paper.ledger`. benchmarks: what it is over. standard_error: as in
    `difference_band`, of differences and main effects.

    Raises InputError for a quantity of another kind, or of cells that the paper does not print.
    """
    facts = load_facts() if facts is None else facts
    kind, family = quantity["kind"], quantity["family"]

    def cell(run: str) -> PrintedCell:
        return _cell(reported, family, run, benchmarks)

    if kind == "value":
        return band(*cell(quantity["run"]), facts, reported)
    if kind == "difference":
        cells = _difference(cell(quantity["run"]), cell(quantity["against"]))
        return _contrast_band(cells, facts, standard_error=standard_error)
    if kind == "main_effect":
        design = reported.table(quantity["table"]).design()
        share = 2.0 / len(design)
        cells = [
            (cell(run), share if quantity["component"] in components else -share)
            for components, run in design.items()
        ]
        return _contrast_band(cells, facts, standard_error=standard_error)
    if kind == "ratio":
        return _ratio_band(
            cell(quantity["run"]),
            cell(quantity["against"]),
            facts,
            _printed_ratio(reported, family, quantity["run"], benchmarks),
        )
    if kind == "gap_closed":
        run, base, teacher = (cell(quantity[key]) for key in ("run", "baseline", "teacher"))
        gap = _value(*teacher) - _value(*base)
        found = _contrast_band(_difference(run, base), facts)
        return Band(
            found.low / gap, found.high / gap, f"{found.reason}; in parts of a gap of {gap:.1f}"
        )
    raise InputError(f"a quantity of kind {kind!r} does not follow from printed cells")


def _cell(reported: Reported, family: str, run: str, benchmarks: Sequence[str]) -> PrintedCell:
    found = reported.find_printed(family, run, benchmarks)
    if found is None:
        raise InputError(f"no table prints {run} of {family} on {', '.join(benchmarks)}")
    return found


def _printed_ratio(
    reported: Reported, family: str, run: str, benchmarks: Sequence[str]
) -> float | None:
    """The retention that a table prints of a run; None where it has to follow from scores."""
    found = reported.find_printed(family, run, benchmarks, "retention")
    return None if found is None else _value(*found)


def difference_rule(
    table: ReportedTable,
    row: ReportedRow,
    against: ReportedRow,
    column: str,
    facts: Facts | None = None,
) -> Rule:
    """What must be true of a measured difference: inside the band, and, where the printed one
    exceeds its own sampling error, on its side of zero."""
    facts = load_facts() if facts is None else facts
    cells = _difference(PrintedCell(table, row, column), PrintedCell(table, against, column))
    value = _value(table, row, column) - _value(table, against, column)
    width = _contrast_width(cells, facts)
    if abs(value) <= width.sampling:
        return Rule(within_band=True)
    if value > 0:
        return Rule(above=0.0, within_band=True)
    return Rule(below=0.0, within_band=True)
