"""Stage ``features``: the frozen tower's output for every training image, computed once."""

from replication.settings.schema import Params
from replication.stages import stage
from replication.train.tower import write_features


@stage
def main(params: Params, name: str) -> None:
    write_features(params, name)


if __name__ == "__main__":
    main()
