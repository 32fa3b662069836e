"""The claim ledger as data (claims.yaml): what is claimed, what decides it, how it is judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Required

from pydantic import Field
from typing_extensions import TypedDict

from grace.errors import InputError
from grace.files import read_yaml
from replication.base.messages import unknown
from replication.base.scales import FULL_SCALE, SCALES, Scale
from replication.base.validation import (
    TEXT_OR_MAPPING,
    Flag,
    MappingTag,
    Natural,
    Number,
    Positive,
    Text,
    TextTag,
    closed,
    record,
    validate,
)
from replication.paper.bands import quantity_band
from replication.paper.tables import FOLDER, Component, Reported, load_tables
from replication.stats.bootstrap import RESAMPLES
from replication.stats.verdict import LEVEL, Band, Rule

OF_CELLS = "cells"
QUANTITIES = {
    "difference": {"family", "run", "against", "over"},
    "equivalence": {"family", "run", "against", "over"},
    "best": {"family", "run", "runs", "over"},
    "gap_closed": {"family", "run", "baseline", "teacher", "over"},
    "ratio": {"family", "run", "against", "over"},
    "value": {"family", "run", "over"},
    "main_effect": {"family", "component", "table", "over"},
    "sweep_spread": {"family", "runs", "over"},
    "disagreement": {"family", "run", "against", "over"},
    "worst_skill": {"family", "run", "against", "over"},
    "seeds": {"family", "runs"},
    "cost_ratio": {"family", "run", "against", "cost"},
    "controller": {"family", "run", "check"},
    "measurement": {"name", "value"},
    "counted": {"name", "value"},
    "deployment": {"model", "value"},
    "real_cell": {"section", "name", "value"},
    "repeats": {"claim", "family", "pair"},
    "internal_consistency": {"check"},
}
"""The keys that a quantity of each kind needs; claims.yaml says what the kinds are."""
_OPTIONAL = {
    "real_cell": {"unit"},
    "measurement": {"unit"},
    "counted": {"unit"},
    "deployment": {"unit"},
    "internal_consistency": {"table"},
}
CONSISTENCY_CHECKS = ("averages", "cells", "statements")
CONTROLLER_UNITS = {"bounds": "steps", "budget": "of τ", "settles": "epochs"}
_CHECKS = {"controller": tuple(CONTROLLER_UNITS), "internal_consistency": CONSISTENCY_CHECKS}
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


# --- the ledger -----------------------------------------------------------------------------------


@record
class Expectation:
    """What is expected of a claim at a scale before it is measured, and why.

    Attributes:
        outcome: claims.yaml says what each means.
        reason: why.
    """

    outcome: Literal["holds", "inconclusive-ok", "undecidable"]
    reason: Text


@record
class Explanation:
    """Why parts fail, written after they were measured.

    Attributes:
        of: ids of parts, or what these begin with: a claim's id stands for all of its parts.
        text: why.
        scales: at which.
    """

    of: Annotated[tuple[Text, ...], Field(min_length=1)]
    text: Text
    scales: tuple[Scale, ...] = SCALES

    def explains(self, part: str, scale: str) -> bool:
        """Whether it is of that part at that scale."""
        return scale in self.scales and any(_begins(part, name) for name in self.of)


def _begins(part: str, name: str) -> bool:
    return part == name or part.startswith((f"{name}.", f"{name}@"))


By = Literal["paper", "reviewers", "repository"]
"""Whose a claim is: the paper's, a wish of its reviewers, a property of this repository."""


@record
class Coefficients:
    """The runs that train with other coefficients of GRACE, and why they decide.

    Attributes:
        launcher: by a run with the code's defaults, the one with the launcher's coefficients.
        reason: why these decide where they were run.
    """

    launcher: dict[Text, Text]
    reason: Text


