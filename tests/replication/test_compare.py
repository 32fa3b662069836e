"""Intervals, paired tests, bands and statuses: known answers, properties, degenerate cases."""

import itertools
import math
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.stats import binomtest, norm

from grace.errors import InputError
from replication.stats import bootstrap as compare
from replication.stats.bootstrap import (
    RESAMPLES,
    Answers,
    Band,
    Interval,
    McNemar,
    Rule,
    Status,
    bootstrap_benchmarks,
    bootstrap_scores,
    combine_all,
    combine_each,
    difference_interval,
    gap_closed_interval,
    generator,
    judge,
    mcnemar,
    minimum_detectable_difference,
    percentile_interval,
    ratio_interval,
    score_interval,
)

HOLDS = Status.DIRECTION_HOLDS


def rng(seed=0):
    return np.random.default_rng(seed)


def answers(*rows, name="b", seeds=None):
    array = np.atleast_2d(np.asarray(rows, dtype=float))
    return Answers(tuple(seeds or range(len(array))), {name: array})


def pair(n, seed, gain=0.1):
    """Two runs' answers to n questions; the second's accuracy is about `gain` higher."""
    draw = rng(seed)
    base = draw.uniform(size=n) < 0.6
    flip = draw.uniform(size=n)
    better = np.where(base, flip > 0.05, flip < (gain + 0.03) / 0.4)
    return answers(base), answers(better)


# --- intervals: known answers


def test_standard_error_and_width_are_those_of_the_closed_form():
    base, better = pair(4000, seed=1)
    interval = difference_interval(better, base, ["b"], rng())
    difference = (better.values["b"] - base.values["b"])[0]
    error = 100 * difference.std() / math.sqrt(difference.size)
    assert interval.point == pytest.approx(100 * difference.mean())
    assert interval.standard_error == pytest.approx(error, rel=0.03)
    assert interval.low == pytest.approx(interval.point - norm.ppf(0.975) * error, abs=0.1 * error)
    assert interval.high == pytest.approx(interval.point + norm.ppf(0.975) * error, abs=0.1 * error)


def test_interval_covers_the_true_difference_as_often_as_it_says():
    draw, covered, above, below, trials = rng(2), 0, 0, 0, 600
    for _ in range(trials):  # P(+1) = 0.15, P(-1) = 0.05: the true difference is 10 points
        kinds = draw.choice(3, p=[0.15, 0.05, 0.80], size=300)
        run, against = answers(kinds != 1), answers(kinds != 0)
        found = difference_interval(run, against, ["b"], draw, resamples=400)
        covered += found.low <= 10 <= found.high
        above += found.low > 10
        below += found.high < 10
    assert 0.92 <= covered / trials <= 0.975
    assert above / trials < 0.05  # each side by itself
    assert below / trials < 0.05


def test_coverage_over_seeds_is_near_nominal_with_several_seeds():
    draw, covered, trials, truth = rng(3), 0, 200, 5.0
    for _ in range(trials):
        effects = 0.05 + 0.02 * draw.standard_normal(6)
        runs = draw.uniform(size=(6, 1000)) < 0.6 + effects[:, None]
        base = draw.uniform(size=1000) < 0.6
        found = difference_interval(answers(*runs), answers(base), ["b"], draw, resamples=200)
        covered += found.low <= truth <= found.high
    assert 0.88 <= covered / trials <= 0.99


def test_two_seeds_show_the_unbiased_variance_between_them():
    low, high = np.zeros(1000), np.zeros(1000)
    low[:400], high[:600] = 1, 1
    runs = answers(low, high)
    # Keep the questions' share negligible: the seeds differ by 20 points.
    interval = score_interval(runs, ["b"], rng())
    between = np.std([40, 60], ddof=1) / math.sqrt(2)
    assert interval.point == 50
    assert interval.standard_error == pytest.approx(between, rel=0.05)


def test_benchmarks_weigh_the_same_whatever_their_sizes():
    run = Answers((0,), {"large": np.ones((1, 900)), "small": np.zeros((1, 100))})
    base = Answers((0,), {"large": np.zeros((1, 900)), "small": np.zeros((1, 100))})
    interval = difference_interval(run, base, ["large", "small"], rng())
    assert (interval.point, interval.low, interval.high) == (50, 50, 50)


def test_stratified_error_is_that_of_the_mean_of_means():
    draw = rng(4)
    values = {
        "large": draw.uniform(size=(1, 5000)) < 0.5,
        "small": draw.uniform(size=(1, 200)) < 0.5,
    }
    run = Answers((0,), {name: array.astype(float) for name, array in values.items()})
    found = score_interval(run, ["large", "small"], rng())
    expected = 100 * math.sqrt(sum(v.std() ** 2 / v.size for v in values.values())) / 2
    assert found.standard_error == pytest.approx(expected, rel=0.04)


