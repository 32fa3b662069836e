"""What the paper reports, as data: tables.yaml (numbers) and claims.yaml (the claim ledger).

`load_tables` and `load_ledger` validate everything; a wrong or unknown entry is an InputError that
names the place and, for a misspelt key, the nearest valid one.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from grace.errors import InputError
from replication.compare import LEVEL, RESAMPLES, Band, Rule
from replication.results import SCALES

FOLDER = Path(__file__).resolve().parent
AVERAGE = "Avg"
ROLES = ("teacher", "baseline", "peer", "ptq", "qat", "kd", "ablation", "ours")
COMPONENTS = ("gdkd", "rcka", "ib")
OUTCOMES = ("holds", "inconclusive-ok", "known_deviation", "undecidable")


def nearest(name: str, names: Collection[str]) -> str:
    """' (did you mean ...?)' for a misspelt name, or the list of valid names."""
    close = difflib.get_close_matches(str(name), sorted(names), n=1)
    return f" (did you mean {close[0]!r}?)" if close else f" (valid: {', '.join(sorted(names))})"


def _mapping(
    value: Any, where: str, required: Collection[str], optional: Collection[str] = ()
) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where} must be a mapping, not {type(value).__name__}")
    allowed = {*required, *optional}
    for key in value:
        if key not in allowed:
            raise InputError(f"{where}: unknown key {key!r}{nearest(key, allowed)}")
    for key in required:
        if key not in value:
            raise InputError(f"{where} lacks {key!r}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{where} must be a list that is not empty")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where} is {value!r}: expected text")
    return value


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{where} is {value!r}: expected a finite number")
    return float(value)


def _choice(value: Any, names: Collection[str], where: str) -> str:
    if not isinstance(value, str) or value not in names:
        raise InputError(f"{where}: unknown {value!r}{nearest(value, names)}")
    return value


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file. InputError if it is missing, not YAML, or has a key twice."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        return yaml.load(text, Loader=_UniqueKeys)
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML ({error})") from error


class _UniqueKeys(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe loading in which a key given twice is an error, not a silent replacement."""


def _unique_mapping(loader: Any, node: Any, deep: bool = False) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in found:
            raise InputError(f"line {key_node.start_mark.line + 1}: key {key!r} appears twice")
        found[key] = loader.construct_object(value_node, deep=True)
    return found


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


# --- tables ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReportedRow:
    """One printed row. `run` is our run that measures it (None: quoted, not rerun)."""

    method: str
    bits: int
    role: str
    run: str | None
    values: Mapping[str, float | None]

    @property
    def key(self) -> str:
        return self.run or self.method


@dataclass(frozen=True)
class ControlRow:
    """A row of our own, which the paper lacks."""

    method: str
    bits: int
    run: str
    note: str


@dataclass(frozen=True)
class ReportedTable:
    """One printed table. `columns` are as printed; `benchmark(column)` gives the benchmark."""

    id: str
    short: str
    family: str
    title: str
    source: str
    quantity: str  # "score", or "retention" (percent of the baseline)
    columns: tuple[str, ...]
    rows: tuple[ReportedRow, ...]
    controls: tuple[ControlRow, ...]
    aliases: Mapping[str, str] = field(repr=False)
    not_in_average: frozenset[str] = field(repr=False)

    def benchmark(self, column: str) -> str:
        return self.aliases.get(column, column)

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
class Reported:
    """All of tables.yaml, validated."""

    tables: Mapping[str, ReportedTable]
    deployment: Mapping[str, Any]
    figures: Mapping[str, Any]
    statements: tuple[Statement, ...]
    discrepancies: tuple[Discrepancy, ...]

    def table(self, name: str) -> ReportedTable:
        """A table by its id or its short name. Raises InputError with the nearest name."""
        for table in self.tables.values():
            if name in (table.id, table.short):
                return table
        names = {*self.tables, *(table.short for table in self.tables.values())}
        raise InputError(f"unknown table {name!r}{nearest(name, names)}")


