"""Paired bootstrap intervals of scores, and of any statistic of several runs' scores.

Every comparison is **paired**: the runs answered the same questions, so a resample draws questions
and takes all runs' answers to them together. It is **stratified** by benchmark, because an average
over benchmarks is the mean of the benchmarks' means, whatever their sizes. Where a run has several
seeds, a resample also draws seeds (questions and seeds are crossed: every seed answered every
question). Runs trained with the same seeds share the seed draw.

Where the runs are of several pairs of teacher and baseline, the score is the mean over pairs of the
mean over seeds, and a resample also draws pairs, the same for all runs, and in every pair that it
drew its seeds. Two pairs are a sample of two: such an interval is wider than that of one pair and
still too short where pairs differ much more than questions and seeds do.

What makes it fast: answers take few values, so a benchmark's questions fall into few *patterns*
(for two runs: both right, only the first, only the second, neither). A bootstrap resample of the
questions is a multinomial draw of the patterns' counts, exactly.

Example::

    scores = bootstrap_scores([run, baseline], ["MMBench"], generator(seed, "run-baseline"))
    interval(scores, difference)
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from grace.errors import InputError
from replication.stats.verdict import LEVEL, Interval

RESAMPLES = 10_000
"""Of every bootstrap that is not given another number."""
_CHUNK_CELLS = 4_000_000
"""Cells of one multinomial draw: bounds memory to 32 MB."""

Statistic = Callable[[np.ndarray], np.ndarray]
"""From scores (..., runs) to values (...): of a sample, and of each of its resamples alike."""


@dataclass(frozen=True)
class Answers:
    """One run's answers.

    Attributes:
        seeds: of the trainings, in the order of the rows.
        values: by benchmark, an array (trainings, questions) of credits in [0, 1]. Question j of a
            benchmark is the same question in every run that is compared.
        pairs: that the trainings are of, in the order of the rows, those of a pair together; empty
            where all are of one.
    """

    seeds: tuple[int, ...]
    values: Mapping[str, np.ndarray]
    pairs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert self.seeds
        assert not self.pairs or len(self.pairs) == len(self.seeds)
        for array in self.values.values():
            assert array.ndim == 2 and array.shape[0] == len(self.seeds)
            assert np.all(np.isfinite(array))

    def rows(self) -> dict[str, slice]:
        """The rows of every pair, by its name; "" where all are of one."""
        if not self.pairs:
            return {"": slice(0, len(self.seeds))}
        names = list(dict.fromkeys(self.pairs))
        starts = [self.pairs.index(name) for name in names]
        return {
            name: slice(start, start + self.pairs.count(name))
            for name, start in zip(names, starts, strict=True)
        }

    def benchmark_score(self, benchmark: str) -> float:
        """Mean over pairs of the mean over seeds and questions, in percent."""
        values = self.values[benchmark]
        return float(np.mean([100.0 * values[rows].mean() for rows in self.rows().values()]))

    def score(self, benchmarks: Sequence[str]) -> float:
        """The mean of several benchmarks' scores."""
        return float(np.mean([self.benchmark_score(name) for name in benchmarks]))

    def seed_scores(self, benchmarks: Sequence[str]) -> np.ndarray:
        """Score of each training, (trainings,)."""
        return np.mean([100.0 * self.values[name].mean(axis=1) for name in benchmarks], axis=0)


def pool(pairs: Sequence[str], answers: Sequence[Answers]) -> Answers:
    """One run's answers in several pairs together, to the same questions; of one pair as they are.

    Args:
        pairs: their names.
        answers: of each.
    """
    assert len(pairs) == len(answers) > 0
    if len(pairs) == 1:
        return answers[0]
    shared = [name for name in answers[0].values if all(name in own.values for own in answers)]
    return Answers(
        tuple(seed for own in answers for seed in own.seeds),
        {name: np.concatenate([own.values[name] for own in answers]) for name in shared},
        tuple(pair for pair, own in zip(pairs, answers, strict=True) for _ in own.seeds),
    )


class Resamples(NamedTuple):
    """What was measured of a sample, and of bootstrap resamples of it.

    Attributes:
        points: of the sample, (runs,) or (runs, benchmarks).
        drawn: of its resamples, (resamples, runs) or (resamples, runs, benchmarks).
    """

    points: np.ndarray
    drawn: np.ndarray


def generator(seed: int, name: str) -> np.random.Generator:
    """The random generator of one comparison: its draws do not depend on which others are made."""
    return np.random.default_rng([seed, zlib.crc32(name.encode("utf-8"))])


# --- resamples ------------------------------------------------------------------------------------