def test_gap_closed_and_ratio_have_their_defining_values():
    baseline, teacher, run = (answers(np.arange(1000) < k) for k in (500, 900, 700))
    fraction, gap = gap_closed_interval(run, baseline, teacher, ["b"], rng())
    assert fraction is not None
    assert fraction.point == pytest.approx(0.5)
    assert fraction.low < 0.5 < fraction.high
    assert gap.point == pytest.approx(40)
    ratio = ratio_interval(run, baseline, ["b"], rng())
    assert ratio.point == pytest.approx(140)
    assert ratio.low < 140 < ratio.high


def test_gap_that_is_not_there_has_no_fraction():
    same, other = answers(np.arange(100) < 50), answers(np.arange(100) < 60)
    fraction, gap = gap_closed_interval(other, same, same, ["b"], rng())
    assert fraction is None
    assert gap.point == 0


def test_gap_that_is_not_resolved_has_no_fraction_even_where_draws_would_give_one():
    base = np.arange(200) % 2
    teacher, run = base.copy(), base.copy()
    teacher[0:24:2] = 1  # 12 gained, 4 lost: a gap of 4 points, not told apart from none
    teacher[101:109:2] = 0
    run[40:80:2], run[41:81:2] = 1, 0  # as many gained as lost
    found = gap_closed_interval(answers(run), answers(base), answers(teacher), ["b"], rng())
    assert found[0] is None
    assert found[1].low <= 0 < found[1].point


def test_a_ratio_to_zero_has_no_value():
    assert ratio_interval(answers([1, 0]), answers([0, 0]), ["b"], rng()) is None


def test_6000_questions_10000_resamples_take_under_a_second():
    draw = rng(5)
    names = ["a", "b", "c"]
    runs = [
        Answers((0, 1, 2), {n: (draw.uniform(size=(3, 2000)) < 0.7).astype(float) for n in names})
        for _ in range(2)
    ]
    start = time.process_time()
    difference_interval(*runs, names, rng())
    assert time.process_time() - start < 1.0


def test_answers_of_many_values_are_resampled_too():
    run = answers(rng(6).uniform(size=3000))
    found = score_interval(run, ["b"], rng(), resamples=2000)
    assert found.standard_error == pytest.approx(
        100 * run.values["b"].std() / math.sqrt(3000), rel=0.06
    )


# --- scores and generators


def test_scores_are_means_of_the_benchmarks_means():
    run = Answers(
        (7, 9), {"a": np.array([[1.0, 0.0, 1.0, 0.5], [0.0, 0.0, 1.0, 0.0]]), "b": np.eye(2)}
    )
    first = [(1 + 0 + 1 + 0.5) / 4, (0 + 0 + 1 + 0) / 4]
    second = [1 / 2, 1 / 2]
    assert run.score(["a"]) == pytest.approx(100 * sum(first) / 2)
    assert run.score(["a", "b"]) == pytest.approx(100 * (sum(first) / 2 + sum(second) / 2) / 2)
    expected = [100 * (one + other) / 2 for one, other in zip(first, second, strict=True)]
    found = run.seed_scores(["a", "b"])
    assert found.shape == (2,)
    assert found == pytest.approx(expected)
    assert isinstance(run.score(["a"]), float)


@pytest.mark.parametrize("name", ["qwen2_vl/grace", "Größe"])
def test_a_comparisons_draws_depend_on_its_seed_and_name_alone(name):
    expected = np.random.default_rng([5, zlib.crc32(bytes(name, "utf-8"))]).integers(2**62, size=4)
    assert generator(5, name).integers(2**62, size=4).tolist() == expected.tolist()
    for other in (generator(6, name), generator(5, name + "x")):
        assert other.integers(2**62, size=4).tolist() != expected.tolist()


# --- the bootstrap against its definition: every resample there is, each once


def every_resample(runs, benchmarks, shared):
    """The exact distribution of the runs' scores on each benchmark, (outcomes, runs, benchmarks).

    Every draw of the questions with replacement and, for runs of several seeds, every draw of
    seeds (one for all runs if `shared`, else one for each) is one outcome, all equally probable.
    """
    questions = [
        itertools.product(range(runs[0].values[name].shape[1]), repeat=2) for name in benchmarks
    ]
    counts = [len(run.seeds) for run in runs]
    groups = [tuple(range(len(runs)))] if shared else [(index,) for index in range(len(runs))]
    picks = [
        itertools.product(range(counts[group[0]]), repeat=counts[group[0]]) for group in groups
    ]
    picks = [list(one) for one in picks]
    outcomes = []
    for drawn in itertools.product(*map(list, questions)):
        for picked in itertools.product(*picks):
            scores = np.zeros((len(runs), len(benchmarks)))
            for group, seeds in zip(groups, picked, strict=True):
                for index in group:
                    for place, (name, rows) in enumerate(zip(benchmarks, drawn, strict=True)):
                        means = 100 * runs[index].values[name][:, list(rows)].mean(axis=1)
                        if counts[index] > 1:
                            stretch = math.sqrt(counts[index] / (counts[index] - 1))
                            means = means.mean() + (means - means.mean()) * stretch
                        scores[index, place] = means[list(seeds)].mean()
            outcomes.append(scores)
    return np.array(outcomes)


