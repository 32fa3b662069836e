"""Stage ``world``: is the small world fit to judge a method in? Measured, and asserted.

The teacher must be clearly better than the baseline, the baseline clearly better than chance on
every benchmark, and at its plateau: as many further steps of plain fine-tuning as the methods
get must gain less than a point, or the control would take credit away from every method.
"""

import sys

import numpy as np

from grace.errors import InputError
from replication.compare import difference_interval, score_interval
from replication.io import write_json_atomic
from replication.layout import Layout
from replication.params import Params
from replication.results import ResultSet
from replication.stages import stage
from replication.tasks import PRINTED

PLATEAU_RUN = "sft_bf16"


@stage
def main(params: Params) -> None:
    layout, bounds = Layout(params), params.world
    results = ResultSet(layout.results.parent, params.scale)
    names = [PRINTED[name] for name in params.evaluate.benchmarks]
    found = results.answers(params.family, ["teacher", "baseline", PLATEAU_RUN], names)
    if found is None:
        raise InputError(
            f"teacher, baseline and {PLATEAU_RUN} must be evaluated on {', '.join(names)} first"
        )
    teacher, baseline, continued = found
    rng = np.random.default_rng(params.compare.seed)
    draws = {"resamples": params.compare.resamples}
    gap = difference_interval(teacher, baseline, names, rng, **draws)
    gain = difference_interval(continued, baseline, names, rng, **draws)
    measured: dict = {
        "teacher_minus_baseline": _interval(gap),
        "continued_sft_minus_baseline": _interval(gain),
        "baseline_minus_chance": {},
    }
    scores = results.scores(params.family, "baseline")
    assert scores is not None
    above = []
    for name in names:
        chance = next(iter(scores.seeds.values()))[name]["chance"]
        interval = score_interval(baseline, [name], rng, **draws)
        measured["baseline_minus_chance"][name] = {
            "value": interval.point - chance,
            "low": interval.low - chance,
            "high": interval.high - chance,
        }
        above.append(interval.low - chance)
    checks = {
        "teacher_is_better": gap.point >= bounds.teacher_gap,
        "baseline_is_above_chance": min(above) >= bounds.above_chance,
        "baseline_is_at_its_plateau": gain.point < bounds.plateau,
    }
    write_json_atomic(layout.results / "world.json", {**measured, "checks": checks})
    failed = [name for name, passed in checks.items() if not passed]
    print(f"world: {measured}", file=sys.stderr)
    if failed and bounds.asserted:
        sys.exit(f"error: the small world is not fit to judge in: {', '.join(failed)} failed")


def _interval(interval) -> dict[str, float]:
    return {"value": interval.point, "low": interval.low, "high": interval.high}


if __name__ == "__main__":
    main()
