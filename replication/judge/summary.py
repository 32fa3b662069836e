"""The verdicts in at most 60 lines of 120 columns: a line for each claim, each explanation once."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from replication.judge.cells import CellResult
from replication.judge.claims import ClaimResult
from replication.judge.record import BY
from replication.judge.text import explanations, format_interval, head, verdict_lines
from replication.stats.verdict import Status

LINES, WIDTH = 60, 120
SHORT = {
    Status.REPRODUCED: "holds",
    Status.DIRECTION_HOLDS: "holds",
    Status.INCONCLUSIVE: "inconclusive",
    Status.DIRECTION_FAILS: "fails",
    Status.CONTRADICTED: "fails",
    Status.NOT_RUN: "not run",
}
_WIDTHS = (4, 38, 15, 12, 12, 26, 6)
_INDENT = " " * 5


def _cut(text: str, width: int = WIDTH) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _line(*cells: str) -> str:
    cut = (_cut(cell, width).ljust(width) for cell, width in zip(cells, _WIDTHS, strict=True))
    return " ".join(cut).rstrip()


def _measured(result: ClaimResult) -> str:
    """The interval of the one part that decides, or how many parts there are of each status."""
    decisive = result.deciding
    if len(decisive) == 1:
        part = decisive[0]
        return "" if part.interval is None else format_interval(part.part, part.interval)
    counts = Counter(SHORT[part.status] for part in decisive)
    plural = {"holds": "hold", "fails": "fail"}
    return ", ".join(
        f"{count} {plural.get(word, word) if count > 1 else word}" for word, count in counts.items()
    )


def _claim(result: ClaimResult, numbers: Mapping[str, int]) -> Iterator[str]:
    texts = dict.fromkeys(part.explanation.text for part in result.parts if part.explanation)
    under = (SHORT[result.under[name]] if result.under else "" for name in ("launcher", "code"))
    why = ",".join(str(numbers[text]) for text in texts)
    yield _line(
        result.claim.id,
        result.claim.short,
        result.status.value,
        *under,
        _measured(result),
        f"[{why}]" if why else "",
    )
    devices = [part for part in result.parts if part.part.kind == "deployment"]
    for part in devices:
        if part.status is not Status.NOT_RUN:
            yield from _wrapped(f"{part.status.value}: {part.note}" if devices[1:] else part.note)
    further = [
        f"{one.part.text}: {format_interval(one.part, one.interval)}"
        for one in result.further
        if one.interval is not None
    ]
    if further:
        yield from _wrapped(f"further evidence: {'; '.join(further)}")
    if any(part.part.kind == "repeats" for part in result.parts) and result.note:
        yield from _wrapped(result.note)


def _wrapped(text: str, first: str = _INDENT) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=_INDENT)


def _cells(cells: Sequence[CellResult]) -> list[str]:
    """How many reported cells have each status, and which are contradicted."""
    if not cells:
        return []
    counts = Counter(cell.status for cell in cells)
    texts = [f"{counts[status]} {status.value}" for status in Status if counts[status]]
    lines = [f"Reported cells and differences: {', '.join(texts)}"]
    if failed := [cell.cell.id for cell in cells if cell.failed]:
        lines.append(_cut(f"Contradicted: {', '.join(failed)}"))
    return lines


def summary_text(
    results: Sequence[ClaimResult],
    cells: Sequence[CellResult],
    document: Mapping[str, Any],
) -> list[str]:
    """The lines.

    Args:
        results: the verdicts on claims.
        cells: those on reported cells, at full scale.
        document: the verdicts as data (`replication.judge.record`).
    """
    numbers = explanations(results)
    lines = [line for text in head(document) for line in textwrap.wrap(text, WIDTH)]
    lines.append(_line("", "", "status", "launcher's", "code's", "measured", ""))
    for by, words in BY.items():
        own = [result for result in results if result.claim.by == by]
        counts = Counter(result.status for result in own)
        texts = [f"{counts[status]} {status.value}" for status in Status if counts[status]]
        if own:
            lines += ["", _cut(f"{words.capitalize()}: {', '.join(texts)}")]
            lines += [line for result in own for line in _claim(result, numbers)]
    end = [*_cells(cells), *verdict_lines(document, document["failed"])]
    end = [line for text in end for line in _wrapped(text, "")]
    why = [
        line
        for text, number in numbers.items()
        for line in _wrapped(text, f"[{number}]".ljust(len(_INDENT)))
    ]
    return _fitting(lines, why, end)


def _fitting(lines: list[str], why: list[str], end: list[str]) -> list[str]:
    """All of it in at most `LINES` lines: what does not fit is said to be elsewhere."""
    if len(lines) + len(why) + len(end) + 2 > LINES:
        lines = [line for line in lines if line]
    room = LINES - len(lines) - len(end) - 2
    if len(why) > room:
        why = [*why[: max(room - 1, 0)], "the rest: make verify-claims VERIFY=--long"]
    return [*lines, *([""] if why else []), *why, "", *end][:LINES]
