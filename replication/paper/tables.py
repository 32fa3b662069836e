"""The paper's tables, and the tables of our own beside them, as data (tables.yaml)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import Field
from typing_extensions import TypedDict

from grace.errors import InputError
from grace.files import read_yaml
from replication.base.messages import unknown
from replication.base.validation import (
    Flag,
    Number,
    Positive,
    Text,
    closed,
    record,
    validate,
)

FOLDER = Path(__file__).resolve().parent
AVERAGE = "Avg"
CONTROL = "control"
Component = Literal["gdkd", "rcka", "ib"]
COMPONENTS: tuple[str, ...] = get_args(Component)
Role = Literal["teacher", "baseline", "peer", "ptq", "qat", "kd", "ablation", "ours"]
_NAMES = {"gdkd": "GDKD", "rcka": "RCKA", "ib": "IB"}


@dataclass(frozen=True)
class ReportedRow:
    """One printed row.

    Attributes:
        method: the model's or method's name, as printed.
        bits: of its weights.
        role: one of `Role`.
        run: our run that measures it; None: quoted, not run again.
        values: by column, None where the authors give no value.
        components: of a row of the component table, those that are on; None for any other row.
    """

    method: str
    bits: int
    role: str
    run: str | None
    values: Mapping[str, float | None]
    components: frozenset[str] | None = None

    @property
    def key(self) -> str:
        """Its name among the rows: the run, or the method of a quoted row."""
        return self.run or self.method


@record
class OwnRow:
    """A row of our own.

    Attributes:
        bits: of its weights.
        method: its name.
        run: the run that measures it.
        role: one of `Role`, or "control".
        note: why it is there.
    """

    bits: Positive
    method: Text
    run: Text
    role: Role | Literal["control"] = "control"
    note: str = ""


@dataclass(frozen=True)
class ReportedTable:
    """A table of scores: one that the paper prints, or one of our own.

    Attributes:
        id: its key in tables.yaml.
        short: its name everywhere else.
        family: of its runs.
        title: what it shows.
        source: where the paper prints it.
        quantity: "score", or "retention" (percent of the baseline).
        columns: as printed; `benchmark` gives the benchmark of one.
        rows: the printed rows; none of a table of our own.
        controls: rows of our own.
        aliases: benchmarks by the column names that differ from theirs.
        not_in_average: columns that enter no average.
    """

    id: str
    short: str
    family: str
    title: str
    source: str
    quantity: str
    columns: tuple[str, ...]
    rows: tuple[ReportedRow, ...]
    controls: tuple[OwnRow, ...]
    aliases: Mapping[str, str] = field(repr=False)
    not_in_average: frozenset[str] = field(repr=False)

    def benchmark(self, column: str) -> str:
        """The benchmark of a column."""
        return self.aliases.get(column, column)

    def benchmarks_of(self, column: str) -> list[str]:
        """The benchmarks of a column: several of the average, otherwise one."""
        return self.averaged_benchmarks if column == AVERAGE else [self.benchmark(column)]

    @property
    def benchmark_columns(self) -> list[str]:
        """The columns but the average."""
        return [column for column in self.columns if column != AVERAGE]

    @property
    def averaged(self) -> list[str]:
        """The columns that enter the average."""
        return [name for name in self.benchmark_columns if name not in self.not_in_average]

    @property
    def averaged_benchmarks(self) -> list[str]:
        """The benchmarks that enter the average."""
        return [self.benchmark(column) for column in self.averaged]

    @property
    def printed(self) -> bool:
        """Whether the paper prints this table."""
        return bool(self.rows)

    @property
    def runs(self) -> list[str]:
        """The runs that measure the table's rows, in the rows' order."""
        printed = [row.run for row in self.rows if row.run is not None]
        return [*printed, *(row.run for row in self.controls)]

    @property
    def baseline(self) -> str | None:
        """The run that differences are taken from."""
        rows: tuple[ReportedRow | OwnRow, ...] = (*self.rows, *self.controls)
        return next((row.run for row in rows if row.role == "baseline" and row.run), None)

    def design(self) -> dict[frozenset[str], str]:
        """The runs of a component table by the components that are on.

        Raises:
            InputError: unless every combination of `COMPONENTS` has its run.
        """
        runs = {
            row.components: row.run
            for row in self.rows
            if row.components is not None and row.run is not None
        }
        if len(runs) != 2 ** len(COMPONENTS):
            raise InputError(
                f"{self.short} has {len(runs)} of the {2 ** len(COMPONENTS)} combinations of "
                f"{', '.join(COMPONENTS)}"
            )
        return runs

    def row(self, run: str) -> ReportedRow:
        """The row of one of our runs.

        Raises:
            InputError: if the table has none.
        """
        for row in self.rows:
            if row.run == run:
                return row
        names = [row.run for row in self.rows if row.run]
        raise InputError(unknown(f"run {run!r} of {self.short}", run, names))

    def value(self, row: ReportedRow, column: str) -> float:
        """A printed cell.

        Raises:
            InputError: if there is no such column, or no value.
        """
        if column not in row.values:
            raise InputError(unknown(f"column {column!r} of {self.short}", column, row.values))
        value = row.values[column]
        if value is None:
            raise InputError(f"{self.short}: no value is reported for {row.key}, {column}")
        return value

    def cell(self, run: str, column: str) -> float:
        """A printed cell of one of our runs; errors as of `row` and `value`."""
        return self.value(self.row(run), column)


class PrintedCell(NamedTuple):
    """Where a number stands."""

    table: ReportedTable
    row: ReportedRow
    column: str


@closed
class CellSource(TypedDict):
    """A statement that repeats a printed cell."""

    kind: Literal["cell"]
    table: Text
    run: Text
    column: Text


@closed
class PairSource(TypedDict):
    """A statement about two printed cells of one column."""

    kind: Literal["difference", "ratio"]
    table: Text
    run: Text
    against: Text
    column: Text


@closed
class ReductionSource(TypedDict):
    """A statement about two figures of the section `deployment`, in percent less."""

    kind: Literal["reduction"]
    before: Text
    after: Text


@record
class Statement:
    """A figure in running text, and how it follows from other printed numbers.

    Attributes:
        id: its name.
        where: in which text.
        printed: the figure.
        unit: of its last printed digit.
        source: the numbers that it follows from.
    """

    id: Text
    where: Text
    printed: Number
    unit: Number
    source: Annotated[
        CellSource | PairSource | ReductionSource, Field(alias="from", discriminator="kind")
    ]


@record
class Mismatch:
    """A printed number that does not follow from the others.

    Attributes:
        check: which comparison; see `replication.paper.consistency`.
        printed: the printed number.
        recomputed: what follows from the others.
    """

    check: Text
    printed: Number
    recomputed: Number


@record
class Discrepancy:
    """Something the authors' own sources disagree on.

    Attributes:
        id: its name.
        where: in which places.
        text: what it is.
        mismatches: the comparisons in which it shows.
    """

    id: Text
    where: Text
    text: Text
    mismatches: tuple[Mismatch, ...] = ()


_SummaryName = Literal["regimes", "effects", "cost", "flips", "contrasts", "tuned", "deploy"]
_SUMMARY_KEYS = {
    "regimes": set(),
    "effects": {"table"},
    "cost": {"table", "runs", "against"},
    "flips": {"table", "pairs"},
    "contrasts": {"table", "pairs"},
    "tuned": {"runs"},
    "deploy": set(),
}


@record
class Summary:
    """A table of our own that holds no scores.

    Attributes:
        family: of its runs; several with a comma between them.
        title: what it shows.
        table: the table of scores it is computed from ("": none).
        runs: those it speaks of.
        against: the run that costs are compared with ("": none).
        pairs: of runs whose answers are compared.
        id: "regimes", "effects", "cost", "flips", "contrasts", "tuned" or "deploy".
    """

    family: Text
    title: Text
    table: str = ""
    runs: tuple[Text, ...] = ()
    against: str = ""
    pairs: tuple[tuple[Text, Text], ...] = ()
    id: str = ""

    @property
    def named(self) -> set[str]:
        """Every run it needs, other than those of its table."""
        return {*self.runs, *([self.against] if self.against else []), *sum(self.pairs, ())}


@dataclass(frozen=True)
class Reported:
    """All of tables.yaml, validated.

    Attributes:
        tables: the paper's, by their ids.
        own_tables: tables of scores of our own.
        summaries: tables of our own that hold no scores.
        deployment: printed figures of speed and memory.
        figures: printed figures of the paper's plots.
        statements: figures in running text.
        discrepancies: what the authors' sources disagree on.
    """

    tables: Mapping[str, ReportedTable]
    own_tables: Mapping[str, ReportedTable]
    summaries: Mapping[str, Summary]
    deployment: Mapping[str, Any]
    figures: Mapping[str, Any]
    statements: tuple[Statement, ...]
    discrepancies: tuple[Discrepancy, ...]

    def table(self, name: str) -> ReportedTable:
        """A table of scores by its id or short name.

        Raises:
            InputError: with the nearest name.
        """
        for table in (*self.tables.values(), *self.own_tables.values()):
            if name in (table.id, table.short):
                return table
        names = {*self.tables, *(table.short for table in self.tables.values()), *self.own_tables}
        raise InputError(unknown(f"table {name!r}", name, sorted(names)))

    def short_names(self) -> list[str]:
        """The short names of all tables: the paper's, our own, and the summaries."""
        printed = [table.short for table in self.tables.values()]
        return [*printed, *self.own_tables, *self.summaries]

    def find_printed(
        self, family: str, run: str, benchmarks: Collection[str], quantity: str = "score"
    ) -> PrintedCell | None:
        """Where the paper prints a model's score (or retention).

        Args:
            family: the model's.
            run: the run that measures it.
            benchmarks: one, or several for their average.
            quantity: "score" or "retention".

        Returns:
            The first such cell; None if no table prints it.
        """
        for table in self.tables.values():
            if table.family != family or table.quantity != quantity:
                continue
            rows = [row for row in table.rows if row.run == run]
            for column in table.columns if rows else ():
                names, average = table.benchmarks_of(column), column == AVERAGE
                same = set(names) == set(benchmarks) and average == (len(benchmarks) > 1)
                if same and rows[0].values[column] is not None:
                    return PrintedCell(table, rows[0], column)
        return None

    def printed_cell(self, family: str, run: str, benchmarks: Collection[str]) -> float | None:
        """What stands there; None if no table prints it."""
        cell = self.find_printed(family, run, benchmarks)
        return None if cell is None else cell.row.values[cell.column]

    def named_runs(self) -> Iterator[tuple[str, str, str]]:
        """(table, family, run) for every run that a table needs."""
        for table in (*self.tables.values(), *self.own_tables.values()):
            for run in table.runs:
                yield table.short, table.family, run
        for summary in self.summaries.values():
            runs = self.table(summary.table).runs if summary.table else ()
            for family in summary.family.split(", "):
                for run in sorted({*summary.named, *runs}):
                    yield summary.id, family, run


