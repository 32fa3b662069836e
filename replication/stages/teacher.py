"""Stage ``teacher``: the larger model of a family, trained on the small world or published."""

from replication.params import Params
from replication.pretraining import train_model
from replication.stages import stage


@stage
def main(params: Params, family: str) -> None:
    train_model(params, params.known_family(family), "teacher")


if __name__ == "__main__":
    main()
