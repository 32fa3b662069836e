"""The first screen: the conclusion, the models, the map of regimes, the abstract's promises and
samples of the world; and the tables of how the world was calibrated and of what training took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from replication.judge.quantities import signed
from replication.report.names import classes_text
from replication.report.page.bars import Axis, bar
from replication.report.page.evidence import Evidence, Origin, origins
from replication.report.page.grids import Cell, Grid, heads, stacked
from replication.report.page.ledger import ClaimView, slug
from replication.report.page.sources import Node, absent, plain, quoted, scaled
from replication.report.page.tables import TableView
from replication.report.tables.findings import OVER_KD
from replication.report.tables.regimes import DATA, LABELS, SHARES
from replication.report.tables.text import models_of
from replication.stats.verdict import Status

SCALING = "results/scaling/scaling.json"
HEADLINES = {
    "C03": "Accuracy of INT4 against the BF16 baseline",
    "C09": "Speed of INT4 decoding against BF16",
    "C10": "Memory that INT4 saves",
}
"""The claims of the abstract that a newcomer asks for first."""
SCALES = {
    "smoke": (
        "Tiny models were trained for a few steps, to see that everything runs. No verdict at "
        "this scale says anything about the method."
    ),
    "small": (
        "Small models of the real classes were trained from scratch on a CPU, and asked stand-in "
        "questions: images of a few coloured shapes and signs, written in the official "
        "benchmarks' schemas and scored by their official scorers. Signs and orders of "
        "differences may carry over to the published models; levels and sizes do not. On a second "
        "processor the cells of the map in which GRACE is ahead repeated, and the order of KD and "
        "GRACE in the Qwen tables did not (docs/findings.md)."
    ),
    "paper": "The published checkpoints were trained and scored on the published benchmarks.",
}
"""What a scale is, and what it can decide."""
BY = {
    "paper": "of the paper’s",
    "reviewers": "of the reviewers’",
    "repository": "of this repository’s",
}
"""Whose claims there are."""
BEATS = "beats KD"
"""The outcome of a regime in which GRACE gains over the baseline and over plain distillation."""
_SEEN = {**dict.fromkeys(SHARES, "a twenty-fifth"), "all": "all", "quarter": "a quarter"}
_SAMPLES = 4


@dataclass(frozen=True)
class Count:
    """How many claims of the paper, of its reviewers and of this repository have a status."""

    status: Status
    by: dict[str, Node]


@dataclass(frozen=True)
class Pair:
    """Teacher and student of a family, by their parameters."""

    name: str
    teacher: Node
    student: Node


@dataclass(frozen=True)
class Overview:
    """What the first screen says, and what the ledger says of all claims together."""

    counts: list[Count]
    headlines: list[tuple[str, ClaimView]]
    pairs: list[Pair]
    deployed: list[tuple[str, Node]]
    models: Node
    origins: list[Origin]
    limits: str
    failing: list[str]


def overview(
    claims: Node, views: list[ClaimView], tables: Sequence[TableView], evidence: Evidence
) -> Overview:
    """The summary, from claims.json, scores.json, the tables and the score files."""
    files = evidence.files
    by_id = {view.id: view for view in views}
    summary = claims["summary"]
    every = [Count(status, {by: summary[by][status.value] for by in BY}) for status in Status]
    return Overview(
        counts=[one for one in every if any(count.value for count in one.by.values())],
        headlines=[(words, by_id[name]) for name, words in HEADLINES.items() if name in by_id],
        pairs=_pairs(tables),
        deployed=[
            (name, model["parameters"])
            for report in files.matching("deploy/*/deploy.json")
            for name, model in report["models"].items()
            if model["parameters"].value is not None  # as of a model that was built in part
        ],
        models=files.need("scores.json", "tables"),
        origins=origins(evidence.all_scores()),
        limits=SCALES[files.scale],
        failing=[name.value for name in claims["failed"]],
    )


def _pairs(tables: Sequence[TableView]) -> list[Pair]:
    """The stand-ins of the tables, one pair a family; none of published models."""
    pairs: dict[str, Pair] = {}
    for node in (table.node for table in tables):
        models = [node["models"][role]["parameters"] for role in models_of(node.value)]
        if models and None not in [size.value for size in models]:
            name = classes_text(node["family"].value)
            pairs.setdefault(name, Pair(name, *models))
    return list(pairs.values())


def samples(galleries: Sequence[Node]) -> list[Node]:
    """A few questions of different benchmarks, with their images."""
    first: dict[str, Node] = {}
    for gallery in galleries:
        for one in gallery["examples"]:
            first.setdefault(one["benchmark"].value, one)
    every = list(first.values())
    return every[:: max(1, -(-len(every) // _SAMPLES))]


# --- the map --------------------------------------------------------------------------------------


def winning(regimes: Node) -> str:
    """What the regimes in which GRACE beats plain distillation have in common, in words; "" for
    nothing."""
    cells = [place for _, *place in regimes["cells"].value]
    won = [
        place
        for place, row in zip(cells, regimes["rows"].value, strict=True)
        if row["outcome"] == BEATS
    ]
    words = (
        {share: f"the student has seen {seen} of the data" for share, seen in _SEEN.items()},
        {"clean": "all labels are right", "noisy": "a fifth of the labels is wrong"},
        {"same": "training goes on with the same data", "fresh": "training goes on with new data"},
    )
    common: list[str] = []
    for axis, said in enumerate(words):
        found, every = ({said[place[axis]] for place in some} for some in (won, cells))
        if len(found) == 1 < len(every):
            common += found
    return " and ".join(common)


def map_grid(regimes: Node) -> Grid:
    """Of every regime what its intervals say of GRACE, and GRACE's gain over plain distillation.

    Args:
        regimes: The table of regimes, with at least one cell.
    """
    places = [tuple(place) for _, *place in regimes["cells"].value]
    groups = [group for group, *_ in regimes["cells"].value]
    found = dict(zip(places, zip(groups, regimes["rows"], strict=True), strict=True))
    kinds = [
        (labels, data)
        for labels in LABELS
        for data in DATA
        if any(place[1:] == (labels, data) for place in places)
    ]
    gains = [row["cells"][OVER_KD].value for _, row in found.values()]
    axis = Axis.over(gain[end] for gain in gains for end in ("low", "high"))
    marks = {regimes["capacity_bound"].value: " bound", regimes["placed"].value: " placed"}
    rows = []
    for share in SHARES:
        if any(place[0] == share for place in places):
            line = [found.get((share, *kind)) for kind in kinds]
            cells = [_regime(*one, axis, marks) if one else Cell(absent("none")) for one in line]
            rows.append([*heads("", SHARES[share]), *cells])
    words = {"clean": "clean labels", "noisy": "a fifth of the labels wrong"}
    names = [f"{words[labels]}, {data} data" for labels, data in kinds]
    head = [heads("", "The student has seen", *names)]
    return Grid("The map of regimes: GRACE against plain distillation", head, rows, css="regimes")


def _regime(group: str, row: Node, axis: Axis | None, marks: dict[str, str]) -> Cell:
    gain = row["cells"][OVER_KD]
    outcome = Markup("<strong>{}</strong>").format(plain(row["outcome"]))
    if gain["measured"].value is None:
        return Cell(outcome, slug(row["outcome"].value))
    point, low, high = (signed(gain[end].value) for end in ("measured", "low", "high"))
    number = quoted(gain, f"{point} [{low}, {high}]", "measured", "low", "high")
    drawn = bar(axis, *(gain[end].value for end in ("measured", "low", "high")))
    return Cell(stacked(outcome, number, drawn), slug(row["outcome"].value) + marks.get(group, ""))


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
        where = pair["pair"].value.replace("_", " ")
        for row in pair["rows"]:
            status = row["status"].value
            css = {"met": "passed", "not met": "missed"}.get(status, "absent")
            rows.append(
                [
                    *heads("words", stacked(row["name"].value, where)),
                    Cell(_measured(row["measured"]), "num"),
                    Cell(_asked(row["asked"]), "num"),
                    Cell(Markup('<span class="check {}">{}</span>').format(css, status), "words"),
                ]
            )
    head = [*heads("words", "Row"), *heads("num", "Measured", "Asked"), *heads("words", "Met?")]
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
