"""From per-question answers to a verdict: intervals, paired tests, bands, statuses.

Every comparison is **paired**: the runs answered the same questions, so a resample draws questions
and takes all runs' answers to them together. It is **stratified** by benchmark, because an average
over benchmarks is the mean of the benchmarks' means, whatever their sizes. Where a run has several
seeds, a resample also draws seeds (questions and seeds are crossed: every seed answered every
question). Runs trained with the same seeds share the seed draw.

What makes it fast: answers take few values, so a benchmark's questions fall into few *patterns*
(for two runs: both right, only the first, only the second, neither). A bootstrap resample of the
questions is a multinomial draw of the patterns' counts, exactly.

A status is derived from the interval, never from the point.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist

import numpy as np

from grace.errors import InputError

RESAMPLES = 10_000
LEVEL = 0.95
_CHUNK_CELLS = 4_000_000  # cells of one multinomial draw: bounds memory to 32 MB


class Status(StrEnum):
    """What can be said of a claim."""

    REPRODUCED = "REPRODUCED"  # full scale, or an exact claim: the interval lies in the band
    DIRECTION_HOLDS = "DIRECTION HOLDS"  # reduced scale: the interval is on the claimed side
    INCONCLUSIVE = "INCONCLUSIVE"  # the interval allows both answers
    CONTRADICTED = "CONTRADICTED"  # the interval is on the wrong side, or outside the band
    NOT_RUN = "NOT RUN"  # an input is missing

    @property
    def holds(self) -> bool:
        return self in (Status.REPRODUCED, Status.DIRECTION_HOLDS)


@dataclass(frozen=True)
class Interval:
    """A point estimate with a two-sided interval at `level`, and its bootstrap standard error."""

    point: float
    low: float
    high: float
    level: float = LEVEL
    standard_error: float = 0.0

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.point, self.low, self.high))):
            raise InputError(f"interval {self.point} [{self.low}, {self.high}] is not finite")
        if self.low > self.high:
            raise InputError(f"interval low {self.low} lies above high {self.high}")

    @classmethod
    def exact(cls, value: float) -> Interval:
        """The interval of something counted, not sampled: it has no width."""
        return cls(value, value, value)


@dataclass(frozen=True)
class Band:
    """A two-sided tolerance band. Nothing is rounded before it is compared; ends belong to it."""

    low: float
    high: float
    reason: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise InputError(f"band [{self.low}, {self.high}]: both ends must be finite")
        if self.low > self.high:
            raise InputError(f"band [{self.low}, {self.high}]: low lies above high")
        if not self.reason.strip():
            raise InputError(f"band [{self.low}, {self.high}] carries no reason")

    def contains(self, interval: Interval) -> bool:
        return self.low <= interval.low and interval.high <= self.high

    def excludes(self, interval: Interval) -> bool:
        return interval.high < self.low or interval.low > self.high


@dataclass(frozen=True)
class Rule:
    """What must be true of the interval; every condition given must hold.

    above, below: the whole interval lies above, or below, this value. Both together are a test of
    equivalence: the interval lies inside a margin. within_band: it lies inside the band.
    """

    above: float | None = None
    below: float | None = None
    within_band: bool = False
    reason: str = ""

    def __post_init__(self) -> None:
        if self.above is None and self.below is None and not self.within_band:
            raise InputError("a rule needs 'above', 'below' or 'within_band'")
        if self.above is not None and self.below is not None and self.above >= self.below:
            raise InputError(f"a rule's 'above' {self.above} is not less than 'below' {self.below}")


def generator(seed: int, name: str) -> np.random.Generator:
    """The random generator of one comparison: its draws do not depend on which others are made."""
    return np.random.default_rng([seed, zlib.crc32(name.encode("utf-8"))])


def judge(interval: Interval, rule: Rule, band: Band | None, holds: Status) -> Status:
    """The status of an interval under a rule; `holds` is the status if every condition holds.

    CONTRADICTED if any condition is violated by the whole interval, `holds` if all are satisfied by
    the whole interval, otherwise INCONCLUSIVE. One that only touches `above` or `below` does not
    satisfy it.
    Raises InputError if the rule asks for a band and there is none.
    """
    verdicts: list[bool | None] = []
    if rule.above is not None:
        above = interval.low > rule.above
        verdicts.append(True if above else (False if interval.high < rule.above else None))
    if rule.below is not None:
        below = interval.high < rule.below
        verdicts.append(True if below else (False if interval.low > rule.below else None))
    if rule.within_band:
        if band is None:
            raise InputError("the rule asks for a band and none is given")
        inside = band.contains(interval)
        verdicts.append(True if inside else (False if band.excludes(interval) else None))
    if any(verdict is False for verdict in verdicts):
        return Status.CONTRADICTED
    return holds if all(verdicts) else Status.INCONCLUSIVE


def combine_all(statuses: Sequence[Status]) -> Status:
    """The status of a conjunction.

    CONTRADICTED if any part is (that is enough), otherwise NOT RUN if any part is, the weaker of
    the parts' statuses if all hold, otherwise INCONCLUSIVE. No correction for several parts is
    needed: a conjunction that holds only if each part does is an intersection-union test, of the
    parts' own level.
    """
    if not statuses:
        raise InputError("a conjunction of no parts has no status")
    if Status.CONTRADICTED in statuses:
        return Status.CONTRADICTED
    if Status.NOT_RUN in statuses:
        return Status.NOT_RUN
    if all(status.holds for status in statuses):
        weaker = Status.DIRECTION_HOLDS in statuses
        return Status.DIRECTION_HOLDS if weaker else Status.REPRODUCED
    return Status.INCONCLUSIVE


def combine_each(statuses: Sequence[Status]) -> Status:
    """The status of a claim made of separate findings (one per family, say), some not run yet.

    As `combine_all`, but NOT RUN only if no part was run; a claim whose parts hold as far as they
    were run is INCONCLUSIVE until all were.
    """
    run = [status for status in statuses if status is not Status.NOT_RUN]
    if not run or len(run) == len(statuses):
        return combine_all(statuses)
    return Status.CONTRADICTED if Status.CONTRADICTED in run else Status.INCONCLUSIVE


@dataclass(frozen=True)
class Answers:
    """One run's answers: for each benchmark an array (seeds, questions) of values in [0, 1].

    Question j of a benchmark is the same question in every run that is compared.
    """

    seeds: tuple[int, ...]
    values: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        if not self.seeds:
            raise InputError("answers of no seed")
        for name, array in self.values.items():
            if array.ndim != 2 or array.shape[0] != len(self.seeds):
                raise InputError(
                    f"{name}: answers of shape {array.shape}, expected "
                    f"({len(self.seeds)} seeds, questions)"
                )
            if not np.all(np.isfinite(array)):
                raise InputError(f"{name}: answers are not all finite")

    def score(self, benchmarks: Sequence[str]) -> float:
        """Mean over benchmarks of the mean over seeds and questions, in percent."""
        return float(np.mean([100.0 * self.values[name].mean() for name in benchmarks]))

    def seed_scores(self, benchmarks: Sequence[str]) -> np.ndarray:
        """The same for each seed, (seeds,)."""
        return np.mean([100.0 * self.values[name].mean(axis=1) for name in benchmarks], axis=0)


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


def bootstrap_benchmarks(
    runs: Sequence[Answers],
    benchmarks: Sequence[str],
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
) -> tuple[np.ndarray, np.ndarray]:
    """Paired, stratified, hierarchical bootstrap of several runs' scores on each benchmark.

    Returns the runs' scores (runs, benchmarks) and their resamples (resamples, runs, benchmarks),
    in percent; a statistic of several runs or benchmarks is computed resample by resample.

    Seeds: with S > 1 seeds a resample draws S of them with replacement, the same for every
    benchmark. The seeds' deviations are scaled by sqrt(S/(S-1)), which makes their resampled
    variance the unbiased one (without it, two seeds would show half of it); the point is not
    affected. With very few seeds a percentile interval is still somewhat short. A run of one seed
    contributes no spread over seeds.

    Raises InputError when there is no run, no benchmark, a benchmark is missing, runs have
    different numbers of questions, or a benchmark has fewer than two.
    """
    if not runs or not benchmarks:
        raise InputError("a bootstrap needs at least one run and one benchmark")
    if resamples < 1:
        raise InputError(f"resamples is {resamples}: give at least 1")
    drawn = []
    for name in benchmarks:
        for run in runs:
            if name not in run.values:
                raise InputError(f"benchmark {name!r} is missing from a run")
        sizes = {run.values[name].shape[1] for run in runs}
        if len(sizes) != 1:
            raise InputError(
                f"{name}: runs answered {sorted(sizes)} questions; they must be paired"
            )
        if min(sizes) < 2:
            raise InputError(f"{name}: {min(sizes)} question(s); an interval needs at least two")
        columns = np.concatenate([run.values[name] for run in runs]).T.astype(np.float64)
        drawn.append(100.0 * _resampled_means(columns, resamples, rng))

    picks: dict[tuple[int, ...], np.ndarray] = {}
    scores = np.empty((resamples, len(runs), len(benchmarks)))
    start = 0
    for index, run in enumerate(runs):
        count = len(run.seeds)
        if count > 1 and run.seeds not in picks:
            picks[run.seeds] = rng.integers(count, size=(resamples, count))
        for position, part in enumerate(drawn):
            own = part[:, start : start + count]
            if count == 1:
                scores[:, index, position] = own[:, 0]
                continue
            centre = own.mean(axis=1, keepdims=True)
            spread = centre + (own - centre) * math.sqrt(count / (count - 1))
            picked = np.take_along_axis(spread, picks[run.seeds], axis=1)
            scores[:, index, position] = picked.mean(axis=1)
        start += count
    points = [[100.0 * run.values[name].mean() for name in benchmarks] for run in runs]
    return np.array(points), scores


def bootstrap_scores(
    runs: Sequence[Answers],
    benchmarks: Sequence[str],
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
) -> tuple[np.ndarray, np.ndarray]:
    """The runs' averages over the benchmarks (runs,) and their resamples (resamples, runs), in
    percent. Draws and errors: see `bootstrap_benchmarks`."""
    points, drawn = bootstrap_benchmarks(runs, benchmarks, rng, resamples)
    return points.mean(axis=1), drawn.mean(axis=2)


def percentile_interval(point: float, drawn: np.ndarray, level: float = LEVEL) -> Interval:
    """The interval between the tails' quantiles of a statistic's resamples, (resamples,).

    Raises InputError for a level that is not between 0 and 1, or an interval that is not finite.
    """
    if not 0.0 < level < 1.0:
        raise InputError(f"level is {level}: give a number between 0 and 1")
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(drawn, [tail, 1.0 - tail])
    finite = drawn[np.isfinite(drawn)]
    error = float(finite.std(ddof=1)) if len(finite) > 1 else 0.0
    return Interval(float(point), float(low), float(high), level, error)


def score_interval(
    run: Answers,
    benchmarks: Sequence[str],
    rng: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """One run's score in percent. Errors: see `bootstrap_scores`."""
    point, drawn = bootstrap_scores([run], benchmarks, rng, resamples)
    return percentile_interval(point[0], drawn[:, 0], level)


