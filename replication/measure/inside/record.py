"""Observations of models as the content of a measurement file."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from PIL import Image

from replication.measure.inside.agreement import (
    mean_interval,
    most_varied_token,
    overlap,
    token_cka,
    token_cosines,
    visual_share,
)
from replication.measure.inside.observing import Observation
from replication.measure.inside.questions import Question
from replication.stats.bootstrap import generator
from replication.stats.verdict import Interval

STUDENT = "grace_int4"
SHOWN = ("teacher", "baseline", STUDENT)
"""Models whose attention and visual tokens are shown."""
OTHERS = ("sft_bf16", "kd_bf16", "grace_bf16", "qat_int4", "kd_int4")
"""Runs that are compared with the teacher too, where a family has them."""

Observations = Mapping[str, Sequence[Sequence[Observation]]]
"""By model, what each of its seeds does with every question."""


def intervals(
    observations: Observations, seed: int, family: str, resamples: int
) -> dict[str, Interval]:
    """Means over questions and seeds.

    Args:
        observations: of teacher, baseline and students.
        seed: of the resampling.
        family: names the random generators.
        resamples: number of resamples behind an interval.

    Returns:
        "visual_share.<model>.<layer>": of the models in `SHOWN`, by decoder layer from 1.
        "overlap.<model>" and "cka.<model>": of every student with the teacher.
        "overlap_gain.<model>" and "cka_gain.<model>": those less the baseline's.
    """
    (teacher,) = observations["teacher"]
    result = {}

    def mean(key: str, values: np.ndarray, minus: np.ndarray | None = None) -> None:
        rng = generator(seed, f"{family} {key}")
        result[key] = mean_interval(values, rng, resamples=resamples, minus=minus)

    for name in SHOWN:
        shares = np.array([list(map(visual_share, of_seed)) for of_seed in observations[name]])
        for layer in range(shares.shape[-1]):
            mean(f"visual_share.{name}.{layer + 1}", shares[..., layer])
    for key, measure in (("overlap", overlap), ("cka", token_cka)):
        values = {
            name: np.array([list(map(measure, of_seed, teacher)) for of_seed in seeds])
            for name, seeds in observations.items()
            if name != "teacher"
        }
        for name, own in values.items():
            mean(f"{key}.{name}", own)
            if name != "baseline":
                mean(f"{key}_gain.{name}", own, values["baseline"])
    return result


def scenes(
    observations: Observations, questions: Sequence[Question], count: int
) -> list[dict[str, Any]]:
    """The first `count` questions, with what the first seed of the models in `SHOWN` does."""
    result = []
    for index, question in enumerate(questions[:count]):
        grid = observations["teacher"][0][index].grid
        anchor = most_varied_token(question.image, grid)
        models = {}
        for name in SHOWN:
            observation = observations[name][0][index]
            models[name] = {
                "answer": observation.answer,
                "attention": observation.attention.tolist(),
                "cosine": token_cosines(observation.tokens, anchor).tolist(),
            }
        result.append(
            {
                "question_id": question.identity,
                "question": question.text,
                "options": question.options,
                "target": question.target,
                "image": _png(question.image),
                "grid": list(grid),
                "anchor": anchor,
                "models": models,
            }
        )
    return result


def _png(image: Image.Image) -> str:
    """An image as PNG in base64."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def rounded(value: Any) -> Any:
    """`value` with every number that is not whole to four significant digits."""
    if isinstance(value, Interval):
        return rounded(asdict(value))
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(entry) for entry in value]
    return value
