"""The claim ledger as data (claims.yaml): what is claimed, what decides it, how it is judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grace.errors import InputError
from replication.base.scales import SCALES
from replication.base.yaml import read_yaml
from replication.paper.bands import quantity_band
from replication.paper.reading import (
    expect_choice,
    expect_list,
    expect_mapping,
    expect_number,
    expect_text,
    expect_texts,
)
from replication.paper.tables import COMPONENTS, FOLDER, Reported, load_tables
from replication.stats.bootstrap import RESAMPLES
from replication.stats.verdict import LEVEL, Band, Rule

OF_CELLS = "cells"
OUTCOMES = ("holds", "inconclusive-ok", "known_deviation", "undecidable")

# kind of quantity -> required keys, optional keys
QUANTITIES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "difference": (("family", "run", "against", "over"), ()),
    "equivalence": (("family", "run", "against", "over"), ()),
    "best": (("family", "run", "runs", "over"), ()),
    "gap_closed": (("family", "run", "baseline", "teacher", "over"), ()),
    "ratio": (("family", "run", "against", "over"), ()),
    "value": (("family", "run", "over"), ()),
    "main_effect": (("family", "component", "table", "over"), ()),
    "sweep_spread": (("family", "runs", "over"), ()),
    "disagreement": (("family", "run", "against", "over"), ()),
    "worst_skill": (("family", "run", "against", "over"), ()),
    "seeds": (("family", "runs"), ()),
    "cost_ratio": (("family", "run", "against", "cost"), ()),
    "controller": (("family", "run", "check"), ()),
    "measurement": (("name", "value"), ("unit",)),
    "counted": (("name", "value"), ("unit",)),
    "deployment": (("model", "value"), ("unit",)),
    "internal_consistency": (("check",), ("table",)),
}
CONSISTENCY_CHECKS = ("averages", "cells", "statements")
CONTROLLER_CHECKS = ("bounds", "budget", "settles")
COSTS = ("seconds_per_step", "peak_memory_bytes", "trained_parameters")
EXACT_KINDS = ("internal_consistency", "counted")
SCALE_FREE_KINDS = (*EXACT_KINDS, "deployment")
UNITS = {
    "gap_closed": "of the gap",
    "ratio": "%",
    "value": "%",
    "disagreement": "%",
    "seeds": "seeds",
    "cost_ratio": "×",
    "internal_consistency": "errors",
}
CONTROLLER_UNITS = {"bounds": "steps", "budget": "of τ", "settles": "epochs"}


@dataclass(frozen=True)
class Expectation:
    """What is expected of a claim at a scale, and why."""

    outcome: str
    reason: str


@dataclass(frozen=True)
class Part:
    """One decidable part of a claim: a quantity, its band, its rules, what is expected of it.

    of_cells: the band is that of the printed cells, as long as nothing was measured.
    """

    id: str
    text: str
    kind: str
    quantity: Mapping[str, Any]
    benchmarks: tuple[str, ...]
    reported: float | None
    band: Band | None
    of_cells: bool
    full: Rule | None
    reduced: Rule | None
    scales: tuple[str, ...]
    expected: Mapping[str, Expectation]

    @property
    def exact(self) -> bool:
        """Whether the quantity is counted, not sampled."""
        return self.kind in EXACT_KINDS

    @property
    def scale_free(self) -> bool:
        """Whether every scale measures the full thing: then the full rule holds at any scale."""
        return self.kind in SCALE_FREE_KINDS

    @property
    def unit(self) -> str:
        if self.kind == "controller":
            return CONTROLLER_UNITS[self.quantity["check"]]
        if self.kind in ("measurement", "counted", "deployment"):
            return str(self.quantity.get("unit", ""))
        return UNITS.get(self.kind, "points")

    def runs(self, reported: Reported) -> list[str]:
        """The runs of the part's family that it needs, first the one that it speaks of."""
        if self.kind == "main_effect":
            return list(reported.table(self.quantity["table"]).design().values())
        named = [self.quantity[key] for key in ("run", "against", "baseline", "teacher")
                 if key in self.quantity]  # fmt: skip
        return [*named, *self.quantity.get("runs", ())]


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

    def named_runs(self, reported: Reported) -> Iterator[tuple[str, str, str]]:
        """(part, family, run) for every run that a part needs."""
        for part in (part for claim in self.claims for part in claim.parts):
            for run in part.runs(reported):
                yield part.id, part.quantity["family"], run


