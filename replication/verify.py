"""What was measured against what was reported, claim by claim.

    python -m replication.verify [--scale small] [--results DIR] [--abstract] [--json PATH]

Prints one line per claim and one per part of it (reported, measured with interval, band, status)
and writes <results>/<scale>/claims.json. Exit code 0; 1 if a claim is CONTRADICTED that the ledger
does not list as a known deviation at this scale; 2 on bad input.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from grace.errors import InputError
from replication import compare
from replication.compare import Answers, Interval, Status
from replication.io import write_json_atomic
from replication.reported import Claim, Ledger, Part, Reported, load_ledger, load_tables
from replication.reported import consistency as printed
from replication.results import FULL_SCALE, SCALES, ResultSet, check_scale


@dataclass(frozen=True)
class PartResult:
    """The verdict on one part. `failed`: contradicted, and the ledger does not excuse it."""

    part: Part
    status: Status
    interval: Interval | None = None
    questions: int | None = None
    seeds: dict[str, list[int]] | None = None
    resolvable: float | None = None
    mcnemar: compare.McNemar | None = None
    note: str = ""
    failed: bool = False


@dataclass(frozen=True)
class ClaimResult:
    """The verdict on a claim, from those on its parts."""

    claim: Claim
    status: Status
    parts: tuple[PartResult, ...]
    note: str

    @property
    def failed(self) -> bool:
        return any(part.failed for part in self.parts)


def generator(seed: int, name: str) -> np.random.Generator:
    """The random generator of one comparison: its draws do not depend on which others are made."""
    return np.random.default_rng([seed, zlib.crc32(name.encode("utf-8"))])


def _runs(part: Part) -> list[str]:
    return [part.quantity[key] for key in ("run", "against", "baseline", "teacher")
            if key in part.quantity]  # fmt: skip


def _measure(
    part: Part, answers: list[Answers], ledger: Ledger
) -> tuple[Interval | None, compare.McNemar | None, str]:
    """The part's interval (None: it has no value), McNemar's test where it applies, a note."""
    rng = generator(ledger.seed, part.id)
    settings: dict[str, Any] = {"resamples": ledger.resamples, "level": ledger.level}
    if part.kind == "value":
        return compare.score_interval(answers[0], part.benchmarks, rng, **settings), None, ""
    if part.kind == "gap_closed":
        fraction, gap = compare.gap_closed_interval(
            answers[0], answers[1], answers[2], part.benchmarks, rng, **settings
        )
        note = f"gap {_signed(gap.point)} [{_signed(gap.low)}, {_signed(gap.high)}] points"
        if fraction is None:
            return None, None, f"teacher and baseline are not told apart: {note}"
        return fraction, None, note
    if part.kind == "ratio":
        return (
            compare.ratio_interval(answers[0], answers[1], part.benchmarks, rng, **settings),
            None,
            "",
        )
    interval = compare.difference_interval(answers[0], answers[1], part.benchmarks, rng, **settings)
    pair = None
    if len(part.benchmarks) == 1 and all(len(one.seeds) == 1 for one in answers):
        first, second = (one.values[part.benchmarks[0]][0] for one in answers)
        if np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all():
            pair = compare.mcnemar(first, second)
    return interval, pair, ""


def _check_printed(part: Part, reported: Reported) -> tuple[Interval, str, bool]:
    """Number of printed figures that do not follow, a note, and whether all of them are listed."""
    done = printed.run_check(reported, part.quantity["check"], part.quantity.get("table"))
    wrong = printed.mismatches(done)
    known = [printed.discrepancy_of(mismatch, reported) for mismatch in wrong]
    note = f"{len(done)} compared"
    if wrong:
        names = [
            entry.id if entry else f"{mismatch.check} (new)"
            for mismatch, entry in zip(wrong, known, strict=True)
        ]
        note += ": " + ", ".join(dict.fromkeys(names))
    return Interval.exact(float(len(wrong))), note, all(known)


def evaluate_part(part: Part, results: ResultSet, ledger: Ledger, reported: Reported) -> PartResult:
    """The verdict on one part at the results' scale. Raises InputError for results that are wrong;
    results that are missing give NOT RUN."""
    scale = results.scale
    if part.kind == "pending":
        return PartResult(part, Status.NOT_RUN, note=f"needs {part.quantity['needs']}")
    expected = part.expected[scale]
    interval: Interval | None
    excusable = True
    questions = seeds = resolvable = pair = None
    if part.kind == "internal_consistency":
        interval, note, excusable = _check_printed(part, reported)
    else:
        runs = _runs(part)
        answers = results.answers(part.quantity["family"], runs, part.benchmarks)
        if answers is None:
            return PartResult(part, Status.NOT_RUN, note=_missing(part, results, runs))
        interval, pair, note = _measure(part, answers, ledger)
        questions = sum(answers[0].values[name].shape[1] for name in part.benchmarks)
        seeds = {run: list(one.seeds) for run, one in zip(runs, answers, strict=True)}
        if interval is not None and part.kind != "value":
            resolvable = compare.minimum_detectable_difference(
                interval.standard_error, level=ledger.level
            )
    full = scale == FULL_SCALE or part.exact
    rule = part.full if full else part.reduced
    if interval is None or rule is None or expected.outcome == "undecidable":
        status = Status.INCONCLUSIVE
    else:
        holds = Status.REPRODUCED if full else Status.DIRECTION_HOLDS
        status = compare.judge(interval, rule, part.band, holds)
    known = expected.outcome == "known_deviation"
    remarks = [note] if note else []
    if status is Status.CONTRADICTED and known and excusable:
        remarks.append(f"known deviation: {expected.reason}")
    elif status is Status.CONTRADICTED and known:
        remarks.append("not the deviation that is known")
    elif status.holds and known:
        remarks.append("the ledger lists a deviation that no longer shows: update it")
    elif expected.outcome == "undecidable":
        remarks.append(f"not judged at scale {scale}: {expected.reason}")
    elif status is Status.INCONCLUSIVE and expected.outcome == "inconclusive-ok":
        remarks.append(expected.reason)
    elif status is Status.INCONCLUSIVE:
        remarks.append("was expected to hold")
    return PartResult(
        part=part,
        status=status,
        interval=interval,
        questions=questions,
        seeds=seeds,
        resolvable=resolvable,
        mcnemar=pair,
        note="; ".join(remarks),
        failed=status is Status.CONTRADICTED and not (known and excusable),
    )


def _missing(part: Part, results: ResultSet, runs: Sequence[str]) -> str:
    family = part.quantity["family"]
    absent = [run for run in runs if results.scores(family, run) is None]
    if absent:
        return "no results of " + ", ".join(f"{family}/{run}" for run in absent)
    return f"not all runs of {family} have results on {', '.join(part.benchmarks)}"


def evaluate_claim(
    claim: Claim, results: ResultSet, ledger: Ledger, reported: Reported
) -> ClaimResult:
    """The verdict on a claim: that on each of its parts at this scale, combined."""
    parts = tuple(
        evaluate_part(part, results, ledger, reported)
        for part in claim.parts
        if results.scale in part.scales
    )
    statuses = [part.status for part in parts]
    combine = compare.combine_all if claim.combine == "all" else compare.combine_each
    status = combine(statuses)
    notes = []
    run = [one for one in statuses if one is not Status.NOT_RUN]
    if run and len(run) < len(parts):
        held = sum(one.holds for one in run)
        notes.append(f"parts run: {len(run)} of {len(parts)}; holding: {held}")
    failed = [part.part.id for part in parts if part.failed]
    if failed:
        notes.append("contradicted: " + ", ".join(failed))
    elif status is Status.CONTRADICTED:
        notes.append("known deviation")
    return ClaimResult(claim, status, parts, "; ".join(notes))


def verify(
    results: str | Path,
    scale: str,
    ledger: Ledger | None = None,
    reported: Reported | None = None,
    only: Iterable[str] | None = None,
) -> list[ClaimResult]:
    """Judge every claim of the ledger (or those whose ids are in `only`).

    results: the folder that holds <scale>/scores and <scale>/outcomes.
    Raises InputError for an unknown scale, or results that are wrong in themselves.
    """
    ledger = load_ledger() if ledger is None else ledger
    reported = load_tables() if reported is None else reported
    found = ResultSet(results, scale)
    wanted = None if only is None else set(only)
    return [
        evaluate_claim(claim, found, ledger, reported)
        for claim in ledger.claims
        if wanted is None or claim.id in wanted
    ]


# --- as data --------------------------------------------------------------------------------------


def _part_data(result: PartResult, scale: str) -> dict[str, Any]:
    part, interval = result.part, result.interval
    rule = part.full if (scale == FULL_SCALE or part.exact) else part.reduced
    expected = part.expected.get(scale)
    return {
        "id": part.id,
        "text": part.text,
        "quantity": dict(part.quantity),
        "benchmarks": list(part.benchmarks),
        "unit": part.unit,
        "reported": part.reported,
        "measured": None
        if interval is None
        else {
            "point": interval.point,
            "low": interval.low,
            "high": interval.high,
            "level": interval.level,
            "standard_error": interval.standard_error,
        },
        "band": part.band
        and {"low": part.band.low, "high": part.band.high, "reason": part.band.reason},
        "rule": rule
        and {"above": rule.above, "within_band": rule.within_band, "reason": rule.reason},
        "questions": result.questions,
        "seeds": result.seeds,
        "smallest_resolvable_difference": result.resolvable,
        "mcnemar": result.mcnemar
        and {
            "only_run_right": result.mcnemar.only_first,
            "only_against_right": result.mcnemar.only_second,
            "p_value": result.mcnemar.p_value,
        },
        "expected": expected and {"outcome": expected.outcome, "reason": expected.reason},
        "status": result.status.value,
        "failed": result.failed,
        "note": result.note,
    }


def to_data(results: Sequence[ClaimResult], scale: str, ledger: Ledger) -> dict[str, Any]:
    """The verdicts as the content of claims.json."""
    counts = Counter(result.status for result in results)
    return {
        "scale": scale,
        "bootstrap": {
            "seed": ledger.seed,
            "resamples": ledger.resamples,
            "level": ledger.level,
            "power_of_smallest_resolvable_difference": 0.8,
        },
        "summary": {status.value: counts.get(status, 0) for status in Status},
        "failed": [result.claim.id for result in results if result.failed],
        "claims": [
            {
                "id": result.claim.id,
                "text": result.claim.text,
                "where": result.claim.where,
                "reported": result.claim.reported,
                "combine": result.claim.combine,
                "status": result.status.value,
                "failed": result.failed,
                "note": result.note,
                "parts": [_part_data(part, scale) for part in result.parts],
            }
            for result in results
        ],
    }


# --- as text --------------------------------------------------------------------------------------

_COLOURS = {
    Status.REPRODUCED: "32",
    Status.DIRECTION_HOLDS: "32",
    Status.INCONCLUSIVE: "33",
    Status.CONTRADICTED: "31;1",
    Status.NOT_RUN: "2",
}
_STATUS_WIDTH = max(len(status.value) for status in Status)


def _signed(value: float, places: int = 1) -> str:
    text = f"{value:+.{places}f}"
    zero = f"{0.0:+.{places}f}"
    return zero if text == zero.replace("+", "-") else text.replace("-", "−")


def format_number(part: Part, value: float) -> str:
    """A number in the part's own notation: signed points, a fraction, percent, or a count."""
    if part.kind == "internal_consistency":
        return f"{value:.0f}"
    if part.kind == "gap_closed":
        return f"{value:.2f}".replace("-", "−")
    if part.kind in ("ratio", "value"):
        return f"{value:.1f}"
    return _signed(value)


