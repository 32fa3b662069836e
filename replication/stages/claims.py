"""Stage ``claims``: the verdict on every claim of the ledger, as data."""

from replication.io import write_json_atomic
from replication.layout import Layout
from replication.params import Params
from replication.reported import load_ledger
from replication.stages import stage
from replication.verify import to_data, verify


@stage
def main(params: Params) -> None:
    layout = Layout(params)
    ledger = load_ledger()
    results = verify(layout.results.parent, params.scale, ledger)
    write_json_atomic(layout.results / "claims.json", to_data(results, params.scale, ledger))


if __name__ == "__main__":
    main()
