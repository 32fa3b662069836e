"""Stage ``standins``: the training conversations and the evaluation sets of the small world, and
of the second one where a pair sees it.

Training and evaluation share no scene: a scene's content decides its split.
"""

import dataclasses
from pathlib import Path

from replication.base.workers import run_all
from replication.data.world.benchmarks import SKILLS, write_benchmark
from replication.data.world.corpus import drawing_of, write_language_set, write_training_set
from replication.settings.paths import Layout
from replication.settings.schema import Params, Standins, section
from replication.stages import stage


@stage
def main(params: Params) -> None:
    layout, settings = Layout(params), section(params.standins, "standins")
    names = dict.fromkeys(["first", *(pair.world for pair in params.pairs.values())])
    worlds = {layout.world(name): dataclasses.replace(settings, world=name) for name in names}
    for folder, world in worlds.items():
        folder.mkdir(parents=True, exist_ok=True)
        write_language_set(folder / "language.parquet", world)
        write_training_set(folder / "train.parquet", world)
    run_all(_write_benchmark, [(name, *one) for one in worlds.items() for name in SKILLS])


def _write_benchmark(name: str, folder: Path, world: Standins) -> None:
    write_benchmark(
        name,
        folder / f"{name}.parquet",
        split="evaluation",
        count=world.evaluation,
        seed=world.seed,
        drawing=drawing_of(world),
    )


if __name__ == "__main__":
    main()