SMALL = {
    (1, 2): Answers((1, 2), {"a": np.array([[1.0, 0.25], [0.5, 1.0]]), "b": np.eye(2)}),
    (1, 2, "other"): Answers((1, 2), {"a": np.array([[0.0, 1], [1, 1]]), "b": np.ones((2, 2))}),
    (3, 4): Answers(
        (3, 4), {"a": np.array([[0.0, 1], [0, 0.5]]), "b": np.array([[1.0, 0], [1, 1]])}
    ),
    (1,): Answers((1,), {"a": np.array([[0.0, 1.0]]), "b": np.array([[1.0, 0.0]])}),
    (1, 2, 3): Answers((1, 2, 3), {"a": np.array([[1.0, 0], [1, 1], [0.5, 0]])}),
}


@pytest.mark.parametrize(
    ("names", "benchmarks", "shared"),
    [
        ([(1,)], ["a", "b"], True),
        ([(1, 2)], ["a"], True),
        ([(1, 2, 3)], ["a"], True),
        ([(1, 2), (1, 2, "other")], ["a", "b"], True),  # the same seeds are drawn together
        ([(1, 2), (3, 4)], ["a", "b"], False),
        ([(1, 2), (1,)], ["a", "b"], False),
    ],
)
def test_resamples_have_the_distribution_of_every_resample(names, benchmarks, shared):
    runs = [SMALL[name] for name in names]
    count = 40_000
    points, drawn = bootstrap_benchmarks(runs, benchmarks, rng(9), count)
    assert points.shape == (len(runs), len(benchmarks))
    assert drawn.shape == (count, len(runs), len(benchmarks))
    for index, run in enumerate(runs):
        assert points[index] == pytest.approx([run.score([name]) for name in benchmarks])
    exact = every_resample(runs, benchmarks, shared)
    # Every coordinate, and every difference or sum of two, which their dependence decides.
    flat, expected = drawn.reshape(count, -1), exact.reshape(len(exact), -1)
    width = flat.shape[1]
    pairs = [np.eye(width)[one] for one in range(width)]
    pairs += [
        np.eye(width)[one] + sign * np.eye(width)[other]
        for one, other in itertools.combinations(range(width), 2)
        for sign in (1, -1)
    ]
    for weights in pairs:
        values, shares = np.unique((expected @ weights).round(6), return_counts=True)
        probability = shares / len(expected)
        found = (flat @ weights).round(6)
        assert np.isin(found, values).all()
        frequency = np.array([(found == value).mean() for value in values])
        slack = 5 * np.sqrt(probability * (1 - probability) / count) + 1e-12
        assert np.all(np.abs(frequency - probability) <= slack)


@pytest.mark.parametrize("statistic", ["mean", "difference"])
def test_intervals_are_those_of_scipys_bootstrap(statistic):
    base, better = pair(1000, seed=11)
    first, second = better.values["b"][0], base.values["b"][0]
    if statistic == "mean":
        found = score_interval(better, ["b"], rng(), level=0.9)
        sample = first
    else:
        found = difference_interval(better, base, ["b"], rng(), level=0.9)
        sample = first - second
    expected = stats.bootstrap(
        (100 * sample,), np.mean, method="percentile", confidence_level=0.9, rng=rng(1)
    )
    interval, error = expected.confidence_interval, expected.standard_error
    assert found.point == pytest.approx(100 * sample.mean())
    assert found.standard_error == pytest.approx(error, rel=0.03)
    # Both are quantiles of about 10,000 draws: within a few of their own standard errors.
    assert found.low == pytest.approx(interval.low, abs=0.1 * error)
    assert found.high == pytest.approx(interval.high, abs=0.1 * error)
    assert found.level == 0.9


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_the_interval_is_numpys_quantiles_and_the_error_their_deviation(level):
    drawn = rng(12).standard_normal(501)
    found = percentile_interval(0.25, drawn, level)
    tail = (1 - level) / 2
    assert (found.point, found.level) == (0.25, level)
    assert found.low == pytest.approx(np.quantile(drawn, tail))
    assert found.high == pytest.approx(np.quantile(drawn, 1 - tail))
    assert found.standard_error == pytest.approx(drawn.std(ddof=1))
    assert percentile_interval(0.0, drawn).level == 0.95


def test_the_error_leaves_out_resamples_that_are_not_finite():
    drawn = np.concatenate([np.full(4, -math.inf), np.arange(1000.0), np.full(4, math.inf)])
    assert percentile_interval(1.0, drawn).standard_error == pytest.approx(
        np.arange(1000.0).std(ddof=1)
    )
    assert percentile_interval(3.0, np.array([3.0])).standard_error == 0.0
    assert percentile_interval(3.0, np.array([2.0, 4.0])).standard_error == pytest.approx(2**0.5)


