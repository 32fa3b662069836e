"""One cell of the map with a pretrained language model: text, no images.

    python -m replication.real_cell fetch      # the published model, 93 MB, into models/smollm2
    python -m replication.real_cell run        # results/real_cell/real_cell.json and the table

An interrupted run goes on where it stopped.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from replication.base.command import command


@command
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m replication.real_cell",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=("fetch", "run"))
    parser.add_argument("--results", default="results", help="the folder of all results")
    options = parser.parse_args(arguments)
    if options.action == "fetch":
        from replication.measure.real_cell.checkpoint import fetch

        return fetch()
    from replication.measure.real_cell.cell import measure
    from replication.measure.real_cell.settings import Settings

    measure(Settings(), results=Path(options.results))


if __name__ == "__main__":
    sys.exit(main())