def _parse_band(data: Any, reported: float | None, where: str) -> Band:
    if isinstance(data, dict) and "half_width" in data:
        data = expect_mapping(data, where, ("half_width", "reason"))
        if reported is None:
            raise InputError(f"{where}: half_width needs a reported number to lie around")
        width = expect_number(data["half_width"], f"{where}.half_width")
        if width < 0:
            raise InputError(f"{where}.half_width is {width}: it cannot be negative")
        low, high = reported - width, reported + width
    else:
        data = expect_mapping(data, where, ("low", "high", "reason"))
        low, high = (
            expect_number(data["low"], f"{where}.low"),
            expect_number(data["high"], f"{where}.high"),
        )
    try:
        return Band(low, high, expect_text(data["reason"], f"{where}.reason"))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _parse_rule(data: Any, where: str) -> Rule:
    data = expect_mapping(data, where, (), ("above", "below", "within_band", "reason"))
    sides: dict[str, float | None] = {}
    for name in ("above", "below"):
        side = None if name not in data else expect_number(data[name], f"{where}.{name}")
        if side and not str(data.get("reason", "")).strip():
            raise InputError(f"{where}: '{name}: {side:g}' is a margin and needs a reason")
        sides[name] = side
    within = data.get("within_band", False)
    if not isinstance(within, bool):
        raise InputError(f"{where}.within_band is {within!r}: expected true or false")
    try:
        return Rule(sides["above"], sides["below"], within, str(data.get("reason", "")))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _parse_expected(data: Any, where: str) -> dict[str, Expectation]:
    expected = {}
    for scale, given in expect_mapping(data, where, (), SCALES).items():
        raw = expect_mapping(given, f"{where}.{scale}", ("outcome", "reason"))
        outcome = expect_choice(raw["outcome"], OUTCOMES, f"{where}.{scale}.outcome")
        expected[scale] = Expectation(
            outcome, expect_text(raw["reason"], f"{where}.{scale}.reason")
        )
    return expected


def _benchmarks(over: Any, reported: Reported, where: str) -> tuple[str, ...]:
    """The benchmarks of `over`: a name, or {average_of: table}."""
    if isinstance(over, dict):
        over = expect_mapping(over, where, ("average_of",))
        return tuple(reported.table(over["average_of"]).averaged_benchmarks)
    known = {
        table.benchmark(column) for table in reported.tables.values() for column in table.averaged
    }
    return (expect_choice(over, known, where),)