def test_draws_in_chunks_are_draws_all_the_same(monkeypatch):
    runs = [SMALL[1, 2], SMALL[3, 4]]
    monkeypatch.setattr(compare, "_CHUNK_CELLS", 10)
    _, drawn = bootstrap_benchmarks(runs, ["a"], rng(), 1001)
    assert drawn.shape == (1001, 2, 1)
    run = answers(rng(13).uniform(size=40))
    for cells in (1, 40, 10_000_000):
        monkeypatch.setattr(compare, "_CHUNK_CELLS", cells)
        found = score_interval(run, ["b"], rng(), resamples=3000)
        error = 100 * run.values["b"].std() / math.sqrt(40)
        assert found.standard_error == pytest.approx(error, rel=0.06)


def test_a_chunk_bounds_the_cells_of_one_draw(monkeypatch):
    """Peak memory: no draw has more cells than stated, and none is made that is not needed."""

    class Watched:
        def __init__(self):
            self.inner, self.sizes = rng(), []

        def multinomial(self, total, share, size):
            self.sizes.append((size, len(share)))
            return self.inner.multinomial(total, share, size=size)

        def __getattr__(self, name):
            return getattr(self.inner, name)

    # 3 patterns: 33 resamples fill 100 cells, and one resample is the least that can be drawn
    for cells, sizes in ((100, [(33, 3), (33, 3), (4, 3)]), (2, [(1, 3)] * 70), (210, [(70, 3)])):
        monkeypatch.setattr(compare, "_CHUNK_CELLS", cells)
        watched = Watched()
        bootstrap_scores([answers([1, 1, 0, 0.5])], ["b"], watched, 70)
        assert watched.sizes == sizes


@pytest.mark.parametrize(
    "function", [score_interval, difference_interval, ratio_interval, gap_closed_interval]
)
def test_resamples_and_level_are_the_callers(function):
    runs = [answers(np.arange(200) < k) for k in (150, 60, 180)]
    count = {score_interval: 1, gap_closed_interval: 3}.get(function, 2)
    found = {}
    for level, resamples in ((0.95, RESAMPLES), (0.5, RESAMPLES), (0.95, 50)):
        found[level, resamples] = function(
            *runs[:count], ["b"], rng(), resamples=resamples, level=level
        )
    default = function(*runs[:count], ["b"], rng())
    assert default == found[0.95, RESAMPLES] != found[0.95, 50]
    parts = [one if isinstance(one, tuple) else (one,) for one in (found[0.5, RESAMPLES], default)]
    for narrow, wide in zip(*parts, strict=True):
        assert (narrow.level, wide.level) == (0.5, 0.95)
        assert wide.low < narrow.low < narrow.high < wide.high
        # a normal interval's halves: 0.674 and 1.960 standard errors
        assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(2.9, abs=0.35)


def test_ten_thousand_resamples_are_the_default():
    _, drawn = bootstrap_scores([answers([1, 0])], ["b"], rng())
    assert drawn.shape == (10_000, 1)
    assert bootstrap_benchmarks([answers([1, 0])], ["b"], rng())[1].shape == (10_000, 1, 1)


def test_a_ratio_is_that_of_the_resamples():
    run, against = answers(np.arange(300) < 210), answers(np.arange(300) % 3 < 2)
    found = ratio_interval(run, against, ["b"], rng(3), level=0.8)
    _, drawn = bootstrap_scores([run, against], ["b"], rng(3))
    low, high = np.quantile(100 * drawn[:, 0] / drawn[:, 1], [0.1, 0.9])
    assert found.point == pytest.approx(105)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_a_closed_gap_is_that_of_the_resamples():
    baseline, teacher, run = (answers(np.arange(400) % 400 < k) for k in (200, 360, 320))
    fraction, gap = gap_closed_interval(run, baseline, teacher, ["b"], rng(3), level=0.8)
    _, drawn = bootstrap_scores([run, baseline, teacher], ["b"], rng(3))
    below = drawn[:, 2] - drawn[:, 1]
    assert fraction.point == pytest.approx(0.75)
    assert (fraction.low, fraction.high) == pytest.approx(
        tuple(np.quantile((drawn[:, 0] - drawn[:, 1]) / below, [0.1, 0.9]))
    )
    assert (gap.low, gap.high) == pytest.approx(tuple(np.quantile(below, [0.1, 0.9])))


@pytest.mark.parametrize(("right", "of"), [(1, 2), (1, 400)])
def test_a_ratio_needs_a_score_above_zero_in_every_resample(right, of):
    """One right of 400 is a score of a quarter of a point, and of zero in a third of the draws."""
    one = answers(np.arange(of) < right)
    assert ratio_interval(one, one, ["b"], rng()) is None
    always = answers(np.full(of, 0.004))  # less than a point, and above zero in every resample
    found = ratio_interval(one, always, ["b"], rng())
    assert found.point == pytest.approx(100 * right / of / 0.004)


