"""Statistics of several runs at once: factorial designs, sweeps, disagreement, question types.

All of them are statistics of the paired bootstraps of `replication.stats.bootstrap`: every run
answered the same questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, permutations

import numpy as np

from replication.stats.bootstrap import (
    RESAMPLES,
    Answers,
    Resamples,
    Statistic,
    bootstrap_scores,
    interval,
)
from replication.stats.verdict import LEVEL, Interval

Design = Mapping[frozenset[str], Answers]
"""The answers of each of the 2^k runs of a full two-level design, by the factors that are on."""


def all_effects(factors: Sequence[str]) -> list[tuple[str, ...]]:
    """The main effects and interactions of a design, main effects first."""
    sizes = range(1, len(factors) + 1)
    return [effect for size in sizes for effect in combinations(factors, size)]


def factorial_weights(factors: Sequence[str], effect: Sequence[str]) -> dict[frozenset[str], float]:
    """What each run of a full two-level design weighs in an effect.

    A main effect is the mean of the runs with the factor minus the mean of those without it. An
    interaction of two factors is half the difference between the effect of the one with and without
    the other; of three, half the difference between two such interactions (the usual convention).

    Args:
        factors: all of the design.
        effect: one or more of them.
    """
    assert effect and set(effect) <= set(factors)
    runs = [frozenset(), *map(frozenset, all_effects(factors))]
    half = 2 ** (len(factors) - 1)
    return {run: (-1) ** len(set(effect) - run) / half for run in runs}


def factorial_effects(
    design: Design,
    factors: Sequence[str],
    benchmarks: Sequence[str],
    rng: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> dict[tuple[str, ...], Interval]:
    """All main effects and interactions of a full two-level design, in points of the average.

    Arguments and errors are those of `bootstrap_scores`, definitions those of `factorial_weights`.

    Returns:
        The intervals by the effects' factors, in the order of `all_effects`.
    """
    runs = list(factorial_weights(factors, factors[:1]))
    scores = bootstrap_scores([design[run] for run in runs], benchmarks, rng, resamples)
    effects = {}
    for effect in all_effects(factors):
        weights = factorial_weights(factors, effect)
        effects[effect] = interval(scores, _contrast(list(weights.values())), level)
    return effects


def _contrast(weights: Sequence[float]) -> Statistic:
    vector = np.array(weights)
    return lambda scores: scores @ vector


def largest_interval(points: np.ndarray, drawn: np.ndarray, level: float = LEVEL) -> Interval:
    """An interval of the largest of several quantities.

    The largest of noisy estimates is too large on average, and so are its resamples. Hence:
    - the upper end is the largest of the single upper ends. Whichever quantity is the largest, its
      own end is among them, so the level is kept (an intersection-union test);
    - the lower end is the largest of simultaneous lower ends: the points minus one quantile of the
      largest deviation of a resample from its point.
    The standard error is that of the quantity whose point is the largest.

    Args:
        points: (k,), of the sample.
        drawn: (resamples, k), of its resamples.
        level: between 0 and 1.
    """
    assert points.ndim == 1 and points.size and drawn.shape[1:] == points.shape
    tail = (1.0 - level) / 2.0
    high = float(np.quantile(drawn, 1.0 - tail, axis=0).max())
    reach = float(np.quantile((drawn - points).max(axis=1), 1.0 - tail))
    point, first = float(points.max()), int(points.argmax())
    error = float(drawn[:, first].std(ddof=1)) if len(drawn) > 1 else 0.0
    return Interval(point, min(point - reach, point), max(high, point), level, error)


def spread_interval(scores: Resamples, level: float = LEVEL) -> Interval:
    """The largest difference between any two of at least two runs' scores; never below 0.

    See `largest_interval`.

    Args:
        scores: of `bootstrap_scores`, in points.
        level: between 0 and 1.
    """
    points, drawn = scores
    first, second = np.array(list(permutations(range(len(points)), 2))).T
    largest = largest_interval(
        points[first] - points[second], drawn[:, first] - drawn[:, second], level
    )
    low = max(largest.low, 0.0)
    return Interval(largest.point, low, largest.high, level, largest.standard_error)


def seed_pairs(first: Answers, second: Answers) -> list[tuple[int, int]]:
    """Which rows of two runs' answers are compared.

    Equal seeds where both have the same seeds, otherwise every seed of the one with every seed of
    the other; always of one pair of teacher and baseline.
    """
    if (first.pairs, first.seeds) == (second.pairs, second.seeds):
        return [(index, index) for index in range(len(first.seeds))]
    own, other = first.rows(), second.rows()
    return [
        (i, j)
        for pair, rows in own.items()
        for i in range(rows.start, rows.stop)
        for j in range(other[pair].start, other[pair].stop)
    ]


def disagreement(run: Answers, against: Answers, benchmarks: Sequence[str]) -> Answers:
    """How far two runs' credits lie apart, question by question, in the place of answers.

    The score of the result is their mean absolute difference in percent: for right and wrong
    answers, the share of questions that only one of the two answers right. Its seeds are the pairs
    of `seed_pairs`.
    """
    pairs = seed_pairs(run, against)
    values = {
        name: np.stack([np.abs(run.values[name][i] - against.values[name][j]) for i, j in pairs])
        for name in benchmarks
    }
    return Answers(
        tuple(range(len(pairs))), values, tuple(run.pairs[i] for i, _ in pairs if run.pairs)
    )


def worst_loss(
    names: Sequence[str], scores: Resamples, level: float = LEVEL
) -> tuple[str, Interval]:
    """The group of questions on which a run loses most, and the loss in points.

    See `largest_interval`.

    Args:
        names: of the groups (question types, say).
        scores: of `bootstrap_benchmarks` over the groups: of the run, and of the one that it is
            compared with.
        level: between 0 and 1.
    """
    points, drawn = scores
    loss = points[1] - points[0]
    return names[int(loss.argmax())], largest_interval(loss, drawn[:, 1] - drawn[:, 0], level)
