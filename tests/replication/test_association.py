"""Correlation, binned fit and covariance against closed forms and SciPy."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, pearsonr, spearmanr

from grace.errors import InputError
from replication.results import measurements
from replication.stats import association
from replication.stats.association import (
    binned_means,
    binned_r2,
    cluster_interval,
    equal_bins,
    gate_covariance,
    pearson,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def normal_pair(n, r, seed):
    draw = rng(seed)
    x = draw.standard_normal(n)
    return x, r * x + math.sqrt(1 - r * r) * draw.standard_normal(n)


# --- correlation


@pytest.mark.slow
def test_correlation_and_its_interval_are_scipy_s():
    x, y = normal_pair(3000, 0.484, seed=1)
    found = cluster_interval(pearson(x, y), rng())
    theirs = pearsonr(x, y)
    fisher = theirs.confidence_interval(0.95)
    assert found.point == pytest.approx(theirs.statistic)
    assert found.low == pytest.approx(fisher.low, abs=0.006)
    assert found.high == pytest.approx(fisher.high, abs=0.006)
    drawn = bootstrap(
        (x, y), lambda a, b: pearsonr(a, b).statistic, paired=True, vectorized=False,
        method="percentile", n_resamples=600, rng=rng(2),
    )  # fmt: skip
    assert found.standard_error == pytest.approx(drawn.standard_error, rel=0.12)


@pytest.mark.slow
def test_correlation_of_a_large_constant_offset_keeps_its_digits():
    x, y = normal_pair(500, 0.5, seed=3)
    near = cluster_interval(pearson(x, y), rng())
    far = cluster_interval(pearson(x + 1e7, y - 1e7), rng())
    assert far.low == pytest.approx(near.low, abs=1e-6)
    assert far.high == pytest.approx(near.high, abs=1e-6)


@pytest.mark.slow
def test_copies_of_one_item_are_no_evidence_when_clusters_say_so():
    x, y = normal_pair(200, 0.5, seed=4)
    alone = cluster_interval(pearson(x, y), rng())
    copies = np.repeat(x, 25), np.repeat(y, 25)
    many = cluster_interval(pearson(*copies, clusters=np.repeat(np.arange(200), 25)), rng())
    naive = cluster_interval(pearson(*copies), rng())
    assert many.standard_error == pytest.approx(alone.standard_error, rel=1e-6)
    assert naive.standard_error < 0.3 * many.standard_error


@given(seed=st.integers(0, 2**32 - 1), shift=st.floats(-5, 5), scale=st.floats(0.1, 10))
@settings(max_examples=30, deadline=None)
def test_correlation_ignores_units(seed, shift, scale):
    x, y = normal_pair(60, 0.3, seed)
    plain = cluster_interval(pearson(x, y), rng(seed), resamples=100)
    other = cluster_interval(pearson(scale * x + shift, -y), rng(seed), resamples=100)
    assert other.low == pytest.approx(-plain.high, abs=1e-9)
    assert other.high == pytest.approx(-plain.low, abs=1e-9)


def test_draws_in_chunks_are_draws_all_the_same(monkeypatch):
    statistic = pearson(*normal_pair(60, 0.3, seed=5))
    whole = cluster_interval(statistic, rng(), resamples=500)
    monkeypatch.setattr(association, "_CHUNK_CELLS", 60 * 7)
    assert cluster_interval(statistic, rng(), resamples=500) == whole


@pytest.mark.parametrize(
    ("x", "y", "clusters", "error"),
    [
        ([1.0, 1.0], [1.0, 2.0], None, InputError),
        ([1.0, 2.0], [1.0, 2.0], [0, 0], InputError),
        ([1.0, 2.0], [1.0], None, AssertionError),
        ([1.0, math.nan], [1.0, 2.0], None, AssertionError),
        ([1.0, 2.0], [1.0, 2.0], [0], AssertionError),
        ([], [], None, AssertionError),
    ],
)
def test_what_has_no_correlation_is_an_error(x, y, clusters, error):
    with pytest.raises(error):
        cluster_interval(pearson(np.array(x), np.array(y), clusters), rng())


# --- bins


@given(st.lists(st.floats(-10, 10), min_size=20, max_size=80), st.integers(3, 10))
@settings(max_examples=40, deadline=None)
def test_bins_are_ordered_and_of_equal_count(values, bins):
    x = np.array(values)
    number = equal_bins(x, bins)
    counts = np.bincount(number, minlength=bins)
    assert counts.max() - counts.min() <= 1
    for one in range(bins - 1):
        assert x[number == one].max() <= x[number == one + 1].min()


@pytest.mark.slow
def test_binned_r2_is_one_on_a_line_and_numpy_s_elsewhere():
    x = np.arange(100.0)
    line = cluster_interval(binned_r2(x, 3 - 2 * x), rng(), resamples=50)
    assert line.point == pytest.approx(1.0)
    y = (rng(5).uniform(size=2000) < 0.3).astype(float)
    x = rng(6).uniform(size=2000) + 0.2 * y
    found = cluster_interval(binned_r2(x, y), rng())
    order = np.argsort(x)
    means = [[part.mean() for part in np.array_split(v[order], 10)] for v in (x, y)]
    assert found.point == pytest.approx(np.corrcoef(*means)[0, 1] ** 2)
    assert np.array(binned_means(x, y)) == pytest.approx(np.array(means))
    assert 0 <= found.low <= found.high <= 1


def test_one_populated_bin_is_seen_by_the_ranks_and_by_the_fit_without_it():
    """A teacher that errs in its last bin alone: a line through two points, and none without it."""
    rng = np.random.default_rng(5)
    x = np.concatenate([rng.uniform(0.0, 0.01, 900), rng.uniform(0.9, 1.0, 100)])
    y = np.concatenate([rng.uniform(size=900) < 0.05, rng.uniform(size=100) < 0.5]).astype(float)
    whole = association.binned_r2(x, y)
    without = association.binned_r2(x, y, last=False)
    assert float(whole.function(whole.sums.sum(axis=0))) > 0.9
    means = [part[:9] for part in association.binned_means(x, y)]
    expected = pearsonr(*means).statistic ** 2
    assert float(without.function(without.sums.sum(axis=0))) == pytest.approx(expected)
    assert expected < 0.5
    assert association.rank_correlation(x, y).point == pytest.approx(spearmanr(x, y).statistic)
    found = measurements.entropy_error(x, y, rng, resamples=50)["values"]
    assert found["binned_r2_without_last"].point == pytest.approx(expected)
    y[:900] = 0.0
    found = measurements.entropy_error(x, y, rng, resamples=50)["values"]
    assert set(found) == {"pearson_r", "binned_r2", "rank_correlation"}


def test_binning_averages_the_noise_away():
    draw = rng(7)
    entropy = draw.uniform(size=4000)
    wrong = draw.uniform(size=4000) < 0.1 + 0.5 * entropy
    parts = measurements.entropy_error(entropy, wrong, draw, resamples=300)
    r, r2 = parts["values"]["pearson_r"].point, parts["values"]["binned_r2"].point
    # Cov = 0.5/12; Var(wrong) = p(1-p) at p = 0.35
    assert r == pytest.approx(0.5 / 12 / math.sqrt(1 / 12 * 0.35 * 0.65), abs=0.03)
    assert r2 > 0.9 > r * r
    assert parts["n"] == {"items": 4000, "clusters": 4000, "bins": 10}
    with pytest.raises(InputError, match="bins"):
        binned_r2(entropy[:10], wrong[:10])


# --- the gate's covariance (Theorem 3.1)


def test_covariance_is_its_closed_form():
    gates, losses = rng(8).uniform(0.4, 1.0, 500), rng(9).exponential(size=500)
    found = cluster_interval(gate_covariance(gates, losses), rng(), resamples=200)
    weights = gates / gates.sum()
    covariance = np.mean(weights * losses) - weights.mean() * losses.mean()
    assert found.point == pytest.approx(500 * covariance, rel=1e-9)
    gated = (gates * losses).sum() / gates.sum()
    assert losses.mean() + found.point == pytest.approx(gated)


def test_covariance_has_the_sign_of_what_was_put_in():
    entropy = rng(10).uniform(size=2000)
    losses = 0.5 + entropy + 0.2 * rng(11).standard_normal(2000)
    falling, rising, none = (
        cluster_interval(gate_covariance(gates, losses), rng(), resamples=500)
        for gates in (np.exp(-entropy), np.exp(entropy), np.ones(2000))
    )
    assert falling.high < 0 < rising.low
    assert (none.low, none.high) == pytest.approx((0, 0), abs=1e-12)


def test_covariance_agrees_with_the_losses_of_the_method():
    import torch

    from grace.distillation import confidence_gate, decoupled_kd, gated_decoupled_kd

    generator = torch.Generator().manual_seed(1)
    student, teacher = (
        torch.randn(41, 23, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    target = torch.randint(23, (41,), generator=generator)
    losses = decoupled_kd(student, teacher, target)
    parts = measurements.gate_covariance(
        confidence_gate(teacher).numpy(), losses.numpy(), rng(), resamples=50
    )
    labels = torch.cat([torch.tensor([-100]), target])[None]
    pad = torch.zeros(1, 1, 23, dtype=torch.float64)
    gated = gated_decoupled_kd(
        torch.cat([student[None], pad], 1), torch.cat([teacher[None], pad], 1), labels
    )
    change = parts["values"]["covariance"].point
    assert float(losses.mean()) + change == pytest.approx(float(gated), rel=1e-6)
