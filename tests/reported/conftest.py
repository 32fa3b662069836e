"""The option --results, and the rule that cells are asserted only when they are asked for."""

from pathlib import Path

import pytest

DEFAULT = "results/paper"


def pytest_addoption(parser):
    parser.addoption(
        "--results",
        metavar="DIR",
        help="full-scale results to hold against the reported cells, for -m reported "
        f"(default {DEFAULT})",
    )


def _asked_for(config) -> bool:
    return config.getoption("--results") is not None or "reported" in config.option.markexpr


def pytest_configure(config):
    folder = config.getoption("--results")
    if folder is not None and Path(folder).resolve().name != "paper":
        raise pytest.UsageError(
            f"--results {folder}: cells are asserted of full-scale results alone; give the folder "
            "that is named paper and holds scores and outcomes"
        )


def pytest_collection_modifyitems(config, items):
    if _asked_for(config):
        return
    left_out = [item for item in items if item.get_closest_marker("reported")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("reported")]


@pytest.fixture(scope="session")
def judge(request):
    """Judges cells by the results that are given; without any, every assertion is skipped."""
    from replication.cells import Judge

    folder = Path(request.config.getoption("--results") or DEFAULT).resolve()
    if not folder.is_dir():
        pytest.skip(f"{folder}: no such folder; `make repro SCALE=paper` makes results/paper")
    return Judge(folder.parent, folder.name)
