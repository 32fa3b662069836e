"""Each kind of quantity of the ledger, measured: from result files to an interval.

`measure(part, sources)` is the one entry; a kind is one function below it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from replication.paper import COMPONENTS, Ledger, Part, Reported, consistency
from replication.results.measurements import read_measurement
from replication.results.question_types import answers_by_skill
from replication.results.real_cell import Course, read_real_cell
from replication.results.scores import ResultSet
from replication.results.training_logs import (
    Trajectory,
    budget_excess,
    cost_of,
    cost_ratio,
    read_logs,
    settled_epoch,
    sits_on_bound,
    steps_out_of_bounds,
    trajectory_of,
)
from replication.stats import bootstrap, factorial
from replication.stats.bootstrap import Answers, McNemar, Resamples, Statistic
from replication.stats.verdict import Interval

__all__ = ["Measured", "Sources", "measure", "signed"]

ON_BOUND = "β sits on its bound: nothing is shown of the controller"
EPOCHS = 5.0
"""Within which a rebuttal says that beta settles."""


@dataclass(frozen=True)
class Sources:
    """Everything a quantity may be computed from, and what tables show beside it.

    Attributes:
        results: of one scale.
        ledger: the claims, and the settings of the bootstrap.
        reported: the paper's tables.
        recorded: the folder of results recorded on other devices, if they are to be shown.
    """

    results: ResultSet
    ledger: Ledger
    reported: Reported
    recorded: Path | None = None

    def generator(self, name: str) -> np.random.Generator:
        """The random generator of the comparison of that name."""
        return bootstrap.generator(self.ledger.seed, name)

    def resample(
        self, answers: Sequence[Answers], benchmarks: Sequence[str], name: str
    ) -> Resamples:
        """The bootstrap of the comparison of that name, by the ledger's settings."""
        return bootstrap.bootstrap_scores(
            answers, benchmarks, self.generator(name), self.ledger.resamples
        )


@dataclass(frozen=True)
class Measured:
    """What was measured of a part.

    Attributes:
        interval: None where there is no value.
        note: what a reader should know of the value.
        missing: what was not run; "": nothing is missing.
        undecided: why an interval outside the rule refutes nothing.
        open: why nothing is decided, wherever the interval lies.
        excusable: of counted errors: whether all of them are listed.
        resolves: whether a smallest resolvable difference applies.
        questions: how many were answered.
        seeds: by run, those of its trainings.
        mcnemar: the exact test of a single pair of runs on one benchmark.
    """

    interval: Interval | None = None
    note: str = ""
    missing: str = ""
    undecided: str = ""
    open: str = ""
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
    """The part's quantity at the results' scale; `missing` names what was not run.

    Raises:
        InputError: for results that are wrong in themselves.
    """
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
    groups = list(answers[0].values) if part.kind == "worst_skill" else part.benchmarks
    measured = _FROM_ANSWERS[part.kind](part, answers, sources)
    pairs = len(answers[0].rows())
    pooled = f"pooled over {pairs} pairs of teacher and baseline" if pairs > 1 else ""
    return replace(
        measured,
        note="; ".join(filter(None, (measured.note, pooled))),
        questions=sum(answers[0].values[name].shape[1] for name in groups),
        seeds={run: list(own.seeds) for run, own in zip(runs, answers, strict=True)},
        resolves=part.kind not in ("value", "disagreement"),
    )


def _interval(
    part: Part, answers: list[Answers], sources: Sources, statistic: Statistic
) -> Interval:
    scores = sources.resample(answers, part.benchmarks, part.id)
    return bootstrap.interval(scores, statistic, sources.ledger.level)


def _value(part: Part, answers: list[Answers], sources: Sources) -> Measured:
    return Measured(_interval(part, answers, sources, bootstrap.score))


def _difference(part: Part, answers: list[Answers], sources: Sources) -> Measured:
    first, second = answers
    interval = _interval(part, answers, sources, bootstrap.difference)
    pair = None
    if len(part.benchmarks) == 1 and len(first.seeds) == len(second.seeds) == 1:
        rows = [run.values[part.benchmarks[0]][0] for run in answers]
        if all(np.isin(row, (0, 1)).all() for row in rows):
            pair = bootstrap.mcnemar(rows[0], rows[1])
    same = first.seeds == second.seeds and all(
        np.array_equal(first.values[name], second.values[name]) for name in part.benchmarks
    )
    note = "every answer is the same: one model under two names?" if same else ""
    return Measured(interval, note=note, mcnemar=pair)