def fractions(drawn):
    """Each resample's part of the gap that is closed; without a gap, beyond one of its ends."""
    found = []
    for ours, base, theirs in drawn:
        beyond = math.inf if ours >= base else -math.inf
        found.append((ours - base) / (theirs - base) if theirs > base else beyond)
    return np.array(found)


@pytest.mark.filterwarnings("error")
def test_resamples_without_a_gap_put_the_fraction_beyond_both_ends():
    """A gap of 5 questions of 100: no gap in six resamples of a thousand, and what `run` does
    there lies beyond the teacher (or the baseline, where `run` is worse)."""
    teacher, run = np.zeros(100), np.zeros(100)
    teacher[:5], run[:3], run[50:52] = 1, 1, 1
    baseline = np.zeros(100)
    baseline[60] = teacher[60] = 1
    three = [answers(one) for one in (run, baseline, teacher)]
    fraction, gap = gap_closed_interval(*three, ["b"], rng(5))
    expected = fractions(bootstrap_scores(three, ["b"], rng(5))[1])
    assert 0 < np.isinf(expected).sum() < 250 and math.inf in expected and -math.inf in expected
    assert gap.low > 0
    assert fraction.point == pytest.approx(0.8)
    ends = np.quantile(np.clip(expected, -100, 100), [0.025, 0.975])
    assert (fraction.low, fraction.high) == pytest.approx(tuple(ends))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("resamples", "level", "kinds"),
    [
        # A quantile between a resample without a gap and one with a gap lies above zero: there is
        # a gap, and yet an end of the fraction is not finite.
        (2, 0.9, {"no end", "both"}),
        (50, 0.95, {"no gap", "no end", "both"}),
        # Resamples without a gap are 2.3 %: more than an interval of 97 % leaves out on one side.
        (10_000, 0.95, {"both"}),
        (10_000, 0.97, {"no gap"}),
    ],
)
def test_a_fraction_is_given_where_gap_and_fraction_have_both_ends(resamples, level, kinds):
    base, best, ours = np.zeros(8), np.arange(8) < 3, np.where(np.arange(8) < 3, 0.5, 0)
    three, seen = [answers(one) for one in (ours, base, best)], set()
    for seed in range(30 if resamples < 100 else 2):
        found, gap = gap_closed_interval(*three, ["b"], rng(seed), resamples=resamples, level=level)
        drawn = bootstrap_scores(three, ["b"], rng(seed), resamples)[1]
        tails = [(1 - level) / 2, (1 + level) / 2]
        low, high = np.quantile(drawn[:, 2] - drawn[:, 1], tails)
        with np.errstate(invalid="ignore"):
            ends = np.quantile(fractions(drawn), tails)
        assert (gap.low, gap.high) == pytest.approx((low, high))
        seen.add("no gap" if low <= 0 else "both" if np.isfinite(ends).all() else "no end")
        if low > 0 and np.isfinite(ends).all():
            assert (found.low, found.high) == pytest.approx(tuple(ends))
            assert found.level == level
        else:
            assert found is None
    assert seen == kinds


def test_a_small_gap_above_zero_has_a_fraction():
    """Half a point, the same for every question: there is a gap, however small."""
    base = np.linspace(0.2, 0.6, 50)
    baseline, teacher, run = answers(base), answers(base + 0.005), answers(base + 0.002)
    fraction, gap = gap_closed_interval(run, baseline, teacher, ["b"], rng())
    assert (gap.low, gap.high) == pytest.approx((0.5, 0.5))
    assert (fraction.low, fraction.point, fraction.high) == pytest.approx((0.4, 0.4, 0.4))


# --- intervals: properties

bits = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60)


