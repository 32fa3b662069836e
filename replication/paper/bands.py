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
from typing import Annotated, Any, Literal

from pydantic import Field

from grace.errors import InputError
from grace.files import read_yaml
from replication.base.messages import unknown
from replication.base.validation import Number, Positive, Text, record, validate
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

UNIT = 0.1
"""Of the last printed digit, in every table."""
PUBLISHED = ("teacher", "baseline")
"""Roles whose weights are published: they were not trained again."""
POINTS_A_CATEGORY = 200.0
_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
_SLACK = 1e-9


@record
class Reading:
    """One public disagreement.

    Attributes:
        source: where it stands.
        what: what was read.
        values: the two readings.
    """

    source: Text
    what: Text
    values: tuple[Number, Number]

    @property
    def apart(self) -> float:
        """How far the readings lie apart."""
        return abs(self.values[0] - self.values[1])


@record
class Fault:
    """A reading that is no spread, because its thread gives the fault."""

    source: Text
    what: Text


@record
class Asked:
    """A split, and how many questions of it are asked."""

    split: Text
    questions: Positive


_Sizes = Annotated[dict[Text, Positive], Field(min_length=1)]


@record
class Score:
    """How a score comes from the answers.

    Attributes:
        kind: benchmarks.yaml says what each is.
        positives: of an F1 score: different questions whose answer is yes.
        images: of points: those of each category.
        units: of a mean of shares: the size of each.
    """

    kind: Literal["accuracy", "credit", "f1", "points", "mean"]
    positives: Positive | None = None
    images: _Sizes | None = None
    units: _Sizes | None = None

    def __post_init__(self) -> None:
        needed = {"f1": "positives", "points": "images", "mean": "units"}.get(self.kind)
        for name in ("positives", "images", "units"):
            if (getattr(self, name) is not None) is not (name == needed):
                verb = "needs" if name == needed else "takes no"
                raise InputError(f"a score of kind {self.kind!r} {verb} {name!r}")


