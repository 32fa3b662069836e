"""Stage ``language``: decoders trained on text alone, from which all others start."""

from replication.settings.schema import Params
from replication.stages import stage
from replication.train.start import train_decoders


@stage
def main(params: Params) -> None:
    train_decoders(params)


if __name__ == "__main__":
    main()