@given(rows=bits, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_exchanging_the_runs_changes_the_sign_and_nothing_else(rows, seed):
    first, second = (answers(column) for column in np.array(rows, dtype=float).T)
    one = difference_interval(first, second, ["b"], rng(seed), resamples=200)
    other = difference_interval(second, first, ["b"], rng(seed), resamples=200)
    assert one.point == pytest.approx(-other.point)
    assert one.low == pytest.approx(-other.high, abs=1e-9)
    assert one.high == pytest.approx(-other.low, abs=1e-9)


@given(rows=bits, seed=st.integers(0, 2**32 - 1), shift=st.floats(-0.5, 0.5))
@settings(max_examples=60, deadline=None)
def test_a_shift_of_both_runs_does_not_move_their_difference(rows, seed, shift):
    first, second = np.array(rows, dtype=float).T
    plain = difference_interval(answers(first), answers(second), ["b"], rng(seed), resamples=200)
    moved = difference_interval(
        answers(first + shift), answers(second + shift), ["b"], rng(seed), resamples=200
    )
    for name in ("point", "low", "high"):
        assert getattr(moved, name) == pytest.approx(getattr(plain, name), abs=1e-6)


@given(rows=bits, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_resamples_stay_between_the_extremes_and_intervals_are_ordered(rows, seed):
    first, second = (answers(column) for column in np.array(rows, dtype=float).T)
    _, drawn = bootstrap_scores([first, second], ["b"], rng(seed), resamples=100)
    assert drawn.min() >= -1e-9
    assert drawn.max() <= 100 + 1e-9
    found = difference_interval(first, second, ["b"], rng(seed), resamples=100)
    assert found.low <= found.high


@given(
    kinds=st.lists(st.sampled_from([(0, 0), (0, 1), (1, 0), (1, 1)]), min_size=5, max_size=40),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_a_symmetric_sample_has_its_point_in_the_interval(kinds, seed):
    rows = np.array(kinds + [(b, a) for a, b in kinds], dtype=float)
    first, second = (answers(column) for column in rows.T)
    found = difference_interval(first, second, ["b"], rng(seed), resamples=400)
    assert found.low <= found.point <= found.high


def test_the_same_generator_gives_the_same_interval():
    base, better = pair(500, seed=7)
    assert difference_interval(better, base, ["b"], rng(1)) == difference_interval(
        better, base, ["b"], rng(1)
    )
    assert difference_interval(better, base, ["b"], rng(1)) != difference_interval(
        better, base, ["b"], rng(2)
    )


# --- intervals: degenerate and wrong input


def test_all_equal_answers_give_an_interval_of_no_width_and_decide_nothing():
    same = answers(np.arange(50) % 2)
    interval = difference_interval(same, same, ["b"], rng())
    assert (interval.point, interval.low, interval.high) == (0, 0, 0)
    assert judge(interval, Rule(above=0), None, HOLDS) is Status.INCONCLUSIVE


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_questions_are_an_error(count):
    run = Answers((0,), {"b": np.ones((1, count))})
    with pytest.raises(InputError, match="at least two"):
        score_interval(run, ["b"], rng())


def test_unpaired_missing_and_empty_input_are_errors():
    with pytest.raises(
        InputError, match=r"b: runs answered \[2, 3\] questions; they must be paired"
    ):
        difference_interval(answers([1, 0, 1]), answers([1, 0]), ["b"], rng())
    with pytest.raises(InputError, match="benchmark 'other' is missing from a run"):
        score_interval(answers([1, 0]), ["other"], rng())
    for runs, benchmarks in (([], ["b"]), ([answers([1, 0])], [])):
        with pytest.raises(InputError) as raised:
            bootstrap_scores(runs, benchmarks, rng())
        assert str(raised.value) == "a bootstrap needs at least one run and one benchmark"
    with pytest.raises(InputError, match="resamples is 0: give at least 1"):
        score_interval(answers([1, 0]), ["b"], rng(), resamples=0)
    assert len(bootstrap_scores([answers([1, 0])], ["b"], rng(), 1)[1]) == 1
    for level in (0.0, 1.0, 1.5):
        with pytest.raises(InputError, match=f"level is {level}: give a number between 0 and 1"):
            score_interval(answers([1, 0]), ["b"], rng(), level=level)
    with pytest.raises(InputError, match="shape"):
        Answers((0, 1), {"b": np.ones((1, 5))})
    with pytest.raises(InputError) as raised:
        Answers((), {})
    assert str(raised.value) == "answers of no seed"
    with pytest.raises(InputError, match="b: answers are not all finite"):
        answers([math.nan, 1])


# --- McNemar and power


def test_mcnemar_equals_the_value_by_hand_and_scipy():
    # 9 discordant pairs, 8 one way: 2 * (1 + 9) / 2^9
    first = np.array([1] * 8 + [0] * 1 + [1] * 5 + [0] * 5)
    second = np.array([0] * 8 + [1] * 1 + [1] * 5 + [0] * 5)
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (8, 1)
    assert found.p_value == pytest.approx(20 / 512)
    assert found.p_value == pytest.approx(binomtest(8, 9, 0.5).pvalue)
    assert mcnemar(second, first).p_value == pytest.approx(found.p_value)


def test_mcnemar_without_discordant_pairs_is_one():
    assert mcnemar(np.array([1, 0]), np.array([1, 0])) == McNemar(0, 0, 1.0)


@given(pairs=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_mcnemar_equals_the_sum_of_its_binomial_tails(pairs):
    """The exact test: of n discordant questions, as uneven a split as this or more uneven."""
    first, second = zip(*pairs, strict=True)
    found = mcnemar(np.array(first), np.array(second))
    one = sum(a and not b for a, b in pairs)
    other = sum(b and not a for a, b in pairs)
    n = one + other
    tail = sum(math.comb(n, k) for k in range(min(one, other) + 1)) / 2**n
    assert (found.only_first, found.only_second) == (one, other)
    assert found.p_value == pytest.approx(min(1.0, 2 * tail))


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ([], [], "McNemar's test of no questions"),
        ([1, 0], [1], "answers of shapes (2,) and (1,) are not paired"),
        ([[1, 0]], [[1, 0]], "answers of shapes (1, 2) and (1, 2) are not paired"),
        ([0.5, 1], [1, 0], "McNemar's test needs answers that are right (1) or wrong (0)"),
        ([0, 1], [1, 2], "McNemar's test needs answers that are right (1) or wrong (0)"),
    ],
)
def test_mcnemar_refuses_what_is_not_paired_right_or_wrong(first, second, said):
    with pytest.raises(InputError) as raised:
        mcnemar(np.array(first), np.array(second))
    assert str(raised.value) == said


def test_minimum_detectable_difference_is_detected_with_the_stated_power():
    smallest = minimum_detectable_difference(1.0, power=0.8)
    assert smallest == pytest.approx(norm.ppf(0.975) + norm.ppf(0.8))
    estimates = smallest + rng(8).standard_normal(20000)
    assert np.mean(estimates - norm.ppf(0.975) > 0) == pytest.approx(0.8, abs=0.01)


@given(
    error=st.floats(0, 100), power=st.floats(0.01, 0.99), level=st.sampled_from([0.5, 0.9, 0.99])
)
@settings(max_examples=15, deadline=None)
def test_minimum_detectable_difference_is_that_of_the_normal_quantiles(error, power, level):
    expected = (norm.ppf(1 - (1 - level) / 2) + norm.ppf(power)) * error
    found = minimum_detectable_difference(error, power, level)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)
    default = (norm.ppf(0.975) + norm.ppf(0.8)) * error
    assert minimum_detectable_difference(error) == pytest.approx(default, rel=1e-9)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ((-1e-9,), "standard error is -1e-09: give a number that is not negative"),
        ((math.nan,), "standard error is nan: give a number that is not negative"),
        ((math.inf,), "standard error is inf: give a number that is not negative"),
        ((1.0, 0.0), "power is 0.0: give a number between 0 and 1"),
        ((1.0, 1.0), "power is 1.0: give a number between 0 and 1"),
        ((1.0, 0.5, 0.0), "level is 0.0: give a number between 0 and 1"),
        ((1.0, 0.5, 1.0), "level is 1.0: give a number between 0 and 1"),
    ],
)
def test_minimum_detectable_difference_refuses_what_is_out_of_range(wrong, said):
    with pytest.raises(InputError) as raised:
        minimum_detectable_difference(*wrong)
    assert str(raised.value) == said


