"""The small world's three properties are decided by intervals, each with draws of its own."""

from types import SimpleNamespace

import numpy as np
import pytest

from grace.errors import InputError
from replication.measure.world_checks import PLATEAU_RUN, check_world
from replication.stats.bootstrap import Answers

QUESTIONS = 400
PRINTED = ("POPE", "GQA")


class Results:
    """Answers with given percentages of right ones on every benchmark, chance 50."""

    def __init__(self, **percent):
        self.percent = percent

    def answers(self, family, names, benchmarks):
        if not set(names) <= set(self.percent):
            return None
        return [self._run(number, name, benchmarks) for number, name in enumerate(names)]

    def _run(self, number, name, benchmarks):
        order = np.random.default_rng(number).permutation(QUESTIONS)
        right = (order < QUESTIONS * self.percent[name] / 100).astype(float)
        return Answers((0,), dict.fromkeys(benchmarks, right[None]))

    def scores(self, family, name):
        return SimpleNamespace(seeds={0: {name: {"chance": 50.0} for name in PRINTED}})


def check(results, family="llava", benchmarks=("pope", "gqa"), gap=10.0):
    params = SimpleNamespace(
        evaluate=SimpleNamespace(benchmarks={family: list(benchmarks)}),
        compare=SimpleNamespace(seed=3, resamples=500),
        world=SimpleNamespace(teacher_gap={family: gap}, above_chance=5.0, plateau=2.0),
    )
    return check_world(params, results, family)


@pytest.mark.parametrize(
    ("percent", "failing"),
    [
        ({"teacher": 90, "baseline": 70, PLATEAU_RUN: 66}, set()),
        ({"teacher": 82, "baseline": 70, PLATEAU_RUN: 66}, {"teacher_is_better"}),
        ({"teacher": 90, "baseline": 57, PLATEAU_RUN: 50}, {"baseline_is_above_chance"}),
        ({"teacher": 90, "baseline": 70, PLATEAU_RUN: 71}, {"baseline_is_at_its_plateau"}),
    ],
)
def test_a_point_on_the_right_side_is_not_enough(percent, failing):
    world = check(Results(**percent))
    points = (
        world["teacher_minus_baseline"]["value"] >= 10,
        min(entry["value"] for entry in world["baseline_minus_chance"].values()) >= 5,
        world["continued_sft_minus_baseline"]["value"] < 2,
    )
    assert all(points)
    assert {name for name, passed in world["checks"].items() if not passed} == failing


def test_another_benchmark_moves_no_other_interval():
    results = Results(teacher=90, baseline=70, **{PLATEAU_RUN: 70})
    one, two = (
        check(results, benchmarks=names)["baseline_minus_chance"]
        for names in (("gqa",), ("pope", "gqa"))
    )
    assert one["GQA"] == two["GQA"] != two["POPE"]
    other = check(results, family="qwen2_vl")
    assert other["teacher_minus_baseline"] != check(results)["teacher_minus_baseline"]


def test_what_is_not_evaluated_is_named():
    with pytest.raises(InputError, match=f"{PLATEAU_RUN} of llava must be evaluated on POPE"):
        check(Results(teacher=90, baseline=70))
