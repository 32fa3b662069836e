"""What was tried and what held, in one screen; the small world's checks; what training took."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from replication.judge.quantities import signed
from replication.report.names import FAMILIES
from replication.report.page.bars import Axis, bar
from replication.report.page.evidence import Evidence, Origin, origins
from replication.report.page.grids import Cell, Grid, heads, stacked
from replication.report.page.ledger import ClaimView
from replication.report.page.sources import Node, absent, quoted, scaled
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
    """A status with the claims that have it, of the paper or of its reviewers."""

    by: str
    status: Status
    count: Node
    claims: list[ClaimView]


@dataclass(frozen=True)
class Overview:
    """The first section: the paper's claims, and apart from them its reviewers' wishes."""

    outcomes: list[Outcome]
    wishes: list[Outcome]
    statuses: list[Status]
    headlines: list[tuple[str, ClaimView]]
    models: Node
    origins: list[Origin]
    limits: str
    failing: list[str]


def overview(claims: Node, views: list[ClaimView], evidence: Evidence) -> Overview:
    """The summary, from claims.json, scores.json and the score files."""
    files = evidence.files
    by_id = {view.id: view for view in views}
    return Overview(
        outcomes=_outcomes("paper", claims, views),
        wishes=_outcomes("reviewers", claims, views),
        statuses=[status for status in Status if any(view.status is status for view in views)],
        headlines=[(words, by_id[name]) for name, words in HEADLINES.items() if name in by_id],
        models=files.need("scores.json", "tables"),
        origins=origins(evidence.all_scores()),
        limits=SCALES[files.scale],
        failing=[name.value for name in claims["failed"]],
    )


def _outcomes(by: str, claims: Node, views: list[ClaimView]) -> list[Outcome]:
    own = [view for view in views if view.node["by"].value == by]
    return [
        Outcome(by, status, count, [view for view in own if view.status is status])
        for status in Status
        if (count := claims["summary"][by][status.value]).value
    ]


# --- controls -------------------------------------------------------------------------------------

_CHECKS = {
    "teacher_is_better": "the teacher is clearly better than the baseline",
    "baseline_is_above_chance": "the baseline is above chance on every benchmark",
    "baseline_is_at_its_plateau": "further plain training gains next to nothing",
}
_DIFFERENCES = {
    "teacher_minus_baseline": "Teacher − baseline, points",
    "continued_sft_minus_baseline": "Further training − baseline, points",
}


def _points(node: Node) -> Markup:
    value, low, high = (signed(node.value[key]) for key in ("value", "low", "high"))
    return quoted(node, f"{value} [{low}, {high}]", "value", "low", "high")


def _check(name: str, passed: bool) -> Markup:
    word = "passed" if passed else "missed"
    text = _CHECKS.get(name, name.replace("_", " "))
    return Markup('<span class="check {0}">{0}</span> {1}').format(word, text)


def world_grid(world: Node) -> Grid:
    """Is the small world fit to judge in? What was measured, and the checks."""
    ends = ("value", "low", "high")
    axis = Axis.over(
        family[name].value[end] for family in world for name in _DIFFERENCES for end in ends
    )
    rows = []
    for key, family in world.items():
        differences = [family[name] for name in _DIFFERENCES]
        bars = [bar(axis, *(one.value[end] for end in ends)) for one in differences]
        name, least = min(
            family["baseline_minus_chance"].items(), key=lambda one: one[1].value["value"]
        )
        checks = (_check(name, node.value) for name, node in family["checks"].items())
        rows.append(
            [
                *heads("words", FAMILIES.get(key, key)),
                *(
                    Cell(stacked(_points(one), drawn), "num")
                    for one, drawn in zip(differences, bars, strict=True)
                ),
                Cell(stacked(_points(least), name), "num"),
                Cell(stacked(*checks), "words small checks"),
            ]
        )
    head = [
        *heads("words", "Family"),
        *heads("num", *_DIFFERENCES.values(), "Least lead over chance, points"),
        *heads("words", "Checks"),
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


def training_grid(evidence: Evidence) -> Grid | None:
    """What every training took, one row a training log."""
    rows = []
    for log in evidence.files.matching("training/*/*/*.json"):
        if not (cost := log.value.get("cost")):
            continue
        place = log.file.removeprefix(f"{evidence.files.results}/training/").removesuffix(".json")
        numbers = [
            Cell(scaled(log["cost"][key], scale, places), "num")
            if cost.get(key) is not None
            else Cell(absent("not logged"))
            for key, (_, scale, places) in _COST.items()
        ]
        rows.append([*heads("", Markup("<code>{}</code>").format(place)), *numbers])
    if not rows:
        return None
    head = [*heads("words", "Training"), *heads("num", *(name for name, _, _ in _COST.values()))]
    return Grid("What every training took", [head], rows, tall=True)


def growth_grid(scaling: Node) -> Grid:
    """Time, memory and operations of one training step as one size grows."""
    rows = []
    for axis, sizes in scaling["settings"]["axes"].items():
        for size in sizes:
            point = scaling["points"][f"{axis}={size.value}"]
            time = "{seconds:.2f} [{least:.2f}, {greatest:.2f}]".format(**point.value)
            rows.append(
                [
                    *heads("words", axis.replace("_", " ")),
                    Cell(quoted(size, f"{size.value:,}"), "num"),
                    Cell(quoted(point, time, "seconds", "least", "greatest"), "num"),
                    Cell(scaled(point["predicted_operations"], 1e-9, 1), "num"),
                    Cell(scaled(point["peak_bytes"], 1e-6, 0), "num"),
                    Cell(scaled(point["predicted_peak_bytes"], 1e-6, 0), "num"),
                ]
            )
    numbers = ("Value", "Seconds a step [least, greatest]", "Operations, GFLOP (formula)",
               "Peak memory, MB", "Formula, MB")  # fmt: skip
    head = [*heads("words", "Varied"), *heads("num", *numbers)]
    return Grid("Growth of time and memory of a training step", [head], rows)
