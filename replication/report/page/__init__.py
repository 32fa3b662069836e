"""One self-contained page with everything that was measured at a scale.

    text = build(Path("."), "small")

It prints what the result files say and computes nothing of its own: every number carries the file
and the place in it (``data-source``). It loads nothing, and needs no JavaScript.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from replication.base.scales import FULL_SCALE, check_scale
from replication.paper import load_ledger, load_tables
from replication.paper.calibration import load_calibration
from replication.report.names import FAMILIES, classes_text
from replication.report.page.evidence import Evidence
from replication.report.page.figures import MAP, figure_views, galleries
from replication.report.page.ledger import (
    MEANING,
    PAPER,
    PHRASES,
    badge,
    claim_views,
    slug,
)
from replication.report.page.overview import (
    BEATS,
    BY,
    SCALING,
    calibration_grid,
    growth_grid,
    map_grid,
    overview,
    samples,
    winning,
)
from replication.report.page.performance import PERFORMANCE, bounds_grid, performance_grids
from replication.report.page.real_cell import logits_grid, scores_grid
from replication.report.page.sources import Files, counted, plain, scaled, shortened
from replication.report.page.tables import table_views
from replication.results.real_cell import RESULT

_FOLDER = Path(__file__).resolve().parent
_COSTS = ("cost", "deploy")  # tables that stand in the section of costs


def build(root: Path, scale: str) -> str:
    """The page of a scale as HTML.

    Args:
        root: The directory that holds ``results``.
        scale: The scale's name.

    Raises:
        InputError: for an unknown scale, and for result files that are missing or wrong in
            themselves. A figure, a gallery, or the calibration of the small world may be missing;
            the page says so.
    """
    files, reported = Files(root, check_scale(scale)), load_tables()
    evidence = Evidence(files, reported)
    verdicts = files.need("claims.json", "claims")
    claims = claim_views(verdicts, load_ledger(), evidence)
    tables = table_views(evidence, reported)
    calibrated, scaling = files.matching("calibration/*.json"), files.find(SCALING)
    real = files.find(f"results/{RESULT.as_posix()}")
    speed, changed = files.find(PERFORMANCE), galleries(files)
    regimes = files.find(f"{files.results}/tables/{MAP}.json")
    if regimes is not None and not regimes.value.get("cells"):  # a scale without a map
        regimes = None
    return _render(
        scale=scale,
        verdicts=verdicts,
        claims=claims,
        overview=overview(verdicts, claims, tables, evidence),
        printed=[table for table in tables if table.printed],
        own=[table for table in tables if not table.printed and table.name not in _COSTS],
        costs=[table for table in tables if table.name in _COSTS],
        real=real,
        real_scores=None if real is None else scores_grid(real),
        real_logits=None if real is None else logits_grid(real),
        regimes=regimes,
        map=None if regimes is None else map_grid(regimes),
        winning="" if regimes is None else winning(regimes),
        figures=figure_views(files),
        galleries=changed,
        samples=samples(changed),
        fixed=load_calibration().world_commit,
        world=calibration_grid(calibrated) if calibrated else None,
        growth=None if scaling is None else growth_grid(scaling),
        scaling=scaling,
        speed=speed,
        bounds=None if speed is None else bounds_grid(speed),
        parts=[] if speed is None else performance_grids(speed),
    )


def _render(**content: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    tools = {"badge": badge, "slug": slug, "plain": plain, "counted": counted, "short": shortened}
    millions, billions = (partial(scaled, scale=scale, places=1) for scale in (1e-6, 1e-9))
    published = content["scale"] == FULL_SCALE
    named = FAMILIES if published else {name: classes_text(name) for name in FAMILIES}
    names = {**named, PAPER: "the paper's own numbers"}
    known = {"meaning": MEANING, "phrases": PHRASES, "families": names, "beats": BEATS, "of": BY}
    assets = {
        "css": (_FOLDER / "page.css").read_text(encoding="utf-8"),
        "js": (_FOLDER / "page.js").read_text(encoding="utf-8"),
    }
    page = environment.get_template("page.html")
    sizes = {"millions": millions, "billions": billions}
    return page.render(**content, **tools, **sizes, **known, assets=assets)
