"""Measure the method's own speed and memory beside the straightforward ways, at published widths.

About four minutes on two cores, and up to 16 GiB of memory; where there is less, the
straightforward loss is left out at the sizes that do not fit.
"""

import argparse
import sys

from replication.base.command import command
from replication.measure.method import benchmark
from replication.measure.method.text import lines


@command
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m replication.measure.method", description=__doc__
    )
    parser.add_argument(
        "--parts",
        default=",".join(benchmark.PARTS),
        help="with commas between (default: %(default)s)",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: only that it runs")
    parser.add_argument("--repeats", type=int, default=4, help="of every way")
    parser.add_argument("--seed", type=int, default=41)
    parser.add_argument("--threads", type=int, default=0, help="of the CPU")
    parser.add_argument(
        "--out", default="results/performance", help="folder (default: %(default)s)"
    )
    given = parser.parse_args(arguments)
    report = benchmark.run(
        given.parts.split(","),
        given.out,
        quick=given.quick,
        repeats=given.repeats,
        seed=given.seed,
        threads=given.threads,
        command=" ".join(["python -m replication.measure.method", *(arguments or sys.argv[1:])]),
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    print("\n".join(lines(report)))


if __name__ == "__main__":
    sys.exit(main())
