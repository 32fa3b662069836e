"""Stage ``baseline``: the student before any method, trained on the small world or published."""

from replication.layout import Layout
from replication.params import Params
from replication.pretraining import pretrain_model
from replication.stages import stage


@stage
def main(params: Params) -> None:
    pretrain_model(params, "baseline", params.baseline, Layout(params))


if __name__ == "__main__":
    main()