# --- the file -------------------------------------------------------------------------------------


@record
class _Row:
    bits: Positive
    role: Role
    run: Text | None
    values: list[Number | None]
    method: Text | None = None
    gdkd: Flag | None = None
    rcka: Flag | None = None
    ib: Flag | None = None

    def __post_init__(self) -> None:
        named = [name for name in COMPONENTS if getattr(self, name) is not None]
        if self.method is not None and named:
            raise InputError("give a method or components, not both")
        if self.method is None and len(named) != len(COMPONENTS):
            raise InputError(f"give a method, or true or false for each of {', '.join(COMPONENTS)}")

    def reported(self, columns: tuple[str, ...]) -> ReportedRow:
        values = dict(zip(columns, self.values, strict=True))
        if self.method is not None:
            return ReportedRow(self.method, self.bits, self.role, self.run, values)
        on = [name for name in COMPONENTS if getattr(self, name)]
        method = " + ".join(_NAMES[name] for name in on) or "none of GDKD, RCKA, IB"
        return ReportedRow(method, self.bits, self.role, self.run, values, frozenset(on))


_Columns = Annotated[tuple[Text, ...], Field(min_length=1)]


@record
class _OwnTable:
    family: Text
    title: Text
    columns: _Columns
    rows: Annotated[tuple[OwnRow, ...], Field(min_length=1)]

    def __post_init__(self) -> None:
        _check_names([row.run for row in self.rows], "run")


