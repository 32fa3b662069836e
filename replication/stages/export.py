"""Stage ``export``: is what was trained what is deployed?

A family's trained INT4 student is packed, exported and loaded again; its codes are compared with
those that training ended with, and its answers, question by question, with its own before.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grace.errors import InputError
from replication.base import provenance
from replication.base.workers import run_all
from replication.measure.exported import WAYS, answers
from replication.results.measurements import write_measurement
from replication.settings.paths import Layout, needed
from replication.settings.schema import Params
from replication.stages import stage
from replication.stats.bootstrap import Answers, Interval, generator, score_interval

RUN = "grace_int4"


Said = Sequence[tuple[str, str, str]]
"""(benchmark, question, answer) of every question."""


def equal_answers(before: Said, after: Said) -> dict[str, np.ndarray]:
    """By benchmark, whether each question got the same answer: (questions,) of bool.

    Raises InputError where the questions are not the same.
    """
    if [row[:2] for row in before] != [row[:2] for row in after]:
        raise InputError("answers to other questions: they cannot be compared")
    found: dict[str, list[bool]] = {}
    for (benchmark, _, first), (_, _, second) in zip(before, after, strict=True):
        found.setdefault(benchmark, []).append(first == second)
    return {benchmark: np.array(equal) for benchmark, equal in found.items()}


@stage
def main(params: Params, name: str) -> None:
    given, layout = params.export, Layout(params)
    group, run = params.find_run(params.known_family(name), RUN)
    seed = run.seeds[0]
    path = needed(layout.trained(group, RUN, seed), "train")
    benchmarks = params.evaluate.benchmarks[group]
    settings: dict[str, Any] = {
        "benchmarks": benchmarks,
        "batch_size": params.evaluate.batch_size,
        "max_new_tokens": params.evaluate.max_new_tokens,
        "dtype": params.evaluate.dtype,
        "limit": given.questions,
    }
    with tempfile.TemporaryDirectory() as folder:
        jobs = [(way, path, layout.benchmarks, Path(folder), settings) for way in (None, *WAYS)]
        (_, before), *after = run_all(answers, jobs)
    same = {way: equal_answers(before, said) for way, (_, said) in zip(WAYS, after, strict=True)}
    ways = {}
    for way, (wrong, _) in zip(WAYS, after, strict=True):
        other = sum(int((~equal).sum()) for equal in same[way].values())
        ways[way] = {"mismatches": wrong, "differing": other}
        print(f"{name}, {way}: {wrong} mismatches; {other} other answers", file=sys.stderr)
    packed = Answers((seed,), {key: equal[None] for key, equal in same["packed"].items()})
    record = {
        "name": f"export-{name}",
        "scale": params.scale,
        "method": f"{RUN}, seed {seed}: codes and scales after packing, and after exports read by "
        "compressed-tensors and by the AWQ layout's reader, against those trained; answers against "
        "those of the model as trained; bootstrap over questions",
        "n": {"questions": len(before), "benchmarks": len(benchmarks)},
        "values": {
            "mismatches": Interval.exact(float(sum(one["mismatches"] for one in ways.values()))),
            "differing": Interval.exact(
                float(sum(ways[way]["differing"] for way in ("compressed", "awq")))
            ),
            "agreement": score_interval(
                packed,
                benchmarks,
                generator(given.seed, name),
                resamples=params.compare.resamples,
            ),
        },
        "data": {"ways": ways},
        "provenance": provenance.collect(
            {"params": repr(params)},
            [seed],
            f"python -m replication.stages.export {name}",
            device=provenance.cpu_description(),
        ),
    }
    write_measurement(layout.results.parent, record)


if __name__ == "__main__":
    main()
