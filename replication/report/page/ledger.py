"""The ledger on the page: every claim with what was reported, what was measured, and its status."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from grace.errors import InputError
from replication.base.scales import FULL_SCALE
from replication.judge.text import format_number
from replication.paper import Ledger, Part
from replication.report.names import FAMILIES
from replication.report.page.bars import Axis, bar
from replication.report.page.evidence import Evidence, Origin, origins
from replication.report.page.grids import Cell, Grid, heads, stacked
from replication.report.page.sources import Node, absent, plain, quoted
from replication.stats.verdict import Status

_EXACT = "At full scale, in exact counts or on the published architecture the result lies"
MEANING = {
    Status.REPRODUCED: f"{_EXACT} within the band.",
    Status.DIRECTION_HOLDS: "In small models the whole interval lies on the claimed side.",
    Status.INCONCLUSIVE: "The interval allows both answers.",
    Status.DIRECTION_FAILS: "In small models the whole interval lies on the other side.",
    Status.CONTRADICTED: f"{_EXACT} outside the band.",
    Status.NOT_RUN: "A result that it needs is missing.",
}
PHRASES = {
    Status.REPRODUCED: ("is reproduced", "are reproduced"),
    Status.DIRECTION_HOLDS: ("holds in direction only", "hold in direction only"),
    Status.INCONCLUSIVE: ("is inconclusive", "are inconclusive"),
    Status.DIRECTION_FAILS: ("fails in direction", "fail in direction"),
    Status.CONTRADICTED: ("is contradicted", "are contradicted"),
    Status.NOT_RUN: ("was not run", "were not run"),
}
"""A status after one claim, and after several."""
PAPER = "paper"  # of claims that are checked on the paper's own numbers
_SHOWN = 3  # a claim's own line shows the numbers of no more parts
_LAUNCHER = ".launcher"  # of the coefficients that decide a part where they were run


@dataclass(frozen=True)
class PartView:
    """A part of a claim, ready to print."""

    part: Part
    node: Node
    reported: Markup
    measured: Markup
    bar: Markup
    judged: Markup

    @property
    def status(self) -> str:
        return str(self.node["status"].value)

    @property
    def families(self) -> list[str]:
        """The families that it is about."""
        return _families(self.part)


@dataclass(frozen=True)
class ClaimView:
    """A claim, ready to print."""

    node: Node
    parts: list[PartView]
    families: list[str]
    evidence: str
    notes: list[Markup]
    bands: list[tuple[str, Markup]]
    grid: Grid
    origins: list[Origin]
    command: str

    @property
    def id(self) -> str:
        return str(self.node["id"].value)

    @property
    def status(self) -> Status:
        return Status(self.node["status"].value)

    @property
    def explained(self) -> bool:
        """Whether it fails, and the ledger says why."""
        return self.status.fails and not self.node["failed"].value

    @property
    def under(self) -> list[tuple[str, Status]]:
        """The verdict under each set of GRACE's coefficients."""
        return [(name, Status(one)) for name, one in (self.node["under"].value or {}).items()]

    @property
    def deciding(self) -> list[PartView]:
        """The parts that decide: those with the launcher's coefficients, where both were run."""
        names = {str(part.node["id"].value) for part in self.parts}
        return [one for one in self.parts if f"{one.node['id'].value}{_LAUNCHER}" not in names]

    @property
    def line(self) -> Markup:
        """What was measured, in one line: numbers, or how many parts have which status."""
        parts, measured = self.deciding, Markup('<span class="key">measured</span> ')
        if len(parts) == 1:
            return measured + parts[0].measured
        known = all(one.node["measured"].value for one in parts)
        if known and len(parts) <= _SHOWN and len({one.part.unit for one in parts}) == 1:
            points = Markup(" / ").join(_point(one.part, one.node["measured"]) for one in parts)
            return measured + _with_unit(points, parts[0].part.unit)
        counts = Counter(one.status for one in parts)
        found = [(status, count) for status in Status if (count := counts[status.value])]
        words = [f"{count} {PHRASES[status][count > 1]}" for status, count in found]
        return Markup(", ").join([words[0].replace(" ", f" of {len(parts)} parts ", 1), *words[1:]])


def slug(status: Status | str) -> str:
    return str(status).lower().replace(" ", "-")


def badge(status: Status | str, node: Node | None = None) -> Markup:
    """A status as a word with a shape of its own."""
    word = plain(node) if node is not None else str(status)
    return Markup(
        '<span class="badge {0}"><svg aria-hidden="true" focusable="false">'
        '<use href="#shape-{0}"/></svg>{1}</span>'
    ).format(slug(status), word)


# --- parts ----------------------------------------------------------------------------------------


