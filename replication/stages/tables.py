"""Stage ``tables``: every table with reported and measured side by side, and the plain scores."""

from replication.io import write_json_atomic
from replication.layout import Layout
from replication.params import Params
from replication.report.tables import build_tables, write
from replication.reported import load_tables
from replication.results import average_score, list_runs, read_scores
from replication.stages import stage


@stage
def main(params: Params) -> None:
    layout = Layout(params)
    results = layout.results.parent
    for table in build_tables(results, params.scale):
        write(table, layout.results / "tables")
    plain = {}
    for family in sorted({table.family for table in load_tables().tables.values()}):
        for run in list_runs(results, params.scale, family):
            scores = read_scores(results, params.scale, family, run)
            values = {name: scores.score(name) for name in scores.benchmarks}
            entries = {name: {"score": value} for name, value in values.items()}
            plain[f"{family}-{run}"] = {**values, "average": average_score(entries)}
    write_json_atomic(layout.results / "scores.json", plain)
    averages = [{"model": name, "average": values["average"]} for name, values in plain.items()]
    write_json_atomic(layout.results / "averages.json", averages)


if __name__ == "__main__":
    main()
