"""The same tuning budget for every method: a small grid, chosen on questions of its own.

    python -m replication.tuning qwen2_vl

Trains every candidate of the section ``tuning`` from the family's baseline, once each, and scores
it on the validation split, whose scenes are in neither the training set nor the benchmarks. Writes
``docs/tuning/<family>.md`` and, for programs, the ``.json`` beside it. Copy the chosen values into
``params.yaml`` by hand. Candidates that are done already are not trained again.
"""

import argparse
import sys

from replication.base.command import command
from replication.measure.tuning import write_grid
from replication.settings.checks import load_params
from replication.settings.schema import PARAMS_FILE


@command
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m replication.tuning", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("family")
    parser.add_argument("--params", default=str(PARAMS_FILE), help="parameter file")
    arguments = parser.parse_args()
    params = load_params(arguments.params)
    print(write_grid(params, params.known_family(arguments.family)))


if __name__ == "__main__":
    sys.exit(main())
