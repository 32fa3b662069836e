"""How two quantities of a token or question go together: correlation, binned fit, covariance.

Tokens of one image, or one question, are not independent. A resample therefore draws whole clusters
(images or questions) with replacement. Every statistic here is a function of sums over clusters, so
a resample is a multinomial draw of the clusters' counts times a matrix of sums: exact, and fast.

Example::

    cluster_interval(pearson(entropy, wrong, clusters=images), rng)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from grace.errors import InputError
from replication.stats.bootstrap import RESAMPLES, percentile_interval
from replication.stats.verdict import LEVEL, Interval

BINS = 10
_CHUNK_CELLS = 4_000_000
"""Cells of one multinomial draw: bounds memory to 32 MB."""


@dataclass(frozen=True)
class ClusterStatistic:
    """A statistic of sums over clusters.

    Attributes:
        sums: (clusters, k).
        function: from totals (..., k) to values (...).
        point: the statistic of the whole sample; None: `function` of the total.
    """

    sums: np.ndarray
    function: Callable[[np.ndarray], np.ndarray]
    point: float | None = None


def cluster_interval(
    statistic: ClusterStatistic,
    rng: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """The interval of a statistic by a bootstrap over clusters.

    Resamples in which the statistic has no value are left out.

    Raises:
        InputError: for fewer than two clusters, or a statistic that has no value.
    """
    sums, function, point = statistic.sums, statistic.function, statistic.point
    clusters = len(sums)
    if clusters < 2:
        raise InputError(f"{clusters} cluster(s): an interval needs at least two")
    if point is None:
        point = float(function(sums.sum(axis=0)))
    if not np.isfinite(point):
        raise InputError("the statistic has no value: one of the quantities does not vary")
    step = max(1, _CHUNK_CELLS // clusters)
    share = np.full(clusters, 1.0 / clusters)
    drawn = np.concatenate(
        [
            function(rng.multinomial(clusters, share, size=min(step, resamples - start)) @ sums)
            for start in range(0, resamples, step)
        ]
    )
    return percentile_interval(point, drawn[np.isfinite(drawn)], level)


def _paired(
    x: np.ndarray, y: np.ndarray, clusters: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finite float64 arrays (items,), and the cluster of each item, from 0."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    assert x.ndim == 1 and x.shape == y.shape and x.size
    assert np.isfinite(x).all() and np.isfinite(y).all()
    if clusters is None:
        return x, y, np.arange(x.size)
    assert np.shape(clusters) == x.shape
    return x, y, np.unique(clusters, return_inverse=True)[1]


def _by_cluster(columns: Sequence[np.ndarray], clusters: np.ndarray) -> np.ndarray:
    """Sums of each column over each cluster, (clusters, columns)."""
    return np.stack([np.bincount(clusters, column) for column in columns], axis=1)


def _correlation(totals: np.ndarray) -> np.ndarray:
    """Pearson's r from totals of weight, x, y, xx, yy, xy."""
    weight, x, y, xx, yy, xy = np.moveaxis(np.asarray(totals, dtype=np.float64), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (weight * xy - x * y) / np.sqrt((weight * xx - x * x) * (weight * yy - y * y))


def pearson(x: np.ndarray, y: np.ndarray, clusters: np.ndarray | None = None) -> ClusterStatistic:
    """Pearson's correlation.

    Args:
        x: (items,), finite.
        y: (items,), finite.
        clusters: (items,), the cluster of each item; None: every item is its own.

    Raises:
        InputError: for a quantity that does not vary.
    """
    from scipy.stats import pearsonr  # slow to import

    x, y, clusters = _paired(x, y, clusters)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise InputError("a correlation has no value: one of the quantities does not vary")
    a, b = x - x.mean(), y - y.mean()  # centred: the sums keep their digits
    sums = _by_cluster([np.ones_like(a), a, b, a * a, b * b, a * b], clusters)
    return ClusterStatistic(sums, _correlation, float(pearsonr(x, y).statistic))


def rank_correlation(
    x: np.ndarray, y: np.ndarray, clusters: np.ndarray | None = None
) -> ClusterStatistic:
    """Spearman's correlation: Pearson's of the ranks, equal values sharing theirs.

    The ranks are the whole sample's in every resample. Arguments and errors are those of `pearson`.
    """
    from scipy.stats import rankdata  # slow to import

    return pearson(rankdata(x), rankdata(y), clusters)


def equal_bins(x: np.ndarray, bins: int = BINS) -> np.ndarray:
    """The bin, from 0, of each value: bins of equal count in the order of the values.

    Equal values keep their order.

    Raises:
        InputError: for fewer than two values a bin.
    """
    if bins < 3 or len(x) < 2 * bins:
        raise InputError(f"{len(x)} values in {bins} bins: give at least 3 bins of 2 values")
    numbers = np.empty(len(x), dtype=np.int64)
    for number, members in enumerate(np.array_split(np.argsort(x, kind="stable"), bins)):
        numbers[members] = number
    return numbers


def binned_means(x: np.ndarray, y: np.ndarray, bins: int = BINS) -> tuple[np.ndarray, np.ndarray]:
    """Mean of x and mean of y in each bin of `equal_bins`, (bins,) each."""
    x, y, _ = _paired(x, y, None)
    number = equal_bins(x, bins)
    counts = np.bincount(number, minlength=bins)
    return np.bincount(number, x) / counts, np.bincount(number, y) / counts


def binned_r2(
    x: np.ndarray,
    y: np.ndarray,
    clusters: np.ndarray | None = None,
    bins: int = BINS,
    *,
    last: bool = True,
) -> ClusterStatistic:
    """R² of the straight line through the bins' means, or through all but the last one's.

    It is the squared correlation of the mean of y with the mean of x over bins of equal count. The
    bins are those of the whole sample in every resample; a bin that a resample leaves empty is
    left out there. Binning averages the noise away, so R² is far above r² and grows with the items
    a bin has; a resample's is lower than the sample's on average.

    Arguments are those of `pearson`, errors those of `equal_bins`.
    """
    x, y, clusters = _paired(x, y, clusters)
    number = equal_bins(x, bins)
    a, b = x - x.mean(), y - y.mean()
    parts = []
    used = bins if last else bins - 1
    for index in range(used):
        inside = (number == index).astype(np.float64)
        parts += [inside, inside * a, inside * b]

    def r2(totals: np.ndarray) -> np.ndarray:
        cells = totals.reshape(*totals.shape[:-1], used, 3)
        filled = cells[..., 0] > 0
        weight = np.where(filled, cells[..., 0], 1.0)
        mean_x = np.where(filled, cells[..., 1] / weight, 0.0)
        mean_y = np.where(filled, cells[..., 2] / weight, 0.0)
        columns = (filled, mean_x, mean_y, mean_x**2, mean_y**2, mean_x * mean_y)
        return _correlation(np.stack([column.sum(axis=-1) for column in columns], axis=-1)) ** 2

    return ClusterStatistic(_by_cluster(parts, clusters), r2)


def gate_covariance(
    gates: np.ndarray, losses: np.ndarray, clusters: np.ndarray | None = None
) -> ClusterStatistic:
    """N · Cov(w, DKD) with w = g / Σg, in nats: what the gate changes in the loss (Eq. 8).

    By Theorem 3.1 the value is Σ(g · DKD)/Σg − mean(DKD), which is how it is computed. Negative:
    gating lowers the loss.

    Args:
        gates: (tokens,), the positive gate of each supervised token.
        losses: (tokens,), its ungated DKD.
        clusters: (tokens,), the cluster of each token; None: every token is its own.
    """
    gates, losses, clusters = _paired(gates, losses, clusters)
    assert (gates > 0).all()

    def change(totals: np.ndarray) -> np.ndarray:
        tokens, gate, loss, both = np.moveaxis(np.asarray(totals, dtype=np.float64), -1, 0)
        return both / gate - loss / tokens

    sums = _by_cluster([np.ones_like(gates), gates, losses, gates * losses], clusters)
    return ClusterStatistic(sums, change)


def mean(values: np.ndarray, clusters: np.ndarray | None = None) -> ClusterStatistic:
    """The mean of some items' values.

    Args:
        values: (items,), finite.
        clusters: (items,), the cluster of each item; None: every item is its own.
    """
    values, _, clusters = _paired(values, values, clusters)
    sums = _by_cluster([np.ones_like(values), values], clusters)
    return ClusterStatistic(sums, lambda totals: totals[..., 1] / totals[..., 0])


def calibration_error(
    confidence: np.ndarray,
    right: np.ndarray,
    clusters: np.ndarray | None = None,
    bins: int = BINS,
) -> ClusterStatistic:
    """The expected calibration error: how far confidence and accuracy lie apart, on average.

    Mean over items of the difference of mean confidence and accuracy in the item's bin, of bins of
    equal width from 0 to 1. It cannot be negative, so that a resample's is higher than the
    sample's on average.

    Args:
        confidence: (items,), the probability of the answer that was given, 0 to 1.
        right: (items,), 1 where that answer is right, else 0.
        clusters: (items,), the cluster of each item; None: every item is its own.
        bins: how many.
    """
    confidence, right, clusters = _paired(confidence, right, clusters)
    number = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    columns = [np.where(number == index, confidence - right, 0.0) for index in range(bins)]
    sums = _by_cluster([np.ones_like(right), *columns], clusters)
    return ClusterStatistic(
        sums, lambda totals: np.abs(totals[..., 1:]).sum(axis=-1) / totals[..., 0]
    )
