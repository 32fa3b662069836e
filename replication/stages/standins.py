"""Stage ``standins``: the training conversations and the evaluation sets of the small world."""

from replication.layout import Layout
from replication.params import Params
from replication.stages import stage
from replication.standins.benchmarks import SKILLS, write_benchmark
from replication.standins.corpus import write_training_set


@stage
def main(params: Params) -> None:
    layout, world = Layout(params), params.standins
    layout.benchmarks.mkdir(parents=True, exist_ok=True)
    write_training_set(layout.conversations, world)
    for name in SKILLS:
        write_benchmark(
            name,
            layout.benchmarks / f"{name}.parquet",
            split="evaluation",
            count=world.evaluation,
            seed=world.seed,
            world={"noise": world.noise, "clutter": world.clutter},
        )


if __name__ == "__main__":
    main()
