"""The paper's tables, and the tables of our own beside them, as data (tables.yaml)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from grace.errors import InputError
from replication.base.yaml import read_yaml
from replication.paper.reading import (
    expect_choice,
    expect_list,
    expect_mapping,
    expect_number,
    expect_text,
    expect_texts,
    nearest,
)

FOLDER = Path(__file__).resolve().parent
AVERAGE = "Avg"
ROLES = ("teacher", "baseline", "peer", "ptq", "qat", "kd", "ablation", "ours")
CONTROL = "control"
COMPONENTS = ("gdkd", "rcka", "ib")
SUMMARIES = ("effects", "cost", "flips", "deploy")


@dataclass(frozen=True)
class ReportedRow:
    """One printed row. `run` is our run that measures it (None: quoted, not rerun).

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
        return self.run or self.method


@dataclass(frozen=True)
class OwnRow:
    """A row of our own. `role`: one of ROLES, or "control"."""

    method: str
    bits: int
    run: str
    role: str = CONTROL
    note: str = ""


@dataclass(frozen=True)
class ReportedTable:
    """A table of scores: one that the paper prints, or one of our own (`rows` is then empty).

    `columns` are as printed; `benchmark(column)` gives the benchmark. `controls` are rows of our
    own.
    """

    id: str
    short: str
    family: str
    title: str
    source: str
    quantity: str  # "score", or "retention" (percent of the baseline)
    columns: tuple[str, ...]
    rows: tuple[ReportedRow, ...]
    controls: tuple[OwnRow, ...]
    aliases: Mapping[str, str] = field(repr=False)
    not_in_average: frozenset[str] = field(repr=False)

    def benchmark(self, column: str) -> str:
        return self.aliases.get(column, column)

    def benchmarks_of(self, column: str) -> list[str]:
        """The benchmarks of a column: several of the average, otherwise one."""
        return self.averaged_benchmarks if column == AVERAGE else [self.benchmark(column)]

    @property
    def benchmark_columns(self) -> list[str]:
        return [column for column in self.columns if column != AVERAGE]

    @property
    def averaged(self) -> list[str]:
        """The columns that enter the average."""
        return [name for name in self.benchmark_columns if name not in self.not_in_average]

    @property
    def averaged_benchmarks(self) -> list[str]:
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
        printed = [row.run for row in self.rows if row.role == "baseline"]
        own = [row.run for row in self.controls if row.role == "baseline"]
        return next(iter([*printed, *own]), None)

    def design(self) -> dict[frozenset[str], str]:
        """The runs of a component table by the components that are on.

        Raises InputError unless every combination of COMPONENTS has its run.
        """
        found = {
            row.components: row.run
            for row in self.rows
            if row.components is not None and row.run is not None
        }
        if len(found) != 2 ** len(COMPONENTS):
            raise InputError(
                f"{self.short} has {len(found)} of the {2 ** len(COMPONENTS)} combinations of "
                f"{', '.join(COMPONENTS)}"
            )
        return found

    def row(self, run: str) -> ReportedRow:
        """The row of one of our runs. Raises InputError if the table has none."""
        for row in self.rows:
            if row.run == run:
                return row
        names = [row.run for row in self.rows if row.run]
        raise InputError(f"{self.short} has no row of run {run!r}{nearest(run, names)}")

    def cell(self, run: str, column: str) -> float:
        """A printed cell. Raises InputError if there is no such row or column, or no value."""
        values = self.row(run).values
        if column not in values:
            raise InputError(f"{self.short} has no column {column!r}{nearest(column, values)}")
        value = values[column]
        if value is None:
            raise InputError(f"{self.short}: no value is reported for {run}, {column}")
        return value


class PrintedCell(NamedTuple):
    """Where a number stands."""

    table: ReportedTable
    row: ReportedRow
    column: str


@dataclass(frozen=True)
class Statement:
    """A figure in running text, and how it follows from other printed numbers."""

    id: str
    where: str
    printed: float
    unit: float
    source: Mapping[str, str]


@dataclass(frozen=True)
class Mismatch:
    """A printed number that does not follow from the others: which check, and both values."""

    check: str
    printed: float
    recomputed: float


@dataclass(frozen=True)
class Discrepancy:
    """Something the authors' own sources disagree on."""

    id: str
    where: str
    text: str
    mismatches: tuple[Mismatch, ...]


