"""Stage ``train``: a group of runs, every seed of each, from their family's baseline."""

from replication.settings.schema import Params
from replication.stages import stage
from replication.train.launch.run import launch_group
from replication.train.runs import train_group


@stage
def main(params: Params, group: str) -> None:
    if params.train.launch is None:
        train_group(params, group)
    else:
        launch_group(params, group)


if __name__ == "__main__":
    main()
