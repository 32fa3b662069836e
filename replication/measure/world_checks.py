"""Is the small world fit to judge a method in?

The teacher must be clearly better than the baseline, the baseline clearly better than chance on
every benchmark, and at its plateau: as many further steps of plain fine-tuning as the methods get
must gain less than a point, or the control would take credit away from every method. Each of the
three is decided by the interval, not by the point.
"""

from typing import Any

from grace.errors import InputError
from replication.benchmarks import PRINTED
from replication.results.scores import NOT_IN_AVERAGE, ResultSet
from replication.settings.schema import Params
from replication.stats.bootstrap import (
    Answers,
    Statistic,
    bootstrap_scores,
    difference,
    generator,
    interval,
    score,
)
from replication.stats.verdict import Interval

PLATEAU_RUN = "sft_bf16"


def check_world(params: Params, results: ResultSet, family: str) -> dict[str, Any]:
    """Measure a family's world and check it against the section world of the parameters.

    Args:
        params: the sections evaluate.benchmarks, compare and world are read.
        results: holds teacher, baseline and `PLATEAU_RUN` of the family.
        family: the family's name.

    Returns:
        "teacher_minus_baseline" and "continued_sft_minus_baseline" (differences of the averages),
        "baseline_minus_chance" (by benchmark), each {"value", "low", "high"} in points; and
        "checks", by name whether it passed.

    Raises:
        InputError: where one of the three is not evaluated.
    """
    printed = [PRINTED[name] for name in params.evaluate.benchmarks[family]]
    benchmarks = [name for name in printed if name not in NOT_IN_AVERAGE]
    answers = results.answers(family, ["teacher", "baseline", PLATEAU_RUN], benchmarks)
    if answers is None:
        raise InputError(
            f"teacher, baseline and {PLATEAU_RUN} of {family} must be evaluated on "
            f"{', '.join(benchmarks)} first"
        )
    teacher, baseline, continued = answers
    scores = results.scores(family, "baseline")
    assert scores is not None
    first_seed = next(iter(scores.seeds.values()))

    def measure(
        statistic: Statistic, runs: list[Answers], names: list[str], quantity: str
    ) -> Interval:
        rng = generator(params.compare.seed, f"{family} {quantity}")
        return interval(bootstrap_scores(runs, names, rng, params.compare.resamples), statistic)

    gap = measure(difference, [teacher, baseline], benchmarks, "teacher")
    gain = measure(difference, [continued, baseline], benchmarks, PLATEAU_RUN)
    above_chance = {
        name: _points(measure(score, [baseline], [name], name), minus=first_seed[name]["chance"])
        for name in benchmarks
    }
    bounds = params.world
    return {
        "teacher_minus_baseline": _points(gap),
        "continued_sft_minus_baseline": _points(gain),
        "baseline_minus_chance": above_chance,
        "checks": {
            "teacher_is_better": gap.low >= bounds.teacher_gap[family],
            "baseline_is_above_chance": min(entry["low"] for entry in above_chance.values())
            >= bounds.above_chance,
            "baseline_is_at_its_plateau": gain.high < bounds.plateau,
        },
    }


def _points(interval: Interval, minus: float = 0.0) -> dict[str, float]:
    return {
        "value": interval.point - minus,
        "low": interval.low - minus,
        "high": interval.high - minus,
    }