@record
class Benchmark:
    """One benchmark: its size, its kind of score, and how far readings of it lie apart.

    Attributes:
        split: of the printed score.
        questions: of that split.
        unit: of the score.
        score: how it comes from the answers.
        harness: one model, read twice.
        asked: what can be measured here, where the printed score's answers are not public.
        training: one recipe, trained twice.
        differences: the difference of the same two models, read twice.
    """

    split: Text
    questions: Positive
    unit: Literal["percent", "points"]
    score: Score
    harness: Annotated[tuple[Reading, ...], Field(min_length=1)]
    asked: Asked | None = Field(default=None, alias="measured")
    training: tuple[Reading, ...] = ()
    differences: tuple[Reading, ...] = ()

    def __post_init__(self) -> None:
        if (self.unit == "points") is not (self.score.kind == "points"):
            raise InputError(f"a score of kind {self.score.kind!r} is not in {self.unit}")

    @property
    def measured(self) -> Asked:
        """What can be measured here: the printed split where nothing else is said."""
        return self.asked or Asked(self.split, self.questions)

    @property
    def top(self) -> float:
        """The largest possible score."""
        return POINTS_A_CATEGORY * len(self.score.images or ()) or 100.0

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

        Raises:
            InputError: for a value that is no score of the benchmark.
        """
        if not 0.0 <= value <= self.top:
            raise InputError(f"{value} is not a score from 0 to {self.top:g}")
        if self.score.images:
            mean = value / len(self.score.images)
            spread = mean * (POINTS_A_CATEGORY - mean)
            return math.sqrt(sum(spread / images for images in self.score.images.values()))
        p = value / 100.0
        if self.score.positives:
            missed = (2.0 - 2.0 * p) / (2.0 - p)
            slope = 2.0 / (2.0 - missed) ** 2
            return 100.0 * slope * math.sqrt(missed * (1.0 - missed) / self.score.positives)
        sizes = list((self.score.units or {}).values()) or [self.questions]
        errors = [100.0 * math.sqrt(p * (1.0 - p) / size) for size in sizes]
        return sum(errors) / len(errors)

    @property
    def harness_spread(self) -> float:
        """How far readings of one model lie apart."""
        return max(reading.apart for reading in self.harness)


@record
class Facts:
    """All of benchmarks.yaml, validated.

    Attributes:
        trained_spread: of trainings of one recipe, where nothing larger is published.
        correlation: of two runs' answers, where nothing is measured.
        faults: readings that are no spread.
        benchmarks: by name.
    """

    trained_spread: Annotated[Number, Field(ge=0)]
    correlation: Annotated[Number, Field(ge=0, lt=1)]
    faults: tuple[Fault, ...]
    benchmarks: dict[Text, Benchmark]

    def __post_init__(self) -> None:
        if not any(benchmark.differences for benchmark in self.benchmarks.values()):
            raise InputError("no benchmark has 'differences': a difference's spread is not known")

    def benchmark(self, name: str) -> Benchmark:
        """A benchmark by its name.

        Raises:
            InputError: with the nearest name.
        """
        if name not in self.benchmarks:
            raise InputError(unknown(f"benchmark {name!r}", name, self.benchmarks))
        return self.benchmarks[name]

    @property
    def kept(self) -> float:
        """The share of a harness's shift that a difference keeps, where it was not read itself: the
        largest that was seen of any benchmark."""
        return max(
            max(reading.apart for reading in benchmark.differences) / benchmark.harness_spread
            for benchmark in self.benchmarks.values()
            if benchmark.differences
        )

    def difference_spread(self, name: str) -> float:
        """How far readings of one difference lie apart."""
        benchmark = self.benchmark(name)
        if benchmark.differences:
            return max(reading.apart for reading in benchmark.differences)
        return self.kept * benchmark.harness_spread

    def training_spread(self, name: str) -> float:
        """How far trainings of one recipe lie apart: what was read, and at least what is assumed
        of all."""
        read = (reading.apart for reading in self.benchmark(name).training)
        return max(self.trained_spread, *read, 0.0)


def parse_facts(content: Any, source: str = "benchmarks.yaml") -> Facts:
    """The content of benchmarks.yaml.

    Raises:
        InputError: for anything ill-formed, naming the place.
    """
    return validate(Facts, content, source)


@cache
def load_facts(path: str | Path = FOLDER / "benchmarks.yaml") -> Facts:
    """The benchmarks' facts.

    Raises:
        InputError: for a file that cannot be read, or that `parse_facts` refuses.
    """
    return parse_facts(read_yaml(path), str(path))


# --- bands ----------------------------------------------------------------------------------------


def _pooled(values: Sequence[float]) -> float:
    """Of the mean of independent numbers with these errors, or shifts."""
    return math.sqrt(sum(value**2 for value in values)) / len(values)


def _scores(table: ReportedTable, row: ReportedRow, column: str) -> list[float]:
    """The printed scores of the column's benchmarks; the printed average where a cell is null."""
    if column != AVERAGE:
        return [table.value(row, column)]
    average = table.value(row, column)
    cells = [row.values[name] for name in table.averaged]
    return [average if cell is None else cell for cell in cells]


def sampling_error(
    table: ReportedTable, row: ReportedRow, column: str, facts: Facts | None = None
) -> float:
    """The standard error of a printed cell, in its unit.

    Raises:
        InputError: for a cell without a value, or a table that holds no scores.
    """
    facts = load_facts() if facts is None else facts
    if table.quantity != "score":
        raise InputError(f"{table.short} holds no scores: its cells have no error of their own")
    scores = zip(table.benchmarks_of(column), _scores(table, row, column), strict=True)
    return _pooled([facts.benchmark(name).standard_error(value) for name, value in scores])


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


def _basis(names: Sequence[str], facts: Facts) -> str:
    if len(names) > 1:
        return f"mean of {len(names)} benchmarks"
    benchmark = facts.benchmark(names[0])
    return f"{benchmark.questions:,} questions, {benchmark.split}"