@dataclass(frozen=True)
class Part:
    """One decidable part of a claim: a quantity, its band, its rules, what is expected of it.

    Attributes:
        id: the claim's and its own.
        text: what it says.
        kind: of the quantity; "best" has become differences.
        quantity: the kind, and the keys of `QUANTITIES`.
        benchmarks: those that it is over.
        reported: the printed number.
        band: the tolerance band.
        of_cells: whether the band is that of the printed cells, as long as nothing was measured.
        full: the rule at full scale; None of further evidence, which is not judged.
        reduced: the rule at the other scales.
        scales: at which it is judged.
        expected: by scale.
        twin: of a part under the launcher's coefficients, the same under the code's.
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
    twin: Part | None = None

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
        """Of the quantity."""
        if self.kind == "controller":
            return CONTROLLER_UNITS[self.quantity["check"]]
        if self.kind in ("measurement", "counted", "deployment", "real_cell"):
            return str(self.quantity.get("unit", ""))
        return UNITS.get(self.kind, "points")

    def rule(self, scale: str) -> Rule | None:
        """What must be true of its interval at a scale."""
        return self.full if scale == FULL_SCALE or self.scale_free else self.reduced

    def runs(self, reported: Reported) -> list[str]:
        """The runs of the part's family that it needs, first the one that it speaks of."""
        if self.kind == "main_effect":
            return list(reported.table(self.quantity["table"]).design().values())
        keys = ("run", "against", "baseline", "teacher")
        named = [self.quantity[key] for key in keys if key in self.quantity]
        return [*named, *self.quantity.get("runs", ())]


@dataclass(frozen=True)
class Claim:
    """One entry of the ledger.

    Attributes:
        id: its name.
        text: what is claimed.
        where: in the paper, or the reviews.
        reported: the printed numbers, as text.
        by: whose it is.
        combine: "all" (a conjunction) or "each" (separate findings).
        abstract: the abstract's words, of a claim that it makes.
        parts: what decides it.
        further: what is measured besides, and not judged.
        short: the text in a few words.
    """

    id: str
    text: str
    where: str
    reported: str
    by: By
    combine: str
    abstract: str | None
    parts: tuple[Part, ...]
    further: tuple[Part, ...] = ()
    short: str = ""


@dataclass(frozen=True)
class Ledger:
    """All of claims.yaml, validated.

    Attributes:
        seed: of the bootstraps.
        resamples: of every bootstrap.
        level: of every interval.
        claims: in the file's order.
        explanations: of parts that fail.
        coefficients: the two sets that GRACE is judged under.
    """

    seed: int
    resamples: int
    level: float
    claims: tuple[Claim, ...]
    explanations: tuple[Explanation, ...]
    coefficients: Coefficients

    def explanation(self, part: str, scale: str) -> Explanation | None:
        """What is written of a part that fails at a scale."""
        return next((one for one in self.explanations if one.explains(part, scale)), None)

    def named_runs(self, reported: Reported) -> Iterator[tuple[str, str, str]]:
        """(part, family, run) for every run that a part needs."""
        for part in (part for claim in self.claims for part in claim.parts if not part.twin):
            for run in part.runs(reported):
                yield part.id, part.quantity["family"], run


# --- the file -------------------------------------------------------------------------------------


@closed
class _AverageOf(TypedDict):
    average_of: Text


@closed
class _Quantity(TypedDict, total=False):
    kind: Required[Text]
    family: Text
    run: Text
    runs: Annotated[list[Text], Field(min_length=1)]
    against: Text
    baseline: Text
    teacher: Text
    component: Component
    table: Text
    over: Annotated[Annotated[Text, TextTag] | Annotated[_AverageOf, MappingTag], TEXT_OR_MAPPING]
    cost: Literal["seconds_per_step", "peak_memory_bytes", "trained_parameters"]
    check: Text
    name: Text
    value: Text
    unit: Text
    model: Text
    claim: Text
    pair: Text
    section: Literal["entropy_error", "gate_covariance", "courses"]


def _check_quantity(quantity: Mapping[str, Any]) -> None:
    kind = quantity["kind"]
    if kind not in QUANTITIES:
        raise InputError(unknown(f"quantity.kind {kind!r}", kind, QUANTITIES))
    needed, keys = QUANTITIES[kind], set(quantity) - {"kind"}
    known = needed | _OPTIONAL.get(kind, set())
    for key in sorted(keys - known):
        raise InputError(unknown(f"quantity: key {key!r}", key, sorted(known)))
    for key in sorted(needed - keys):
        raise InputError(f"quantity lacks the key {key!r}; add it")
    if "check" in needed and quantity["check"] not in _CHECKS[kind]:
        check = quantity["check"]
        raise InputError(unknown(f"quantity.check {check!r}", check, _CHECKS[kind]))


@record
class _Band:
    reason: Text
    low: Number | None = None
    high: Number | None = None
    half_width: Annotated[Number, Field(ge=0)] | None = None

    def __post_init__(self) -> None:
        ends = (self.low is not None, self.high is not None)
        if ends != ((self.half_width is None),) * 2:
            raise InputError("give low and high, or a half_width around the reported number")

    def around(self, reported: float | None) -> Band:
        if self.half_width is None:
            assert self.low is not None and self.high is not None
            return Band(self.low, self.high, self.reason)
        if reported is None:
            raise InputError("half_width needs a reported number to lie around")
        return Band(reported - self.half_width, reported + self.half_width, self.reason)


