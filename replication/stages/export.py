"""Stage ``export``: is what was trained what is deployed?

A family's trained INT4 student is packed, exported and loaded again; its codes are compared with
those that training ended with, and its answers, question by question, with its own before.
"""

from replication.measure.exported import METHOD, RUN, measure_exports
from replication.measure.records import write_record
from replication.settings.paths import Layout
from replication.settings.schema import Params
from replication.stages import stage


@stage
def main(params: Params, name: str) -> None:
    group, run = params.find_run(params.known_family(name), RUN)
    write_record(
        params,
        "export",
        name,
        measure_exports(params, Layout(params), name),
        method=METHOD.format(seed=run.seeds[0]),
        seeds=run.seeds[:1],
        settings=[
            *("compare.resamples", "export", f"evaluate.benchmarks.{group}"),
            *("evaluate.batch_size", "evaluate.dtype", "evaluate.max_new_tokens"),
        ],
    )


if __name__ == "__main__":
    main()
