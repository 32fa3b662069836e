"""The cell of the map with a pretrained language model: text, no images."""

from __future__ import annotations

from markupsafe import Markup

from replication.report.page.bars import Axis, bar
from replication.report.page.grids import Cell, Grid, heads, stacked
from replication.report.page.sources import Node, absent, plain, quoted

_SCORES = {"nll": (3, "nats a token"), "agreement": (1, "agreement, %"), "kl": (3, "KL, nats")}
_LEVELS = {
    "teacher": "teacher",
    "truncated": "its first layers, before recovery",
    "recovered": "student: these, recovered",
}


def _number(interval: Node, places: int, *, signed: bool = False) -> Markup:
    sign = "+" if signed else ""
    ends = (f"{interval.value[key]:{sign}.{places}f}" for key in ("point", "low", "high"))
    point, low, high = (text.replace("-", "−") for text in ends)
    return quoted(interval, f"{point} [{low}, {high}]", "point", "low", "high")


def _scores(values: Node) -> list[Cell]:
    return [Cell(_number(values[name], places), "num") for name, (places, _) in _SCORES.items()]


def scores_grid(cell: Node) -> Grid:
    """Scores on held-out text, and every run's effect against the recovered student."""
    axes = {
        name: Axis.over(
            run["effects"][name][end]
            for run in cell["runs"].value.values()
            for end in ("low", "high")
        )
        for name in _SCORES
    }
    rows = []
    for name, values in cell["levels"].items():
        none = [Cell(absent("none"), "num") for _ in _SCORES]
        rows.append([*heads("words", _LEVELS.get(name, name)), *none, *_scores(values)])
    for name, run in cell["runs"].items():
        effects = []
        for score, (places, _) in _SCORES.items():
            one = run["effects"][score]
            drawn = bar(axes[score], *(one.value[key] for key in ("point", "low", "high")))
            effects.append(Cell(stacked(_number(one, places, signed=True), drawn), "num"))
        label = Markup("<code>{}</code>, {} bits").format(name, plain(run["bits"]))
        rows.append([*heads("words", label), *effects, *_scores(run["scores"])])
    units = [unit for _, unit in _SCORES.values()]
    head = [
        *heads("words", "Model"),
        *heads("num", *(f"Effect: {unit}" for unit in units)),
        *heads("num", *(f"Held out: {unit}" for unit in units)),
    ]
    return Grid("A pretrained language model: scores and effects", [head], rows)


def logits_grid(cell: Node) -> Grid:
    """What the map's signs are on real logits: doubt, gate, covariance, the loss against τ."""
    rows = []
    for name, measured in cell["teacher_on"].items():
        for key, unit in (("entropy", "nats"), ("gate", "")):
            label = f"teacher’s {key} on {name.replace('_', ' ')} text"
            rows.append(
                [*heads("words", label), _value(measured["values"][key]), Cell(unit or "–")]
            )
    for name, measured in cell["gate_covariance"].items():
        value = _value(measured["values"]["covariance"])
        rows.append([*heads("words", f"N Cov(w, DKD), {name}"), value, Cell("nats")])
    for name, seeds in cell["courses"].items():
        for seed, course in seeds.items():
            ends = (course["gdkd"][0], course["gdkd"][len(course["gdkd"]) - 1])
            first, last = (quoted(one, f"{one.value:.2f}") for one in ends)
            tau = course["tau"]
            budget = absent("fixed") if tau.value is None else quoted(tau, f"{tau.value:g}")
            words = Markup("{} to {}, τ {}").format(first, last, budget)
            rows.append([*heads("words", f"GDKD, {name}, seed {seed}"), Cell(words, "num"),
                         Cell("nats, times T²")])  # fmt: skip
    head = [*heads("words", "Measured"), *heads("num", "Value, 95 % interval"), *heads("", "Unit")]
    return Grid("A pretrained language model: logits", [head], rows, tall=True)


def _value(interval: Node) -> Cell:
    return Cell(_number(interval, 3), "num")