@record
class _Rule:
    above: Number | None = None
    below: Number | None = None
    within_band: Flag = False
    reason: str = ""

    def __post_init__(self) -> None:
        for name in ("above", "below"):
            margin = getattr(self, name)
            if margin and not self.reason.strip():
                raise InputError(f"'{name}: {margin:g}' is a margin and needs a reason")
        self.rule()

    def rule(self) -> Rule:
        return Rule(self.above, self.below, self.within_band, self.reason)


@record
class _Rules:
    full: _Rule
    reduced: _Rule | None = None


_Expected = dict[Scale, Expectation]


@record
class _Part:
    id: Text
    quantity: _Quantity
    rule: _Rules
    text: Text | None = None
    reported: Number | list[Number] | None = None
    band: (
        Annotated[
            Annotated[Literal["cells"], TextTag] | Annotated[_Band, MappingTag], TEXT_OR_MAPPING
        ]
        | None
    ) = None
    scales: Annotated[tuple[Scale, ...], Field(min_length=1)] = SCALES
    expected: _Expected = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_quantity(self.quantity)
        rules = (self.rule.full, self.rule.reduced)
        if self.band is None and any(rule and rule.within_band for rule in rules):
            raise InputError("it has a rule 'within_band' but no band")
        reduced = self.quantity["kind"] not in SCALE_FREE_KINDS and set(self.scales) != {"paper"}
        if reduced and self.rule.reduced is None:
            raise InputError("its rule lacks 'reduced', for the other scales than paper")

    def pairs(self) -> list[tuple[str, str, dict[str, Any], float | None]]:
        """Suffix of the id, text, quantity and reported number of every part that it stands for."""
        quantity: dict[str, Any] = {**self.quantity}
        best = quantity["kind"] == "best"
        runs = quantity.pop("runs") if best else []
        count = len(runs) if best else 1
        numbers = self.reported if isinstance(self.reported, list) else [self.reported] * count
        if len(numbers) != count:
            raise InputError(f"{len(numbers)} reported numbers for {count} comparison(s)")
        if not best:
            return [("", self.text or self.id, quantity, numbers[0])]
        run = quantity["run"]
        return [
            (
                f".{run}>{other}",
                f"{run} > {other}",
                {**quantity, "kind": "difference", "against": other},
                number,
            )
            for other, number in zip(runs, numbers, strict=True)
        ]


@record
class _Further:
    text: Text
    quantity: _Quantity

    def __post_init__(self) -> None:
        _check_quantity(self.quantity)

    def part(self, name: str) -> Part:
        quantity = self.quantity
        return Part(
            name, self.text, quantity["kind"], quantity, (), None, None, False, None, None, (), {}
        )


@record
class _Claim:
    id: Text
    by: By
    text: Text
    where: Text
    reported: Text
    parts: Annotated[list[_Part], Field(min_length=1)]
    coefficients: Literal["code", "both"] = "code"
    further: list[_Further] = field(default_factory=list)
    short: Annotated[Text, Field(max_length=38)] | None = None
    combine: Literal["all", "each"] = "all"
    expected: _Expected = field(default_factory=dict)
    abstract: Text | None = None


@record
class _Bootstrap:
    seed: Natural
    resamples: Positive = RESAMPLES
    level: Annotated[Number, Field(gt=0, lt=1)] = LEVEL


@record
class _Ledger:
    bootstrap: _Bootstrap
    claims: Annotated[list[_Claim], Field(min_length=1)]
    coefficients: Coefficients
    expected: _Expected = field(default_factory=dict)
    explanations: tuple[Explanation, ...] = ()


def _benchmarks(quantity: Mapping[str, Any], reported: Reported) -> tuple[str, ...]:
    over = quantity.get("over")
    if over is None:
        return ()
    if isinstance(over, dict):
        return tuple(reported.table(over["average_of"]).averaged_benchmarks)
    tables = reported.tables.values()
    names = {table.benchmark(column) for table in tables for column in table.averaged}
    if over not in names:
        raise InputError(unknown(f"benchmark {over!r}", over, sorted(names)))
    return (over,)