@record
class _Table:
    short: Text
    family: Text
    title: Text
    source: Text
    columns: _Columns
    rows: Annotated[tuple[_Row, ...], Field(min_length=1)]
    quantity: Literal["score", "retention"] = "score"
    controls: tuple[OwnRow, ...] = ()

    def __post_init__(self) -> None:
        _check_names(self.columns, "column")
        for index, row in enumerate(self.rows):
            if len(row.values) != len(self.columns):
                count, columns = len(row.values), len(self.columns)
                raise InputError(f"rows[{index}] has {count} values for {columns} columns")
        keys = [row.run or row.method for row in self.rows if row.run or row.method]
        _check_names([*keys, *(row.run for row in self.controls)], "run")
        for control in self.controls:
            if not control.note.strip():
                raise InputError(f"the control {control.run} lacks a note: say why it is there")


@record
class _Tables:
    benchmarks: dict[Text, Text]
    not_in_average: frozenset[Text]
    tables: dict[Text, _Table]
    own_tables: dict[Text, _OwnTable]
    summaries: dict[_SummaryName, Summary]
    deployment: dict[Text, Any]
    figures: dict[Text, Any]
    statements: tuple[Statement, ...]
    discrepancies: tuple[Discrepancy, ...]

    def __post_init__(self) -> None:
        shorts = [*(table.short for table in self.tables.values()), *self.own_tables]
        _check_names([*shorts, *self.summaries], "short name")
        for name, summary in self.summaries.items():
            for key in ("table", "runs", "against", "pairs"):
                if bool(getattr(summary, key)) is not (key in _SUMMARY_KEYS[name]):
                    verb = "needs" if key in _SUMMARY_KEYS[name] else "takes no"
                    raise InputError(f"summaries.{name} {verb} {key!r}")


