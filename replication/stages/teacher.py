"""Stage ``teacher``: the larger model, trained from scratch on the small world or published."""

from replication.layout import Layout
from replication.params import Params
from replication.pretraining import pretrain_model
from replication.stages import stage


@stage
def main(params: Params) -> None:
    pretrain_model(params, "teacher", params.teacher, Layout(params))


if __name__ == "__main__":
    main()