def _without_difference(part: Part) -> float:
    """The value of a quantity that says: no difference."""
    if part.kind == "ratio":
        return 100.0
    return 1.0 if part.unit == "×" else 0.0


def _counted(part: Part) -> bool:
    return part.exact or part.kind == "seeds" or part.unit == "steps"


def _ends(part: Part, interval: Mapping[str, float]) -> str:
    return f"[{', '.join(format_number(part, interval[end]) for end in ('low', 'high'))}]"


def _with_unit(number: Markup, unit: str) -> Markup:
    return Markup('{}\u202f<span class="unit">{}</span>').format(number, unit) if unit else number


def _reported(part: Part, node: Node) -> Markup:
    reported = node["reported"]
    if reported.value is None:
        return absent("no number")
    return _with_unit(quoted(reported, format_number(part, reported.value)), part.unit)


def _measured(part: Part, node: Node) -> Markup:
    value, not_run = node["measured"], node["status"].value == Status.NOT_RUN.value
    if not_run or value.value is None:
        text = absent("not run" if not_run else "no value")
    else:
        point = format_number(part, value.value["point"])
        if _counted(part) or value.value["low"] == value.value["high"]:  # nothing was sampled
            text = quoted(value, point, "point")
        else:
            text = quoted(value, f"{point} {_ends(part, value.value)}", "point", "low", "high")
    return text if value.value is None else _with_unit(text, part.unit)


def _point(part: Part, measured: Node) -> Markup:
    return quoted(measured, format_number(part, measured.value["point"]), "point")


def _bar(part: Part, node: Node, axis: Axis | None) -> Markup:
    measured = node["measured"].value
    if measured is None or axis is None or _counted(part):
        return Markup("")
    low, high = measured["low"], measured["high"]
    return bar(axis, measured["point"], low, high, node["reported"].value)


def _judged(part: Part, node: Node, full: bool) -> Markup:
    """The rule, and the band with what it is for."""
    lines: list[Markup] = []
    rule, band = node["rule"], node["band"]
    for name in ("above", "below") if rule.value is not None else ():
        if rule.value[name] is not None:
            limit = quoted(rule[name], f"{rule.value[name]:g}".replace("-", "−"))
            lines.append(Markup("{} {}").format(name, limit))
    if band.value is not None:
        text = "the band {} is of full scale, not applied"
        if rule.value is not None and rule.value["within_band"]:
            text = "within the band {}"
        elif full:
            text = "band {}, not applied"
        ends = quoted(band, _ends(part, band.value), "low", "high", css="band")
        lines.append(Markup(text).format(ends))
    return stacked(*lines) if lines else absent("not judged")


def _axes(parts: list[tuple[Part, Node]]) -> Mapping[tuple[str, str], Axis | None]:
    """One axis for the parts of a claim that have one unit and kind."""
    values: dict[tuple[str, str], list[float | None]] = {}
    zeros: dict[tuple[str, str], float] = {}
    for part, node in parts:
        measured, key = node["measured"].value, (part.kind, part.unit)
        if not _counted(part) and measured is not None:
            numbers = [measured[end] for end in ("point", "low", "high")]
            values.setdefault(key, []).extend([*numbers, node["reported"].value])
            zeros[key] = _without_difference(part)
    return {key: Axis.over(numbers, zeros[key]) for key, numbers in values.items()}


def _families(part: Part) -> list[str]:
    quantity: Mapping[str, Any] = part.quantity
    if "family" in quantity:
        return [str(quantity["family"])]
    place = str(quantity.get("name", quantity.get("model", ""))).replace("-", "_").lower()
    return [name for name in FAMILIES if place.endswith(name) or place.startswith(name)]


def _evidence(part: Part, scale: str) -> str:
    if part.kind == "internal_consistency":
        return "the paper's printed numbers"
    if part.kind == "deployment":
        return "published architecture, random weights"
    if scale == FULL_SCALE:
        return "published checkpoints and benchmarks"
    if part.kind == "counted":
        return f"scale {scale}: counted on the trained models"
    if part.kind in ("controller", "cost_ratio"):
        return f"scale {scale}: training logs of small models"
    return f"scale {scale}: small models on stand-ins"


def _notes(claim: Node) -> list[Markup]:
    """What is to be said of a claim's parts, each remark once."""
    parts_of: dict[str, list[tuple[Node, Node]]] = {}
    for part in claim["parts"]:
        if part["note"].value:
            parts_of.setdefault(part["note"].value, []).append((part, part["note"]))
        if part["explanation"].value:
            why = part["explanation"]["text"]
            parts_of.setdefault(why.value, []).append((part, why))
    notes = [_further(one) for one in claim["further"]]
    for found in parts_of.values():
        parts, text = [part for part, _ in found], plain(found[0][1])
        if len(parts_of) > 1:
            names = ", ".join(one["id"].value.partition(".")[2] for one in parts)
            text = Markup('<span class="of">{}:</span> {}').format(names, text)
        notes.append(text)
    return notes


