"""Stage ``claims``: the verdict on every claim of the ledger and reported cell, as data."""

from replication.base.files import write_json_atomic
from replication.judge.cells import verify_cells
from replication.judge.claims import verify
from replication.judge.record import document, result_commits
from replication.paper import load_ledger
from replication.settings.paths import Layout
from replication.settings.schema import Params
from replication.stages import stage


@stage
def main(params: Params) -> None:
    layout = Layout(params)
    ledger = load_ledger()
    results = verify(layout.results.parent, params.scale, ledger, recorded=layout.recorded)
    cells = verify_cells(layout.results.parent, params.scale, ledger)
    commits = result_commits(layout.results)
    write_json_atomic(
        layout.results / "claims.json", document(results, cells, params.scale, ledger, commits)
    )


if __name__ == "__main__":
    main()
