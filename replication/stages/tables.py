"""Stage ``tables``: every table, reported, measured and recorded side by side; plain scores."""

from replication.base.files import write_json_atomic
from replication.report.tables.files import build_tables, write
from replication.results.scores import ResultSet, average_score
from replication.settings.paths import Layout
from replication.settings.schema import Params
from replication.stages import stage


@stage
def main(params: Params) -> None:
    layout = Layout(params)
    results = layout.results.parent
    for table in build_tables(results, params.scale, layout.recorded):
        write(table, layout.results / "tables")
    plain, found = {}, ResultSet(results, params.scale)
    for family in params.families:
        for run in found.runs(family):
            scores = found.scores(family, run)
            assert scores is not None  # it is among those found
            values = {name: scores.score(name) for name in scores.benchmarks}
            entries = {name: {"score": value} for name, value in values.items()}
            plain[f"{family}-{run}"] = {**values, "average": average_score(entries)}
    write_json_atomic(layout.results / "scores.json", plain)
    averages = [{"model": name, "average": values["average"]} for name, values in plain.items()]
    write_json_atomic(layout.results / "averages.json", averages)


if __name__ == "__main__":
    main()
