"""Stage ``alignment``: decoders learn to see; teachers and baselines start from them."""

from replication.settings.schema import Params
from replication.stages import stage
from replication.train.start import train_aligned


@stage
def main(params: Params, pair: str) -> None:
    train_aligned(params, pair)


if __name__ == "__main__":
    main()
