"""Stage ``tuning``: the best of every method's candidates, on validation questions of their own."""

from replication.measure.tuning import tune
from replication.settings.schema import Params
from replication.stages import stage


@stage
def main(params: Params, pair: str) -> None:
    params.pair(pair)  # refuses an unknown name
    tune(params, pair)


if __name__ == "__main__":
    main()
