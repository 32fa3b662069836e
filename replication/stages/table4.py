"""Stage ``table4``: Table 4 with reported and measured side by side, and the plain scores."""

from replication.io import write_json_atomic
from replication.layout import Layout
from replication.params import Params
from replication.report.tables import build_table, write
from replication.results import average_score, list_runs, read_scores
from replication.stages import stage


@stage
def main(params: Params) -> None:
    layout = Layout(params)
    results = layout.results.parent
    write(build_table("table4", results, params.scale), layout.results / "tables")
    plain = {}
    for run in list_runs(results, params.scale, params.family):
        scores = read_scores(results, params.scale, params.family, run)
        values = {name: scores.score(name) for name in scores.benchmarks}
        entries = {name: {"score": value} for name, value in values.items()}
        plain[run] = {**values, "average": average_score(entries)}
    write_json_atomic(layout.results / "scores.json", plain)
    averages = [{"model": run, "average": values["average"]} for run, values in plain.items()]
    write_json_atomic(layout.results / "averages.json", averages)


if __name__ == "__main__":
    main()
