"""Stage ``claims``: the verdict on every claim of the ledger and reported cell, as data."""

from replication.cells import verify_cells
from replication.io import write_json_atomic
from replication.layout import Layout
from replication.params import Params
from replication.reported import load_ledger
from replication.stages import stage
from replication.verify import document, verify


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
