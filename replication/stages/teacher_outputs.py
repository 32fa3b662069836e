"""Stage ``teacher_outputs``: the frozen teacher's outputs on the methods' data, computed once."""

from replication.settings.schema import Params
from replication.stages import stage
from replication.train.teacher_outputs import cache_teacher


@stage
def main(params: Params, pair: str) -> None:
    cache_teacher(params, pair)


if __name__ == "__main__":
    main()
