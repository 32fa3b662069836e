"""Figures: one module each, drawn from result files alone.

    draw_all("results", "small", "results/small/figures")     # <name>.{svg,png,json} each

A figure's JSON holds its words, its sources and every number drawn: what a page says of it is
read from there. Where results are missing, the JSON says why in "not_run", and there is no picture.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from replication.paper import load_tables
from replication.report.figures import (
    attention,
    bits,
    controller,
    deployment,
    distributions,
    effects,
    entropy_error,
    flips,
    pareto,
    similarity,
)
from replication.report.figures.figure import Figure, NotRun, write, write_not_run

__all__ = ["FIGURES", "Figure", "NotRun", "draw_all"]

FIGURES: dict[str, Callable[[Path, str, str], Figure]] = {
    "pareto": pareto.draw,
    "entropy_error": entropy_error.draw,
    "attention": attention.draw,
    "similarity": similarity.draw,
    "deployment": deployment.draw,
    "controller": controller.draw,
    "bits": bits.draw,
    "effects": effects.draw,
    "flips": flips.draw,
    "distributions": distributions.draw,
}
"""What draws a figure from the folder of results, the scale and a family, in the page's order.

The family is the one shown where only one is, and first where all are."""

DESIGN = "table3"  # the components' table: its family is the one that is shown alone


def draw_all(results: str | Path, scale: str, folder: str | Path) -> dict[str, bool]:
    """Write every figure's JSON and pictures into `folder`.

    Returns whether each was drawn. The same results give the same bytes.

    Raises InputError for result files that are wrong in themselves.
    """
    results, folder = Path(results), Path(folder)
    family = load_tables().table(DESIGN).family
    drawn = {}
    for name, draw in FIGURES.items():
        try:
            write(draw(results, scale, family), folder)
            drawn[name] = True
        except NotRun as missing:
            write_not_run(name, str(missing), scale, folder)
            drawn[name] = False
    return drawn