# --- bands and statuses

BAND = Band(1.0, 3.0, "a reason")


@pytest.mark.parametrize(
    ("low", "high", "status"),
    [
        (1.0, 3.0, Status.REPRODUCED),  # the ends belong to it
        (1.5, 2.5, Status.REPRODUCED),
        (0.999999, 2.5, Status.INCONCLUSIVE),  # nothing is rounded
        (1.5, 3.000001, Status.INCONCLUSIVE),
        (0.0, 5.0, Status.INCONCLUSIVE),
        (0.0, 0.999999, Status.CONTRADICTED),
        (3.000001, 4.0, Status.CONTRADICTED),
        (0.0, 1.0, Status.INCONCLUSIVE),  # touches the band's end, which belongs to it
        (3.0, 4.0, Status.INCONCLUSIVE),
    ],
)
def test_a_band_has_two_ends(low, high, status):
    interval = Interval((low + high) / 2, low, high)
    assert judge(interval, Rule(within_band=True), BAND, Status.REPRODUCED) is status


@pytest.mark.parametrize(
    ("low", "high", "status"),
    [
        (0.1, 2.0, HOLDS),
        (0.0, 2.0, Status.INCONCLUSIVE),
        (-0.1, 2.0, Status.INCONCLUSIVE),
        (-2.0, 0.0, Status.INCONCLUSIVE),
        (-2.0, -0.1, Status.CONTRADICTED),
    ],
)
def test_a_direction_comes_from_the_interval_not_the_point(low, high, status):
    for point in (low, high):
        assert judge(Interval(point, low, high), Rule(above=0), None, HOLDS) is status


@pytest.mark.parametrize(
    ("low", "high", "status"),
    [(-1.4, 0.2, HOLDS), (-1.6, 0.2, Status.INCONCLUSIVE), (-3, -1.6, Status.CONTRADICTED)],
)
def test_a_margin_is_a_direction_from_another_origin(low, high, status):
    assert judge(Interval(low, low, high), Rule(above=-1.5), None, HOLDS) is status


@pytest.mark.parametrize(
    ("low", "high", "status"),
    [
        (-2.0, 0.9, HOLDS),
        (-2.0, 1.0, Status.INCONCLUSIVE),  # one that touches the value does not lie below it
        (0.0, 2.0, Status.INCONCLUSIVE),
        (1.0, 2.0, Status.INCONCLUSIVE),
        (1.1, 2.0, Status.CONTRADICTED),
    ],
)
def test_below_is_above_from_the_other_side(low, high, status):
    assert judge(Interval(low, low, high), Rule(below=1.0), None, HOLDS) is status
    assert judge(Interval(-low, -high, -low), Rule(above=-1.0), None, HOLDS) is status


