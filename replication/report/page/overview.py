"""What was tried and what held, in one screen; how the world was calibrated; what training took."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from replication.report.page.evidence import Evidence, Origin, origins
from replication.report.page.grids import Cell, Grid, heads
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


# --- calibration ----------------------------------------------------------------------------------


def _asked(asked: Node) -> Markup:
    """A value and its tolerance, or bounds."""
    if asked["value"].value is not None:
        text = f"{asked['value'].value:g} ± {asked['tolerance'].value:g}"
        return quoted(asked, text, "value", "tolerance")
    ends = {"low": "at least", "high": "at most"}
    given = {key: words for key, words in ends.items() if asked[key].value is not None}
    text = ", ".join(f"{words} {asked[key].value:g}" for key, words in given.items())
    return quoted(asked, text, *given)


def _measured(interval: Node) -> Markup:
    if interval.value is None:
        return absent("not run")
    point, low, high = (f"{interval.value[key]:.2f}" for key in ("point", "low", "high"))
    return quoted(interval, f"{point} [{low}, {high}]", "point", "low", "high")


def calibration_grid(pairs: list[Node]) -> Grid:
    """Is the small world fit to judge in? What the rows that are not GRACE had to show, and did."""
    rows = []
    for pair in pairs:
        for row in pair["rows"]:
            status = row["status"].value
            css = {"met": "passed", "not met": "missed"}.get(status, "absent")
            rows.append(
                [
                    *heads("words", pair["pair"].value.replace("_", " "), row["name"].value),
                    Cell(_asked(row["asked"]), "num"),
                    Cell(_measured(row["measured"]), "num"),
                    Cell(Markup('<span class="check {}">{}</span>').format(css, status), "words"),
                ]
            )
    head = [*heads("words", "Pair", "Row"), *heads("num", "Asked", "Measured"), *heads("words", "")]
    return Grid("Calibration of the small world", [head], rows)


# --- costs ----------------------------------------------------------------------------------------


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
