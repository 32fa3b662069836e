"""Stage ``vision``: a family's processor, and its vision tower pretrained on the scenes."""

from replication.base.workers import run_all
from replication.settings.schema import Params
from replication.stages import stage
from replication.train.tower import train_tower


@stage
def main(params: Params, name: str) -> None:
    [accuracies] = run_all(train_tower, [(params, name)])  # one thread: the same bytes every time
    print(", ".join(f"{name} {value:.3f}" for name, value in accuracies.items()))


if __name__ == "__main__":
    main()