def _row_method(row: Mapping[str, Any], where: str) -> str:
    given = [name for name in COMPONENTS if name in row]
    if "method" in row:
        if given:
            raise InputError(f"{where}: give a method or components, not both")
        return _text(row["method"], f"{where}.method")
    if len(given) != len(COMPONENTS) or not all(isinstance(row[n], bool) for n in COMPONENTS):
        raise InputError(f"{where} needs a method, or true/false for {', '.join(COMPONENTS)}")
    on = [{"gdkd": "GDKD", "rcka": "RCKA", "ib": "IB"}[name] for name in COMPONENTS if row[name]]
    return " + ".join(on) if on else "none of GDKD, RCKA, IB"


def _parse_table(name: str, data: Any, aliases: dict, not_in_average: frozenset) -> ReportedTable:
    where = f"tables.{name}"
    data = _mapping(
        data,
        where,
        ("short", "family", "title", "source", "columns", "rows"),
        ("quantity", "controls"),
    )
    columns = tuple(
        _text(column, f"{where}.columns") for column in _list(data["columns"], f"{where}.columns")
    )
    if len(set(columns)) != len(columns):
        raise InputError(f"{where}.columns has a column twice")
    rows = []
    for index, given in enumerate(_list(data["rows"], f"{where}.rows")):
        place = f"{where}.rows[{index}]"
        raw = _mapping(given, place, ("bits", "role", "run", "values"), ("method", *COMPONENTS))
        values = _list(raw["values"], f"{place}.values")
        if len(values) != len(columns):
            raise InputError(f"{place} has {len(values)} values for {len(columns)} columns")
        run = raw["run"]
        rows.append(
            ReportedRow(
                method=_row_method(raw, place),
                bits=int(_number(raw["bits"], f"{place}.bits")),
                role=_choice(raw["role"], ROLES, f"{place}.role"),
                run=None if run is None else _text(run, f"{place}.run"),
                values={
                    column: None if value is None else _number(value, f"{place}.values.{column}")
                    for column, value in zip(columns, values, strict=True)
                },
            )
        )
    controls = []
    for index, given in enumerate(data.get("controls", [])):
        place = f"{where}.controls[{index}]"
        raw = _mapping(given, place, ("bits", "method", "run", "note"))
        bits = int(_number(raw["bits"], f"{place}.bits"))
        texts = {key: _text(raw[key], f"{place}.{key}") for key in ("method", "run", "note")}
        controls.append(ControlRow(bits=bits, **texts))
    keys = [row.key for row in rows] + [control.run for control in controls]
    if len(set(keys)) != len(keys):
        raise InputError(f"{where} has two rows of one run")
    return ReportedTable(
        id=name,
        short=_text(data["short"], f"{where}.short"),
        family=_text(data["family"], f"{where}.family"),
        title=_text(data["title"], f"{where}.title"),
        source=_text(data["source"], f"{where}.source"),
        quantity=_choice(data.get("quantity", "score"), ("score", "retention"), where),
        columns=columns,
        rows=tuple(rows),
        controls=tuple(controls),
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
    data = _mapping(data, where, ("id", "where", "printed", "unit", "from"))
    kind = data["from"].get("kind") if isinstance(data["from"], dict) else None
    kind = _choice(kind, _STATEMENT_KEYS, f"{where}.from.kind")
    source = _mapping(data["from"], f"{where}.from", ("kind", *_STATEMENT_KEYS[kind]))
    return Statement(
        id=_text(data["id"], f"{where}.id"),
        where=_text(data["where"], f"{where}.where"),
        printed=_number(data["printed"], f"{where}.printed"),
        unit=_number(data["unit"], f"{where}.unit"),
        source=source,
    )


def _parse_discrepancy(data: Any, where: str) -> Discrepancy:
    data = _mapping(data, where, ("id", "where", "text"), ("mismatches",))
    mismatches = []
    for index, given in enumerate(data.get("mismatches", [])):
        place = f"{where}.mismatches[{index}]"
        raw = _mapping(given, place, ("check", "printed", "recomputed"))
        mismatches.append(
            Mismatch(
                _text(raw["check"], f"{place}.check"),
                _number(raw["printed"], f"{place}.printed"),
                _number(raw["recomputed"], f"{place}.recomputed"),
            )
        )
    texts = {key: _text(data[key], f"{where}.{key}") for key in ("id", "where", "text")}
    return Discrepancy(**texts, mismatches=tuple(mismatches))


def parse_tables(data: Any) -> Reported:
    """The content of tables.yaml as `Reported`. Raises InputError for anything ill-formed."""
    data = _mapping(
        data,
        "tables.yaml",
        (
            "benchmarks",
            "not_in_average",
            "tables",
            "deployment",
            "figures",
            "statements",
            "discrepancies",
        ),
    )
    aliases, leave_out = data["benchmarks"], frozenset(data["not_in_average"])
    if not isinstance(data["tables"], dict):
        raise InputError("tables must be a mapping")
    tables = {
        name: _parse_table(name, raw, aliases, leave_out) for name, raw in data["tables"].items()
    }
    shorts = [table.short for table in tables.values()]
    if len(set(shorts)) != len(shorts):
        raise InputError("two tables have one short name")
    return Reported(
        tables=tables,
        deployment=data["deployment"],
        figures=data["figures"],
        statements=tuple(
            _parse_statement(raw, f"statements[{index}]")
            for index, raw in enumerate(data["statements"])
        ),
        discrepancies=tuple(
            _parse_discrepancy(raw, f"discrepancies[{index}]")
            for index, raw in enumerate(data["discrepancies"])
        ),
    )


@cache
def load_tables(path: str | Path = FOLDER / "tables.yaml") -> Reported:
    """The paper's tables. Errors: see `read_yaml` and `parse_tables`."""
    return parse_tables(read_yaml(path))


# --- claims ---------------------------------------------------------------------------------------

# kind of quantity -> required keys, optional keys
QUANTITIES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "difference": (("family", "run", "against", "over"), ()),
    "equivalence": (("family", "run", "against", "over"), ()),
    "order": (("family", "runs", "over"), ()),
    "gap_closed": (("family", "run", "baseline", "teacher", "over"), ()),
    "ratio": (("family", "run", "against", "over"), ()),
    "value": (("family", "run", "over"), ()),
    "internal_consistency": (("check",), ("table",)),
    "pending": (("needs",), ()),
}
CONSISTENCY_CHECKS = ("averages", "cells", "statements")
EXACT_KINDS = ("internal_consistency",)
UNITS = {"gap_closed": "of the gap", "ratio": "%", "value": "%", "internal_consistency": "errors"}