def difference_interval(
    run: Answers,
    against: Answers,
    benchmarks: Sequence[str],
    rng: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """score(run) − score(against), in percentage points: positive when `run` is better.

    Errors: see `bootstrap_scores`.
    """
    point, drawn = bootstrap_scores([run, against], benchmarks, rng, resamples)
    return percentile_interval(point[0] - point[1], drawn[:, 0] - drawn[:, 1], level)


def ratio_interval(
    run: Answers,
    against: Answers,
    benchmarks: Sequence[str],
    rng: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval | None:
    """Retention: 100 · score(run) / score(against), in percent.

    None when `against` scores zero, also in a resample. Errors: see `bootstrap_scores`.
    """
    point, drawn = bootstrap_scores([run, against], benchmarks, rng, resamples)
    if point[1] <= 0 or np.any(drawn[:, 1] <= 0):
        return None
    return percentile_interval(100 * point[0] / point[1], 100 * drawn[:, 0] / drawn[:, 1], level)


def gap_closed_interval(
    run: Answers,
    baseline: Answers,
    teacher: Answers,
    benchmarks: Sequence[str],
    rng: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> tuple[Interval | None, Interval]:
    """The fraction (run − baseline) / (teacher − baseline), and the gap teacher − baseline.

    0 is the baseline, 1 the teacher. The fraction is None where the gap's interval is not above
    zero: there is no gap to close a part of. Errors: see `bootstrap_scores`.
    """
    point, drawn = bootstrap_scores([run, baseline, teacher], benchmarks, rng, resamples)
    gap = percentile_interval(point[2] - point[1], drawn[:, 2] - drawn[:, 1], level)
    if gap.low <= 0:
        return None, gap
    above = drawn[:, 0] - drawn[:, 1]
    below = drawn[:, 2] - drawn[:, 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        fraction = np.where(below > 0, above / below, np.copysign(np.inf, above))
        tail = (1.0 - level) / 2.0
        ends = np.quantile(fraction, [tail, 1 - tail])
    if not np.all(np.isfinite(ends)):
        return None, gap
    return percentile_interval((point[0] - point[1]) / gap.point, fraction, level), gap


@dataclass(frozen=True)
class McNemar:
    """Questions that only one of two runs answered right, and the exact two-sided p-value."""

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """McNemar's exact test of two runs' right/wrong answers to the same questions, (questions,).

    With no discordant question p is 1. Raises InputError for arrays that are empty, of unequal
    shape, or hold anything but 0 and 1.
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.ndim != 1 or first.shape != second.shape:
        raise InputError(f"answers of shapes {first.shape} and {second.shape} are not paired")
    if not first.size:
        raise InputError("McNemar's test of no questions")
    for array in (first, second):
        if not np.isin(array, (0, 1)).all():
            raise InputError("McNemar's test needs answers that are right (1) or wrong (0)")
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
    """The smallest true difference that an interval at `level` would exclude zero for, with
    probability `power`: (z_{(1+level)/2} + z_power) · standard error, in the error's unit.

    For one benchmark of n paired questions of which a share d is answered differently, the standard
    error in points is 100·sqrt(d/n). Raises InputError for values out of range.
    """
    if not (math.isfinite(standard_error) and standard_error >= 0):
        raise InputError(f"standard error is {standard_error}: give a number that is not negative")
    for name, value in (("power", power), ("level", level)):
        if not 0.0 < value < 1.0:
            raise InputError(f"{name} is {value}: give a number between 0 and 1")
    normal = NormalDist()
    return (normal.inv_cdf((1 + level) / 2) + normal.inv_cdf(power)) * standard_error
