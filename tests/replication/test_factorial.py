"""Statistics of several runs, against closed forms and what was put in."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replication.stats.bootstrap import (
    RESAMPLES,
    Answers,
    bootstrap_benchmarks,
    bootstrap_scores,
    interval,
    score,
)
from replication.stats.factorial import (
    disagreement,
    factorial_effects,
    factorial_weights,
    largest_interval,
    seed_pairs,
    spread_interval,
    worst_loss,
)

FACTORS = ("a", "b", "c")


def rng(seed=0):
    return np.random.default_rng(seed)


def answers(*rows, seeds=None):
    array = np.atleast_2d(np.asarray(rows, dtype=float))
    return Answers(tuple(seeds or range(len(array))), {"q": array})


def resample(runs, draw=None, resamples=RESAMPLES):
    return bootstrap_scores(runs, ["q"], draw or rng(), resamples)


def design(values):
    """Runs of a 2^3 design whose scores are exactly `values(a, b, c)` percent of 1000 questions."""
    runs = {}
    for on in itertools.product((False, True), repeat=3):
        chosen = frozenset(name for name, is_on in zip(FACTORS, on, strict=True) if is_on)
        runs[chosen] = answers(np.arange(1000) < 10 * values(*map(int, on)))
    return runs


def test_effects_of_a_design_are_those_that_were_put_in():
    runs = design(lambda a, b, c: 50 + 8 * a + 4 * b - 2 * c + 6 * a * b)
    found = factorial_effects(runs, FACTORS, ["q"], rng(), resamples=500)
    points = {effect: interval.point for effect, interval in found.items()}
    # with a*b at 6 where both are on: half of it shows in a and in b, half in the interaction
    assert points == pytest.approx(
        {("a",): 11, ("b",): 7, ("c",): -2, ("a", "b"): 3, ("a", "c"): 0, ("b", "c"): 0, FACTORS: 0}
    )
    assert list(found)[:3] == [("a",), ("b",), ("c",)]


def test_effects_have_the_standard_error_of_their_contrast():
    draw = rng(3)
    runs = {on: answers(draw.uniform(size=2000) < 0.5) for on in design(lambda *_: 50)}
    found = factorial_effects(runs, FACTORS, ["q"], rng())
    expected = 100 * math.sqrt(8 * 0.25 / 2000) / 4
    for effect in found.values():
        assert effect.standard_error == pytest.approx(expected, rel=0.06)


@given(
    scores=st.lists(st.integers(10, 90), min_size=8, max_size=8),
    effect=st.sets(st.sampled_from(FACTORS), min_size=1),
)
@settings(max_examples=40, deadline=None)
def test_weights_are_contrasts_and_a_main_effect_is_a_difference_of_means(scores, effect):
    weights = factorial_weights(FACTORS, sorted(effect))
    assert len(weights) == 8
    assert sum(weights.values()) == pytest.approx(0)
    assert sum(abs(weight) for weight in weights.values()) == pytest.approx(2)
    if len(effect) == 1:
        (factor,) = effect
        by_run = dict(zip(weights, scores, strict=True))
        on = np.mean([score for run, score in by_run.items() if factor in run])
        off = np.mean([score for run, score in by_run.items() if factor not in run])
        total = sum(weights[run] * score for run, score in by_run.items())
        assert total == pytest.approx(on - off)


def test_the_spread_s_interval_covers_the_true_spread():
    draw, trials = rng(4), 300
    for truth, step in ((0.0, 0.0), (10.0, 0.05)):
        too_low = too_high = 0
        for _ in range(trials):
            base = draw.uniform(size=400)
            runs = [answers(base < 0.5 + step * k) for k in range(3)]
            if step == 0.0:
                runs = [answers(draw.uniform(size=400) < 0.5) for _ in range(3)]
            found = spread_interval(resample(runs, draw, 300))
            too_low += found.high < truth
            too_high += found.low > truth
        assert too_low / trials < 0.05
        assert too_high / trials < 0.05


def test_the_plain_range_of_equal_runs_would_exclude_zero_and_ours_does_not():
    draw = rng(5)
    runs = [answers(draw.uniform(size=500) < 0.5) for _ in range(6)]
    found = spread_interval(resample(runs))
    assert found.point > 1
    assert found.low == 0
    assert spread_interval(resample([runs[0]] * 3)).high == 0


def test_the_largest_of_one_quantity_is_that_quantity():
    drawn = rng(6).normal(2.0, 1.0, size=(20_000, 1))
    found = largest_interval(np.array([2.0]), drawn)
    assert found.low == pytest.approx(2 - 1.96, abs=0.05)
    assert found.high == pytest.approx(2 + 1.96, abs=0.05)


def test_disagreement_is_the_share_answered_differently():
    first, second = np.arange(200) < 100, np.arange(200) < 130
    found = interval(resample([disagreement(answers(first), answers(second), ["q"])]), score)
    assert found.point == 15
    assert found.low < 15 < found.high
    same = answers(first, second)
    assert disagreement(same, same, ["q"]).score(["q"]) == 0


def test_seeds_are_paired_where_both_runs_have_the_same():
    two, one = answers([1, 0], [0, 0]), answers([1, 1])
    assert seed_pairs(two, two) == [(0, 0), (1, 1)]
    assert seed_pairs(two, one) == [(0, 0), (1, 0)]
    other = answers([1, 0], [1, 1], seeds=(5, 6))
    assert seed_pairs(two, other) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_the_worst_group_is_found_and_its_loss_covered():
    names = ("reading", "counting")

    def run(*right):
        counts = zip(names, right, strict=True)
        return Answers((0,), {name: (np.arange(400) < k)[None].astype(float) for name, k in counts})

    scores = bootstrap_benchmarks([run(260, 304), run(300, 300)], names, rng())
    name, loss = worst_loss(names, scores)
    assert name == "reading"
    assert loss.point == 10
    assert 6 < loss.low < 10 < loss.high < 14
