"""Stage ``internals``: what a family's trained models do inside.

Where the attention of the answer goes, how alike the visual tokens of teacher and students are, and
how gates, weights and scales are distributed.
"""

from replication.measure.inside.family import METHOD, SETTINGS, look_inside
from replication.measure.inside.record import STUDENT
from replication.measure.records import write_record
from replication.settings.paths import Layout
from replication.settings.schema import Params
from replication.stages import stage


@stage
def main(params: Params, name: str) -> None:
    parts = look_inside(params, Layout(params), params.known_family(name))
    _, run = params.find_run(name, STUDENT)
    write_record(
        params, "internals", name, parts, method=METHOD, seeds=run.seeds, settings=SETTINGS
    )


if __name__ == "__main__":
    main()
