"""What was tried and what held, in one screen; the small world's checks; what training took."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from replication.judge.quantities import signed
from replication.report.names import FAMILIES
from replication.report.page.bars import Axis, bar
from replication.report.page.evidence import Evidence, Origin, origins
from replication.report.page.grids import Cell, Grid, stacked
from replication.report.page.ledger import ClaimView
from replication.report.page.sources import Node, absent, quoted
from replication.stats.verdict import Status

SCALING = "results/scaling/scaling.json"
HEADLINES = {
    "C03": "Accuracy of the INT4 model against the BF16 baseline",
    "C09": "Speed of INT4 decoding against BF16",
    "C10": "Memory that INT4 saves",
}
"""The claims of the abstract that a newcomer asks for first."""
CONTROLS = ("R01", "R02", "R03", "R09")
"""Claims that control for what else could explain a result."""
SCALES = {
    "smoke": (
        "Tiny models were trained for a few steps, to see that everything runs. No verdict at "
        "this scale says anything about the method."
    ),
    "small": (
        "Small models of the real classes were trained from scratch on a CPU, and asked stand-in "
        "questions: images of a few coloured shapes and signs, written in the official "
        "benchmarks' schemas and scored by their official scorers. Signs and orders of "
        "differences may carry over to the published models; levels and sizes do not."
    ),
    "paper": "The published checkpoints were trained and scored on the published benchmarks.",
}
"""What a scale is, and what it can decide."""


@dataclass(frozen=True)
class Outcome:
    """A status with the claims that have it."""

    status: Status
    count: Node
    claims: list[ClaimView]


@dataclass(frozen=True)
class Overview:
    """The first section."""

    outcomes: list[Outcome]
    headlines: list[tuple[str, ClaimView]]
    models: Node
    origins: list[Origin]
    limits: str
    failing: list[str]


def overview(claims: Node, views: list[ClaimView], evidence: Evidence) -> Overview:
    """The summary, from claims.json, scores.json and the score files."""
    files = evidence.files
    by_id = {view.id: view for view in views}
    outcomes = [
        Outcome(
            status, claims["summary"][status.value], [one for one in views if one.status is status]
        )
        for status in Status
    ]
    return Overview(
        outcomes=[one for one in outcomes if one.count.value],
        headlines=[(words, by_id[name]) for name, words in HEADLINES.items() if name in by_id],
        models=files.need("scores.json", "tables"),
        origins=origins(evidence.all_scores()),
        limits=SCALES[files.scale],
        failing=[name.value for name in claims["failed"]],
    )


# --- controls -------------------------------------------------------------------------------------


_CHECKS = {
    "teacher_is_better": "the teacher is clearly better than the baseline",
    "baseline_is_above_chance": "the baseline is above chance on every benchmark",
    "baseline_is_at_its_plateau": "further plain training gains next to nothing",
}


def _points(node: Node) -> Markup:
    value = node.value
    ends = ", ".join(signed(value[end]) for end in ("low", "high"))
    return quoted(node, f"{signed(value['value'])} [{ends}]", "value", "low", "high")


def world_grid(world: Node) -> Grid:
    """Is the small world fit to judge in? What was measured, and the checks."""
    names = {
        "teacher_minus_baseline": "Teacher − baseline, points",
        "continued_sft_minus_baseline": "Further training − baseline, points",
    }
    values = [
        family[name].value[end]
        for family in world
        for name in names
        for end in ("value", "low", "high")
    ]
    axis = Axis.over(values)
    rows = []
    for key, family in world.items():
        line = [Cell(FAMILIES.get(key, key), head=True, css="words")]
        for name in names:
            found = family[name].value
            drawn = bar(axis, found["value"], found["low"], found["high"])
            line.append(Cell(stacked(_points(family[name]), drawn), css="num"))
        least = min(family["baseline_minus_chance"].items(), key=lambda one: one[1].value["value"])
        line.append(Cell(stacked(_points(least[1]), least[0]), css="num"))
        checks = [
            Markup('<span class="check {}">{}</span> {}').format(
                "passed" if node.value else "missed",
                "passed" if node.value else "missed",
                _CHECKS.get(name, name.replace("_", " ")),
            )
            for name, node in family["checks"].items()
        ]
        line.append(Cell(stacked(*checks), css="words small checks"))
        rows.append(line)
    numbers = (*names.values(), "Least lead over chance, points")
    head = [
        Cell("Family", head=True, css="words"),
        *(Cell(one, head=True, css="num") for one in numbers),
        Cell("Checks", head=True, css="words"),
    ]
    return Grid("Checks of the small world", [head], rows)


# --- costs ----------------------------------------------------------------------------------------


_COST = {
    "seconds": ("Seconds", 1.0, 1),
    "steps": ("Steps", 1.0, 0),
    "tokens": ("Tokens", 1.0, 0),
    "peak_memory_bytes": ("Peak memory, MB", 1e-6, 0),
    "trained_parameters": ("Trained parameters", 1.0, 0),
    "threads": ("Threads", 1.0, 0),
}


def _scaled(node: Node, scale: float, places: int) -> Markup:
    return quoted(node, f"{node.value * scale:,.{places}f}", scale=scale)


def training_grid(evidence: Evidence) -> Grid | None:
    """What every training took, one row a training log."""
    rows = []
    for log in evidence.files.matching("training/*/*/*.json"):
        cost = log.value.get("cost")
        if not cost:
            continue
        place = log.file.removeprefix(f"{evidence.files.results}/training/").removesuffix(".json")
        line = [Cell(Markup("<code>{}</code>").format(place), head=True)]
        line += [
            Cell(_scaled(log["cost"][key], scale, places), css="num")
            if cost.get(key) is not None
            else Cell(absent("not logged"))
            for key, (_, scale, places) in _COST.items()
        ]
        rows.append(line)
    if not rows:
        return None
    head = [Cell("Training", head=True, css="words")]
    head += [Cell(name, head=True, css="num") for name, _, _ in _COST.values()]
    return Grid("What every training took", [head], rows, tall=True)


def growth_grid(scaling: Node) -> Grid:
    """Time, memory and operations of one training step as one size grows."""
    sizes = {
        f"{axis}={size.value}": size
        for axis, values in scaling["settings"]["axes"].items()
        for size in values
    }
    rows = []
    for name, size in sizes.items():
        point, axis = scaling["points"][name], name.partition("=")[0]
        time = f"{point['seconds'].value:.2f} "
        time += f"[{point['least'].value:.2f}, {point['greatest'].value:.2f}]"
        rows.append(
            [
                Cell(axis.replace("_", " "), head=True, css="words"),
                Cell(quoted(size, f"{size.value:,}"), css="num"),
                Cell(quoted(point, time, "seconds", "least", "greatest"), css="num"),
                Cell(_scaled(point["predicted_operations"], 1e-9, 1), css="num"),
                Cell(_scaled(point["peak_bytes"], 1e-6, 0), css="num"),
                Cell(_scaled(point["predicted_peak_bytes"], 1e-6, 0), css="num"),
            ]
        )
    heads = ("Value", "Seconds a step [least, greatest]", "Operations, GFLOP (formula)",
             "Peak memory, MB", "Formula, MB")  # fmt: skip
    head = [Cell("Varied", head=True, css="words")]
    head += [Cell(one, head=True, css="num") for one in heads]
    return Grid("Growth of time and memory of a training step", [head], rows)
