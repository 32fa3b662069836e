"""The process of one variant: reads what to measure from its argument, writes what it found."""

import json
import sys

from replication.deploy.architectures import Architecture
from replication.deploy.benchmark import settings_from
from replication.deploy.measure import measure
from replication.deploy.variants import variant
from replication.io import write_json_atomic


def main() -> None:
    job = json.loads(sys.argv[1])
    found = measure(
        Architecture(**job["model"]), variant(job["variant"]), settings_from(job["settings"])
    )
    write_json_atomic(job["out"], found)


if __name__ == "__main__":
    main()
