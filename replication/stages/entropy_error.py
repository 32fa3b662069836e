"""Stage ``entropy_error``: does the teacher's entropy predict its error (Figure 2)?

Measured on the questions of ScienceQA: the entropy of the first token of the teacher's answer.
"""

from typing import Any

import numpy as np

from grace.models import check_model_directory
from replication.base import provenance
from replication.evaluate.score import evaluate_model
from replication.results.measurements import entropy_error, write_measurement
from replication.settings.paths import Layout
from replication.settings.schema import Params
from replication.stages import stage
from replication.stats.bootstrap import generator

BENCHMARK = "scienceqa"


@stage
def main(params: Params, name: str) -> None:
    settings, layout = params.entropy_error, Layout(params)
    teacher = layout.model(params.known_family(name), "teacher")
    check_model_directory(teacher)
    data: Any = layout.benchmarks
    if params.data is not None:
        from replication.evaluate.parts import prepare_data

        data = prepare_data([BENCHMARK], params.data.benchmarks, layout.data / "benchmarks")
    asked = evaluate_model(
        teacher,
        [BENCHMARK],
        data,
        batch_size=params.evaluate.batch_size,
        max_new_tokens=params.evaluate.max_new_tokens,
        dtype=params.evaluate.dtype,
    )
    entropy = np.array(asked.entropies[BENCHMARK])
    wrong = 1.0 - asked.outcomes["credit"].to_numpy()
    found: dict[str, Any] = {"n": {"items": len(wrong)}, "values": {}}
    if len(np.unique(wrong)) < 2:  # a correlation has no value
        found["undefined"] = f"every answer is {'wrong' if wrong[0] else 'right'}"
    else:
        found = entropy_error(
            entropy,
            wrong,
            generator(settings.seed, name),
            bins=settings.bins,
            resamples=params.compare.resamples,
        )
    record = {
        "name": f"entropy_error-{name}",
        "scale": params.scale,
        "method": "entropy of the first answer token against whether the answer is wrong, "
        f"{BENCHMARK}; bootstrap over questions",
        **found,
        "provenance": provenance.collect(
            {"params": repr(params)},
            [settings.seed],
            f"python -m replication.stages.entropy_error {name}",
            device=provenance.device_description(),
        ),
    }
    write_measurement(layout.results.parent, record)


if __name__ == "__main__":
    main()
