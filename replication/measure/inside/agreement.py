"""Numbers that compare what models do with the same questions.

Arrays have shape (seeds, questions); intervals are those of `replication.stats.bootstrap`: a
resample draws questions and, where there are several, seeds.
"""

import numpy as np
import torch
from PIL import Image

from grace.distillation import cka
from replication.measure.inside.observing import Observation
from replication.stats.bootstrap import Answers, bootstrap_scores, percentile_interval
from replication.stats.verdict import Interval

_CELL = 16  # pixels of a token's side


def visual_share(observation: Observation) -> np.ndarray:
    """The share of the answer's attention that all visual tokens together get, (layers,)."""
    return observation.attention.sum(axis=1)


def overlap(first: Observation, second: Observation) -> float:
    """How much two models' attention within the image is in the same places, from 0 to 1.

    Each model's attention is averaged over its layers, whose numbers may differ, and made to sum to
    one over the visual tokens; the overlap is the sum of the smaller of the two, 1 less the total
    variation distance.
    """
    maps = (observation.attention.mean(axis=0) for observation in (first, second))
    return float(np.minimum(*(attention / attention.sum() for attention in maps)).sum())


def token_cka(first: Observation, second: Observation) -> float:
    """Linear CKA of two models' visual tokens of one image (Eq. 10-13), in float64."""
    tokens = (torch.from_numpy(observation.tokens).double() for observation in (first, second))
    return float(cka(*tokens))


def token_cosines(tokens: np.ndarray, anchor: int) -> np.ndarray:
    """Cosine similarity of one visual token with all of them.

    Args:
        tokens: visual tokens, (n, d).
        anchor: the one token's row.

    Returns:
        (n,) float64.
    """
    unit = tokens.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return unit @ unit[anchor]


def most_varied_token(image: Image.Image, grid: tuple[int, int]) -> int:
    """The visual token in whose part of the image the pixels differ most.

    It shows an object, and is chosen without a look at any model.

    Args:
        image: the image.
        grid: rows and columns of visual tokens.

    Returns:
        The token's place in reading order.
    """
    rows, columns = grid
    scaled = image.convert("RGB").resize((columns * _CELL, rows * _CELL), Image.Resampling.BOX)
    cells = np.asarray(scaled, dtype=np.float64).reshape(rows, _CELL, columns, _CELL, 3)
    return int(cells.var(axis=(1, 3)).sum(axis=-1).argmax())


def mean_interval(
    values: np.ndarray, rng: np.random.Generator, *, resamples: int, minus: np.ndarray | None = None
) -> Interval:
    """A mean over seeds and questions, or a difference of two, with a bootstrap interval.

    Args:
        values: (seeds, questions).
        rng: draws the resamples.
        resamples: their number.
        minus: values about the same questions, whose mean is taken off.

    Raises:
        InputError: for fewer than two questions.
    """
    name = "questions"
    runs = [
        Answers(tuple(range(len(array))), {name: array})
        for array in (values, minus)
        if array is not None
    ]
    points, draws = bootstrap_scores(runs, [name], rng, resamples)
    if minus is not None:
        points, draws = points[:1] - points[1], draws[:, :1] - draws[:, 1:]
    return percentile_interval(points[0] / 100.0, draws[:, 0] / 100.0)