@dataclass(frozen=True)
class Summary:
    """A table of our own that holds no scores: "effects", "cost", "flips" or "deploy".

    runs: those it speaks of. against: the run that costs are compared with. pairs: of runs whose
    answers are compared. table: the table of scores it is computed from ("": none).
    """

    id: str
    family: str
    title: str
    table: str = ""
    runs: tuple[str, ...] = ()
    against: str = ""
    pairs: tuple[tuple[str, str], ...] = ()

    @property
    def named(self) -> set[str]:
        """Every run it needs, other than those of its table."""
        return {*self.runs, *([self.against] if self.against else []), *sum(self.pairs, ())}


@dataclass(frozen=True)
class Reported:
    """All of tables.yaml, validated. `own_tables` and `summaries` are of our own."""

    tables: Mapping[str, ReportedTable]
    own_tables: Mapping[str, ReportedTable]
    summaries: Mapping[str, Summary]
    deployment: Mapping[str, Any]
    figures: Mapping[str, Any]
    statements: tuple[Statement, ...]
    discrepancies: tuple[Discrepancy, ...]

    def table(self, name: str) -> ReportedTable:
        """A table of scores by its id or short name. Raises InputError with the nearest name."""
        for table in (*self.tables.values(), *self.own_tables.values()):
            if name in (table.id, table.short):
                return table
        names = {*self.tables, *(table.short for table in self.tables.values()), *self.own_tables}
        raise InputError(f"unknown table {name!r}{nearest(name, names)}")

    def short_names(self) -> list[str]:
        """The short names of all tables: the paper's, our own, and the summaries."""
        printed = [table.short for table in self.tables.values()]
        return [*printed, *self.own_tables, *self.summaries]

    def find_printed(
        self, family: str, run: str, benchmarks: Collection[str], quantity: str = "score"
    ) -> PrintedCell | None:
        """Where the paper prints a model's score (or retention) on one benchmark, or the average of
        several; None if no table prints it."""
        for table in self.tables.values():
            if table.family != family or table.quantity != quantity:
                continue
            rows = [row for row in table.rows if row.run == run]
            for column in table.columns if rows else ():
                average = column == AVERAGE
                names = table.averaged_benchmarks if average else [table.benchmark(column)]
                same = set(names) == set(benchmarks) and average == (len(benchmarks) > 1)
                if same and rows[0].values[column] is not None:
                    return PrintedCell(table, rows[0], column)
        return None

    def printed_cell(self, family: str, run: str, benchmarks: Collection[str]) -> float | None:
        """What stands there; None if no table prints it."""
        found = self.find_printed(family, run, benchmarks)
        return None if found is None else found.row.values[found.column]

    def named_runs(self) -> Iterator[tuple[str, str, str]]:
        """(table, family, run) for every run that a table needs."""
        for table in (*self.tables.values(), *self.own_tables.values()):
            for run in table.runs:
                yield table.short, table.family, run
        for summary in self.summaries.values():
            shown = self.table(summary.table).runs if summary.table else ()
            for run in sorted({*summary.named, *shown}):
                yield summary.id, summary.family, run


def _components(row: Mapping[str, Any]) -> frozenset[str] | None:
    if "method" in row:
        return None
    return frozenset(name for name in COMPONENTS if row[name])


def _row_method(row: Mapping[str, Any], where: str) -> str:
    given = [name for name in COMPONENTS if name in row]
    if "method" in row:
        if given:
            raise InputError(f"{where}: give a method or components, not both")
        return expect_text(row["method"], f"{where}.method")
    if len(given) != len(COMPONENTS) or not all(isinstance(row[n], bool) for n in COMPONENTS):
        raise InputError(f"{where} needs a method, or true/false for {', '.join(COMPONENTS)}")
    on = [{"gdkd": "GDKD", "rcka": "RCKA", "ib": "IB"}[name] for name in COMPONENTS if row[name]]
    return " + ".join(on) if on else "none of GDKD, RCKA, IB"


def _parse_own_rows(data: Any, where: str, noted: bool) -> tuple[OwnRow, ...]:
    """Rows of our own; `noted`: each says why it is there."""
    rows = []
    for index, given in enumerate(expect_list(data, where)):
        place = f"{where}[{index}]"
        needed = ("bits", "method", "run", *(["note"] if noted else ["role"]))
        raw = expect_mapping(given, place, needed, ("role", "note"))
        bits = int(expect_number(raw["bits"], f"{place}.bits"))
        role = expect_choice(raw.get("role", CONTROL), (*ROLES, CONTROL), f"{place}.role")
        texts = {
            key: expect_text(raw[key], f"{place}.{key}")
            for key in ("method", "run", "note")
            if key in raw
        }
        rows.append(OwnRow(bits=bits, role=role, **texts))
    return tuple(rows)


