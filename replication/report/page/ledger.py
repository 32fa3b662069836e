"""The ledger on the page: every claim with what was reported, what was measured, and its status."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from grace.errors import InputError
from replication.base.scales import FULL_SCALE
from replication.judge.ledger import format_number
from replication.paper import Ledger, Part
from replication.report.names import FAMILIES
from replication.report.page.bars import Axis, bar
from replication.report.page.evidence import Evidence, Origin, origins
from replication.report.page.grids import Cell, Grid, stacked
from replication.report.page.sources import Node, absent, plain, quoted
from replication.stats.verdict import Status

MEANING = {
    Status.REPRODUCED: "the interval lies in the tolerance band",
    Status.DIRECTION_HOLDS: "the whole interval is on the claimed side; the size is not judged",
    Status.INCONCLUSIVE: "the interval allows both answers",
    Status.CONTRADICTED: "the interval is on the wrong side, or outside the band",
    Status.NOT_RUN: "a needed result is missing",
}
PHRASES = {
    Status.REPRODUCED: "reproduced",
    Status.DIRECTION_HOLDS: "with the claimed direction only",
    Status.INCONCLUSIVE: "inconclusive",
    Status.CONTRADICTED: "contradicted",
    Status.NOT_RUN: "not run",
}
"""A status after a number of claims."""
PAPER = "paper"  # of claims that are checked on the paper's own numbers
_SHOWN = 5  # a claim's own line shows the numbers of no more parts


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
    def family(self) -> str:
        """The family's printed name, "" for a part of none."""
        return ", ".join(FAMILIES[name] for name in _families(self.part))


@dataclass(frozen=True)
class ClaimView:
    """A claim, ready to print. tally: how many of its parts have which status."""

    node: Node
    parts: list[PartView]
    families: list[str]
    evidence: str
    notes: list[Markup]
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
    def known_deviation(self) -> bool:
        return self.status is Status.CONTRADICTED and not self.node["failed"].value

    @property
    def brief(self) -> list[PartView]:
        """The parts whose numbers stand in the claim's own line."""
        return self.parts if len(self.parts) <= _SHOWN else []

    @property
    def tally(self) -> list[tuple[Status, int]]:
        counts = Counter(part.status for part in self.parts)
        return [(status, counts[status.value]) for status in Status if counts[status.value]]


def slug(status: Status | str) -> str:
    return str(status).lower().replace(" ", "-")


def badge(status: Status | str, node: Node | None = None) -> Markup:
    """A status as a word with a shape of its own."""
    name = slug(status)
    word = plain(node) if node is not None else str(status)
    return Markup(
        '<span class="badge {0}"><svg aria-hidden="true" focusable="false">'
        '<use href="#shape-{0}"/></svg>{1}</span>'
    ).format(name, word)


def _origin_of_no_difference(part: Part) -> float:
    if part.kind == "ratio":
        return 100.0
    return 1.0 if part.unit == "×" else 0.0


def _counted(part: Part) -> bool:
    return part.exact or part.kind == "seeds" or part.unit == "steps"


def _measured(part: Part, node: Node) -> Markup:
    value = node["measured"]
    if node["status"].value == Status.NOT_RUN.value or value.value is None:
        return absent("not run" if node["status"].value == Status.NOT_RUN.value else "no value")
    point = format_number(part, value.value["point"])
    if _counted(part) or value.value["low"] == value.value["high"]:  # nothing was sampled
        return quoted(value, point, "point")
    ends = ", ".join(format_number(part, value.value[end]) for end in ("low", "high"))
    return quoted(value, f"{point} [{ends}]", "point", "low", "high")


def _judged(part: Part, node: Node, full: bool) -> Markup:
    """The rule, and the band with what it is for."""
    parts: list[Markup] = []
    rule, band = node["rule"], node["band"]
    if rule.value is not None:
        for name in ("above", "below"):
            if rule.value[name] is not None:
                shown = quoted(rule[name], f"{rule.value[name]:g}".replace("-", "−"))
                parts.append(Markup("{} {}").format(name, shown))
    if band.value is not None:
        ends = ", ".join(format_number(part, band.value[end]) for end in ("low", "high"))
        shown = quoted(band, f"[{ends}]", "low", "high", css="band")
        applied = rule.value is not None and rule.value["within_band"]
        what = "within the band {}" if applied else "the band {} is of full scale, not applied"
        if full and not applied:
            what = "band {}, not applied"
        parts.append(Markup(what).format(shown))
    return stacked(*parts) if parts else absent("not judged")


def _with_unit(number: Markup, unit: str) -> Markup:
    return Markup('{}\u202f<span class="unit">{}</span>').format(number, unit) if unit else number


