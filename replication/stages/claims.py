"""Stage ``claims``: the verdict on every claim of the ledger and reported cell, as data."""

from replication.base.files import write_json_atomic
from replication.judge.cells import verify_cells
from replication.judge.claims import document, verify
from replication.paper import load_ledger
from replication.settings.paths import Layout
from replication.settings.schema import Params
from replication.stages import stage


@stage
def main(params: Params) -> None:
    layout = Layout(params)
    ledger = load_ledger()
    results = verify(layout.results.parent, params.scale, ledger)
    cells = verify_cells(layout.results.parent, params.scale, ledger)
    write_json_atomic(
        layout.results / "claims.json", document(results, cells, params.scale, ledger)
    )


if __name__ == "__main__":
    main()
