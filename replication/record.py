"""Record results on another machine, and bring them in.

    python -m replication.record --scale small --seeds 5              # there: everything
    python -m replication.record --scale small --only training        # there: without lmms-eval
    python -m replication.record --evaluate FOLDER                    # elsewhere: the rest
    python -m replication.record --import FOLDER                      # here: into recorded/

A recording has a workspace of its own (:mod:`replication.settings.workspace`), in which dvc runs
the stages that train, evaluate and measure; what only reads results (calibration, tables, claims)
runs where the results are brought to. An interrupted recording goes on with the same command.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from replication.base.command import command
from replication.base.files import ROOT
from replication.base.scales import COMMITTED
from replication.settings.recording import evaluate, import_recording, start


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns dvc's exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m replication.record",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--scale", default=COMMITTED, help="default: %(default)s")
    parser.add_argument("--folder", type=Path, help="default: .recordings/<scale>")
    parser.add_argument("--seeds", type=int, default=5, help="of the headline runs; default: 5")
    parser.add_argument("--families", nargs="+", help="default: all")
    parser.add_argument("--only", choices=("training", "all"), default="all", help="default: all")
    parser.add_argument("--evaluate", type=Path, metavar="FOLDER", help="what is left of FOLDER")
    parser.add_argument(
        "--import", type=Path, metavar="FOLDER", dest="bring", help="into recorded/"
    )
    options = parser.parse_args(arguments)
    if options.evaluate is not None and options.bring is not None:
        parser.error("--evaluate and --import are two steps; give one of them")
    if options.bring is not None:
        print(f"imported into {import_recording(options.bring)}; run the pipeline for the tables")
        return 0
    if options.evaluate is not None:
        return evaluate(options.evaluate)
    folder = options.folder or ROOT / ".recordings" / options.scale
    code = start(
        folder,
        options.scale,
        seeds=options.seeds,
        families=options.families,
        only=options.only,
    )
    if code == 0:
        print(f"recorded in {folder}")
    return code


if __name__ == "__main__":
    sys.exit(main())
