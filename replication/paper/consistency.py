"""Do the printed numbers agree with each other? Recomputed from the data, nothing is assumed.

Three checks, each a list of comparisons with an id:
    averages    a printed average is the mean of the row's accuracy cells
    cells       a model's cell is the same in every table that prints it
    statements  a figure in running text follows from the printed numbers it speaks of
Nothing is rounded before it is compared: a number agrees when it differs by at most half a unit of
the last printed place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from grace.errors import InputError
from replication.paper.tables import (
    AVERAGE,
    Discrepancy,
    Mismatch,
    Reported,
    ReportedRow,
    ReportedTable,
    Statement,
)

_FLOAT_SLACK = 1e-9
_CELL_UNIT = 0.1


@dataclass(frozen=True)
class Comparison:
    """One printed number beside the value recomputed from other printed numbers.

    Attributes:
        check: its id.
        printed: the printed number.
        recomputed: what follows from the others.
        unit: of the last printed digit.
    """

    check: str
    printed: float
    recomputed: float
    unit: float

    @property
    def agrees(self) -> bool:
        return abs(self.printed - self.recomputed) <= self.unit / 2 + _FLOAT_SLACK

    @property
    def mismatch(self) -> Mismatch:
        return Mismatch(self.check, self.printed, self.recomputed)


def _average(table: ReportedTable, row: ReportedRow) -> Comparison | None:
    if AVERAGE not in table.columns or row.values[AVERAGE] is None:
        return None
    cells = [row.values[column] for column in table.averaged]
    values = [cell for cell in cells if cell is not None]
    if len(values) != len(cells):
        return None
    printed = row.values[AVERAGE]
    assert printed is not None
    mean = sum(values) / len(values)
    return Comparison(f"average:{table.short}:{row.key}", printed, mean, _CELL_UNIT)


def averages(reported: Reported, name: str | None = None) -> list[Comparison]:
    """Every printed average (of one table) against the mean of its row's accuracy cells."""
    tables = [reported.table(name)] if name else reported.tables.values()
    comparisons = [_average(table, row) for table in tables for row in table.rows]
    return [comparison for comparison in comparisons if comparison is not None]


def cells(reported: Reported) -> list[Comparison]:
    """Every cell that an earlier table prints too, against the earlier table's."""

    def scores() -> Iterator[tuple[tuple[str, str, str], float, str]]:
        for table in reported.tables.values():
            if table.quantity != "score":
                continue
            for row in table.rows:
                for column, value in row.values.items():
                    name = AVERAGE if column == AVERAGE else table.benchmark(column)
                    if name == AVERAGE:  # averages of different columns are different numbers
                        name = "mean of " + ", ".join(sorted(table.averaged_benchmarks))
                    if value is not None:
                        yield (table.family, row.key, name), value, table.short

    first: dict[tuple[str, str, str], tuple[float, str]] = {}
    comparisons = []
    for key, value, short in scores():
        if key in first:
            earlier, other = first[key]
            check = f"cell:{short}:{other}:{key[1]}:{key[2]}"
            comparisons.append(Comparison(check, value, earlier, 0.0))
        else:
            first[key] = (value, short)
    return comparisons


def _deployment(figures: Mapping[str, Any], path: str) -> float:
    value: Any = figures
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise InputError(f"deployment has no figure {path!r}")
        value = value[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"deployment.{path} is {value!r}: expected a number")
    return float(value)


def recompute(statement: Statement, reported: Reported) -> float:
    """A statement's value from the printed numbers it speaks of.

    Raises:
        InputError: if one of these does not exist.
    """
    source = statement.source
    if source["kind"] == "reduction":
        before = _deployment(reported.deployment, source["before"])
        return 100.0 * (1.0 - _deployment(reported.deployment, source["after"]) / before)
    table = reported.table(source["table"])
    value = table.cell(source["run"], source["column"])
    if source["kind"] == "cell":
        return value
    against = table.cell(source["against"], source["column"])
    return value - against if source["kind"] == "difference" else 100.0 * value / against


def statements(reported: Reported) -> list[Comparison]:
    """Every figure in running text against the value its printed sources give."""
    return [
        Comparison(
            f"statement:{statement.id}",
            statement.printed,
            recompute(statement, reported),
            statement.unit,
        )
        for statement in reported.statements
    ]


def run_check(reported: Reported, check: str, table: str | None = None) -> list[Comparison]:
    """The comparisons of one check ("averages", "cells", "statements")."""
    if check == "averages":
        return averages(reported, table)
    if check == "cells":
        return cells(reported)
    if check == "statements":
        return statements(reported)
    raise InputError(f"unknown check {check!r}: choose averages, cells or statements")


def mismatches(comparisons: list[Comparison]) -> list[Mismatch]:
    """Those that do not agree."""
    return [comparison.mismatch for comparison in comparisons if not comparison.agrees]


def discrepancy_of(mismatch: Mismatch, reported: Reported) -> Discrepancy | None:
    """The listed discrepancy that describes a mismatch; None if it is a new one.

    It has the same printed and recomputed value, to the two decimals that the list gives.
    """
    for discrepancy in reported.discrepancies:
        for known in discrepancy.mismatches:
            if (
                known.check == mismatch.check
                and known.printed == mismatch.printed
                and abs(known.recomputed - mismatch.recomputed) <= 0.005 + _FLOAT_SLACK
            ):
                return discrepancy
    return None