@dataclass(frozen=True)
class Expectation:
    """What is expected of a claim at a scale, and why."""

    outcome: str
    reason: str


@dataclass(frozen=True)
class Part:
    """One decidable part of a claim: a quantity, its band, its rules, what is expected of it."""

    id: str
    text: str
    kind: str
    quantity: Mapping[str, Any]
    benchmarks: tuple[str, ...]
    reported: float | None
    band: Band | None
    full: Rule | None
    reduced: Rule | None
    scales: tuple[str, ...]
    expected: Mapping[str, Expectation]

    @property
    def exact(self) -> bool:
        """Whether the quantity is counted, not sampled: then the full rule holds at any scale."""
        return self.kind in EXACT_KINDS

    @property
    def unit(self) -> str:
        return UNITS.get(self.kind, "points")


@dataclass(frozen=True)
class Claim:
    """One entry of the ledger. `combine`: "all" (a conjunction) or "each" (separate findings)."""

    id: str
    text: str
    where: str
    reported: str
    combine: str
    abstract: str | None
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Ledger:
    """All of claims.yaml, validated."""

    seed: int
    resamples: int
    level: float
    claims: tuple[Claim, ...]


def _parse_band(data: Any, reported: float | None, where: str) -> Band:
    if isinstance(data, dict) and "half_width" in data:
        data = _mapping(data, where, ("half_width", "reason"))
        if reported is None:
            raise InputError(f"{where}: half_width needs a reported number to lie around")
        width = _number(data["half_width"], f"{where}.half_width")
        if width < 0:
            raise InputError(f"{where}.half_width is {width}: it cannot be negative")
        low, high = reported - width, reported + width
    else:
        data = _mapping(data, where, ("low", "high", "reason"))
        low, high = _number(data["low"], f"{where}.low"), _number(data["high"], f"{where}.high")
    try:
        return Band(low, high, _text(data["reason"], f"{where}.reason"))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _parse_rule(data: Any, where: str) -> Rule:
    data = _mapping(data, where, (), ("above", "within_band", "reason"))
    above = None if "above" not in data else _number(data["above"], f"{where}.above")
    if above and not str(data.get("reason", "")).strip():
        raise InputError(f"{where}: 'above: {above:g}' is a margin and needs a reason")
    within = data.get("within_band", False)
    if not isinstance(within, bool):
        raise InputError(f"{where}.within_band is {within!r}: expected true or false")
    try:
        return Rule(above, within, str(data.get("reason", "")))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _parse_expected(data: Any, where: str) -> dict[str, Expectation]:
    expected = {}
    for scale, given in _mapping(data, where, (), SCALES).items():
        raw = _mapping(given, f"{where}.{scale}", ("outcome", "reason"))
        outcome = _choice(raw["outcome"], OUTCOMES, f"{where}.{scale}.outcome")
        expected[scale] = Expectation(outcome, _text(raw["reason"], f"{where}.{scale}.reason"))
    return expected


