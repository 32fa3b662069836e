"""Measure time to first token, decode rate and memory of published architectures, random weights.

Every variant runs in a process of its own; what is done is kept, so that an interrupted run goes
on where it stopped. Peers that are not installed are not run, and the report says why.
"""

import argparse
import sys
from collections.abc import Iterable

from grace.errors import InputError
from replication.base.command import command
from replication.measure.speed import benchmark
from replication.measure.speed.measure import Settings
from replication.measure.speed.text import lines
from replication.measure.speed.variants import VARIANTS, variant
from replication.plan.architectures import architecture, architectures


@command
def main(arguments: list[str] | None = None) -> None:
    default = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m replication.measure.speed", description=__doc__
    )
    parser.add_argument(
        "--models",
        default=",".join(benchmark.MODELS),
        help=f"of {', '.join(architectures())}; or all (default: %(default)s)",
    )
    parser.add_argument(
        "--variants",
        default=",".join(benchmark.DEFAULT_VARIANTS),
        help=f"of {', '.join(VARIANTS)}; or all (default: %(default)s)",
    )
    parser.add_argument(
        "--batches",
        default=",".join(map(str, default.batches)),
        help="batch sizes of decoding (default: %(default)s)",
    )
    parser.add_argument("--repeats", type=int, default=default.repeats, help="of the prefill")
    parser.add_argument(
        "--decode-repeats", type=int, default=default.decode_repeats, help="of a run of tokens"
    )
    parser.add_argument(
        "--tokens", type=int, default=default.tokens, help="at most, in one run of decoding"
    )
    parser.add_argument(
        "--layers", type=int, help="build only so many: to try things out, no published model"
    )
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--device", default=default.device, help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, default=default.threads, help="of the CPU")
    parser.add_argument("--out", default="results/deploy", help="folder (default: %(default)s)")
    parser.add_argument(
        "--recorded",
        action="store_true",
        help='mark the result "recorded": measured on another device than the rest',
    )
    given = parser.parse_args(arguments)
    report = benchmark.run(
        [architecture(name) for name in _names(given.models, architectures())],
        [variant(name) for name in _names(given.variants, VARIANTS)],
        Settings(
            batches=_numbers(given.batches),
            repeats=given.repeats,
            decode_repeats=given.decode_repeats,
            tokens=given.tokens,
            seed=given.seed,
            layers=given.layers,
            device=given.device,
            threads=given.threads,
        ),
        given.out,
        command=" ".join(["python -m replication.measure.speed", *(arguments or sys.argv[1:])]),
        evidence="recorded" if given.recorded else "measured",
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    print("\n".join(lines(report)))


def _names(text: str, known: Iterable[str]) -> list[str]:
    return list(known) if text == "all" else text.split(",")


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--batches {text!r}: give whole numbers with commas between") from None


if __name__ == "__main__":
    sys.exit(main())
