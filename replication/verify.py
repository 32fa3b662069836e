"""What was measured against what was reported, claim by claim.

    python -m replication.verify [--scale small] [--results DIR] [--abstract] [--json PATH]

Prints one line per claim and one per part of it (reported, measured with interval, band, status)
and writes <results>/<scale>/claims.json. At scale paper it also judges every reported cell and its
difference from the baseline. Exit code 0; 1 if a claim is CONTRADICTED that the ledger does not
list as a known deviation at this scale, or if a cell or difference is; 2 on bad input.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from grace.errors import InputError
from replication.base import terminal
from replication.base.command import command
from replication.base.files import write_json_atomic
from replication.base.scales import COMMITTED, SCALES, check_scale
from replication.judge.cells import verify_cells
from replication.judge.claims import document, verify
from replication.judge.text import cells_text, claims_text
from replication.paper import load_ledger


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m replication.verify",
        description="Compare what was measured with what the paper reports, claim by claim.",
        epilog="Exit code 1 if a claim is contradicted that is not a known deviation, or, at scale "
        "paper, a reported cell or difference; 2 on bad input.",
    )
    scales = f"{', '.join(SCALES)} (default {COMMITTED})"
    parser.add_argument("--scale", default=COMMITTED, help=scales)
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
    options = _parser().parse_args(arguments)
    scale = check_scale(options.scale)
    folder = (options.results or Path("results")) / scale
    if options.results is not None and not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the one that holds {scale}/scores")
    ledger = load_ledger()
    only = [claim.id for claim in ledger.claims if claim.abstract] if options.abstract else None
    claims = verify(folder.parent, scale, ledger, only=only)
    cells = [] if options.abstract else verify_cells(folder.parent, scale, ledger)
    terminal.write(*claims_text(claims, scale, options.abstract))
    if cells:
        terminal.write(*cells_text(cells))
    path = options.json
    if path is None and not options.abstract and folder.is_dir():
        path = folder / "claims.json"
    if path is not None:
        write_json_atomic(path, document(claims, cells, scale, ledger))
    failed = [*(claim.failed for claim in claims), *(cell.failed for cell in cells)]
    return int(any(failed))


if __name__ == "__main__":
    sys.exit(main())
