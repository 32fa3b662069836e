"""Stage ``calibration``: does a pair show what the rows that are not GRACE must show?"""

from replication.base import provenance
from replication.measure.calibration import SETTINGS, PairCalibration
from replication.paper.calibration import load_calibration
from replication.results.calibration import write_calibration
from replication.results.scores import ResultSet
from replication.settings.paths import Layout
from replication.settings.schema import Params
from replication.stages import stage


@stage
def main(params: Params, name: str) -> None:
    results, pair = Layout(params).results.parent, params.pair(name)
    measured = PairCalibration(
        params,
        ResultSet(results, params.scale),
        name,
        load_calibration().families[pair.family],
    )
    origin = provenance.collect(
        params.subset(*SETTINGS), [], f"python -m replication.stages.calibration {name}"
    )
    content = {
        "pair": name,
        "family": pair.family,
        "world": pair.world,
        "rows": measured.table(),
        "provenance": origin,
    }
    write_calibration(results, params.scale, content)


if __name__ == "__main__":
    main()
