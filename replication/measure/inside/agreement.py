"""Numbers that compare what models do with the same questions.

Arrays have shape (seeds, questions); intervals are those of `replication.stats.bootstrap`: a
resample draws
questions and, where there are several, seeds.
"""

import numpy as np
import torch
from PIL import Image

from grace.distillation import cka
from replication.measure.inside.observing import Observation
from replication.stats.bootstrap import Answers, Interval, bootstrap_scores, percentile_interval

_CELL = 16


def visual_share(observation: Observation) -> np.ndarray:
    """(layers,) the share of the answer's attention that all visual tokens together get."""
    return observation.attention.sum(axis=1)


def overlap(one: Observation, other: Observation) -> float:
    """How much two models' attention within the image is in the same places, from 0 to 1.

    Each model's is averaged over its layers, which are not as many in both, and made to sum to one
    over the visual tokens; the overlap is the sum of the smaller of the two, 1 less the total
    variation distance.
    """
    first, second = (seen.attention.mean(axis=0) for seen in (one, other))
    return float(np.minimum(first / first.sum(), second / second.sum()).sum())


def token_cka(one: Observation, other: Observation) -> float:
    """Linear CKA of two models' visual tokens of one image (Eq. 10-13), in float64."""
    first, second = (torch.from_numpy(seen.tokens).double() for seen in (one, other))
    return float(cka(first, second))


def token_cosines(tokens: np.ndarray, anchor: int) -> np.ndarray:
    """(n,) cosine similarity of the visual token `anchor` with every visual token (n, d)."""
    unit = tokens.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return unit @ unit[anchor]


def most_varied_token(image: Image.Image, grid: tuple[int, int]) -> int:
    """The visual token, in reading order, in whose part of the image the pixels differ most: one
    that shows an object, chosen without a look at any model."""
    rows, columns = grid
    scaled = image.convert("RGB").resize((columns * _CELL, rows * _CELL), Image.Resampling.BOX)
    cells = np.asarray(scaled, dtype=np.float64).reshape(rows, _CELL, columns, _CELL, 3)
    return int(cells.var(axis=(1, 3)).sum(axis=-1).argmax())


def mean_interval(
    values: np.ndarray, rng: np.random.Generator, *, resamples: int, minus: np.ndarray | None = None
) -> Interval:
    """The mean of (seeds, questions), or its difference from that of `minus`, which is about the
    same questions, with a bootstrap interval.

    Raises InputError for fewer than two questions.
    """
    name = "questions"
    runs = [
        Answers(tuple(range(len(given))), {name: given})
        for given in (values, minus)
        if given is not None
    ]
    points, drawn = bootstrap_scores(runs, [name], rng, resamples)
    if minus is not None:
        points, drawn = points[:1] - points[1], drawn[:, :1] - drawn[:, 1:]
    return percentile_interval(points[0] / 100.0, drawn[:, 0] / 100.0)
