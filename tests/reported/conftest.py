"""Where the asserted cells get their results from."""

from pathlib import Path

import pytest
from pytest_results import DEFAULT


@pytest.fixture(scope="session")
def judge(request):
    """Judges cells by the results that are given; without any, every assertion is skipped."""
    from replication.judge.cells import Judge

    folder = Path(request.config.getoption("--results") or DEFAULT).resolve()
    if not folder.is_dir():
        pytest.skip(f"{folder}: no such folder; `make repro SCALE=paper` makes results/paper")
    return Judge(folder.parent, folder.name)
