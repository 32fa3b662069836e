"""Stage ``teacher``: the larger model of a family, trained on the small world or published."""

from replication.settings.schema import Params
from replication.stages import stage
from replication.train.start import train_model


@stage
def main(params: Params, family: str) -> None:
    train_model(params, params.known_family(family), "teacher")


if __name__ == "__main__":
    main()
