"""Every reported cell, and its difference from the baseline, asserted within its band.

    pytest -m reported --results results/paper
    pytest tests/reported --results results/paper -k "table2 and vs"

One test for each cell and each difference: passed is REPRODUCED, failed is CONTRADICTED, expected
failure (x) is INCONCLUSIVE: the interval straddles an end of the band; skipped is NOT RUN.
"""

import pytest

from replication.judge.cells import cells_of
from replication.paper import load_tables
from replication.stats.verdict import Status

pytestmark = pytest.mark.reported

CELLS = list(cells_of(load_tables()))


@pytest.mark.parametrize("cell", [pytest.param(cell, id=cell.id) for cell in CELLS])
def test_cell(judge, cell):
    found = judge(cell)
    if found.status is Status.NOT_RUN:
        pytest.skip(f"not run: {found.note}")
    sides = [("above", found.rule.above), ("below", found.rule.below)]
    needs = "".join(f" and {name} {value:g}" for name, value in sides if value is not None)
    interval = found.interval
    said = (
        f"{cell.id}: reported {cell.reported:g}, measured {interval.point:.4f} "
        f"[{interval.low:.4f}, {interval.high:.4f}], band [{found.band.low:.4f}, "
        f"{found.band.high:.4f}]{needs}: {found.band.reason} {found.note}"
    )
    if found.status is Status.INCONCLUSIVE:
        pytest.xfail(f"inconclusive: {said}")
    assert found.status is Status.REPRODUCED, said