def _parse_own_table(name: str, data: Any, aliases: dict, leave_out: frozenset) -> ReportedTable:
    where = f"own_tables.{name}"
    data = expect_mapping(data, where, ("family", "title", "columns", "rows"))
    rows = _parse_own_rows(expect_list(data["rows"], f"{where}.rows"), f"{where}.rows", False)
    if len({row.run for row in rows}) != len(rows):
        raise InputError(f"{where} has two rows of one run")
    columns = expect_list(data["columns"], f"{where}.columns")
    return ReportedTable(
        id=name,
        short=name,
        family=expect_text(data["family"], f"{where}.family"),
        title=expect_text(data["title"], f"{where}.title"),
        source="",
        quantity="score",
        columns=tuple(expect_text(column, f"{where}.columns") for column in columns),
        rows=(),
        controls=rows,
        aliases=aliases,
        not_in_average=leave_out,
    )


_SUMMARY_KEYS: dict[str, tuple[str, ...]] = {
    "effects": ("table",),
    "cost": ("table", "runs", "against"),
    "flips": ("table", "pairs"),
    "deploy": (),
}


def _parse_summary(name: str, data: Any) -> Summary:
    where = f"summaries.{name}"
    expect_choice(name, SUMMARIES, "summaries")
    data = expect_mapping(data, where, ("family", "title", *_SUMMARY_KEYS[name]))
    given = expect_list(data["pairs"], f"{where}.pairs") if "pairs" in data else []
    pairs = tuple(tuple(expect_texts(pair, f"{where}.pairs")) for pair in given)
    for pair in pairs:
        if len(pair) != 2:
            raise InputError(f"{where}.pairs: {list(pair)} is not a pair of runs")
    return Summary(
        id=name,
        pairs=pairs,  # type: ignore[arg-type]
        runs=tuple(expect_texts(data.get("runs", []), f"{where}.runs")),
        **{
            key: expect_text(data[key], f"{where}.{key}")
            for key in ("family", "title", "table", "against")
            if key in data
        },
    )


def _parse_table(name: str, data: Any, aliases: dict, not_in_average: frozenset) -> ReportedTable:
    where = f"tables.{name}"
    data = expect_mapping(
        data,
        where,
        ("short", "family", "title", "source", "columns", "rows"),
        ("quantity", "controls"),
    )
    columns = tuple(
        expect_text(column, f"{where}.columns")
        for column in expect_list(data["columns"], f"{where}.columns")
    )
    if len(set(columns)) != len(columns):
        raise InputError(f"{where}.columns has a column twice")
    rows = []
    for index, given in enumerate(expect_list(data["rows"], f"{where}.rows")):
        place = f"{where}.rows[{index}]"
        raw = expect_mapping(
            given, place, ("bits", "role", "run", "values"), ("method", *COMPONENTS)
        )
        values = expect_list(raw["values"], f"{place}.values")
        if len(values) != len(columns):
            raise InputError(f"{place} has {len(values)} values for {len(columns)} columns")
        run = raw["run"]
        rows.append(
            ReportedRow(
                method=_row_method(raw, place),
                bits=int(expect_number(raw["bits"], f"{place}.bits")),
                role=expect_choice(raw["role"], ROLES, f"{place}.role"),
                run=None if run is None else expect_text(run, f"{place}.run"),
                values={
                    column: None
                    if value is None
                    else expect_number(value, f"{place}.values.{column}")
                    for column, value in zip(columns, values, strict=True)
                },
                components=_components(raw),
            )
        )
    place = f"{where}.controls"
    controls = _parse_own_rows(data["controls"], place, noted=True) if "controls" in data else ()
    keys = [row.key for row in rows] + [control.run for control in controls]
    if len(set(keys)) != len(keys):
        raise InputError(f"{where} has two rows of one run")
    return ReportedTable(
        id=name,
        short=expect_text(data["short"], f"{where}.short"),
        family=expect_text(data["family"], f"{where}.family"),
        title=expect_text(data["title"], f"{where}.title"),
        source=expect_text(data["source"], f"{where}.source"),
        quantity=expect_choice(data.get("quantity", "score"), ("score", "retention"), where),
        columns=columns,
        rows=tuple(rows),
        controls=controls,
        aliases=aliases,
        not_in_average=not_in_average,
    )


