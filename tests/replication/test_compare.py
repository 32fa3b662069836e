"""Intervals, paired tests, bands and statuses: known answers, properties, degenerate cases."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from grace.errors import InputError
from replication.compare import (
    Answers,
    Band,
    Interval,
    Rule,
    Status,
    bootstrap_scores,
    combine_all,
    combine_each,
    difference_interval,
    gap_closed_interval,
    judge,
    mcnemar,
    minimum_detectable_difference,
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
    draw, covered, trials, truth = rng(3), 0, 300, 5.0
    for _ in range(trials):
        effects = 0.05 + 0.02 * draw.standard_normal(8)
        runs = draw.uniform(size=(8, 2000)) < 0.6 + effects[:, None]
        base = draw.uniform(size=2000) < 0.6
        found = difference_interval(answers(*runs), answers(base), ["b"], draw, resamples=300)
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
    with pytest.raises(InputError, match="paired"):
        difference_interval(answers([1, 0, 1]), answers([1, 0]), ["b"], rng())
    with pytest.raises(InputError, match="missing"):
        score_interval(answers([1, 0]), ["other"], rng())
    with pytest.raises(InputError, match="at least one run"):
        bootstrap_scores([], ["b"], rng())
    with pytest.raises(InputError, match="at least one run"):
        bootstrap_scores([answers([1, 0])], [], rng())
    with pytest.raises(InputError, match="resamples"):
        score_interval(answers([1, 0]), ["b"], rng(), resamples=0)
    with pytest.raises(InputError, match="level"):
        score_interval(answers([1, 0]), ["b"], rng(), level=1.0)
    with pytest.raises(InputError, match="shape"):
        Answers((0, 1), {"b": np.ones((1, 5))})
    with pytest.raises(InputError, match="no seed"):
        Answers((), {})
    with pytest.raises(InputError, match="finite"):
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
    assert mcnemar(np.array([1, 0]), np.array([1, 0])).p_value == 1.0


@pytest.mark.parametrize(
    ("first", "second"),
    [([], []), ([1, 0], [1]), ([0.5, 1], [1, 0]), ([[1, 0]], [[1, 0]])],
)
def test_mcnemar_refuses_what_is_not_paired_right_or_wrong(first, second):
    with pytest.raises(InputError):
        mcnemar(np.array(first), np.array(second))


def test_minimum_detectable_difference_is_detected_with_the_stated_power():
    smallest = minimum_detectable_difference(1.0, power=0.8)
    assert smallest == pytest.approx(norm.ppf(0.975) + norm.ppf(0.8))
    estimates = smallest + rng(8).standard_normal(20000)
    assert np.mean(estimates - norm.ppf(0.975) > 0) == pytest.approx(0.8, abs=0.01)
    for wrong in ({"standard_error": -1.0}, {"standard_error": 1.0, "power": 1.0}):
        with pytest.raises(InputError):
            minimum_detectable_difference(**wrong)


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


def test_every_condition_of_a_rule_must_hold():
    both = Rule(above=0, within_band=True)
    band = Band(-1, 3, "a reason")
    assert judge(Interval(1, 0.5, 2), both, band, Status.REPRODUCED) is Status.REPRODUCED
    assert judge(Interval(1, -0.5, 2), both, band, Status.REPRODUCED) is Status.INCONCLUSIVE
    assert judge(Interval(-0.5, -0.9, -0.1), both, band, HOLDS) is Status.CONTRADICTED
    assert judge(Interval(4, 3.5, 5), both, band, HOLDS) is Status.CONTRADICTED
    with pytest.raises(InputError, match="band"):
        judge(Interval(1, 0, 2), both, None, HOLDS)
    with pytest.raises(InputError, match="rule"):
        Rule()


@pytest.mark.parametrize(
    "wrong",
    [(3.0, 1.0, "r"), (math.nan, 1.0, "r"), (0.0, math.inf, "r"), (0.0, 1.0, " ")],
)
def test_a_band_is_two_sided_ordered_and_has_a_reason(wrong):
    with pytest.raises(InputError, match="band"):
        Band(*wrong)


def test_an_interval_is_ordered_and_finite():
    with pytest.raises(InputError):
        Interval(0, 1, -1)
    with pytest.raises(InputError):
        Interval(math.nan, 0, 1)


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
    with pytest.raises(InputError):
        combine_all([])
