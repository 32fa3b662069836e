"""Stage ``entropy_error``: does the teacher's entropy predict its error (Figure 2)?

The entropy is that of the first token of the teacher's answer, as its evaluation recorded it.
"""

import numpy as np

from grace.errors import InputError
from replication import provenance
from replication.layout import Layout
from replication.measurements import entropy_error, write_measurement
from replication.params import Params
from replication.compare import generator
from replication.results import ResultSet
from replication.stages import stage

BENCHMARK = "ScienceQA"


@stage
def main(params: Params, name: str) -> None:
    layout = Layout(params)
    results = ResultSet(layout.results.parent, params.scale)
    outcomes = results.outcomes(params.known_family(name), "teacher")
    if outcomes is None or BENCHMARK not in outcomes.answers.values:
        raise InputError(f"the teacher of {name} must be evaluated on {BENCHMARK} first")
    wrong = 1.0 - outcomes.answers.values[BENCHMARK][0]
    found = entropy_error(
        outcomes.entropy[BENCHMARK][0],
        np.asarray(wrong),
        generator(params.entropy_error.seed, name),
        bins=params.entropy_error.bins,
        resamples=params.compare.resamples,
    )
    record = {
        "name": f"entropy_error-{name}",
        "scale": params.scale,
        "method": "entropy of the first answer token against whether the answer is wrong; "
        "bootstrap over questions",
        **found,
        "provenance": provenance.collect(
            {"params": repr(params)},
            [params.entropy_error.seed],
            f"python -m replication.stages.entropy_error {name}",
            device=provenance.device_description(),
        ),
    }
    write_measurement(layout.results.parent, record)


if __name__ == "__main__":
    main()
