"""Stage ``language``: a decoder trained on text alone, from which teachers or baselines start."""

from replication.settings.schema import Params
from replication.stages import stage
from replication.train.start import train_decoder


@stage
def main(params: Params, name: str) -> None:
    train_decoder(params, name)


if __name__ == "__main__":
    main()
