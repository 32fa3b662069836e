"""Stage ``regimes``: the map's further teachers and baselines, and what these teachers say."""

from replication.settings.schema import Params
from replication.stages import stage
from replication.train.start import train_regimes
from replication.train.teacher_outputs import cache_regimes


@stage
def main(params: Params) -> None:
    train_regimes(params)
    cache_regimes(params)


if __name__ == "__main__":
    main()
