"""Stage ``world``: is the small world fit to judge a method in? Measured, and asserted.

The teacher must be clearly better than the baseline, the baseline clearly better than chance on
every benchmark, and at its plateau: as many further steps of plain fine-tuning as the methods
get must gain less than a point, or the control would take credit away from every method.
"""

import sys
from typing import Any

import numpy as np

from grace.errors import InputError
from replication.base.files import write_json_atomic
from replication.benchmarks import PRINTED
from replication.results.scores import NOT_IN_AVERAGE, ResultSet
from replication.settings.paths import Layout
from replication.settings.schema import Params
from replication.stages import stage
from replication.stats.bootstrap import difference_interval, score_interval

PLATEAU_RUN = "sft_bf16"


@stage
def main(params: Params) -> None:
    layout = Layout(params)
    results = ResultSet(layout.results.parent, params.scale)
    measured, failed = {}, []
    for family in params.families:
        measured[family] = _measure(params, results, family)
        failed += [
            f"{family}: {n}" for n, passed in measured[family]["checks"].items() if not passed
        ]
    write_json_atomic(layout.results / "world.json", measured)
    print(f"world: {measured}", file=sys.stderr)
    if failed and params.world.asserted:
        sys.exit(f"error: the small world is not fit to judge in: {', '.join(failed)} failed")


def _measure(params: Params, results: ResultSet, family: str) -> dict[str, Any]:
    bounds = params.world
    names = [PRINTED[name] for name in params.evaluate.benchmarks[family]]
    accuracies = [name for name in names if name not in NOT_IN_AVERAGE]
    found = results.answers(family, ["teacher", "baseline", PLATEAU_RUN], accuracies)
    if found is None:
        raise InputError(
            f"teacher, baseline and {PLATEAU_RUN} of {family} must be evaluated on "
            f"{', '.join(accuracies)} first"
        )
    teacher, baseline, continued = found
    rng = np.random.default_rng(params.compare.seed)
    draws = {"resamples": params.compare.resamples}
    gap = difference_interval(teacher, baseline, accuracies, rng, **draws)
    gain = difference_interval(continued, baseline, accuracies, rng, **draws)
    scores = results.scores(family, "baseline")
    assert scores is not None
    above = {}
    for name in accuracies:
        chance = next(iter(scores.seeds.values()))[name]["chance"]
        interval = score_interval(baseline, [name], rng, **draws)
        above[name] = {
            "value": interval.point - chance,
            "low": interval.low - chance,
            "high": interval.high - chance,
        }
    return {
        "teacher_minus_baseline": _interval(gap),
        "continued_sft_minus_baseline": _interval(gain),
        "baseline_minus_chance": above,
        "checks": {
            "teacher_is_better": gap.point >= bounds.teacher_gap[family],
            "baseline_is_above_chance": min(entry["low"] for entry in above.values())
            >= bounds.above_chance,
            "baseline_is_at_its_plateau": gain.point < bounds.plateau,
        },
    }


def _interval(interval) -> dict[str, float]:
    return {"value": interval.point, "low": interval.low, "high": interval.high}


if __name__ == "__main__":
    main()