def _patterns(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows of (questions, columns) in order of first appearance, and their counts.

    The order of first appearance, unlike a sorted one, does not depend on the values: exchanging
    two runs exchanges the columns of every draw and nothing else.
    """
    rows, first, counts = np.unique(columns, axis=0, return_index=True, return_counts=True)
    order = np.argsort(first)
    return rows[order], counts[order]


def _resampled_means(columns: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Column means over `resamples` bootstrap resamples of the rows: (resamples, columns)."""
    rows, counts = _patterns(columns)
    total = len(columns)
    share = counts / total
    step = max(1, _CHUNK_CELLS // len(counts))
    drawn = [
        rng.multinomial(total, share, size=min(step, resamples - start)) @ rows / total
        for start in range(0, resamples, step)
    ]
    return np.concatenate(drawn)


def _spread(scores: np.ndarray) -> np.ndarray:
    """Scores (..., count) with their deviations from the mean scaled by sqrt(count/(count-1)).

    It makes the variance of their resampled mean the unbiased one; without it, two of them would
    show half of it.
    """
    count = scores.shape[-1]
    centre = scores.mean(axis=-1, keepdims=True)
    return centre + (scores - centre) * math.sqrt(count / (count - 1))


class _Draws:
    """Which pairs and seeds every resample takes; runs of the same pairs or seeds share them."""

    def __init__(self, rng: np.random.Generator, resamples: int) -> None:
        self._rng, self._resamples = rng, resamples
        self._known: dict[tuple[Any, ...], np.ndarray] = {}

    def picks(self, count: int, *key: Any) -> np.ndarray:
        """Positions of a sample of `count` out of as many, (resamples, count)."""
        if key not in self._known:
            self._known[key] = self._rng.integers(count, size=(self._resamples, count))
        return self._known[key]

    def mean(self, scores: np.ndarray, run: Answers) -> np.ndarray:
        """A run's resampled score, (resamples,), of its trainings' (resamples, trainings)."""
        rows = run.rows()
        if len(rows) == 1:
            return self._seeds(scores, run.seeds)
        own = {pair: scores[:, part] for pair, part in rows.items()}
        means = np.stack([of_pair.mean(axis=1) for of_pair in own.values()], axis=1)
        pairs = self.picks(len(own), tuple(own))
        total = np.take_along_axis(_spread(means), pairs, axis=1)
        for place in range(len(own)):  # every pair that was drawn draws its own seeds
            drawn = np.stack(
                [
                    self._seeds(of_pair, run.seeds[rows[pair]], pair, place)
                    for pair, of_pair in own.items()
                ],
                axis=1,
            )
            moved = np.take_along_axis(drawn - means, pairs[:, place : place + 1], axis=1)
            total[:, place] += moved[:, 0]
        return total.mean(axis=1)

    def _seeds(self, scores: np.ndarray, seeds: tuple[int, ...], *key: Any) -> np.ndarray:
        """Means over drawn seeds, (resamples,), of scores (resamples, seeds)."""
        if len(seeds) == 1:
            return scores[:, 0]
        picks = self.picks(len(seeds), seeds, *key)
        return np.take_along_axis(_spread(scores), picks, axis=1).mean(axis=1)


def bootstrap_benchmarks(
    runs: Sequence[Answers],
    benchmarks: Sequence[str],
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
) -> Resamples:
    """Paired, stratified, hierarchical bootstrap of several runs' scores on each benchmark.

    With S > 1 seeds a resample draws S of them with replacement, the same for every benchmark, and
    with P > 1 pairs P of them, and in each of these its seeds. The point is not affected. With very
    few seeds or pairs a percentile interval is still somewhat short. A run of one seed contributes
    no spread over seeds.

    Args:
        runs: answers to the same questions.
        benchmarks: those that every run has answers to.
        rng: where the draws come from.
        resamples: how many are drawn.

    Returns:
        The runs' scores (runs, benchmarks) and their resamples (resamples, runs, benchmarks), in
        percent; a statistic of several runs or benchmarks is computed resample by resample.

    Raises:
        InputError: for a benchmark of fewer than two questions.
    """
    assert runs and benchmarks and resamples >= 1
    drawn = []
    for name in benchmarks:
        (questions,) = {run.values[name].shape[1] for run in runs}
        if questions < 2:
            raise InputError(f"{name}: {questions} question(s); an interval needs at least two")
        columns = np.concatenate([run.values[name] for run in runs]).T.astype(np.float64)
        drawn.append(100.0 * _resampled_means(columns, resamples, rng))

    draws = _Draws(rng, resamples)
    scores = np.empty((resamples, len(runs), len(benchmarks)))
    start = 0
    for index, run in enumerate(runs):
        end = start + len(run.seeds)
        for position, means in enumerate(drawn):
            scores[:, index, position] = draws.mean(means[:, start:end], run)
        start = end
    points = [[run.benchmark_score(name) for name in benchmarks] for run in runs]
    return Resamples(np.array(points), scores)


def bootstrap_scores(
    runs: Sequence[Answers],
    benchmarks: Sequence[str],
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
) -> Resamples:
    """The runs' averages over the benchmarks, (runs,) and (resamples, runs), in percent.

    Arguments and errors are those of `bootstrap_benchmarks`.
    """
    points, drawn = bootstrap_benchmarks(runs, benchmarks, rng, resamples)
    return Resamples(points.mean(axis=1), drawn.mean(axis=2))


# --- statistics and their intervals ---------------------------------------------------------------


def score(scores: np.ndarray) -> np.ndarray:
    """The score of the one run, (..., 1), in percent."""
    return scores[..., 0]


def difference(scores: np.ndarray) -> np.ndarray:
    """score(run) − score(against) of (..., 2), in points: positive when the first is better."""
    return scores[..., 0] - scores[..., 1]


def ratio(scores: np.ndarray) -> np.ndarray:
    """Retention, 100 · score(run) / score(against) of (..., 2), in percent.

    It has no value (NaN) where `against` scores zero.
    """
    run, against = scores[..., 0], scores[..., 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(against > 0, 100 * run / against, np.nan)


def gap(scores: np.ndarray) -> np.ndarray:
    """score(teacher) − score(baseline) of (..., 3): run, baseline, teacher; in points."""
    return scores[..., 2] - scores[..., 1]


def gap_closed(scores: np.ndarray) -> np.ndarray:
    """(run − baseline) / (teacher − baseline) of (..., 3): run, baseline, teacher.

    0 is the baseline, 1 the teacher. Where a resample has no gap, it lies beyond one of the ends:
    infinite, with the sign of run − baseline.
    """
    above, below = scores[..., 0] - scores[..., 1], gap(scores)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > 0, above / below, np.copysign(np.inf, above))


def percentile_interval(point: float, drawn: np.ndarray, level: float = LEVEL) -> Interval:
    """The interval between the tails' quantiles of a statistic's resamples, (resamples,).

    Raises:
        InputError: for an interval that is not finite.
    """
    assert 0.0 < level < 1.0
    tail = (1.0 - level) / 2.0
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(drawn, [tail, 1.0 - tail])
    finite = drawn[np.isfinite(drawn)]
    error = float(finite.std(ddof=1)) if len(finite) > 1 else 0.0
    return Interval(float(point), float(low), float(high), level, error)


def interval(scores: Resamples, statistic: Statistic, level: float = LEVEL) -> Interval:
    """The percentile interval of any statistic of the runs' scores.

    Args:
        scores: of `bootstrap_scores`, whose order of runs is the statistic's.
        statistic: such as `score`, `difference`, or a function of one's own.
        level: between 0 and 1.

    Raises:
        InputError: for a statistic without a value; see `find_interval`.
    """
    return percentile_interval(float(statistic(scores.points)), statistic(scores.drawn), level)


def find_interval(scores: Resamples, statistic: Statistic, level: float = LEVEL) -> Interval | None:
    """As `interval`; None where the statistic has no value.

    It has none where the point or an end is not finite, or is NaN in a resample.
    """
    try:
        return interval(scores, statistic, level)
    except InputError:
        return None


# --- tests of one pair, and power -----------------------------------------------------------------


@dataclass(frozen=True)
class McNemar:
    """Questions that only one of two runs answered right, and the exact two-sided p-value."""

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """McNemar's exact test of two runs' right/wrong answers to the same questions.

    Args:
        first: (questions,) of 0 and 1, at least one.
        second: the same of the other run.

    Returns:
        The discordant questions and the p-value, which is 1 where there are none.
    """
    assert first.ndim == 1 and first.shape == second.shape and first.size
    assert all(np.isin(array, (0, 1)).all() for array in (first, second))
    first, second = first.astype(bool), second.astype(bool)
    only_first = int(np.count_nonzero(first & ~second))
    only_second = int(np.count_nonzero(~first & second))
    discordant = only_first + only_second
    if not discordant:
        return McNemar(0, 0, 1.0)
    from scipy.stats import binomtest  # slow to import, and needed for single pairs only

    return McNemar(only_first, only_second, float(binomtest(only_first, discordant, 0.5).pvalue))


def minimum_detectable_difference(
    standard_error: float, power: float = 0.8, level: float = LEVEL
) -> float:
    """The smallest true difference that an interval would exclude zero for with a probability.

    It is (z_{(1+level)/2} + z_power) · standard error, in the error's unit. For one benchmark of n
    paired questions of which a share d is answered differently, the standard error in points is
    100·sqrt(d/n).

    Args:
        standard_error: of the difference; not negative.
        power: the probability, between 0 and 1.
        level: of the interval, between 0 and 1.
    """
    assert math.isfinite(standard_error) and standard_error >= 0
    assert 0.0 < power < 1.0 and 0.0 < level < 1.0
    normal = NormalDist()
    return (normal.inv_cdf((1 + level) / 2) + normal.inv_cdf(power)) * standard_error
