"""Stage ``standins``: the training conversations and the evaluation sets of the small world."""

import sys

import pyarrow.parquet as pq

from replication.data.world.benchmarks import SKILLS, write_benchmark
from replication.data.world.corpus import write_language_set, write_training_set
from replication.settings.paths import Layout
from replication.settings.schema import Params, section
from replication.stages import stage


@stage
def main(params: Params) -> None:
    layout, world = Layout(params), section(params.standins, "standins")
    layout.benchmarks.mkdir(parents=True, exist_ok=True)
    write_language_set(layout.texts, world)
    write_training_set(layout.conversations, world)
    trained = set(pq.read_table(layout.conversations, columns=["scene"])["scene"].to_pylist())
    for name in SKILLS:
        scenes = write_benchmark(
            name,
            layout.benchmarks / f"{name}.parquet",
            split="evaluation",
            count=world.evaluation,
            seed=world.seed,
            world={"noise": world.noise, "clutter": world.clutter},
        )
        if shared := trained & scenes:
            sys.exit(f"error: {name} and the training set share scenes, such as {shared.pop()}")


if __name__ == "__main__":
    main()
