"""Stage ``deploy``: speed and memory of a published architecture, with random weights.

A variant that was measured is kept; the stage can be interrupted and goes on after it.
"""

import sys

from grace.errors import InputError
from replication.base.messages import unknown
from replication.measure.speed import benchmark
from replication.measure.speed.text import lines
from replication.measure.speed.variants import variant
from replication.plan.architectures import architecture
from replication.results.measurements import write_measurement
from replication.results.speed_ratios import deployment_record
from replication.settings.paths import Layout
from replication.settings.schema import Params
from replication.stages import stage


@stage
def main(params: Params, name: str) -> None:
    given, layout = params.deploy, Layout(params)
    if name not in given.models:
        raise InputError(unknown(f"deploy.models: {name!r}", name, given.models))
    report = benchmark.run(
        [architecture(name)],
        [variant(one) for one in given.models[name]],
        benchmark.settings_from(
            {
                "batches": given.batches,
                "repeats": given.repeats,
                "decode_repeats": given.decode_repeats,
                "tokens": given.tokens,
                "seed": given.seed,
                "layers": given.layers,
            }
        ),
        layout.deployment(name),
        command=f"python -m replication.stages.deploy {name}",
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    write_measurement(layout.results.parent, deployment_record(report, name, params.scale))
    print("\n".join(lines(report)))


if __name__ == "__main__":
    main()
