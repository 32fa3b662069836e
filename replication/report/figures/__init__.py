"""Figures: one module each, drawn from result files alone.

    draw_all("results", "small", "results/small/figures")     # <name>.{svg,png,json} each

A figure's JSON holds its words, its sources and every number drawn: what a page says of it is
read from there. Where results are missing, the JSON says why in "not_run", and there is no picture.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from replication.base.scales import check_scale
from replication.paper import load_tables
from replication.report.figures import (
    attention,
    bits,
    controller,
    deployment,
    distributions,
    effects,
    engines,
    entropy_error,
    flips,
    pareto,
    regimes,
    similarity,
)
from replication.report.figures.figure import Figure, NotRun, write, write_not_run
from replication.report.figures.reading import Inputs

__all__ = ["FIGURES", "Figure", "Inputs", "NotRun", "draw_all"]

_MODULES = (
    regimes,
    *(pareto, entropy_error, attention, similarity, deployment, engines),
    *(controller, bits, effects, flips, distributions),
)
FIGURES: dict[str, Callable[[Inputs], Figure]] = {
    module.__name__.rpartition(".")[2]: module.draw for module in _MODULES
}
"""What draws a figure, in the page's order."""

DESIGN = "table3"  # the components' table: its family is the one that is shown alone


def draw_all(results: str | Path, scale: str, folder: str | Path) -> dict[str, bool]:
    """Write every figure's JSON and pictures into `folder`: the same results, the same bytes.

    Returns:
        Whether each was drawn.

    Raises:
        InputError: for result files that are wrong in themselves.
    """
    inputs = Inputs(Path(results), check_scale(scale), load_tables().table(DESIGN).family)
    drawn = {}
    for name, draw in FIGURES.items():
        try:
            write(draw(inputs), Path(folder))
            drawn[name] = True
        except NotRun as missing:
            write_not_run(name, str(missing), scale, Path(folder))
            drawn[name] = False
    return drawn