def _check_names(names: Collection[str | None], what: str) -> None:
    for name in names:
        if list(names).count(name) > 1:
            raise InputError(f"the {what} {name!r} appears twice")


def _printed_table(name: str, table: _Table, data: _Tables) -> ReportedTable:
    return ReportedTable(
        id=name,
        short=table.short,
        family=table.family,
        title=table.title,
        source=table.source,
        quantity=table.quantity,
        columns=table.columns,
        rows=tuple(row.reported(table.columns) for row in table.rows),
        controls=table.controls,
        aliases=data.benchmarks,
        not_in_average=data.not_in_average,
    )


def _own_table(name: str, table: _OwnTable, data: _Tables) -> ReportedTable:
    return ReportedTable(
        id=name,
        short=name,
        family=table.family,
        title=table.title,
        source="",
        quantity="score",
        columns=table.columns,
        rows=(),
        controls=table.rows,
        aliases=data.benchmarks,
        not_in_average=data.not_in_average,
    )


def parse_tables(content: Any, source: str = "tables.yaml") -> Reported:
    """The content of tables.yaml.

    Args:
        content: what the file holds.
        source: what it is, for error messages.

    Raises:
        InputError: for anything ill-formed, naming the place.
    """
    data = validate(_Tables, content, source)
    tables = {name: _printed_table(name, table, data) for name, table in data.tables.items()}
    own = {name: _own_table(name, table, data) for name, table in data.own_tables.items()}
    reported = Reported(
        tables=tables,
        own_tables=own,
        summaries={name: replace(own, id=name) for name, own in data.summaries.items()},
        deployment=data.deployment,
        figures=data.figures,
        statements=data.statements,
        discrepancies=data.discrepancies,
    )
    for summary in reported.summaries.values():
        if summary.table:
            reported.table(summary.table)
    return reported


@cache
def load_tables(path: str | Path = FOLDER / "tables.yaml") -> Reported:
    """The paper's tables.

    Raises:
        InputError: for a file that cannot be read, or that `parse_tables` refuses.
    """
    return parse_tables(read_yaml(path), str(path))
