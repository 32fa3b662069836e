"""The verdicts as text: a line for each claim, each part of it, and each reported cell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from replication.base.scales import FULL_SCALE
from replication.base.terminal import table
from replication.judge.cells import CellResult
from replication.judge.claims import ClaimResult, PartResult
from replication.judge.quantities import signed
from replication.judge.record import BY
from replication.paper import Part
from replication.stats.verdict import Interval, Rule, Status

_STYLES = {
    Status.REPRODUCED: "green",
    Status.DIRECTION_HOLDS: "green",
    Status.INCONCLUSIVE: "yellow",
    Status.DIRECTION_FAILS: "bold red",
    Status.CONTRADICTED: "bold red",
    Status.NOT_RUN: "dim",
}


# --- numbers --------------------------------------------------------------------------------------


def _is_count(part: Part) -> bool:
    return part.exact or part.kind in ("seeds", "repeats") or part.unit == "steps"


def format_number(part: Part, value: float) -> str:
    """A number in the part's own notation: signed points, a fraction, percent, or a count."""
    if part.kind == "repeats":
        return "the same" if value else "another"
    if _is_count(part):
        return f"{value:.0f}"
    if part.kind in ("gap_closed", "cost_ratio", "controller", "deployment"):
        return f"{value:.2f}".replace("-", "−")
    if part.kind in ("measurement", "real_cell"):
        return f"{value:.3g}".replace("-", "−")
    if part.kind in ("ratio", "value", "disagreement"):
        return f"{value:.1f}"
    return signed(value)


def format_interval(part: Part, interval: Interval | None) -> str:
    """'point [low, high]', or the point alone of a count."""
    if interval is None:
        return "no value"
    point = format_number(part, interval.point)
    if _is_count(part):
        return point
    ends = (format_number(part, end) for end in (interval.low, interval.high))
    return f"{point} [{', '.join(ends)}]"


def _sides(rule: Rule | None) -> list[str]:
    """What a rule asks for, but for the band."""
    sides = [("above", rule.above), ("below", rule.below)] if rule else []
    return [f"{name} {value:g}" for name, value in sides if value is not None]


def _measured(result: PartResult) -> str:
    if result.status is Status.NOT_RUN:
        return "not run"
    return format_interval(result.part, result.interval)


def _band(result: PartResult) -> str:
    """The band, or what a part without one must lie above or below."""
    part, band = result.part, result.band
    if band is None:
        return " and ".join(_sides(part.reduced or part.full)) or "none"
    return f"[{format_number(part, band.low)}, {format_number(part, band.high)}]"


def _resolvable(result: PartResult) -> list[str]:
    """The smallest difference that the questions and seeds would have resolved."""
    if result.resolvable is None:
        return []
    return [f"resolves {format_number(result.part, result.resolvable).lstrip('+')}"]


# --- lines ----------------------------------------------------------------------------------------

_Row = tuple[str, Text, str]


def _row(name: str, status: Status, pieces: Iterable[str], note: str) -> Iterator[_Row]:
    yield name, Text(status.value, style=_STYLES[status]), "  ".join(pieces)
    if note:
        yield "", Text(), note


