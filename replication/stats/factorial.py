"""Statistics of several runs at once: factorial designs, sweeps, disagreement, question types.

All of them are paired bootstraps of `replication.stats.bootstrap`: every run answered the same
questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from grace.errors import InputError
from replication.stats.bootstrap import (
    LEVEL,
    RESAMPLES,
    Answers,
    Interval,
    bootstrap_benchmarks,
    bootstrap_scores,
    percentile_interval,
    score_interval,
)


def factorial_weights(factors: Sequence[str], effect: Sequence[str]) -> dict[frozenset[str], float]:
    """What each run of a full two-level design weighs in an effect.

    A main effect is the mean of the runs with the factor minus the mean of those without it. An
    interaction of two factors is half the difference between the effect of the one with and without
    the other; of three, half the difference between two such interactions (the usual convention).

    Raises InputError for an effect of no factor, or of one that the design lacks.
    """
    if not effect or not set(effect) <= set(factors):
        raise InputError(f"effect {list(effect)} is not one of {', '.join(factors)}")
    runs = [
        frozenset(chosen)
        for size in range(len(factors) + 1)
        for chosen in combinations(factors, size)
    ]
    half = 2 ** (len(factors) - 1)
    return {run: (-1) ** len(set(effect) - run) / half for run in runs}


def factorial_effects(
    design: Mapping[frozenset[str], Answers],
    factors: Sequence[str],
    benchmarks: Sequence[str],
    rng: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> dict[tuple[str, ...], Interval]:
    """All main effects and interactions of a full two-level design, in points of the average.

    design: the answers of each of the 2^k runs by the factors that are on. The keys of the result
    are the effects' factors, main effects first. Definitions: `factorial_weights`.

    Raises InputError for a design that lacks a run; otherwise as `bootstrap_scores`.
    """
    runs = list(factorial_weights(factors, factors[:1]))
    lacking = [run for run in runs if run not in design]
    if lacking:
        raise InputError(f"the design lacks {', '.join(str(sorted(one)) for one in lacking)}")
    points, drawn = bootstrap_scores([design[run] for run in runs], benchmarks, rng, resamples)
    effects = {}
    for size in range(1, len(factors) + 1):
        for effect in combinations(factors, size):
            weights = factorial_weights(factors, effect)
            vector = np.array([weights[run] for run in runs])
            effects[effect] = percentile_interval(points @ vector, drawn @ vector, level)
    return effects


def largest_interval(points: np.ndarray, drawn: np.ndarray, level: float = LEVEL) -> Interval:
    """An interval of the largest of several quantities: points (k,), resamples (resamples, k).

    The largest of noisy estimates is too large on average, and so are its resamples. Hence:
    - the upper end is the largest of the single upper ends. Whichever quantity is the largest, its
      own end is among them, so the level is kept (an intersection-union test);
    - the lower end is the largest of simultaneous lower ends: the points minus one quantile of the
      largest deviation of a resample from its point.
    The standard error is that of the quantity whose point is the largest.
    """
    if points.ndim != 1 or drawn.shape[1:] != points.shape or not points.size:
        raise InputError(f"quantities of shapes {points.shape} and {drawn.shape} do not match")
    tail = (1.0 - level) / 2.0
    high = float(np.quantile(drawn, 1.0 - tail, axis=0).max())
    reach = float(np.quantile((drawn - points).max(axis=1), 1.0 - tail))
    point, first = float(points.max()), int(points.argmax())
    error = float(drawn[:, first].std(ddof=1)) if len(drawn) > 1 else 0.0
    return Interval(point, min(point - reach, point), max(high, point), level, error)


def spread_interval(
    runs: Sequence[Answers],
    benchmarks: Sequence[str],
    rng: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """The largest difference between any two of the runs' scores, in points; never below 0.

    See `largest_interval`. Raises InputError for fewer than two runs; otherwise as
    `bootstrap_scores`.
    """
    if len(runs) < 2:
        raise InputError(f"a spread over {len(runs)} run(s) has no value: give at least two")
    points, drawn = bootstrap_scores(runs, benchmarks, rng, resamples)
    first, second = np.array(
        [(i, j) for i in range(len(runs)) for j in range(len(runs)) if i != j]
    ).T
    found = largest_interval(
        points[first] - points[second], drawn[:, first] - drawn[:, second], level
    )
    return Interval(found.point, max(found.low, 0.0), found.high, level, found.standard_error)


def seed_pairs(first: Answers, second: Answers) -> list[tuple[int, int]]:
    """Which rows of two runs' answers are compared: equal seeds where both have the same seeds,
    otherwise every seed of the one with every seed of the other."""
    if first.seeds == second.seeds:
        return [(index, index) for index in range(len(first.seeds))]
    return [(i, j) for i in range(len(first.seeds)) for j in range(len(second.seeds))]


def disagreement_interval(
    run: Answers,
    against: Answers,
    benchmarks: Sequence[str],
    rng: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """Mean absolute difference of two runs' credits, in percent: for right and wrong answers, the
    share of questions that only one of the two answers right. Seeds: see `seed_pairs`.

    Errors: see `bootstrap_scores`.
    """
    pairs = seed_pairs(run, against)
    values = {}
    for name in benchmarks:
        for one in (run, against):
            if name not in one.values:
                raise InputError(f"benchmark {name!r} is missing from a run")
        if run.values[name].shape[1] != against.values[name].shape[1]:
            raise InputError(f"{name}: runs answered different questions; they must be paired")
        values[name] = np.stack(
            [np.abs(run.values[name][i] - against.values[name][j]) for i, j in pairs]
        )
    differing = Answers(tuple(range(len(pairs))), values)
    return score_interval(differing, benchmarks, rng, resamples=resamples, level=level)


def worst_loss(
    run: Answers,
    against: Answers,
    rng: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> tuple[str, Interval]:
    """The group of questions on which `run` loses most against `against`, and the loss in points.

    The groups (question types, say) are the answers' own names. See `largest_interval`. Raises
    InputError as `bootstrap_benchmarks`.
    """
    names = list(run.values)
    points, drawn = bootstrap_benchmarks([run, against], names, rng, resamples)
    loss = points[1] - points[0]
    return names[int(loss.argmax())], largest_interval(loss, drawn[:, 1] - drawn[:, 0], level)
