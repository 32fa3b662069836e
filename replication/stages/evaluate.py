"""Stage ``evaluate``: the models of a folder, every seed of each, on the folder's benchmarks."""

from replication.evaluate.jobs import evaluate_folder
from replication.settings.schema import Params
from replication.stages import stage


@stage
def main(params: Params, folder: str) -> None:
    evaluate_folder(params, folder)


if __name__ == "__main__":
    main()