def format_interval(part: Part, interval: Interval | None) -> str:
    """'point [low, high]', or the point alone for a count."""
    if interval is None:
        return "no value"
    point = format_number(part, interval.point)
    if part.exact:
        return point
    ends = (format_number(part, end) for end in (interval.low, interval.high))
    return f"{point} [{', '.join(ends)}]"


def _measured(result: PartResult) -> str:
    return "not run" if result.status is Status.NOT_RUN else format_interval(
        result.part, result.interval
    )  # fmt: skip


def _band(part: Part) -> str:
    if part.band is None:
        return "none"
    return "[" + ", ".join(format_number(part, e) for e in (part.band.low, part.band.high)) + "]"


class _Printer:
    """Lines of aligned columns. `width` None: every entry on one line; otherwise wrapped to it."""

    def __init__(self, stream: TextIO, colour: bool, width: int | None, names: int) -> None:
        self.stream, self.colour, self.width, self.names = stream, colour, width, names

    def line(self, text: str = "") -> None:
        print(text, file=self.stream)

    def status(self, status: Status, pad: bool = True) -> str:
        text = status.value.ljust(_STATUS_WIDTH) if pad else status.value
        return f"\033[{_COLOURS[status]}m{text}\033[0m" if self.colour else text

    def entry(self, indent: int, name: str, status: Status, pieces: Sequence[str]) -> None:
        """`name STATUS pieces…`, on one line if that fits, otherwise the pieces underneath."""
        head = (" " * indent + name).ljust(self.names)
        body = "  ".join(pieces)
        if self.width is None or len(head) + _STATUS_WIDTH + 4 + len(body) <= self.width:
            self.line(f"{head}  {self.status(status)}  {body}".rstrip())
            return
        self.line(f"{head}  {self.status(status, pad=False)}")
        shown = [piece.strip() for piece in pieces if piece.strip()]
        for text in _pack(shown, max(30, self.width - 6)):
            self.line("      " + text)

    def remark(self, indent: int, text: str) -> None:
        if self.width is None:
            self.line(" " * indent + text)
            return
        for line in textwrap.wrap(text, max(30, self.width - indent)):
            self.line(" " * indent + line)


