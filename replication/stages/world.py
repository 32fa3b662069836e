"""Stage ``world``: is the small world fit to judge a method in? Measured, and asserted."""

import sys

from replication.base.files import write_json_atomic
from replication.measure.world_checks import check_world
from replication.results.scores import ResultSet
from replication.settings.paths import Layout
from replication.settings.schema import Params
from replication.stages import stage


@stage
def main(params: Params) -> None:
    layout = Layout(params)
    results = ResultSet(layout.results.parent, params.scale)
    world = {family: check_world(params, results, family) for family in params.families}
    write_json_atomic(layout.results / "world.json", world)
    print(f"world: {world}", file=sys.stderr)
    failed = [
        f"{family}: {name}"
        for family, checked in world.items()
        for name, passed in checked["checks"].items()
        if not passed
    ]
    if failed and params.world.asserted:
        sys.exit(f"error: the small world is not fit to judge in: {', '.join(failed)} failed")


if __name__ == "__main__":
    main()
