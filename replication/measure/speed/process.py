"""The process of one variant: reads what to measure from its argument, writes what it found."""

import json
import sys

from replication.base.files import write_json_atomic
from replication.measure.speed.benchmark import settings_from
from replication.measure.speed.measure import measure
from replication.measure.speed.variants import variant
from replication.plan.architectures import Architecture


def main() -> None:
    job = json.loads(sys.argv[1])
    found = measure(
        Architecture(**job["model"]), variant(job["variant"]), settings_from(job["settings"])
    )
    write_json_atomic(job["out"], found)


if __name__ == "__main__":
    main()