def _furthest(readings: Sequence[Reading]) -> str:
    furthest = max(readings, key=lambda reading: reading.apart)
    return f"{furthest.source}: {furthest.values[0]:g} and {furthest.values[1]:g}"


Weighted = Sequence[tuple[PrintedCell, float]]


def _difference(first: PrintedCell, second: PrintedCell) -> Weighted:
    return [(first, 1.0), (second, -1.0)]


def _training(names: Sequence[str], facts: Facts) -> float:
    return _pooled([facts.training_spread(name) for name in names])


def _cell_width(cell: PrintedCell, facts: Facts) -> _Width:
    table, row, column = cell
    names = table.benchmarks_of(column)
    chosen = [facts.benchmark(name) for name in names]
    return _Width(
        sampling=_Z * sampling_error(table, row, column, facts),
        harness=_pooled([benchmark.harness_spread for benchmark in chosen]),
        training=0.0 if row.role in PUBLISHED else _training(names, facts),
        print=UNIT / 2,
        basis=_basis(names, facts),
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
    names = first.table.benchmarks_of(first.column)
    errors = [weight * sampling_error(*cell, facts) for cell, weight in cells]
    unpaired = math.hypot(*errors)
    if standard_error is None:
        shared = facts.correlation * (sum(errors) ** 2 - unpaired**2)
        error = math.sqrt(unpaired**2 + shared)
        paired = f"answers taken to correlate by {facts.correlation:g}"
    else:
        assert math.isfinite(standard_error) and standard_error >= 0
        error = min(standard_error, unpaired)  # no less alike than unpaired answers
        paired = "paired error as measured"
    trained = any(cell.row.role not in PUBLISHED for cell, _ in cells)
    counted = math.sqrt(sum(weight**2 for _, weight in cells) / 2)
    return _Width(
        sampling=_Z * error,
        harness=_pooled([facts.difference_spread(name) for name in names]),
        training=_training(names, facts) * counted if trained else 0.0,
        print=sum(abs(weight) for _, weight in cells) * UNIT / 2,
        basis=f"{_basis(names, facts)}, {paired}",
        harness_basis=_difference_basis(names, facts),
    )


def _difference_basis(names: Sequence[str], facts: Facts) -> str:
    if len(names) > 1:
        return "as of its cells"
    benchmark = facts.benchmark(names[0])
    if benchmark.differences:
        return _furthest(benchmark.differences)
    return f"{facts.kept:.2f} of {_furthest(benchmark.harness)}"


def _value(cell: PrintedCell) -> float:
    return cell.table.value(cell.row, cell.column)


def _contrast_band(cells: Weighted, facts: Facts, *, standard_error: float | None = None) -> Band:
    value = sum(weight * _value(cell) for cell, weight in cells)
    excess = sum(weight * _misprint(*cell) for cell, weight in cells)
    return _around(value, excess, _contrast_width(cells, facts, standard_error=standard_error))


def _misprint(table: ReportedTable, row: ReportedRow, column: str) -> float:
    """By how much a printed average exceeds the mean of its cells; 0 if it follows from them."""
    if column != AVERAGE:
        return 0.0
    cells = [row.values[name] for name in table.averaged]
    if any(cell is None for cell in cells):
        return 0.0
    excess = table.value(row, column) - sum(_scores(table, row, column)) / len(cells)
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
    factor = 100.0 / _value(base)
    width = _contrast_width(_difference(run, base), facts).times(factor)
    width = replace(width, print=width.print * factor if printed is None else UNIT / 2)
    return _around(factor * _value(run) if printed is None else printed, 0.0, width)


def band(
    table: ReportedTable,
    row: ReportedRow,
    column: str,
    facts: Facts | None = None,
    reported: Reported | None = None,
) -> Band:
    """The tolerance band of a reported cell, in its unit, with its reason.

    Raises:
        InputError: for a column that the table lacks, a cell without a value, or a benchmark that
            nothing is known of.
    """
    facts = load_facts() if facts is None else facts
    value = table.value(row, column)
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

    Args:
        table: where both stand.
        row: the first.
        against: the second.
        column: of both.
        facts: default: what is known of the benchmarks.
        standard_error: of the paired difference, where the answers were measured; it is used up to
            that of unpaired answers. None: by the two cells' errors and `Facts.correlation`.

    Raises:
        InputError: as `band`; also for a table that holds no scores.
    """
    facts = load_facts() if facts is None else facts
    cells = _difference(PrintedCell(table, row, column), PrintedCell(table, against, column))
    return _contrast_band(cells, facts, standard_error=standard_error)


def _effect_cells(
    quantity: Mapping[str, Any], reported: Reported, benchmarks: Sequence[str]
) -> Weighted:
    """The cells of a main effect's design, with what each weighs in it."""
    design = reported.table(quantity["table"]).design()
    share = 2.0 / len(design)
    return [
        (
            _cell(reported, quantity["family"], run, benchmarks),
            share if quantity["component"] in components else -share,
        )
        for components, run in design.items()
    ]


def quantity_band(
    quantity: Mapping[str, Any],
    benchmarks: Sequence[str],
    reported: Reported,
    facts: Facts | None = None,
    *,
    standard_error: float | None = None,
) -> Band:
    """The tolerance band of a quantity of the ledger that follows from printed cells.

    Args:
        quantity: a value, a difference or a ratio of two (also of different tables), the share of a
            gap, or a main effect; see `replication.paper.ledger`.
        benchmarks: what it is over.
        reported: the printed cells.
        facts: default: what is known of the benchmarks.
        standard_error: as in `difference_band`, of differences and main effects.

    Raises:
        InputError: for a quantity of another kind, or of cells that the paper does not print.
    """
    facts = load_facts() if facts is None else facts
    kind, family = quantity["kind"], quantity.get("family", "")

    def cell(run: str) -> PrintedCell:
        return _cell(reported, family, run, benchmarks)

    if kind == "value":
        return band(*cell(quantity["run"]), facts, reported)
    if kind == "difference":
        cells = _difference(cell(quantity["run"]), cell(quantity["against"]))
        return _contrast_band(cells, facts, standard_error=standard_error)
    if kind == "main_effect":
        cells = _effect_cells(quantity, reported, benchmarks)
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
        gap = _value(teacher) - _value(base)
        gain = _contrast_band(_difference(run, base), facts)
        reason = f"{gain.reason}; in parts of a gap of {gap:.1f}"
        return Band(gain.low / gap, gain.high / gap, reason)
    raise InputError(f"a quantity of kind {kind!r} does not follow from printed cells")


def _cell(reported: Reported, family: str, run: str, benchmarks: Sequence[str]) -> PrintedCell:
    cell = reported.find_printed(family, run, benchmarks)
    if cell is None:
        raise InputError(f"no table prints {run} of {family} on {', '.join(benchmarks)}")
    return cell


def _printed_ratio(
    reported: Reported, family: str, run: str, benchmarks: Sequence[str]
) -> float | None:
    """The retention that a table prints of a run; None where it has to follow from scores."""
    cell = reported.find_printed(family, run, benchmarks, "retention")
    return None if cell is None else _value(cell)


def difference_rule(
    table: ReportedTable,
    row: ReportedRow,
    against: ReportedRow,
    column: str,
    facts: Facts | None = None,
) -> Rule:
    """What must be true of a measured difference.

    It lies inside the band, and, where the printed one exceeds its own sampling error, on its side
    of zero.
    """
    facts = load_facts() if facts is None else facts
    cells = _difference(PrintedCell(table, row, column), PrintedCell(table, against, column))
    value = table.value(row, column) - table.value(against, column)
    width = _contrast_width(cells, facts)
    if abs(value) <= width.sampling:
        return Rule(within_band=True)
    if value > 0:
        return Rule(above=0.0, within_band=True)
    return Rule(below=0.0, within_band=True)
