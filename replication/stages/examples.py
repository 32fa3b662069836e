"""Stage ``examples``: questions of a family that BF16 and INT4 answer differently."""

from replication.report.examples import draw, find_examples, write
from replication.results.scores import ResultSet
from replication.settings.paths import Layout
from replication.settings.schema import Params
from replication.stages import stage

PAIR = ("baseline", "grace_int4")


@stage
def main(params: Params, name: str) -> None:
    layout, family = Layout(params), params.known_family(name)
    results = ResultSet(layout.results.parent, params.scale)
    examples = find_examples(results, family, PAIR, layout.benchmarks, params.examples.each)
    write(examples, results, family, PAIR, layout.examples(family, "json"))
    draw(examples, PAIR, layout.examples(family, "png"))


if __name__ == "__main__":
    main()
