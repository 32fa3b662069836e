"""Stage ``export``: is what was trained what is deployed?

A family's trained INT4 student is packed, exported and loaded again; its codes are compared with
those that training ended with, and its answers, question by question, with its own before.
"""

import sys
import tempfile
from pathlib import Path

from replication.base.workers import run_all
from replication.evaluate.score import evaluation_dtype
from replication.measure.exported import RUN, WAYS, answers, compare_ways
from replication.measure.records import write_record
from replication.settings.paths import Layout, needed
from replication.settings.schema import Params
from replication.stages import stage
from replication.stats.bootstrap import generator


@stage
def main(params: Params, name: str) -> None:
    layout = Layout(params)
    group, run = params.find_run(params.known_family(name), RUN)
    seed = run.seeds[0]
    path = needed(layout.trained(group, RUN, seed), "train")
    settings = {
        "benchmarks": params.evaluate.benchmarks[group],
        "batch_size": params.evaluate.batch_size,
        "max_new_tokens": params.evaluate.max_new_tokens,
        "dtype": evaluation_dtype(params.evaluate.dtype),
        "limit": params.export.questions,
    }
    with tempfile.TemporaryDirectory() as folder:
        jobs = [(way, path, layout.benchmarks, Path(folder), settings) for way in (None, *WAYS)]
        (_, before), *after = run_all(answers, jobs)
    parts = compare_ways(
        before,
        dict(zip(WAYS, after, strict=True)),
        params.evaluate.benchmarks[group],
        seed=seed,
        rng=generator(params.export.seed, name),
        resamples=params.compare.resamples,
    )
    for way, counts in parts["data"]["ways"].items():
        text = f"{counts['mismatches']} mismatches; {counts['differing']} other answers"
        print(f"{name}, {way}: {text}", file=sys.stderr)
    write_record(
        params,
        "export",
        name,
        parts,
        method=f"{RUN}, seed {seed}: codes and scales after packing, and after exports read by "
        "compressed-tensors and by the AWQ layout's reader, against those trained; answers against "
        "those of the model as trained; bootstrap over questions",
        seeds=[seed],
        settings=[
            *("compare.resamples", "export", f"evaluate.benchmarks.{group}"),
            *("evaluate.batch_size", "evaluate.dtype", "evaluate.max_new_tokens"),
        ],
    )


if __name__ == "__main__":
    main()
