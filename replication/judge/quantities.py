"""Each kind of quantity of the ledger, measured: from result files to an interval.

`measure(part, sources)` is the one entry; a kind is one function below it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from replication.paper import COMPONENTS, Ledger, Part, Reported
from replication.paper import consistency as printed
from replication.results.measurements import read_measurement
from replication.results.question_types import answers_by_skill
from replication.results.scores import ResultSet
from replication.results.training_logs import (
    Trajectory,
    budget_excess,
    cost_of,
    cost_ratio,
    read_logs,
    settled_epoch,
    steps_out_of_bounds,
    trajectory_of,
)
from replication.stats import bootstrap as compare
from replication.stats import factorial as designs
from replication.stats.bootstrap import Answers, Interval, McNemar

__all__ = ["Measured", "Sources", "measure", "signed"]

EPOCHS = 5.0  # within which a rebuttal says that beta settles


@dataclass(frozen=True)
class Sources:
    """Everything a quantity may be computed from, and what tables show beside it.

    recorded: the folder of results recorded on other devices, if they are to be shown.
    """

    results: ResultSet
    ledger: Ledger
    reported: Reported
    recorded: Path | None = None

    @property
    def settings(self) -> dict[str, Any]:
        return {"resamples": self.ledger.resamples, "level": self.ledger.level}


@dataclass(frozen=True)
class Measured:
    """What was measured of a part.

    interval: None where there is no value. missing: what was not run ("": nothing is missing).
    undecided: why an interval outside the rule contradicts nothing. excusable: for counted errors,
    whether all of them are listed. resolves: whether a smallest resolvable difference applies.
    """

    interval: Interval | None = None
    note: str = ""
    missing: str = ""
    undecided: str = ""
    excusable: bool = True
    resolves: bool = False
    questions: int | None = None
    seeds: dict[str, list[int]] | None = None
    mcnemar: McNemar | None = None


def signed(value: float, places: int = 1) -> str:
    """A number with its sign (a true minus), and no negative zero."""
    text = f"{value:+.{places}f}"
    zero = f"{0.0:+.{places}f}"
    return zero if text == zero.replace("+", "-") else text.replace("-", "−")


def measure(part: Part, sources: Sources) -> Measured:
    """The part's quantity at the results' scale. Raises InputError for results that are wrong in
    themselves; what is missing is named in `Measured.missing`."""
    if part.kind in _FROM_ANSWERS:
        return _from_answers(part, sources)
    return _OTHERS[part.kind](part, sources)


# --- from per-question answers --------------------------------------------------------------------


def _missing(part: Part, results: ResultSet, runs: list[str]) -> str:
    family = part.quantity["family"]
    absent = [run for run in runs if results.scores(family, run) is None]
    if absent:
        return "no results of " + ", ".join(f"{family}/{run}" for run in absent)
    return f"not all runs of {family} have results on {', '.join(part.benchmarks)}"


def _from_answers(part: Part, sources: Sources) -> Measured:
    family, runs = part.quantity["family"], part.runs(sources.reported)
    if part.kind == "worst_skill":
        answers = answers_by_skill(sources.results, family, runs, part.benchmarks)
    else:
        answers = sources.results.answers(family, runs, part.benchmarks)
    if answers is None:
        return Measured(missing=_missing(part, sources.results, runs))
    found: dict[str, Any] = {"note": "", "mcnemar": None}
    found |= _FROM_ANSWERS[part.kind](part, answers, sources)
    groups = part.benchmarks if part.kind != "worst_skill" else list(answers[0].values)
    return Measured(
        questions=sum(answers[0].values[name].shape[1] for name in groups),
        seeds={run: list(one.seeds) for run, one in zip(runs, answers, strict=True)},
        resolves=part.kind not in ("value", "disagreement"),
        **found,
    )


def _rng(part: Part, sources: Sources) -> np.random.Generator:
    return compare.generator(sources.ledger.seed, part.id)


def _value(part: Part, answers: list[Answers], sources: Sources) -> dict[str, Any]:
    rng = _rng(part, sources)
    interval = compare.score_interval(answers[0], part.benchmarks, rng, **sources.settings)
    return {"interval": interval}


def _same_answers(first: Answers, second: Answers, part: Part) -> bool:
    return first.seeds == second.seeds and all(
        np.array_equal(first.values[name], second.values[name]) for name in part.benchmarks
    )


def _difference(part: Part, answers: list[Answers], sources: Sources) -> dict[str, Any]:
    first, second = answers
    interval = compare.difference_interval(
        first, second, part.benchmarks, _rng(part, sources), **sources.settings
    )
    pair = None
    if len(part.benchmarks) == 1 and all(len(one.seeds) == 1 for one in answers):
        rows = [one.values[part.benchmarks[0]][0] for one in answers]
        if all(np.isin(row, (0, 1)).all() for row in rows):
            pair = compare.mcnemar(rows[0], rows[1])
    same = _same_answers(first, second, part)
    note = "every answer is the same: one model under two names?" if same else ""
    return {"interval": interval, "mcnemar": pair, "note": note}


def _ratio(part: Part, answers: list[Answers], sources: Sources) -> dict[str, Any]:
    rng = _rng(part, sources)
    found = compare.ratio_interval(answers[0], answers[1], part.benchmarks, rng, **sources.settings)
    note = "" if found else f"{part.quantity['against']} scores zero: there is no ratio"
    return {"interval": found, "note": note}


def _gap_closed(part: Part, answers: list[Answers], sources: Sources) -> dict[str, Any]:
    fraction, gap = compare.gap_closed_interval(
        answers[0], answers[1], answers[2], part.benchmarks, _rng(part, sources), **sources.settings
    )
    note = f"gap {signed(gap.point)} [{signed(gap.low)}, {signed(gap.high)}] points"
    if fraction is None:
        note = f"teacher and baseline are not told apart: {note}"
    return {"interval": fraction, "note": note}


def _main_effect(part: Part, answers: list[Answers], sources: Sources) -> dict[str, Any]:
    design = sources.reported.table(part.quantity["table"]).design()
    effects = designs.factorial_effects(
        dict(zip(design, answers, strict=True)),
        COMPONENTS,
        part.benchmarks,
        # one draw for all effects of one design
        compare.generator(sources.ledger.seed, f"effects:{part.quantity['table']}"),
        **sources.settings,
    )
    return {"interval": effects[(part.quantity["component"],)]}


def _sweep_spread(part: Part, answers: list[Answers], sources: Sources) -> dict[str, Any]:
    rng = _rng(part, sources)
    return {"interval": designs.spread_interval(answers, part.benchmarks, rng, **sources.settings)}


def _disagreement(part: Part, answers: list[Answers], sources: Sources) -> dict[str, Any]:
    rng = _rng(part, sources)
    interval = designs.disagreement_interval(
        answers[0], answers[1], part.benchmarks, rng, **sources.settings
    )
    return {"interval": interval}


def _worst_skill(part: Part, answers: list[Answers], sources: Sources) -> dict[str, Any]:
    skill, interval = designs.worst_loss(
        answers[0], answers[1], _rng(part, sources), **sources.settings
    )
    return {"interval": interval, "note": f"most lost on {skill}, of {len(answers[0].values)}"}


_FROM_ANSWERS: dict[str, Callable[[Part, list[Answers], Sources], dict[str, Any]]] = {
    "difference": _difference,
    "equivalence": _difference,
    "gap_closed": _gap_closed,
    "ratio": _ratio,
    "value": _value,
    "main_effect": _main_effect,
    "sweep_spread": _sweep_spread,
    "disagreement": _disagreement,
    "worst_skill": _worst_skill,
}


# --- from elsewhere -------------------------------------------------------------------------------


def _seeds(part: Part, sources: Sources) -> Measured:
    """The smallest number of seeds that any of the runs has."""
    family, runs = part.quantity["family"], part.runs(sources.reported)
    scores = {run: sources.results.scores(family, run) for run in runs}
    if any(one is None for one in scores.values()):
        return Measured(missing=_missing(part, sources.results, runs))
    seeds = {run: list(one.seeds) for run, one in scores.items() if one is not None}
    fewest = min(len(one) for one in seeds.values())
    few = [run for run, one in seeds.items() if len(one) == fewest]
    note = f"fewest: {', '.join(few)}" if len(few) < len(runs) else ""
    return Measured(
        Interval.exact(float(fewest)),
        note=note,
        undecided="too few seeds: more evidence is needed, nothing is refuted",
        seeds=seeds,
    )


def _cost_ratio(part: Part, sources: Sources) -> Measured:
    family, runs = part.quantity["family"], part.runs(sources.reported)
    found = []
    seeds: dict[str, list[int]] = {}
    for run in runs:
        logs = read_logs(sources.results.results, sources.results.scale, family, run)
        costs = {seed: cost for seed, log in logs.items() if (cost := cost_of(log)) is not None}
        if not costs:
            return Measured(missing=f"no training log of {family}-{run} states its cost")
        found.append(list(costs.values()))
        seeds[run] = list(costs)
    interval, note = cost_ratio(found[0], found[1], part.quantity["cost"], sources.ledger.level)
    return Measured(interval, note=note, seeds=seeds)


def _controller(part: Part, sources: Sources) -> Measured:
    family, (run,) = part.quantity["family"], part.runs(sources.reported)
    logs = read_logs(sources.results.results, sources.results.scale, family, run)
    found: dict[int, Trajectory] = {
        seed: one for seed, log in logs.items() if (one := trajectory_of(log)) is not None
    }
    if not found:
        return Measured(missing=f"no training log of {family}-{run} holds the controller's course")
    trajectories, seeds = list(found.values()), {run: list(found)}
    check = part.quantity["check"]
    if check == "bounds":
        count = sum(len(one.beta) for one in trajectories)
        outside = float(steps_out_of_bounds(trajectories))
        return Measured(Interval.exact(outside), note=f"{count} logged steps", seeds=seeds)
    if check == "budget":
        interval, undecided = budget_excess(trajectories)
        return Measured(interval, undecided=undecided, seeds=seeds)
    epochs = [settled_epoch(one) for one in trajectories]
    settled = [epoch for epoch in epochs if epoch is not None]
    longest = max(float(one.epoch[-1]) for one in trajectories)
    if len(settled) < len(epochs):
        note = f"β still moved when training ended, after {longest:.2g} epochs"
        late = Interval.exact(longest) if longest > EPOCHS else None
        return Measured(late, note=note, seeds=seeds)
    point = float(np.mean(settled))
    return Measured(Interval(point, min(settled), max(settled)), seeds=seeds)


def _measurement(part: Part, sources: Sources) -> Measured:
    name, value = part.quantity["name"], part.quantity["value"]
    found = read_measurement(sources.results.results, sources.results.scale, name)
    if found is None:
        return Measured(missing=f"no measurement {name}")
    if value not in found.values:
        return Measured(missing=f"measurement {name} holds no {value}")
    counts = ", ".join(f"{count} {what}" for what, count in found.n.items())
    return Measured(found.values[value], note=counts)


def _deployment(part: Part, sources: Sources) -> Measured:
    """A ratio that was measured on a published architecture, built whole."""
    found = read_measurement(
        sources.results.results, sources.results.scale, f"deploy-{part.quantity['model']}"
    )
    if found is None:
        return Measured(missing=f"{part.quantity['model']} was not measured")
    if found.data.get("layers") is not None:
        return Measured(missing=f"only {found.data['layers']} layers were built")
    value = part.quantity["value"]
    if value not in found.values:
        return Measured(missing=f"no {value} was measured: {found.data.get('missing', 'not run')}")
    return Measured(found.values[value], note=f"{found.evidence} on {found.data['device']}")


def _consistency(part: Part, sources: Sources) -> Measured:
    """Number of printed figures that do not follow from the others."""
    reported = sources.reported
    done = printed.run_check(reported, part.quantity["check"], part.quantity.get("table"))
    wrong = printed.mismatches(done)
    known = [printed.discrepancy_of(mismatch, reported) for mismatch in wrong]
    note = f"{len(done)} compared"
    if wrong:
        names = [
            entry.id if entry else f"{mismatch.check} (new)"
            for mismatch, entry in zip(wrong, known, strict=True)
        ]
        note += ": " + ", ".join(dict.fromkeys(names))
    return Measured(Interval.exact(float(len(wrong))), note=note, excusable=all(known))


_OTHERS: dict[str, Callable[[Part, Sources], Measured]] = {
    "seeds": _seeds,
    "cost_ratio": _cost_ratio,
    "controller": _controller,
    "measurement": _measurement,
    "counted": _measurement,
    "deployment": _deployment,
    "internal_consistency": _consistency,
}