def _band(
    part: _Part,
    quantity: Mapping[str, Any],
    benchmarks: tuple[str, ...],
    number: float | None,
    reported: Reported,
) -> Band | None:
    if part.band is None:
        return None
    if isinstance(part.band, _Band):
        return part.band.around(number)
    return quantity_band(quantity, benchmarks, reported)


def _parts(
    claim: str, part: _Part, expected: Mapping[str, Expectation], reported: Reported
) -> Iterator[Part]:
    """The parts that an entry stands for: a best run becomes a pair with every other."""
    benchmarks = _benchmarks(part.quantity, reported)
    if "table" in part.quantity:
        reported.table(part.quantity["table"])
    for scale in part.scales:
        if scale not in expected:
            raise InputError(f"it does not say what is expected at scale {scale!r}")
    for suffix, text, quantity, number in part.pairs():
        yield Part(
            id=f"{claim}.{part.id}{suffix}",
            text=text,
            kind=quantity["kind"],
            quantity=quantity,
            benchmarks=benchmarks,
            reported=number,
            band=_band(part, quantity, benchmarks, number, reported),
            of_cells=part.band == OF_CELLS,
            full=part.rule.full.rule(),
            reduced=None if part.rule.reduced is None else part.rule.reduced.rule(),
            scales=part.scales,
            expected=expected,
        )


def _twins(part: Part, launcher: Mapping[str, str]) -> Iterator[Part]:
    """The part, and the same of the launcher's runs if it is of one of the code's."""
    yield part
    named = [part.quantity[key] for key in ("run", "against") if key in part.quantity]
    if any(run.startswith("grace_") and run not in launcher for run in named):
        return  # it compares with a run that there is under one set of coefficients alone
    quantity = {
        key: launcher.get(value, value) if key in ("run", "against") else value
        for key, value in part.quantity.items()
    }
    if quantity != part.quantity:
        yield replace(
            part,
            id=f"{part.id}.launcher",
            text=f"{part.text}, the launcher's coefficients",
            quantity=quantity,
            twin=part,
        )


def _check_names(ledger: Ledger, source: str) -> None:
    """Refuse ids that appear twice, and explanations of what is not there."""
    parts = [part.id for claim in ledger.claims for part in claim.parts]
    for name, count in Counter([*(claim.id for claim in ledger.claims), *parts]).items():
        if count > 1:
            raise InputError(f"{source}: {name!r} appears twice")
    for name in (name for one in ledger.explanations for name in one.of):
        if not any(_begins(part, name) for part in parts):
            raise InputError(f"{source}: explanations: {unknown(f'part {name!r}', name, parts)}")


def parse_ledger(content: Any, reported: Reported, source: str = "claims.yaml") -> Ledger:
    """The content of claims.yaml; a best run is expanded into its pairs.

    Args:
        content: what the file holds.
        reported: the tables that it speaks of.
        source: what it is, for error messages.

    Raises:
        InputError: for anything ill-formed, a claim or part given twice, or a part that does not
            say what is expected of it at a scale where it is judged.
    """
    data = validate(_Ledger, content, source)
    claims = []
    for claim in data.claims:
        own: list[Part] = []
        for part in claim.parts:
            inherited = (data.expected, claim.expected, part.expected)
            expected: dict[str, Expectation] = {
                scale: expectation
                for expectations in inherited
                for scale, expectation in expectations.items()
            }
            try:
                own += _parts(claim.id, part, expected, reported)
            except InputError as error:
                raise InputError(f"{source}: {claim.id}.{part.id}: {error}") from error
        launcher = data.coefficients.launcher if claim.coefficients == "both" else {}
        claims.append(
            Claim(
                id=claim.id,
                text=claim.text,
                where=claim.where,
                reported=claim.reported,
                by=claim.by,
                combine=claim.combine,
                abstract=claim.abstract,
                parts=tuple(twin for part in own for twin in _twins(part, launcher)),
                further=tuple(
                    one.part(f"{claim.id}.further{number}")
                    for number, one in enumerate(claim.further, 1)
                ),
                short=claim.short or claim.text,
            )
        )
    settings = data.bootstrap
    ledger = Ledger(
        settings.seed,
        settings.resamples,
        settings.level,
        tuple(claims),
        data.explanations,
        data.coefficients,
    )
    _check_names(ledger, source)
    return ledger


def load_ledger(path: str | Path = FOLDER / "claims.yaml") -> Ledger:
    """The claim ledger.

    Raises:
        InputError: for a file that cannot be read, or that `parse_ledger` refuses.
    """
    return parse_ledger(read_yaml(path), load_tables(), str(path))
