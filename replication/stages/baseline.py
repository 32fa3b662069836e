"""Stage ``baseline``: the student before any method, trained on the small world or published."""

from replication.params import Params
from replication.pretraining import train_model
from replication.stages import stage


@stage
def main(params: Params, family: str) -> None:
    train_model(params, params.known_family(family), "baseline")


if __name__ == "__main__":
    main()