_STATEMENT_KEYS = {
    "cell": ("table", "run", "column"),
    "difference": ("table", "run", "against", "column"),
    "ratio": ("table", "run", "against", "column"),
    "reduction": ("before", "after"),
}


def _parse_statement(data: Any, where: str) -> Statement:
    data = expect_mapping(data, where, ("id", "where", "printed", "unit", "from"))
    kind = data["from"].get("kind") if isinstance(data["from"], dict) else None
    kind = expect_choice(kind, _STATEMENT_KEYS, f"{where}.from.kind")
    source = expect_mapping(data["from"], f"{where}.from", ("kind", *_STATEMENT_KEYS[kind]))
    for key in _STATEMENT_KEYS[kind]:
        expect_text(source[key], f"{where}.from.{key}")
    return Statement(
        id=expect_text(data["id"], f"{where}.id"),
        where=expect_text(data["where"], f"{where}.where"),
        printed=expect_number(data["printed"], f"{where}.printed"),
        unit=expect_number(data["unit"], f"{where}.unit"),
        source=source,
    )


def _parse_discrepancy(data: Any, where: str) -> Discrepancy:
    data = expect_mapping(data, where, ("id", "where", "text"), ("mismatches",))
    mismatches = []
    listed = expect_list(data["mismatches"], f"{where}.mismatches") if "mismatches" in data else []
    for index, given in enumerate(listed):
        place = f"{where}.mismatches[{index}]"
        raw = expect_mapping(given, place, ("check", "printed", "recomputed"))
        mismatches.append(
            Mismatch(
                expect_text(raw["check"], f"{place}.check"),
                expect_number(raw["printed"], f"{place}.printed"),
                expect_number(raw["recomputed"], f"{place}.recomputed"),
            )
        )
    texts = {key: expect_text(data[key], f"{where}.{key}") for key in ("id", "where", "text")}
    return Discrepancy(**texts, mismatches=tuple(mismatches))


def parse_tables(data: Any) -> Reported:
    """The content of tables.yaml as `Reported`. Raises InputError for anything ill-formed."""
    data = expect_mapping(
        data,
        "tables.yaml",
        (
            "benchmarks",
            "not_in_average",
            "tables",
            "own_tables",
            "summaries",
            "deployment",
            "figures",
            "statements",
            "discrepancies",
        ),
    )
    for section in ("benchmarks", "tables", "own_tables", "summaries", "deployment", "figures"):
        if not isinstance(data[section], dict):
            raise InputError(f"{section} must be a mapping")
        for name in data[section]:
            expect_text(name, section)
    aliases = {
        column: expect_text(name, f"benchmarks.{column}")
        for column, name in data["benchmarks"].items()
    }
    leave_out = frozenset(expect_texts(data["not_in_average"], "not_in_average"))
    tables = {
        name: _parse_table(name, raw, aliases, leave_out) for name, raw in data["tables"].items()
    }
    own = {
        name: _parse_own_table(name, raw, aliases, leave_out)
        for name, raw in data["own_tables"].items()
    }
    summaries = {name: _parse_summary(name, raw) for name, raw in data["summaries"].items()}
    reported = Reported(
        tables=tables,
        own_tables=own,
        summaries=summaries,
        deployment=data["deployment"],
        figures=data["figures"],
        statements=tuple(
            _parse_statement(raw, f"statements[{index}]")
            for index, raw in enumerate(expect_list(data["statements"], "statements"))
        ),
        discrepancies=tuple(
            _parse_discrepancy(raw, f"discrepancies[{index}]")
            for index, raw in enumerate(expect_list(data["discrepancies"], "discrepancies"))
        ),
    )
    names = reported.short_names()
    if len(set(names)) != len(names):
        raise InputError("two tables have one short name")
    for summary in summaries.values():
        if summary.table:
            reported.table(summary.table)
    return reported


@cache
def load_tables(path: str | Path = FOLDER / "tables.yaml") -> Reported:
    """The paper's tables. Errors: see `read_yaml` and `parse_tables`."""
    return parse_tables(read_yaml(path))
