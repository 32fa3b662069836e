"""Stage ``tables``: every table, reported, measured and recorded side by side; plain scores; and
the headlines of the tables as metrics of DVC."""

from replication.base.files import write_json_atomic
from replication.report.tables.files import build_tables, headlines, write
from replication.report.tables.regimes import regimes_of
from replication.results.scores import ResultSet, average_score
from replication.settings.paths import Layout
from replication.settings.schema import Params
from replication.stages import stage


@stage
def main(params: Params) -> None:
    layout = Layout(params)
    results = layout.results.parent
    for table in build_tables(results, params.scale, layout.recorded, regimes_of(params)):
        write(table, layout.results / "tables")
        if metrics := headlines(table.data):
            write_json_atomic(layout.results / "metrics" / f"{table.name}.json", metrics)
    plain = {}
    everything = sorted(
        ResultSet(results, params.scale).all(), key=lambda one: (one.owner, one.run)
    )
    for one in (one for family in params.families for one in everything if one.family == family):
        values = {name: one.score(name) for name in one.benchmarks}
        average = average_score({name: {"score": value} for name, value in values.items()})
        plain[f"{one.owner}-{one.run}"] = {**values, "average": average}
    write_json_atomic(layout.results / "scores.json", plain)


if __name__ == "__main__":
    main()