def _benchmarks(over: Any, reported: Reported, where: str) -> tuple[str, ...]:
    """The benchmarks of `over`: a name, or {average_of: table}."""
    if isinstance(over, dict):
        over = _mapping(over, where, ("average_of",))
        return tuple(reported.table(over["average_of"]).averaged_benchmarks)
    known = {
        table.benchmark(column)
        for table in reported.tables.values()
        for column in table.benchmark_columns
    }
    return (_choice(over, known, where),)


def _parse_parts(
    claim: str, data: Any, inherited: Mapping[str, Expectation], reported: Reported, where: str
) -> list[Part]:
    data = _mapping(
        data,
        where,
        ("id", "quantity"),
        ("text", "reported", "band", "rule", "scales", "expected"),
    )
    name = f"{claim}.{_text(data['id'], f'{where}.id')}"
    quantity = data["quantity"]
    kind = _choice(
        quantity.get("kind") if isinstance(quantity, dict) else None,
        QUANTITIES,
        f"{where}.quantity.kind",
    )
    required, optional = QUANTITIES[kind]
    quantity = _mapping(quantity, f"{where}.quantity", ("kind", *required), optional)
    if kind == "internal_consistency":
        _choice(quantity["check"], CONSISTENCY_CHECKS, f"{where}.quantity.check")
        if "table" in quantity:
            reported.table(quantity["table"])
    benchmarks = (
        _benchmarks(quantity["over"], reported, f"{where}.quantity.over")
        if "over" in quantity
        else ()
    )
    scales = tuple(
        _choice(scale, SCALES, f"{where}.scales") for scale in data.get("scales", SCALES)
    )
    expected = {**inherited, **_parse_expected(data.get("expected", {}), f"{where}.expected")}
    for scale in scales:
        if kind != "pending" and scale not in expected:
            raise InputError(f"{where} does not say what is expected at scale {scale!r}")

    rules = _mapping(data.get("rule", {}), f"{where}.rule", (), ("full", "reduced"))
    full = _parse_rule(rules["full"], f"{where}.rule.full") if "full" in rules else None
    reduced = _parse_rule(rules["reduced"], f"{where}.rule.reduced") if "reduced" in rules else None
    if kind != "pending":
        if full is None:
            raise InputError(f"{where}.rule lacks 'full'")
        if reduced is None and kind not in EXACT_KINDS and set(scales) != {"paper"}:
            raise InputError(f"{where}.rule lacks 'reduced'")
    elif data.keys() & {"band", "rule", "reported"}:
        raise InputError(f"{where}: a pending quantity has no band, rule or reported number")

    def part(suffix: str, text: str, one: dict[str, Any], number: Any) -> Part:
        place = f"{where}{suffix}"
        value = None if number is None else _number(number, f"{place}.reported")
        band = _parse_band(data["band"], value, f"{place}.band") if "band" in data else None
        if band is None and any(rule and rule.within_band for rule in (full, reduced)):
            raise InputError(f"{place} has a rule 'within_band' but no band")
        return Part(
            id=name + suffix,
            text=text,
            kind=one["kind"],
            quantity=one,
            benchmarks=benchmarks,
            reported=value,
            band=band,
            full=full,
            reduced=reduced,
            scales=scales,
            expected=expected,
        )

    text = str(data.get("text", data["id"]))
    number = data.get("reported")
    if kind != "order":
        return [part("", text, dict(quantity), number)]
    runs = _list(quantity["runs"], f"{where}.quantity.runs")
    numbers = number if isinstance(number, list) else [number] * (len(runs) - 1)
    if len(runs) < 2 or len(numbers) != len(runs) - 1:
        raise InputError(f"{where}: an order of n ≥ 2 runs reports n − 1 differences")
    return [
        part(
            f".{better}>{worse}",
            f"{better} > {worse}",
            {
                "kind": "difference",
                "family": quantity["family"],
                "run": better,
                "against": worse,
                "over": quantity["over"],
            },
            value,
        )
        for worse, better, value in zip(runs, runs[1:], numbers, strict=False)
    ]


