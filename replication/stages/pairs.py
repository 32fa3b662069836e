"""Stage ``pairs``: a pair's teacher and baseline, trained on the small world or published."""

from replication.settings.schema import Params
from replication.stages import stage
from replication.train.start import train_pair


@stage
def main(params: Params, pair: str) -> None:
    train_pair(params, pair)


if __name__ == "__main__":
    main()