def _ratio(part: Part, answers: list[Answers], sources: Sources) -> Measured:
    scores = sources.resample(answers, part.benchmarks, part.id)
    interval = bootstrap.find_interval(scores, bootstrap.ratio, sources.ledger.level)
    note = "" if interval else f"{part.quantity['against']} scores zero: there is no ratio"
    return Measured(interval, note=note)


def _gap_closed(part: Part, answers: list[Answers], sources: Sources) -> Measured:
    """No fraction where the gap's interval is not above zero: there is no gap to close."""
    scores, level = sources.resample(answers, part.benchmarks, part.id), sources.ledger.level
    gap = bootstrap.interval(scores, bootstrap.gap, level)
    fraction = None
    if gap.low > 0:
        fraction = bootstrap.find_interval(scores, bootstrap.gap_closed, level)
    note = f"gap {signed(gap.point)} [{signed(gap.low)}, {signed(gap.high)}] points"
    if fraction is None:
        note = f"teacher and baseline are not told apart: {note}"
    return Measured(fraction, note=note)


def _main_effect(part: Part, answers: list[Answers], sources: Sources) -> Measured:
    design = sources.reported.table(part.quantity["table"]).design()
    effects = factorial.factorial_effects(
        dict(zip(design, answers, strict=True)),
        COMPONENTS,
        part.benchmarks,
        # one draw for all effects of one design
        sources.generator(f"effects:{part.quantity['table']}"),
        resamples=sources.ledger.resamples,
        level=sources.ledger.level,
    )
    return Measured(effects[(part.quantity["component"],)])


def _sweep_spread(part: Part, answers: list[Answers], sources: Sources) -> Measured:
    """Of runs of the controller whose multipliers all sit on a bound it shows nothing of it."""
    scores = sources.resample(answers, part.benchmarks, part.id)
    family, runs = part.quantity["family"], part.runs(sources.reported)
    courses = [course for run in runs for course in _courses(sources, family, run).values()]
    return Measured(
        factorial.spread_interval(scores, sources.ledger.level),
        open=ON_BOUND if courses and all(map(sits_on_bound, courses)) else "",
    )


def _disagreement(part: Part, answers: list[Answers], sources: Sources) -> Measured:
    differing = factorial.disagreement(answers[0], answers[1], part.benchmarks)
    return Measured(_interval(part, [differing], sources, bootstrap.score))


def _worst_skill(part: Part, answers: list[Answers], sources: Sources) -> Measured:
    skills = list(answers[0].values)
    scores = bootstrap.bootstrap_benchmarks(
        answers, skills, sources.generator(part.id), sources.ledger.resamples
    )
    skill, interval = factorial.worst_loss(skills, scores, sources.ledger.level)
    return Measured(interval, note=f"most lost on {skill}, of {len(skills)}")


