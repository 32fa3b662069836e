"""Benchmarks: what deployment costs, what the method costs, and how a training step grows.

    python -m replication.bench speed [--models all --variants all --batches 1,4,16]
    python -m replication.bench method [--quick]
    python -m replication.bench growth

Every part runs in a process of its own and is kept, so that an interrupted run goes on where it
stopped; remove the folder ``parts`` beside a result to measure all of it anew.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from replication.base.command import command
from replication.measure.printing import print_report

BENCHMARKS = {
    "speed": "replication.measure.speed.benchmark",
    "method": "replication.measure.method.benchmark",
    "growth": "replication.measure.growth",
}
"""Modules, of which one is imported: `speed` runs where the training's packages are missing."""


@command
def main(arguments: Sequence[str] | None = None) -> None:
    words = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m replication.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("benchmark", choices=BENCHMARKS)
    name = parser.parse_args(words[:1]).benchmark
    benchmark = importlib.import_module(BENCHMARKS[name])
    parser = argparse.ArgumentParser(prog=f"{parser.prog} {name}", description=benchmark.HELP)
    benchmark.add_options(parser)
    options = parser.parse_args(words[1:])
    report = benchmark.run_options(options, " ".join(["python -m replication.bench", *words]))
    print_report(report, benchmark.tables(report))


if __name__ == "__main__":
    sys.exit(main())
