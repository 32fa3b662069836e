"""Benchmarks: what deployment costs, what the method costs, and how a training step grows.

    python -m replication.bench speed [--models all --variants all --batches 1,4,16]
    python -m replication.bench method [--quick]
    python -m replication.bench growth

Every part runs in a process of its own and is kept, so that an interrupted run goes on where it
stopped; remove the folder ``parts`` beside a result to measure all of it anew.
"""

import argparse
import sys
from collections.abc import Sequence

from replication.base.command import command
from replication.measure import growth
from replication.measure.method import benchmark as method
from replication.measure.printing import print_report
from replication.measure.speed import benchmark as speed

BENCHMARKS = {"speed": speed, "method": method, "growth": growth}


@command
def main(arguments: Sequence[str] | None = None) -> None:
    words = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m replication.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    chosen = parser.add_subparsers(dest="benchmark", required=True, metavar="|".join(BENCHMARKS))
    for name, benchmark in BENCHMARKS.items():
        benchmark.add_options(
            chosen.add_parser(name, help=benchmark.HELP, description=benchmark.HELP)
        )
    options = parser.parse_args(words)
    benchmark = BENCHMARKS[options.benchmark]
    report = benchmark.run_options(options, " ".join(["python -m replication.bench", *words]))
    print_report(report, benchmark.tables(report))


if __name__ == "__main__":
    sys.exit(main())
