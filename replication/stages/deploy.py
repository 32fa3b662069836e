"""Stage ``deploy``: speed and memory of a published architecture, with random weights.

A variant that was measured is kept; the stage can be interrupted and goes on after it.
"""

from grace.errors import InputError
from replication.base.messages import unknown
from replication.measure.printing import print_report
from replication.measure.speed import benchmark
from replication.measure.speed.settings import read_settings
from replication.measure.speed.variants import variant
from replication.plan.architectures import architecture
from replication.results.deployment import deployment_record
from replication.results.measurements import write_measurement
from replication.settings.paths import Layout
from replication.settings.schema import Params
from replication.stages import stage


@stage
def main(params: Params, name: str) -> None:
    deploy, layout = params.deploy, Layout(params)
    if name not in deploy.models:
        raise InputError(unknown(f"deploy.models: {name!r}", name, deploy.models))
    report = benchmark.run(
        [architecture(name)],
        [variant(way) for way in deploy.models[name]],
        read_settings(
            batches=deploy.batches,
            repeats=deploy.repeats,
            decode_repeats=deploy.decode_repeats,
            tokens=deploy.tokens,
            seed=deploy.seed,
            layers=deploy.layers,
        ),
        layout.deployment(name),
        command=f"python -m replication.stages.deploy {name}",
    )
    write_measurement(layout.results.parent, deployment_record(report, name, params.scale))
    print_report(report, benchmark.tables(report))


if __name__ == "__main__":
    main()