def _parse_parts(
    claim: str, data: Any, inherited: Mapping[str, Expectation], reported: Reported, where: str
) -> list[Part]:
    data = expect_mapping(
        data,
        where,
        ("id", "quantity"),
        ("text", "reported", "band", "rule", "scales", "expected"),
    )
    name = f"{claim}.{expect_text(data['id'], f'{where}.id')}"
    quantity = data["quantity"]
    kind = expect_choice(
        quantity.get("kind") if isinstance(quantity, dict) else None,
        QUANTITIES,
        f"{where}.quantity.kind",
    )
    required, optional = QUANTITIES[kind]
    quantity = expect_mapping(quantity, f"{where}.quantity", ("kind", *required), optional)
    if kind == "internal_consistency":
        expect_choice(quantity["check"], CONSISTENCY_CHECKS, f"{where}.quantity.check")
    for key, names in (
        ("component", COMPONENTS),
        ("cost", COSTS),
        *([("check", CONTROLLER_CHECKS)] if kind == "controller" else []),
    ):
        if key in quantity:
            expect_choice(quantity[key], names, f"{where}.quantity.{key}")
    for key in (
        "family",
        "run",
        "against",
        "baseline",
        "teacher",
        "name",
        "value",
        "unit",
        "model",
    ):
        if key in quantity:
            expect_text(quantity[key], f"{where}.quantity.{key}")
    if "runs" in quantity:
        expect_texts(quantity["runs"], f"{where}.quantity.runs")
    if "table" in quantity:
        reported.table(quantity["table"])
    benchmarks = (
        _benchmarks(quantity["over"], reported, f"{where}.quantity.over")
        if "over" in quantity
        else ()
    )
    scales = tuple(
        expect_choice(scale, SCALES, f"{where}.scales")
        for scale in (
            expect_list(data["scales"], f"{where}.scales") if "scales" in data else SCALES
        )
    )
    expected = {**inherited, **_parse_expected(data.get("expected", {}), f"{where}.expected")}
    for scale in scales:
        if scale not in expected:
            raise InputError(f"{where} does not say what is expected at scale {scale!r}")

    rules = expect_mapping(data.get("rule", {}), f"{where}.rule", (), ("full", "reduced"))
    full = _parse_rule(rules["full"], f"{where}.rule.full") if "full" in rules else None
    reduced = _parse_rule(rules["reduced"], f"{where}.rule.reduced") if "reduced" in rules else None
    if full is None:
        raise InputError(f"{where}.rule lacks 'full'")
    if reduced is None and kind not in SCALE_FREE_KINDS and set(scales) != {"paper"}:
        raise InputError(f"{where}.rule lacks 'reduced'")

    def part(suffix: str, text: str, one: dict[str, Any], number: Any) -> Part:
        place = f"{where}{suffix}"
        value = None if number is None else expect_number(number, f"{place}.reported")
        band: Band | None = None
        of_cells = isinstance(data.get("band"), str)
        if of_cells:
            expect_choice(data["band"], (OF_CELLS,), f"{place}.band")
            try:
                band = quantity_band(one, benchmarks, reported)
            except InputError as error:
                raise InputError(f"{place}.band: {error}") from error
        elif "band" in data:
            band = _parse_band(data["band"], value, f"{place}.band")
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
            of_cells=of_cells,
            full=full,
            reduced=reduced,
            scales=scales,
            expected=expected,
        )

    text = str(data.get("text", data["id"]))
    number = data.get("reported")
    if kind != "best":
        return [part("", text, dict(quantity), number)]
    best, runs = quantity["run"], quantity["runs"]
    numbers = number if isinstance(number, list) else [number] * len(runs)
    if not runs or len(numbers) != len(runs):
        raise InputError(
            f"{where}: {len(runs)} run(s) to compare with and {len(numbers)} reported difference(s)"
        )
    return [
        part(
            f".{best}>{other}",
            f"{best} > {other}",
            {
                "kind": "difference",
                "family": quantity["family"],
                "run": best,
                "against": other,
                "over": quantity["over"],
            },
            value,
        )
        for other, value in zip(runs, numbers, strict=True)
    ]


def parse_ledger(data: Any, reported: Reported) -> Ledger:
    """The content of claims.yaml as `Ledger`; a best run is expanded into its pairs.

    Raises InputError for anything ill-formed, a claim or part given twice, or a part that does not
    say what is expected of it at a scale where it is judged.
    """
    data = expect_mapping(data, "claims.yaml", ("bootstrap", "claims"), ("expected",))
    boot = expect_mapping(data["bootstrap"], "bootstrap", ("seed",), ("resamples", "level"))
    common = _parse_expected(data.get("expected", {}), "expected")
    claims: list[Claim] = []
    for index, given in enumerate(expect_list(data["claims"], "claims")):
        where = f"claims[{index}]"
        raw = expect_mapping(
            given,
            where,
            ("id", "text", "where", "reported", "parts"),
            ("combine", "expected", "abstract"),
        )
        name = expect_text(raw["id"], f"{where}.id")
        where = f"claims.{name}"
        inherited = {**common, **_parse_expected(raw.get("expected", {}), f"{where}.expected")}
        parts: list[Part] = []
        for position, part in enumerate(expect_list(raw["parts"], f"{where}.parts")):
            parts += _parse_parts(name, part, inherited, reported, f"{where}.parts[{position}]")
        claims.append(
            Claim(
                id=name,
                text=expect_text(raw["text"], f"{where}.text"),
                where=expect_text(raw["where"], f"{where}.where"),
                reported=expect_text(raw["reported"], f"{where}.reported"),
                combine=expect_choice(
                    raw.get("combine", "all"), ("all", "each"), f"{where}.combine"
                ),
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
        seed=int(expect_number(boot["seed"], "bootstrap.seed")),
        resamples=int(expect_number(boot.get("resamples", RESAMPLES), "bootstrap.resamples")),
        level=expect_number(boot.get("level", LEVEL), "bootstrap.level"),
        claims=tuple(claims),
    )


def load_ledger(path: str | Path = FOLDER / "claims.yaml") -> Ledger:
    """The claim ledger. Errors: see `read_yaml` and `parse_ledger`."""
    return parse_ledger(read_yaml(path), load_tables())
