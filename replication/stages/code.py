"""Stage ``code``: one hash per stage, of the code that it really runs."""

from pathlib import Path

from replication.settings.schema import Params
from replication.settings.workspace import write_stage_hashes
from replication.stages import stage


@stage
def main(_: Params) -> None:
    write_stage_hashes(Path())


if __name__ == "__main__":
    main()