_FROM_ANSWERS: dict[str, Callable[[Part, list[Answers], Sources], Measured]] = {
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
    seeds = {}
    for run in runs:
        scores = sources.results.scores(family, run)
        if scores is None:
            return Measured(missing=_missing(part, sources.results, runs))
        seeds[run] = list(scores.seeds)
    fewest = min(map(len, seeds.values()))
    few = [run for run, own in seeds.items() if len(own) == fewest]
    return Measured(
        Interval.exact(float(fewest)),
        note=f"fewest: {', '.join(few)}" if len(few) < len(runs) else "",
        undecided="too few seeds: more evidence is needed, nothing is refuted",
        seeds=seeds,
    )


def _cost_ratio(part: Part, sources: Sources) -> Measured:
    family, runs = part.quantity["family"], part.runs(sources.reported)
    costs = {}
    for run in runs:
        logs = read_logs(sources.results.results, sources.results.scale, family, run)
        own = {seed: cost for seed, log in logs.items() if (cost := cost_of(log)) is not None}
        if not own:
            return Measured(missing=f"no training log of {family}-{run} states its cost")
        costs[run] = own
    first, second = (list(costs[run].values()) for run in runs)
    interval, note = cost_ratio(first, second, part.quantity["cost"], sources.ledger.level)
    return Measured(interval, note=note, seeds={run: list(own) for run, own in costs.items()})


def _controller(part: Part, sources: Sources) -> Measured:
    family, (run,) = part.quantity["family"], part.runs(sources.reported)
    courses = _courses(sources, family, run)
    if not courses:
        return Measured(missing=f"no training log of {family}-{run} holds the controller's course")
    found = list(courses.values())
    return replace(
        _CONTROLLER[part.quantity["check"]](found),
        seeds={run: list(courses)},
        open=ON_BOUND if all(map(sits_on_bound, found)) else "",
    )


def _courses(sources: Sources, family: str, run: str) -> dict[int, Trajectory]:
    """The controller's course in a run's training logs, by seed."""
    logs = read_logs(sources.results.results, sources.results.scale, family, run)
    return {seed: course for seed, log in logs.items() if (course := trajectory_of(log))}


def _bounds(trajectories: list[Trajectory]) -> Measured:
    count = sum(len(course.beta) for course in trajectories)
    outside = float(steps_out_of_bounds(trajectories))
    return Measured(Interval.exact(outside), note=f"{count} logged steps")


def _budget(trajectories: list[Trajectory]) -> Measured:
    interval, undecided = budget_excess(trajectories)
    return Measured(interval, undecided=undecided)


def _settles(trajectories: list[Trajectory]) -> Measured:
    epochs = [settled_epoch(course) for course in trajectories]
    settled = [epoch for epoch in epochs if epoch is not None]
    if len(settled) < len(epochs):
        longest = max(float(course.epoch[-1]) for course in trajectories)
        note = f"β still moved when training ended, after {longest:.2g} epochs"
        return Measured(Interval.exact(longest) if longest > EPOCHS else None, note=note)
    return Measured(Interval(float(np.mean(settled)), min(settled), max(settled)))


_CONTROLLER = {"bounds": _bounds, "budget": _budget, "settles": _settles}


def _measurement(part: Part, sources: Sources) -> Measured:
    name, value = part.quantity["name"], part.quantity["value"]
    measurement = read_measurement(sources.results.results, sources.results.scale, name)
    if measurement is None:
        return Measured(missing=f"no measurement {name}")
    if value not in measurement.values:
        return Measured(missing=f"measurement {name} holds no {value}")
    counts = ", ".join(f"{count} {what}" for what, count in measurement.n.items())
    return Measured(measurement.values[value], note=counts)


def _real_cell(part: Part, sources: Sources) -> Measured:
    """What was measured on a pretrained language model: on text, without images."""
    cell = read_real_cell(sources.results.results)
    if cell is None:
        return Measured(missing="not run: make real-cell")
    section, name, value = part.quantity["section"], part.quantity["name"], part.quantity["value"]
    if section == "courses":
        return _real_course(cell.courses.get(name, {}))
    measured = getattr(cell, section).get(name)
    if measured is None or value not in measured.values:
        return Measured(missing=f"the cell has no {value} of {name}")
    counts = ", ".join(f"{count:,} {what}" for what, count in measured.n.items())
    return Measured(measured.values[value].interval(), note=counts)


def _real_course(courses: Mapping[str, Course]) -> Measured:
    """The excess of the controller's moving average over its budget, and where beta ended."""
    found = [course for course in courses.values() if course.tau and course.bounds and course.ema]
    if not found:
        return Measured(missing="the cell has no such course of the controller")
    excess = [(course.ema[-1] - course.tau) / course.tau for course in found]  # type: ignore[operator]
    betas = ", ".join(f"{course.beta[-1]:.3g}" for course in found)
    low, high = found[0].bounds or (0.0, 0.0)
    note = f"β ends at {betas}, bounds {low:g} and {high:g}"
    return Measured(Interval(float(np.mean(excess)), min(excess), max(excess)), note=note)


def _consistency(part: Part, sources: Sources) -> Measured:
    """Number of printed figures that do not follow from the others."""
    reported, quantity = sources.reported, part.quantity
    comparisons = consistency.run_check(reported, quantity["check"], quantity.get("table"))
    mismatches = consistency.mismatches(comparisons)
    note, excusable = f"{len(comparisons)} compared", True
    names = []
    for mismatch in mismatches:
        known = consistency.discrepancy_of(mismatch, reported)
        names.append(known.id if known else f"{mismatch.check} (new)")
        excusable &= known is not None
    if names:
        note += ": " + ", ".join(dict.fromkeys(names))
    return Measured(Interval.exact(float(len(mismatches))), note=note, excusable=excusable)


_OTHERS: dict[str, Callable[[Part, Sources], Measured]] = {
    "seeds": _seeds,
    "cost_ratio": _cost_ratio,
    "controller": _controller,
    "measurement": _measurement,
    "real_cell": _real_cell,
    "counted": _measurement,
    "internal_consistency": _consistency,
}