def _pack(pieces: Sequence[str], room: int) -> list[str]:
    """Pieces packed into lines of at most `room` characters, broken between them if possible."""
    lines: list[str] = []
    for piece in pieces:
        if lines and len(lines[-1]) + 3 + len(piece) <= room:
            lines[-1] += "   " + piece
        else:
            lines += textwrap.wrap(piece, room) or [piece]
    return lines


def _is_single(result: ClaimResult) -> bool:
    return len(result.parts) == 1


def _claim_measured(result: ClaimResult) -> str:
    """What a claim's own line shows as measured: the values of its parts that were run."""
    run = [part for part in result.parts if part.status is not Status.NOT_RUN]
    return " / ".join(_measured(part) for part in run) if run else "not run"


def _claim_band(result: ClaimResult) -> str:
    run = [part for part in result.parts if part.status is not Status.NOT_RUN]
    bands = [_band(part.part) for part in run or result.parts if part.part.band]
    return " / ".join(dict.fromkeys(bands)) or "none"


def _short_name(part: Part, claim: Claim) -> str:
    return part.id.removeprefix(f"{claim.id}.")


def _part_pieces(result: PartResult) -> list[str]:
    part = result.part
    reported = "" if part.reported is None else f"reported {format_number(part, part.reported)}"
    return [
        reported.ljust(14),
        f"measured {_measured(result)}".ljust(30),
        f"band {_band(part)}".ljust(19),
        part.text,
    ]


