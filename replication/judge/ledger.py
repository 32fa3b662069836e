"""What was measured against what was reported, claim by claim.

    python -m replication.verify [--scale small] [--results DIR] [--abstract] [--json PATH]

Prints one line per claim and one per part of it (reported, measured with interval, band, status)
and writes <results>/<scale>/claims.json. At scale paper it also judges every reported cell and its
difference from the baseline. Exit code 0; 1 if a claim is CONTRADICTED that the ledger does not
list as a known deviation at this scale, or if a cell or difference is; 2 on bad input.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from grace.errors import InputError
from replication.base.command import command
from replication.base.files import write_json_atomic
from replication.base.scales import FULL_SCALE, SCALES, check_scale
from replication.judge import cells
from replication.judge.cells import CellResult, verify_cells
from replication.judge.claims import ClaimResult, PartResult, to_data, verify
from replication.judge.quantities import signed
from replication.paper import Claim, Ledger, Part, load_ledger
from replication.stats.verdict import Interval, Status

# --- as text --------------------------------------------------------------------------------------

_COLOURS = {
    Status.REPRODUCED: "32",
    Status.DIRECTION_HOLDS: "32",
    Status.INCONCLUSIVE: "33",
    Status.CONTRADICTED: "31;1",
    Status.NOT_RUN: "2",
}
_STATUS_WIDTH = max(len(status.value) for status in Status)


def format_number(part: Part, value: float) -> str:
    """A number in the part's own notation: signed points, a fraction, percent, or a count."""
    if part.exact or part.kind == "seeds" or part.unit == "steps":
        return f"{value:.0f}"
    if part.kind in ("gap_closed", "cost_ratio", "controller", "deployment"):
        return f"{value:.2f}".replace("-", "−")
    if part.kind == "measurement":
        return f"{value:.3g}".replace("-", "−")
    if part.kind in ("ratio", "value", "disagreement"):
        return f"{value:.1f}"
    return signed(value)


def format_interval(part: Part, interval: Interval | None) -> str:
    """'point [low, high]', or the point alone for a count."""
    if interval is None:
        return "no value"
    point = format_number(part, interval.point)
    if part.exact or part.kind == "seeds" or part.unit == "steps":
        return point
    ends = (format_number(part, end) for end in (interval.low, interval.high))
    return f"{point} [{', '.join(ends)}]"


def _measured(result: PartResult) -> str:
    return "not run" if result.status is Status.NOT_RUN else format_interval(
        result.part, result.interval
    )  # fmt: skip


def _band(result: PartResult) -> str:
    """The band, or what a part without one must lie above or below."""
    part, band = result.part, result.band
    if band is None:
        rule = part.reduced or part.full
        sides = [("above", rule.above), ("below", rule.below)] if rule else []
        needs = [f"{name} {value:g}" for name, value in sides if value is not None]
        return " and ".join(needs) or "none"
    return "[" + ", ".join(format_number(part, e) for e in (band.low, band.high)) + "]"


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
    bands = [_band(part) for part in run or result.parts]
    return " / ".join(dict.fromkeys(bands))


def _short_name(part: Part, claim: Claim) -> str:
    return part.id.removeprefix(f"{claim.id}.")


def _part_pieces(result: PartResult) -> list[str]:
    part = result.part
    reported = "" if part.reported is None else f"reported {format_number(part, part.reported)}"
    return [
        reported.ljust(14),
        f"measured {_measured(result)}".ljust(30),
        f"band {_band(result)}".ljust(19),
        _resolvable(result).ljust(15),
        part.text,
    ]


def _resolvable(result: PartResult) -> str:
    """The smallest difference that the questions and seeds would have resolved."""
    if result.resolvable is None:
        return ""
    return f"resolves {format_number(result.part, result.resolvable).lstrip('+')}"


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
    out.remark(
        0,
        f"{what} at scale {scale}. Measured values carry their 95 % intervals; 'resolves' is the "
        "smallest true difference that they would have told from none with probability 0.8.",
    )
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
        if _is_single(result) and result.parts[0].resolvable is not None:
            pieces.append(f"| {_resolvable(result.parts[0])}")
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


