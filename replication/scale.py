"""Run the pipeline at a scale, without touching what is committed of another.

    python -m replication.scale smoke repro                   # every table
    python -m replication.scale --table table4 small repro    # one table, and what it needs
    python -m replication.scale paper status                  # any other command of dvc

Scale paper has no small world to make, and a pipeline of its own, of the same stage files. A scale
other than small runs in a workspace of its own, ``.scales/<scale>``
(:mod:`replication.settings.workspace`), and its results are copied to ``results/<scale>``.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from grace.errors import InputError
from replication.base.command import command
from replication.base.scales import SCALES
from replication.plan.progress import DRY, run
from replication.plan.targets import find_table, stages_of
from replication.settings.checks import parse_params
from replication.settings.paths import Layout
from replication.settings.scales import scale_params
from replication.settings.workspace import alone, publish, workspace


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns dvc's exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m replication.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--table", help="with repro: only this table and what it needs")
    parser.add_argument("scale", help=", ".join(SCALES))
    parser.add_argument("dvc", nargs=argparse.REMAINDER, help="words for dvc, such as: repro")
    options = parser.parse_args(arguments)
    scale, words, table = options.scale, options.dvc, None
    params = parse_params(scale_params(scale), f"parameters of scale {scale}")
    if options.table is not None:
        table = find_table(options.table)
        if words[:1] != ["repro"]:
            raise InputError(f"--table is for repro, not {' '.join(words) or 'no command'!r}")
        words = [*words, *stages_of(params, table)]
    with alone(scale) if words[:1] == ["repro"] else nullcontext() as lock:
        folder = workspace(scale)
        code = run(params, folder, words, lock)
        if table is not None and code == 0 and not DRY & set(words):
            from replication.report.tables.files import build_table, write
            from replication.report.tables.regimes import regimes_of

            layout, cells = Layout(params), regimes_of(params)
            recorded = folder / layout.recorded
            built = build_table(table, folder / "results", scale, recorded, cells)
            write(built, folder / layout.results / "tables")
            print(built.markdown())
        publish(folder, scale)
    return code


if __name__ == "__main__":
    sys.exit(main())
