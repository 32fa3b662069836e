"""How two quantities of a token or question go together: correlation, binned fit, covariance.

Tokens of one image, or one question, are not independent. A resample therefore draws whole clusters
(images or questions) with replacement. Every statistic here is a function of sums over clusters, so
a resample is a multinomial draw of the clusters' counts times a matrix of sums: exact, and fast.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from grace.errors import InputError
from replication.stats.bootstrap import LEVEL, RESAMPLES, Interval, percentile_interval

BINS = 10
_CHUNK_CELLS = 4_000_000  # cells of one multinomial draw: bounds memory to 32 MB


def cluster_interval(
    sums: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    rng: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """The interval of a statistic of sums, by a bootstrap over clusters.

    sums: (clusters, k). statistic: from totals (..., k) to values (...).

    Raises InputError for fewer than two clusters, or a statistic that has no value.
    """
    clusters = len(sums)
    if clusters < 2:
        raise InputError(f"{clusters} cluster(s): an interval needs at least two")
    step = max(1, _CHUNK_CELLS // clusters)
    share = np.full(clusters, 1.0 / clusters)
    drawn = np.concatenate(
        [
            statistic(rng.multinomial(clusters, share, size=min(step, resamples - start)) @ sums)
            for start in range(0, resamples, step)
        ]
    )
    point = float(statistic(sums.sum(axis=0)))
    if not np.isfinite(point):
        raise InputError("the statistic has no value: one of the quantities does not vary")
    return percentile_interval(point, drawn[np.isfinite(drawn)], level)


def _paired(
    x: np.ndarray, y: np.ndarray, clusters: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Checked float64 arrays (items,), the cluster of each item from 0, and their number."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or not x.size:
        raise InputError(f"quantities of shapes {x.shape} and {y.shape} are not paired")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError("quantities are not all finite")
    if clusters is None:
        return x, y, np.arange(x.size), x.size
    clusters = np.asarray(clusters)
    if clusters.shape != x.shape:
        raise InputError(f"clusters have shape {clusters.shape}, the quantities {x.shape}")
    names, index = np.unique(clusters, return_inverse=True)
    return x, y, index, len(names)


def _by_cluster(columns: list[np.ndarray], index: np.ndarray, count: int) -> np.ndarray:
    """Sums of each column over each cluster, (clusters, columns)."""
    return np.stack([np.bincount(index, one, minlength=count) for one in columns], axis=1)


def _correlation(totals: np.ndarray) -> np.ndarray:
    """Pearson's r from totals of weight, x, y, xx, yy, xy."""
    weight, x, y, xx, yy, xy = np.moveaxis(np.asarray(totals, dtype=np.float64), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (weight * xy - x * y) / np.sqrt((weight * xx - x * x) * (weight * yy - y * y))


def pearson_interval(
    x: np.ndarray,
    y: np.ndarray,
    rng: np.random.Generator,
    *,
    clusters: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """Pearson's correlation of x and y, (items,), with a bootstrap interval over clusters.

    clusters: the cluster of each item; None: every item is its own. Raises InputError for arrays
    that are not paired or not finite, fewer than two clusters, or a quantity that does not vary.
    """
    x, y, index, count = _paired(x, y, clusters)
    from scipy.stats import pearsonr  # slow to import

    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise InputError("a correlation has no value: one of the quantities does not vary")
    a, b = x - x.mean(), y - y.mean()  # centered: the sums keep their digits
    sums = _by_cluster([np.ones_like(a), a, b, a * a, b * b, a * b], index, count)
    found = cluster_interval(sums, _correlation, rng, resamples=resamples, level=level)
    point = float(pearsonr(x, y).statistic)
    return Interval(point, found.low, found.high, level, found.standard_error)


def equal_bins(x: np.ndarray, bins: int = BINS) -> np.ndarray:
    """The bin, from 0, of each value: `bins` bins of equal count in the order of the values; equal
    values keep their order. Raises InputError for fewer values than two a bin."""
    if bins < 3 or len(x) < 2 * bins:
        raise InputError(f"{len(x)} values in {bins} bins: give at least 3 bins of 2 values")
    found = np.empty(len(x), dtype=np.int64)
    for number, members in enumerate(np.array_split(np.argsort(x, kind="stable"), bins)):
        found[members] = number
    return found


def binned_means(x: np.ndarray, y: np.ndarray, bins: int = BINS) -> tuple[np.ndarray, np.ndarray]:
    """Mean of x and mean of y in each bin of `equal_bins`, (bins,) each."""
    x, y, _, _ = _paired(x, y, None)
    number = equal_bins(x, bins)
    counts = np.bincount(number, minlength=bins)
    return np.bincount(number, x) / counts, np.bincount(number, y) / counts


def binned_r2_interval(
    x: np.ndarray,
    y: np.ndarray,
    rng: np.random.Generator,
    *,
    bins: int = BINS,
    clusters: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """R² of the straight line through the bins' means: the squared correlation of the mean of y
    with the mean of x over `bins` bins of equal count.

    The bins are those of the whole sample in every resample; a bin that a resample leaves empty is
    left out there. Binning averages the noise away, so R² is far above r² and grows with the items
    a bin has; a resample's is lower than the sample's on average. Errors: see `pearson_interval`
    and `equal_bins`.
    """
    x, y, index, count = _paired(x, y, clusters)
    number = equal_bins(x, bins)
    a, b = x - x.mean(), y - y.mean()
    parts = []
    for one in range(bins):
        inside = (number == one).astype(np.float64)
        parts += [inside, inside * a, inside * b]
    sums = _by_cluster(parts, index, count)

    def r2(totals: np.ndarray) -> np.ndarray:
        cells = totals.reshape(*totals.shape[:-1], bins, 3)
        there = cells[..., 0] > 0
        weight = np.where(there, cells[..., 0], 1.0)
        mean_x = np.where(there, cells[..., 1] / weight, 0.0)
        mean_y = np.where(there, cells[..., 2] / weight, 0.0)
        columns = (there, mean_x, mean_y, mean_x**2, mean_y**2, mean_x * mean_y)
        return _correlation(np.stack([one.sum(axis=-1) for one in columns], axis=-1)) ** 2

    return cluster_interval(sums, r2, rng, resamples=resamples, level=level)


def gate_covariance_interval(
    gates: np.ndarray,
    losses: np.ndarray,
    rng: np.random.Generator,
    *,
    clusters: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """N · Cov(w, DKD) with w = g / Σg, in nats: what the gate changes in the loss (Eq. 8).

    gates, losses: (tokens,); the gate of each supervised token and its ungated DKD. By Theorem 3.1
    the value is Σ(g · DKD)/Σg − mean(DKD), which is how it is computed. Negative: gating lowers the
    loss. Raises InputError for gates that are not positive; otherwise as `pearson_interval`.
    """
    gates, losses, index, count = _paired(gates, losses, clusters)
    if (gates <= 0).any():
        raise InputError("a gate is not positive")
    sums = _by_cluster([np.ones_like(gates), gates, losses, gates * losses], index, count)

    def change(totals: np.ndarray) -> np.ndarray:
        tokens, gate, loss, both = np.moveaxis(np.asarray(totals, dtype=np.float64), -1, 0)
        return both / gate - loss / tokens

    return cluster_interval(sums, change, rng, resamples=resamples, level=level)