def _cell_pieces(result: CellResult) -> list[str]:
    cell, interval = result.cell, result.interval
    write = signed if cell.against else "{:.1f}".format
    measured = "not run"
    if interval is not None:
        ends = f"{write(interval.low)}, {write(interval.high)}"
        measured = f"{write(interval.point)} [{ends}]"
    sides = [("above", result.rule.above), ("below", result.rule.below)]
    side = [f"and {name} {value:g}" for name, value in sides if value is not None]
    ends = f"[{write(result.band.low)}, {write(result.band.high)}]"
    return [
        f"reported {write(cell.reported)}".ljust(15),
        f"measured {measured}".ljust(32),
        " ".join([f"band {ends}", *side]).ljust(36),
        "in points" if cell.unit == "points" and cell.against is None else "",
    ]


def render_cells(
    results: Sequence[CellResult],
    stream: TextIO,
    *,
    colour: bool = False,
    width: int | None = None,
) -> None:
    """Print the verdicts on the reported cells and differences, table by table."""
    names = [2 + len(result.cell.name) for result in results]
    out = _Printer(stream, colour, width, max(names, default=0))
    out.line()
    out.remark(
        0,
        "Reported cells, and their differences from the baseline (-vs-), each against its band; "
        "the reasons of the bands are in claims.json.",
    )
    table = ""
    for result in results:
        if result.cell.table.short != table:
            table = result.cell.table.short
            out.line()
            out.remark(0, f"{table}: {result.cell.table.title}")
        out.entry(2, result.cell.name, result.status, _cell_pieces(result))
        if result.note:
            out.remark(6, result.note)
    out.line()
    for what, chosen in (
        ("cells", [one for one in results if one.cell.against is None]),
        ("differences", [one for one in results if one.cell.against is not None]),
    ):
        counts = Counter(one.status for one in chosen)
        shown = [status for status in Status if counts.get(status)]
        out.line(f"{what}: " + ", ".join(f"{counts[s]} {out.status(s, pad=False)}" for s in shown))


def document(
    results: Sequence[ClaimResult],
    judged: Sequence[CellResult],
    scale: str,
    ledger: Ledger,
) -> dict[str, Any]:
    """The content of claims.json: the claims and, at full scale, the cells."""
    data = to_data(results, scale, ledger)
    return {**data, **cells.to_data(judged)} if scale == FULL_SCALE else data


def wants_colour(stream: TextIO) -> bool:
    """Colour only on a terminal, and never if NO_COLOR is set or the terminal is dumb."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


# --- command --------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m replication.verify",
        description="Compare what was measured with what the paper reports, claim by claim.",
        epilog="Exit code 1 if a claim is contradicted that is not a known deviation, or, at scale "
        "paper, a reported cell or difference; 2 on bad input.",
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


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code (see the module's text)."""
    options = _parser().parse_args(arguments)
    scale = check_scale(options.scale)
    root = options.results or Path("results")
    if options.results is not None and not (root / scale).is_dir():
        raise InputError(f"{root / scale}: no such folder; give the one that holds {scale}/scores")
    ledger = load_ledger()
    only = [one.id for one in ledger.claims if one.abstract] if options.abstract else None
    results = verify(root, scale, ledger, only=only)
    judged = [] if options.abstract else verify_cells(root, scale, ledger)
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
    if judged:
        render_cells(judged, stream, colour=wants_colour(stream), width=width)
    path = options.json
    if path is None and not options.abstract and (root / scale).is_dir():
        path = root / scale / "claims.json"
    if path is not None:
        write_json_atomic(path, document(results, judged, scale, ledger))
    return int(any(claim.failed for claim in results) or any(cell.failed for cell in judged))