@pytest.mark.parametrize(
    ("low", "high", "status"),
    [
        (-0.9, 0.9, HOLDS),
        (-1.1, 0.9, Status.INCONCLUSIVE),
        (-0.9, 1.1, Status.INCONCLUSIVE),
        (1.1, 2.0, Status.CONTRADICTED),
        (-2.0, -1.1, Status.CONTRADICTED),
    ],
)
def test_above_and_below_together_are_a_test_of_equivalence(low, high, status):
    assert judge(Interval(low, low, high), Rule(above=-1, below=1), None, HOLDS) is status


def test_a_rule_has_a_condition_that_something_can_satisfy():
    for missing in ({}, {"reason": "none"}):
        with pytest.raises(InputError) as raised:
            Rule(**missing)
        assert str(raised.value) == "a rule needs 'above', 'below' or 'within_band'"
    for above, below in ((1.0, 1.0), (2.0, 1.0)):
        said = f"a rule's 'above' {above} is not less than 'below' {below}"
        with pytest.raises(InputError) as raised:
            Rule(above=above, below=below)
        assert str(raised.value) == said
    for one in (Rule(above=1.0), Rule(below=1.0), Rule(within_band=True), Rule(above=0, below=1)):
        assert (one.reason, one.within_band) == ("", one == Rule(within_band=True))


def test_every_condition_of_a_rule_must_hold():
    both = Rule(above=0, within_band=True)
    band = Band(-1, 3, "a reason")
    assert judge(Interval(1, 0.5, 2), both, band, Status.REPRODUCED) is Status.REPRODUCED
    assert judge(Interval(1, -0.5, 2), both, band, Status.REPRODUCED) is Status.INCONCLUSIVE
    assert judge(Interval(-0.5, -0.9, -0.1), both, band, HOLDS) is Status.CONTRADICTED
    assert judge(Interval(4, 3.5, 5), both, band, HOLDS) is Status.CONTRADICTED
    with pytest.raises(InputError) as raised:
        judge(Interval(1, 0, 2), both, None, HOLDS)
    assert str(raised.value) == "the rule asks for a band and none is given"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ((3.0, 1.0, "r"), "band [3.0, 1.0]: low lies above high"),
        ((math.nan, 1.0, "r"), "band [nan, 1.0]: both ends must be finite"),
        ((0.0, math.inf, "r"), "band [0.0, inf]: both ends must be finite"),
        ((0.0, 1.0, " "), "band [0.0, 1.0] carries no reason"),
    ],
)
def test_a_band_is_two_sided_ordered_and_has_a_reason(wrong, said):
    with pytest.raises(InputError) as raised:
        Band(*wrong)
    assert str(raised.value) == said


def test_a_band_may_be_a_single_value():
    assert Band(2.0, 2.0, "counted").contains(Interval.exact(2.0))
    assert Band(2.0, 2.0, "counted").excludes(Interval.exact(2.5))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ((0.0, 1.0, -1.0), "interval low 1.0 lies above high -1.0"),
        ((math.nan, 0.0, 1.0), "interval nan [0.0, 1.0] is not finite"),
        ((0.0, -math.inf, 1.0), "interval 0.0 [-inf, 1.0] is not finite"),
        ((0.0, 0.0, math.inf), "interval 0.0 [0.0, inf] is not finite"),
    ],
)
def test_an_interval_is_ordered_and_finite(wrong, said):
    with pytest.raises(InputError) as raised:
        Interval(*wrong)
    assert str(raised.value) == said


def test_what_is_counted_has_no_width():
    assert Interval.exact(3.5) == Interval(3.5, 3.5, 3.5, 0.95, 0.0)


R, D, U, C, N = (
    Status.REPRODUCED,
    Status.DIRECTION_HOLDS,
    Status.INCONCLUSIVE,
    Status.CONTRADICTED,
    Status.NOT_RUN,
)


@pytest.mark.parametrize(
    ("parts", "conjunction", "separate"),
    [
        ([D, D], D, D),
        ([R, R], R, R),
        ([R, D], D, D),
        ([D, U], U, U),
        ([D, U, C], C, C),
        ([D, N], N, U),
        ([N, N], N, N),
        ([C, N], C, C),
        ([U, N], N, U),
    ],
)
def test_parts_combine(parts, conjunction, separate):
    assert combine_all(parts) is conjunction
    assert combine_each(parts) is separate


def test_no_parts_have_no_status():
    for combine in (combine_all, combine_each):
        with pytest.raises(InputError) as raised:
            combine([])
        assert str(raised.value) == "a conjunction of no parts has no status"
