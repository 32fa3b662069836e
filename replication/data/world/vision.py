"""Pretraining of the vision tower on the scenes: what is in each patch, and where the patch is.

A published tower knows both from its own pretraining; a random one would leave them to the
decoder, which then hardly learns. After this the tower is frozen.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from grace.errors import InputError
from replication.data.world.looks import Look
from replication.data.world.questions import names_of
from replication.data.world.scenes import GRID, Scene


def contents_of(look: Look) -> list[str]:
    """What can be in a cell."""
    return ["empty", *names_of(look), *(f"sign {text}" for text in look.signs)]


def aspects_of(look: Look) -> torch.Tensor:
    """The colour, the shape and the text of every content, as indices; 0 is none: (contents, 3)."""
    colors, shapes = ["", *look.colors], ["", *look.shapes, "sign"]
    rows = [(0, 0, 0)]
    rows += [(colors.index(c), shapes.index(s), 0) for c, s in map(str.split, names_of(look))]
    rows += [(0, shapes.index("sign"), index) for index, _ in enumerate(look.signs, start=1)]
    return torch.tensor(rows)


def cell_contents(scene: Scene) -> np.ndarray:
    """Index into :func:`contents_of` for every cell, (GRID * GRID,), in reading order."""
    known = contents_of(scene.look)
    contents = np.zeros(GRID * GRID, dtype=np.int64)
    for thing in scene.things:
        contents[thing.row * GRID + thing.column] = known.index(thing.name)
    return contents


def pretrain(
    family: Any,
    model: nn.Module,
    batches: Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]],
    *,
    aspects: torch.Tensor,
    steps: int,
    learning_rate: float,
) -> dict[str, float]:
    """Train the vision tower of ``model`` to tell, from all that the projectors will read of it,
    the place of every patch and the colour, the shape and the text in every cell.

    Args:
        family: The model's adapter, a ``grace.models.Family``.
        model: A model with the tower; nothing else of it is trained.
        batches: (image inputs of the family, contents (images, cells)).
        aspects: Of :func:`aspects_of`.
        steps: Number of batches.
        learning_rate: The highest of a one-cycle schedule.

    Returns:
        Accuracies of the last tenth of the steps, as fractions.

    Raises:
        InputError: when the tower does not make one visual token of every cell.
    """
    first = next(batches)
    tokens, patches, width = _shape(family, model, first[0])
    cell, counts = width * patches // tokens, (aspects.amax(0) + 1).tolist()
    heads = nn.ModuleList([*(nn.Linear(cell, n) for n in counts), nn.Linear(width, patches)])
    parameters = [*family.tower_parameters(model).values(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.1)
    hits: list[tuple[float, float]] = []
    progress: Any = tqdm(range(steps), desc="vision tower")
    for _, (images, contents) in zip(progress, itertools.chain([first], batches), strict=False):
        features = nn.functional.layer_norm(family.tower_output(model, images), (width,))
        loss, accuracies = _loss(features, aspects[contents.view(-1)], heads)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                "the vision tower's loss is not finite; lower its learning rate"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        hits.append(accuracies)
        progress.set_postfix(content=f"{accuracies[0]:.3f}", place=f"{accuracies[1]:.3f}")
    last = np.mean(hits[-max(1, steps // 10) :], axis=0)
    return {"content_accuracy": float(last[0]), "place_accuracy": float(last[1])}


def _shape(family: Any, model: nn.Module, images: dict[str, torch.Tensor]) -> tuple[int, int, int]:
    """Visual tokens and patches of an image, and the width of a patch's features."""
    tokens = family.tokens_per_image(model.config, images)
    if set(tokens) != {GRID * GRID}:
        raise InputError(
            f"the vision tower makes {tokens[0]} visual tokens of an image, the scenes have "
            f"{GRID * GRID} cells; choose its patch size so that every cell is one token"
        )
    patches, width = family.vision_features(model, images).shape
    return tokens[0], patches // len(tokens), width


def _loss(
    features: torch.Tensor, targets: torch.Tensor, heads: nn.ModuleList
) -> tuple[torch.Tensor, tuple[float, float]]:
    """The loss of a batch, and the shares of right contents (of full cells) and places.

    Args:
        features: (patches, width), the cells of every image in reading order.
        targets: (cells, 3), of all images: colour, shape and text.
        heads: Of the three, which read all patches of a cell, and of places, which reads one.
    """
    *aspect_heads, place_head = heads
    cells = features.view(len(targets), -1)
    logits = [head(cells) for head in aspect_heads]
    place_logits = place_head(features)
    places = torch.arange(place_logits.shape[-1]).repeat(len(features) // place_logits.shape[-1])
    loss = nn.functional.cross_entropy(place_logits, places)
    right = torch.ones(len(targets), dtype=torch.bool)
    for guess, target in zip(logits, targets.T, strict=True):
        loss = loss + nn.functional.cross_entropy(guess, target)
        right &= guess.argmax(-1) == target
    return loss, (
        right[targets.any(1)].float().mean().item(),
        (place_logits.argmax(-1) == places).float().mean().item(),
    )
