"""What was measured against what was reported, claim by claim.

    python -m replication.verify [--scale small] [--results DIR] [--long | --abstract] [--strict]

Prints a line for each claim and each explanation of a failure once, in at most 60 lines of 120
columns (--long: all parts with bands, expectations and notes), and writes
<results>/<scale>/claims.json. At scale paper it also judges every reported cell and its difference
from the baseline. Exit code 0 where all is as recorded; 1 if a part fails that the ledger does not
explain, or a cell or difference is contradicted (--strict: if any claim fails); 2 on bad input.
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
from replication.judge.claims import verify
from replication.judge.record import document, result_commits
from replication.judge.summary import summary_text
from replication.judge.text import cells_text, claims_text
from replication.paper import load_ledger
from replication.results.elsewhere import RECORDED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m replication.verify",
        description="Compare what was measured with what the paper reports, claim by claim.",
        epilog="Exit code 1 if a part of a claim fails that the ledger does not explain, or, at "
        "scale paper, a reported cell or difference; 2 on bad input.",
    )
    scales = f"{', '.join(SCALES)} (default {COMMITTED})"
    parser.add_argument("--scale", default=COMMITTED, help=scales)
    parser.add_argument("--results", type=Path, help="folder with <scale>/scores (default results)")
    parser.add_argument("--long", action="store_true", help="all parts, with bands and notes")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if any claim fails")
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
    recorded = Path(RECORDED) if options.results is None else None
    claims = verify(folder.parent, scale, ledger, only=only, recorded=recorded)
    cells = [] if options.abstract else verify_cells(folder.parent, scale, ledger)
    content = document(claims, cells, scale, ledger, result_commits(folder))
    if options.long or options.abstract:
        terminal.write(*claims_text(claims, content, options.abstract))
        terminal.write(*(cells_text(cells) if cells else ()))
    else:
        terminal.write(*summary_text(claims, cells, content))
    path = options.json
    if path is None and not options.abstract and folder.is_dir():
        path = folder / "claims.json"
    if path is not None:
        write_json_atomic(path, content)
    strict = options.strict and any(claim.status.fails for claim in claims)
    failed = [*(claim.failed for claim in claims), *(cell.failed for cell in cells)]
    return int(strict or any(failed))


if __name__ == "__main__":
    sys.exit(main())