def render(
    results: Sequence[ClaimResult],
    scale: str,
    stream: TextIO,
    *,
    colour: bool = False,
    width: int | None = None,
    abstract: bool = False,
) -> None:
    """Print the verdicts. width: of the terminal; None keeps every claim on one line.

    abstract: the abstract's figures alone, each in the abstract's words.
    """
    names = [len(result.claim.id) for result in results]
    names += [
        2 + len(_short_name(part.part, result.claim))
        for result in results
        if not _is_single(result)
        for part in result.parts
    ]
    out = _Printer(stream, colour, width, max(names, default=0))
    what = "The abstract's figures" if abstract else "Claims"
    out.remark(0, f"{what} at scale {scale}. Measured values carry their 95 % intervals.")
    if scale != FULL_SCALE:
        out.remark(
            0,
            "Reduced scale: small models on stand-in benchmarks. A direction can hold here; a "
            "reported value cannot be reproduced: the bands are those of the full scale.",
        )
    out.line()
    for result in results:
        claim = result.claim
        words = claim.abstract if abstract and claim.abstract else claim.text
        pieces = [words]
        if words is claim.text:
            pieces.append(f"| reported {claim.reported}")
        pieces += [f"| measured {_claim_measured(result)}", f"| band {_claim_band(result)}"]
        out.entry(0, claim.id, result.status, pieces)
        if result.note:
            out.remark(6, result.note)
        for part in result.parts:
            if not _is_single(result):
                out.entry(2, _short_name(part.part, claim), part.status, _part_pieces(part))
            if part.note:
                out.remark(6, part.note)
    out.line()
    counts = Counter(result.status for result in results)
    shown = [status for status in Status if counts.get(status)]
    plain = ", ".join(f"{counts[status]} {status.value}" for status in shown)
    separator = ", " if width is None or len(plain) <= width else ",\n"
    out.line(separator.join(f"{counts[s]} {out.status(s, pad=False)}" for s in shown))
    failed = [result.claim.id for result in results if result.failed]
    if failed:
        out.remark(0, f"Contradicted, and not a known deviation: {', '.join(failed)}")


def wants_colour(stream: TextIO) -> bool:
    """Colour only on a terminal, and never if NO_COLOR is set or the terminal is dumb."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


# --- command --------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m replication.verify",
        description="Compare what was measured with what the paper reports, claim by claim.",
        epilog="Exit code 1 if a claim is contradicted that is not a known deviation; 2 on bad "
        "input.",
    )
    parser.add_argument("--scale", default="small", help=f"{', '.join(SCALES)} (default small)")
    parser.add_argument("--results", type=Path, help="folder with <scale>/scores (default results)")
    parser.add_argument(
        "--abstract", action="store_true", help="the abstract's figures alone; writes no file"
    )
    parser.add_argument(
        "--json", type=Path, help="where to write (default <results>/<scale>/claims.json)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code (see the module's text)."""
    options = _parser().parse_args(arguments)
    try:
        scale = check_scale(options.scale)
        root = options.results or Path("results")
        if options.results is not None and not (root / scale).is_dir():
            raise InputError(
                f"{root / scale}: no such folder; give the one that holds {scale}/scores"
            )
        ledger = load_ledger()
        only = [one.id for one in ledger.claims if one.abstract] if options.abstract else None
        results = verify(root, scale, ledger, only=only)
        stream = sys.stdout
        width = shutil.get_terminal_size().columns if stream.isatty() else None
        render(
            results,
            scale,
            stream,
            colour=wants_colour(stream),
            width=width,
            abstract=options.abstract,
        )
        path = options.json
        if path is None and not options.abstract and (root / scale).is_dir():
            path = root / scale / "claims.json"
        if path is not None:
            write_json_atomic(path, to_data(results, scale, ledger))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if any(result.failed for result in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