def _axes(parts: list[tuple[Part, Node]]) -> Mapping[tuple[str, str], Axis | None]:
    """One axis for the parts of a claim that have one unit and kind."""
    values: dict[tuple[str, str], list[float | None]] = {}
    zeros: dict[tuple[str, str], float] = {}
    for part, node in parts:
        if _counted(part) or node["measured"].value is None:
            continue
        measured = node["measured"].value
        found = values.setdefault((part.kind, part.unit), [])
        found += [measured["point"], measured["low"], measured["high"], node["reported"].value]
        zeros[part.kind, part.unit] = _origin_of_no_difference(part)
    return {key: Axis.over(found, zeros[key]) for key, found in values.items()}


def _view(part: Part, node: Node, axis: Axis | None, full: bool) -> PartView:
    reported, measured = node["reported"], node["measured"].value
    shown = absent("no number")
    if reported.value is not None:
        shown = _with_unit(quoted(reported, format_number(part, reported.value)), part.unit)
    found = _measured(part, node)
    drawn = Markup("")
    if measured is not None and axis is not None and not _counted(part):
        found = _with_unit(found, part.unit)
        drawn = bar(axis, measured["point"], measured["low"], measured["high"], reported.value)
    elif measured is not None:
        found = _with_unit(found, part.unit)
    return PartView(part, node, shown, found, drawn, _judged(part, node, full))


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
    found: dict[str, list[Node]] = {}
    for part in claim["parts"]:
        if part["note"].value:
            found.setdefault(part["note"].value, []).append(part)
    single = len(claim["parts"]) == 1
    notes = []
    for parts in found.values():
        text = plain(parts[0]["note"])
        if not single and len(found) > 1:
            names = ", ".join(one["id"].value.partition(".")[2] for one in parts)
            text = Markup('<span class="of">{}:</span> {}').format(names, text)
        notes.append(text)
    return notes


def _n(node: Node) -> Markup:
    if node["questions"].value is None:
        return absent("none")
    return quoted(node["questions"], f"{node['questions'].value:,}")


def _seeds(node: Node) -> Markup:
    if not node["seeds"].value:
        return absent("none")
    shown = []
    for run, seeds in node["seeds"].items():
        shown.append(Markup("{}: {}").format(run, quoted(seeds, ", ".join(map(str, seeds.value)))))
    return stacked(*shown)


def _resolves(part: Part, node: Node) -> Markup:
    found = node["smallest_resolvable_difference"]
    if found.value is None:
        return absent("none")
    return quoted(found, format_number(part, found.value).lstrip("+"))


def _grid(claim: Node, parts: list[PartView]) -> Grid:
    heads = (
        ("Part", "words"), ("Reported", "num"), ("Measured, 95 % interval", "num"),
        ("Drawn", "words"), ("Status", "words"), ("Must lie", "words"), ("Resolves", "num"),
        ("Questions", "num"), ("Seeds", "words"),
    )  # fmt: skip
    rows = []
    for view in parts:
        node = view.node
        name = stacked(Markup("<code>{}</code>").format(plain(node["id"])), plain(node["text"]))
        rows.append(
            [
                Cell(name, head=True, css="words"),
                Cell(view.reported, css="num"),
                Cell(view.measured, css="num"),
                Cell(view.bar or absent("none"), css="drawn"),
                Cell(badge(view.status, node["status"])),
                Cell(view.judged, css="words"),
                Cell(_resolves(view.part, node), css="num"),
                Cell(_n(node), css="num"),
                Cell(_seeds(node), css="words small"),
            ]
        )
    head = [[Cell(one, head=True, css=css) for one, css in heads]]
    return Grid(f"Parts of claim {claim['id'].value}", head, rows)


def claim_views(claims: Node, ledger: Ledger, evidence: Evidence) -> list[ClaimView]:
    """Every claim of claims.json.

    Raises:
        InputError: for a part that the ledger does not have.
    """
    scale = evidence.files.scale
    known = {part.id: part for claim in ledger.claims for part in claim.parts}
    views = []
    for claim in claims["claims"]:
        pairs = []
        for node in claim["parts"]:
            part = known.get(node["id"].value)
            if part is None:
                raise InputError(
                    f"{node.ref}: {node['id'].value} is in no ledger; run the stage claims again"
                )
            pairs.append((part, node))
        axes = _axes(pairs)
        parts = [
            _view(part, node, axes.get((part.kind, part.unit)), scale == FULL_SCALE)
            for part, node in pairs
        ]
        files = {one.file: one for part, _ in pairs for one in evidence.of_part(part)}
        found = list(dict.fromkeys(name for part, _ in pairs for name in _families(part)))
        said = list(dict.fromkeys(_evidence(part, scale) for part, _ in pairs))
        views.append(
            ClaimView(
                node=claim,
                parts=parts,
                families=found or [PAPER],
                evidence="; ".join(said),
                notes=_notes(claim),
                grid=_grid(claim, parts),
                origins=origins(files.values()),
                command=evidence.command(list(files.values()), "claims"),
            )
        )
    return views
