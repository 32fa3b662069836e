"""Every reported cell, and its difference from the baseline, asserted within its band.

    pytest -m reported --results results/paper
    pytest tests/reported --results results/paper -k "table2 and vs"

One test for each cell and each difference: passed is REPRODUCED, failed is CONTRADICTED, expected
failure (x) is INCONCLUSIVE: the interval straddles an end of the band; skipped is NOT RUN.
"""

import pytest

from replication import paper as reported
from replication.judge.cells import Cell, cells_of
from replication.stats.verdict import Status

pytestmark = pytest.mark.reported

REPORTED = reported.load_tables()
CELLS = {cell.id: cell for cell in cells_of(REPORTED)}


def of(table: str):
    """The parameters of one table's test: its cells and differences by their names."""
    chosen = [cell for cell in CELLS.values() if cell.table.short == table]
    return pytest.mark.parametrize("cell", [pytest.param(one, id=one.name) for one in chosen])


def check(judge, cell: Cell) -> None:
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


@of("table1")
def test_table1(judge, cell):
    check(judge, cell)


@of("table2")
def test_table2(judge, cell):
    check(judge, cell)


@of("table3")
def test_table3(judge, cell):
    check(judge, cell)


@of("table4")
def test_table4(judge, cell):
    check(judge, cell)


@of("table5")
def test_table5(judge, cell):
    check(judge, cell)


@of("retention")
def test_retention(judge, cell):
    check(judge, cell)


@of("qwen3vl")
def test_qwen3vl(judge, cell):
    check(judge, cell)
