"""Stage ``language``: a decoder trained on text alone, from which teachers or baselines start."""

from replication.params import Params
from replication.pretraining import train_decoder
from replication.stages import stage


@stage
def main(params: Params, name: str) -> None:
    train_decoder(params, name)


if __name__ == "__main__":
    main()
