"""Does the teacher's entropy predict its error (Figure 2), and does it know how sure it may be?

Measured on the questions of ScienceQA: the entropy of the first token of the teacher's answer, and
that token's probability.
"""

from pathlib import Path
from typing import Any

import numpy as np

from replication.evaluate.score import evaluate_model, evaluation_dtype
from replication.results.measurements import entropy_error
from replication.settings.schema import Params
from replication.stats.bootstrap import generator

BENCHMARK = "scienceqa"
METHOD = (
    f"entropy, and probability, of the first answer token against whether the answer is wrong, "
    f"{BENCHMARK}; "
    "bootstrap over questions"
)


def measure_entropy(params: Params, pair: str, teacher: Path, questions: Any) -> dict[str, Any]:
    """Ask a teacher all questions of the benchmark, and compare entropy and error.

    Args:
        params: the sections evaluate, entropy_error and compare are read.
        pair: names the random generator.
        teacher: the teacher's directory.
        questions: where the benchmark's questions are; see
            `replication.evaluate.score.evaluate_model`.

    Returns:
        "n", "values" and "data" of a measurement; "undefined" where all answers are right, or all
        are wrong.
    """
    evaluation = evaluate_model(
        teacher,
        [BENCHMARK],
        questions,
        batch_size=params.evaluate.batch_size,
        max_new_tokens=params.evaluate.max_new_tokens,
        dtype=evaluation_dtype(params.evaluate.dtype),
    )
    wrong = 1.0 - evaluation.outcomes["credit"].to_numpy()
    if len(np.unique(wrong)) < 2:  # a correlation has no value
        reason = f"every answer is {'wrong' if wrong[0] else 'right'}"
        return {"n": {"items": len(wrong)}, "values": {}, "undefined": reason}
    settings = params.entropy_error
    return entropy_error(
        np.array(evaluation.entropies[BENCHMARK]),
        wrong,
        generator(settings.seed, pair),
        confidence=np.array(evaluation.confidences[BENCHMARK]),
        bins=settings.bins,
        resamples=params.compare.resamples,
    )
