"""A pytest plugin (pyproject.toml loads it): `--results DIR`, and the marker `reported`.

A plugin and no conftest, because an option has to be known before pytest has read any. Write
`--results=DIR` for a folder outside the repository: pytest takes a word by itself for a path to
look for its settings in.
"""

from pathlib import Path
from typing import Any

import pytest

DEFAULT = "results/paper"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--results",
        metavar="DIR",
        help="full-scale results to hold against the reported cells, for -m reported "
        f"(default {DEFAULT})",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a folder of another scale, before anything is collected."""
    folder = config.getoption("--results")
    if folder is not None and Path(folder).resolve().name != "paper":
        raise pytest.UsageError(
            f"--results {folder}: cells are asserted of full-scale results alone; give the folder "
            "that is named paper and holds scores and outcomes"
        )


def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    """Cells are asserted only where they are asked for, by --results or by the marker."""
    asked = config.getoption("--results") is not None or "reported" in config.option.markexpr
    reported = [item for item in items if item.get_closest_marker("reported")]
    if reported and not asked:
        config.hook.pytest_deselected(items=reported)
        items[:] = [item for item in items if item not in reported]
