"""Stage ``figures``: every figure, from tables, measurements, deployment and training logs."""

from replication.report.figures import draw_all
from replication.settings.paths import Layout
from replication.settings.schema import Params
from replication.stages import stage


@stage
def main(params: Params) -> None:
    layout = Layout(params)
    draw_all(layout.results.parent, params.scale, layout.figures)


if __name__ == "__main__":
    main()
