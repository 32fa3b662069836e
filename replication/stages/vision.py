"""Stage ``vision``: a family's processor, and its vision tower pretrained on the scenes."""

from replication.settings.schema import Params
from replication.stages import stage
from replication.train.tower import train_tower


@stage
def main(params: Params, name: str) -> None:
    accuracies = train_tower(params, name)
    print(", ".join(f"{name} {value:.3f}" for name, value in accuracies.items()))


if __name__ == "__main__":
    main()
