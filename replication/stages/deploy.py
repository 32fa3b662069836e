"""Stage ``deploy``: speed and memory of the published architectures, with random weights.

A variant that was measured is kept; the stage can be interrupted and goes on after it.
"""

import sys

from replication.deploy import benchmark
from replication.deploy.architectures import architecture
from replication.deploy.text import lines
from replication.deploy.variants import variant
from replication.deployment import deployment_record
from replication.layout import Layout
from replication.measurements import write_measurement
from replication.params import Params, section
from replication.stages import stage


@stage
def main(params: Params) -> None:
    given, layout = section(params.deploy, "deploy"), Layout(params)
    report = benchmark.run(
        [architecture(name) for name in given.models],
        [variant(name) for name in given.variants],
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
        layout.deployment,
        command="python -m replication.stages.deploy",
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    for name in given.models:
        write_measurement(layout.results.parent, deployment_record(report, name, params.scale))
    print("\n".join(lines(report)))


if __name__ == "__main__":
    main()
