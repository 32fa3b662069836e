"""Stage ``code``: one hash per stage, of the code that it really runs."""

from pathlib import Path

import yaml

from replication.base.code import stage_hashes
from replication.base.files import write_text_atomic
from replication.settings.schema import Params
from replication.stages import stage

OUT = Path("code.yaml")


@stage
def main(_: Params) -> None:
    write_text_atomic(OUT, yaml.safe_dump(stage_hashes()))


if __name__ == "__main__":
    main()