def _bands(claim: Node) -> list[tuple[str, Markup]]:
    """Why the bands are what they are, each reason once with the parts that it is of."""
    parts_of: dict[str, list[Node]] = {}
    for part in claim["parts"]:
        if part["band"].value:
            parts_of.setdefault(part["band"]["reason"].value, []).append(part)
    return [
        (", ".join(part["id"].value for part in parts), plain(parts[0]["band"]["reason"]))
        for parts in parts_of.values()
    ]


def _further(node: Node) -> Markup:
    """Evidence that is shown and not judged."""
    words = Markup('<span class="of">Further evidence, not judged:</span> {}: {}')
    measured = node["measured"]
    if measured.value is None:
        return words.format(plain(node["text"]), plain(node["note"]))
    value = "{point:.3g} [{low:.3g}, {high:.3g}]".format(**measured.value)
    return words.format(plain(node["text"]), quoted(measured, value, "point", "low", "high"))


def _n(node: Node) -> Markup:
    if node["questions"].value is None:
        return absent("none")
    return quoted(node["questions"], f"{node['questions'].value:,}")


def _seeds(node: Node) -> Markup:
    if not node["seeds"].value:
        return absent("none")
    lines = (
        Markup("{}: {}").format(run, quoted(seeds, ", ".join(map(str, seeds.value))))
        for run, seeds in node["seeds"].items()
    )
    return stacked(*lines)


def _resolves(part: Part, node: Node) -> Markup:
    smallest = node["smallest_resolvable_difference"]
    if smallest.value is None:
        return absent("none")
    return quoted(smallest, format_number(part, smallest.value).lstrip("+"))


def _grid(claim: Node, parts: list[PartView]) -> Grid:
    head = [
        *heads("words", "Part"),
        *heads("num", "Measured, 95 % interval"),
        *heads("words", "Drawn"),
        *heads("num", "Reported"),
        *heads("words", "Status", "Must lie"),
        *heads("num", "Resolves", "Questions"),
        *heads("words", "Seeds"),
    ]
    rows = []
    for view in parts:
        node = view.node
        name = stacked(Markup("<code>{}</code>").format(plain(node["id"])), plain(node["text"]))
        rows.append(
            [
                *heads("words", name),
                Cell(view.measured, "num"),
                Cell(view.bar or absent("none"), "drawn"),
                Cell(view.reported, "num"),
                Cell(badge(view.status, node["status"])),
                Cell(view.judged, "words"),
                Cell(_resolves(view.part, node), "num"),
                Cell(_n(node), "num"),
                Cell(_seeds(node), "words small"),
            ]
        )
    return Grid(f"Parts of claim {claim['id'].value}", [head], rows)


# --- claims ---------------------------------------------------------------------------------------


def claim_views(claims: Node, ledger: Ledger, evidence: Evidence) -> list[ClaimView]:
    """Every claim of claims.json.

    Raises:
        InputError: for a part that the ledger does not have.
    """
    known = {part.id: part for claim in ledger.claims for part in claim.parts}
    return [_claim_view(claim, known, evidence) for claim in claims["claims"]]


def _claim_view(claim: Node, known: Mapping[str, Part], evidence: Evidence) -> ClaimView:
    pairs = []
    for node in claim["parts"]:
        name = node["id"].value.partition("@")[0]  # one of a published architecture, by device
        if name not in known:
            raise InputError(f"{node.ref}: {name} is in no ledger; run the stage claims again")
        pairs.append((known[name], node))
    scale, axes = evidence.files.scale, _axes(pairs)
    views = [
        PartView(
            part=part,
            node=node,
            reported=_reported(part, node),
            measured=_measured(part, node),
            bar=_bar(part, node, axes.get((part.kind, part.unit))),
            judged=_judged(part, node, scale == FULL_SCALE),
        )
        for part, node in pairs
    ]
    parts = [part for part, _ in pairs]
    files = list({one.file: one for part in parts for one in evidence.of_part(part)}.values())
    return ClaimView(
        node=claim,
        parts=views,
        families=list(dict.fromkeys(f for part in parts for f in _families(part))) or [PAPER],
        evidence="; ".join(dict.fromkeys(_evidence(part, scale) for part in parts)),
        notes=_notes(claim),
        bands=_bands(claim),
        grid=_grid(claim, views),
        origins=origins(files),
        command=evidence.command(files, "claims"),
    )
