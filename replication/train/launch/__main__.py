"""Train one seed of a run, as one of the processes that ``accelerate launch`` starts.

    accelerate launch --config_file replication/train/launch/fsdp2.yaml --num_processes 16 \\
        --module replication.train.launch qwen2_vl_runs grace_int4 0
"""

import argparse
import sys

from replication.base.command import command
from replication.settings.checks import load_params
from replication.settings.schema import PARAMS_FILE
from replication.train.launch.run import train_launched


@command
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m replication.train.launch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("group", help="group of runs, such as qwen2_vl_runs")
    parser.add_argument("name", help="run of the group, such as grace_int4")
    parser.add_argument("seed", type=int)
    parser.add_argument("--params", default=str(PARAMS_FILE), help="parameter file")
    arguments = parser.parse_args()
    train_launched(load_params(arguments.params), arguments.group, arguments.name, arguments.seed)


if __name__ == "__main__":
    sys.exit(main())