def parse_ledger(data: Any, reported: Reported) -> Ledger:
    """The content of claims.yaml as `Ledger`; an order is expanded into its pairs.

    Raises InputError for anything ill-formed, a claim or part given twice, or a part that does not
    say what is expected of it at a scale where it is judged.
    """
    data = _mapping(data, "claims.yaml", ("bootstrap", "claims"), ("expected",))
    boot = _mapping(data["bootstrap"], "bootstrap", ("seed",), ("resamples", "level"))
    common = _parse_expected(data.get("expected", {}), "expected")
    claims: list[Claim] = []
    for index, given in enumerate(_list(data["claims"], "claims")):
        where = f"claims[{index}]"
        raw = _mapping(
            given,
            where,
            ("id", "text", "where", "reported", "parts"),
            ("combine", "expected", "abstract"),
        )
        name = _text(raw["id"], f"{where}.id")
        where = f"claims.{name}"
        inherited = {**common, **_parse_expected(raw.get("expected", {}), f"{where}.expected")}
        parts: list[Part] = []
        for position, part in enumerate(_list(raw["parts"], f"{where}.parts")):
            parts += _parse_parts(name, part, inherited, reported, f"{where}.parts[{position}]")
        claims.append(
            Claim(
                id=name,
                text=_text(raw["text"], f"{where}.text"),
                where=_text(raw["where"], f"{where}.where"),
                reported=_text(raw["reported"], f"{where}.reported"),
                combine=_choice(raw.get("combine", "all"), ("all", "each"), f"{where}.combine"),
                abstract=raw.get("abstract"),
                parts=tuple(parts),
            )
        )
    for kind, ids in (
        ("claim", [claim.id for claim in claims]),
        ("part", [part.id for claim in claims for part in claim.parts]),
    ):
        for one in ids:
            if ids.count(one) > 1:
                raise InputError(f"{kind} {one!r} appears twice")
    return Ledger(
        seed=int(_number(boot["seed"], "bootstrap.seed")),
        resamples=int(_number(boot.get("resamples", RESAMPLES), "bootstrap.resamples")),
        level=_number(boot.get("level", LEVEL), "bootstrap.level"),
        claims=tuple(claims),
    )


def load_ledger(path: str | Path = FOLDER / "claims.yaml") -> Ledger:
    """The claim ledger. Errors: see `read_yaml` and `parse_ledger`."""
    return parse_ledger(read_yaml(path), load_tables())
