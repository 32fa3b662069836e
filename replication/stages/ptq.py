"""Stage ``ptq``: a group of post-training quantizations of their family's model ``baseline``."""

from replication.settings.schema import Params
from replication.stages import stage
from replication.train.ptq.group import quantize_group


@stage
def main(params: Params, group: str) -> None:
    quantize_group(params, group)


if __name__ == "__main__":
    main()
