"""Stage ``standins``: the training conversations and the evaluation sets of the small world.

Training and evaluation share no scene: a scene's content decides its split.
"""

from replication.data.world.benchmarks import SKILLS, write_benchmark
from replication.data.world.corpus import drawing_of, write_language_set, write_training_set
from replication.settings.paths import Layout
from replication.settings.schema import Params, section
from replication.stages import stage


@stage
def main(params: Params) -> None:
    layout, world = Layout(params), section(params.standins, "standins")
    layout.benchmarks.mkdir(parents=True, exist_ok=True)
    write_language_set(layout.texts, world)
    write_training_set(layout.conversations, world)
    for name in SKILLS:
        write_benchmark(
            name,
            layout.benchmarks / f"{name}.parquet",
            split="evaluation",
            count=world.evaluation,
            seed=world.seed,
            drawing=drawing_of(world),
        )


if __name__ == "__main__":
    main()
