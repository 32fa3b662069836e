"""Costs and the controller's course, read from logs; judged against cases worked by hand."""

import json
import math

import numpy as np
import pytest
from scipy.stats import ttest_ind

from grace.distillation import IBController
from grace.errors import InputError
from replication.results import training_logs
from replication.results.training_logs import Cost, Trajectory, cost_of, cost_ratio, trajectory_of

GIVEN = {
    **{"seconds": 50.0, "steps": 100, "tokens": 20_000},
    **{"peak_memory_bytes": 2**20, "trained_parameters": 10, "threads": 2, "device": "cpu"},
}


def costs(*seconds, **changes):
    return [Cost(**{**GIVEN, "seconds": one, **changes}) for one in seconds]


def course(beta, ema, tau=0.35, epochs=3.0):
    beta, ema = np.asarray(beta, dtype=float), np.asarray(ema, dtype=float)
    step = np.arange(1, len(beta) + 1)
    return Trajectory(step, epochs * step / step[-1], beta, ema, tau, 0.1, 5.0)


def test_costs_are_read_and_absent_ones_are_none():
    found = cost_of({"history": [], "cost": GIVEN})
    assert found.seconds_per_step == 0.5
    assert found.tokens_per_second == 400
    assert cost_of({"history": []}) is None
    assert cost_of({"cost": {**GIVEN, "peak_memory_bytes": None}}) is None
    assert cost_of({"cost": {**GIVEN, "seconds": math.nan}}) is None
    assert cost_of({"cost": {k: v for k, v in GIVEN.items() if k != "steps"}}) is None


def test_logs_are_found_by_seed(tmp_path):
    folder = tmp_path / "small" / "training" / "some_runs" / "qat_int4"
    folder.mkdir(parents=True)
    for name in ("seed1", "seed10", "seed2", "language", "seedling"):
        (folder / f"{name}.json").write_text(json.dumps({"family": "qwen2_vl", "of": name}))
    found = training_logs.read_logs(tmp_path, "small", "qwen2_vl", "qat_int4")
    assert list(found) == [1, 2, 10]
    assert found[10]["of"] == "seed10"
    assert training_logs.read_logs(tmp_path, "small", "llava", "qat_int4") == {}
    (folder / "seed3.json").write_text("[]")
    with pytest.raises(InputError, match="a mapping"):
        training_logs.read_logs(tmp_path, "small", "qwen2_vl", "qat_int4")


def test_a_ratio_of_times_is_welch_s_interval_of_logarithms():
    first, second = costs(14.0, 15.0, 13.5), costs(10.0, 10.5, 9.0)
    found, note = cost_ratio(first, second, "seconds_per_step")
    logs = [[math.log(one.seconds) for one in group] for group in (first, second)]
    ends = ttest_ind(*logs, equal_var=False).confidence_interval(0.95)
    assert found.point == pytest.approx(math.exp(np.mean(logs[0]) - np.mean(logs[1])))
    assert (found.low, found.high) == pytest.approx((math.exp(ends.low), math.exp(ends.high)))
    assert "3 and 3 seed(s) on cpu" in note


def test_a_ratio_of_times_covers_the_true_ratio_as_often_as_it_says():
    draw, covered, trials = np.random.default_rng(1), 0, 400
    for _ in range(trials):
        first, second = (
            costs(*np.exp(centre + 0.05 * draw.standard_normal(3)))
            for centre in (math.log(15), math.log(10))
        )
        found, _ = cost_ratio(first, second, "seconds_per_step")
        covered += found.low <= 1.5 <= found.high
    assert 0.92 <= covered / trials <= 0.99


def test_a_ratio_of_sizes_goes_from_the_smallest_to_the_largest():
    first = [Cost(**{**GIVEN, "peak_memory_bytes": size}) for size in (120, 130)]
    second = [Cost(**{**GIVEN, "peak_memory_bytes": size}) for size in (100,)]
    found, _ = cost_ratio(first, second, "peak_memory_bytes")
    assert (found.low, found.point, found.high) == (1.2, 1.25, 1.3)


def test_one_timing_has_no_interval_and_other_machines_are_refused():
    assert cost_ratio(costs(2.0), costs(1.0, 1.1), "seconds_per_step")[0] is None
    with pytest.raises(InputError, match="different machines"):
        cost_ratio(costs(2.0), costs(1.0, device="gpu"), "seconds_per_step")
    with pytest.raises(InputError, match="different machines"):
        cost_ratio(costs(2.0), costs(1.0, threads=4), "seconds_per_step")


def test_a_course_is_read_from_the_log_of_a_controller():
    controller = IBController(
        tau=0.5, eta=0.1, beta_init=1.0, beta_min=0.1, beta_max=5.0, ema_decay=0.9
    )
    history = [{"step": 0, "loss": 1.0}]
    for step in range(1, 30):
        beta = float(controller.update(2.0 / step))
        history.append(
            {"step": step, "epoch": 0.1 * step, "beta": beta, "ema": float(controller.ema)}
        )
    settings = {"tau": 0.5, "beta_min": 0.1, "beta_max": 5.0}
    found = trajectory_of({"history": history, "controller": settings})
    assert len(found.beta) == 29
    assert found.beta[-1] == float(controller.beta)
    assert training_logs.steps_out_of_bounds([found]) == 0
    assert trajectory_of({"history": history}) is None
    assert trajectory_of({"history": [], "controller": settings}) is None
    assert trajectory_of({"history": history, "controller": {"tau": 0.5}}) is None


def test_steps_out_of_bounds_are_counted():
    wrong = course([1.0, 5.0, 5.1, 0.1, 0.05, math.inf], [0.3] * 6)
    assert training_logs.steps_out_of_bounds([wrong]) == 3


def test_excess_is_relative_to_the_budget_and_over_seeds():
    kept, missed = course([1.0] * 10, [0.35] * 10), course([1.0] * 10, [0.7] * 10)
    interval, undecided = training_logs.budget_excess([kept, missed])
    assert (interval.low, interval.point, interval.high) == pytest.approx((0, 0.5, 1))
    assert undecided == ""
    attained = course([5.0] * 10, [0.7] * 10)
    assert "upper bound" in training_logs.budget_excess([kept, attained])[1]
    assert training_logs.budget_excess([missed, attained])[1] == ""
    falling = course([1.0] * 40, np.linspace(2.0, 0.6, 40))
    assert "falling" in training_logs.budget_excess([falling])[1]


def test_settling_is_the_last_time_that_beta_was_away():
    back = [1.0, 1.5, 1.0, 1.5, *[1.05] * 16]
    assert training_logs.settled_epoch(course(back, [0.3] * 20, epochs=20)) == 5.0
    assert training_logs.settled_epoch(course([1.0] * 20, [0.3] * 20, epochs=20)) == 1.0
    late = [*[1.5] * 18, 1.0, 1.0]
    assert training_logs.settled_epoch(course(late, [0.3] * 20)) is None