def _expectations(parts: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """What was expected of a claim's parts, with its date and commit; each once."""
    found: dict[tuple[str, ...], None] = {}
    for part in parts:
        if (one := part["expected"]) is not None:
            kind = one["written"].replace("not recorded", "expectation")
            when = f"{one['date']}, {one['commit']}" if one["commit"] else "date not recorded"
            found[kind, when, one["outcome"], one["reason"]] = None
    for kind, when, outcome, reason in found:
        yield f"{kind} ({when}): {outcome}: {reason}"


def _further(result: ClaimResult) -> Iterator[str]:
    for one in result.further:
        shown = one.note if one.interval is None else format_interval(one.part, one.interval)
        note = f" ({one.note})" if one.interval is not None and one.note else ""
        yield f"further evidence, not judged: {one.part.text}: {shown}{note}"


def _claim_rows(
    result: ClaimResult, abstract: bool, data: Mapping[str, Any], numbers: Mapping[str, int]
) -> Iterator[_Row]:
    claim, parts = result.claim, result.parts
    run = [part for part in parts if part.status is not Status.NOT_RUN]
    measured = " / ".join(_measured(part) for part in run) or "not run"
    band = " / ".join(dict.fromkeys(_band(part) for part in run or parts))
    words = claim.abstract if abstract and claim.abstract else claim.text
    pieces = [words] if words is not claim.text else [words, f"| reported {claim.reported}"]
    pieces += [f"| measured {measured}", f"| band {band}"]
    if len(parts) == 1:
        pieces += [f"| {text}" for text in _resolvable(parts[0])]
        pieces += _explained(parts[0], numbers)
        yield from _row(claim.id, result.status, pieces, parts[0].note or result.note)
    else:
        yield from _row(claim.id, result.status, pieces, result.note)
    for part in parts if len(parts) > 1 else ():
        name = "  " + part.part.id.removeprefix(f"{claim.id}.")
        pieces = [*_part_pieces(part), *_explained(part, numbers)]
        yield from _row(name, part.status, pieces, part.note)
    for line in (*_further(result), *_expectations(data["parts"])):
        yield "", Text(), line


def _explained(part: PartResult, numbers: Mapping[str, int]) -> list[str]:
    return [f"[{numbers[part.explanation.text]}]"] if part.explanation else []


def explanations(results: Iterable[ClaimResult]) -> dict[str, int]:
    """The explanations of what fails, numbered."""
    parts = (part for result in results for part in result.parts)
    texts = dict.fromkeys(part.explanation.text for part in parts if part.explanation)
    return {text: number for number, text in enumerate(texts, 1)}


def _part_pieces(result: PartResult) -> list[str]:
    part = result.part
    reported = part.reported
    return [
        *([] if reported is None else [f"reported {format_number(part, reported)}"]),
        f"measured {_measured(result)}",
        f"band {_band(result)}",
        *_resolvable(result),
        part.text,
    ]


def _count(statuses: Iterable[Status], what: str = "") -> Text:
    """How many results have each status."""
    counts = Counter(statuses)
    words = [
        Text(f"{counts[status]} ").append(status.value, style=_STYLES[status])
        for status in Status
        if counts[status]
    ]
    return Text(what).append_text(Text(", ").join(words))


def head(document: Mapping[str, Any]) -> list[str]:
    """What the scale can decide, and which world and coefficients the verdicts are of."""
    scale, world = document["scale"], document["world"]
    lines = [f"Claims at scale {scale}, with 95 % intervals."]
    if scale != FULL_SCALE:
        lines[0] += " Small models on stand-ins: a direction holds or fails here, a number cannot."
        commit = f"{world['commit']} ({world['date']})" if world["commit"] else "not recorded"
        order = {True: ", before the first run of GRACE", False: ", AFTER runs of GRACE in it"}
        when = order.get(world["before_grace"], "")
        lines.append(f"Commit that fixed the world: {commit}{when}.")
    return lines


def verdict_lines(document: Mapping[str, Any], failed: Sequence[str]) -> list[str]:
    """Whether all is as recorded, and what is not."""
    lines = []
    if stale := document["stale_explanations"]:
        lines.append(f"Explained, and does not fail: {'; '.join(stale)}")
    if failed:
        lines.append(f"Not as recorded: failing without an explanation: {', '.join(failed)}")
    else:
        lines.append("As recorded: every failure has an explanation.")
    return lines


def claims_text(
    results: Sequence[ClaimResult], document: Mapping[str, Any], abstract: bool = False
) -> list[RenderableType]:
    """The verdicts on claims and all of their parts, for `replication.base.terminal.write`.

    Args:
        results: the verdicts.
        document: the same as data (`replication.judge.record`).
        abstract: each claim in the abstract's words.
    """
    lines: list[RenderableType] = [
        *head(document),
        "'resolves' is the minimum detectable effect at 80 % power.",
        document["coefficients"],
    ]
    numbers = explanations(results)
    rows = [
        row
        for result, data in zip(results, document["claims"], strict=True)
        for row in _claim_rows(result, abstract, data, numbers)
    ]
    lines += ["", table([], rows), ""]
    lines += [f"[{number}] explanation: {text}" for text, number in numbers.items()]
    for by, words in BY.items():
        if own := [result.status for result in results if result.claim.by == by]:
            lines.append(_count(own, f"{words}: "))
    return [*lines, *verdict_lines(document, document["failed"])]


def _cell_pieces(result: CellResult) -> list[str]:
    cell, interval, band = result.cell, result.interval, result.band
    write = signed if cell.against else "{:.1f}".format
    measured = "not run"
    if interval is not None:
        ends = f"{write(interval.low)}, {write(interval.high)}"
        measured = f"{write(interval.point)} [{ends}]"
    return [
        f"reported {write(cell.reported)}",
        f"measured {measured}",
        " and ".join([f"band [{write(band.low)}, {write(band.high)}]", *_sides(result.rule)]),
        *(["in points"] if cell.unit == "points" and cell.against is None else []),
    ]


def cells_text(results: Sequence[CellResult]) -> list[RenderableType]:
    """The verdicts on reported cells and differences, table by table, likewise."""
    lines: list[RenderableType] = [
        "",
        "Reported cells, and their differences from the baseline (-vs-), each against its band; "
        "the reasons of the bands are in claims.json.",
    ]
    for printed, group in groupby(results, key=lambda result: result.cell.table):
        rows = [
            row
            for result in group
            for row in _row(result.cell.name, result.status, _cell_pieces(result), result.note)
        ]
        lines += ["", f"{printed.short}: {printed.title}", table([], rows, indent=2)]
    cells, differences = (
        [result.status for result in results if (result.cell.against is not None) is difference]
        for difference in (False, True)
    )
    return [*lines, "", _count(cells, "cells: "), _count(differences, "differences: ")]
