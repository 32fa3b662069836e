"""Pretraining of the vision tower on the scenes: what is in each patch, and where the patch is.

A published tower knows both from its own pretraining; a random one would leave them to the
decoder, which then hardly learns. After this the tower is frozen.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from replication.standins.scenes import COLORS, GRID, SHAPES, SIGNS, Scene

CONTENTS = ("empty", *(f"{c} {s}" for c in COLORS for s in SHAPES), *(f"sign {t}" for t in SIGNS))


def cell_contents(scene: Scene) -> np.ndarray:
    """Index into CONTENTS for every cell, (GRID * GRID,), in reading order."""
    contents = np.zeros(GRID * GRID, dtype=np.int64)
    for thing in scene.things:
        contents[thing.row * GRID + thing.column] = CONTENTS.index(thing.name)
    return contents


def pretrain(
    tower: nn.Module,
    batches: Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    *,
    steps: int,
    learning_rate: float,
    width: int,
    patches_per_cell: int,
) -> dict[str, float]:
    """Train ``tower`` to tell, from its output before the projector, the content of every cell
    and the place of every patch.

    Args:
        batches: (pixel_values, image_grid_thw, contents (images, cells)).
        width: the tower's width; a cell is ``patches_per_cell`` consecutive patches.

    Returns:
        Accuracies of the last tenth of the steps, as fractions.
    """
    cells = GRID * GRID
    content_head = nn.Linear(width * patches_per_cell, len(CONTENTS))
    place_head = nn.Linear(width, cells * patches_per_cell)
    parameters = [
        *(p for n, p in tower.named_parameters() if not n.startswith("merger.")),
        *content_head.parameters(),
        *place_head.parameters(),
    ]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.1)
    hits: list[tuple[float, float]] = []
    progress: Any = tqdm(range(steps), desc="vision tower")
    for _ in progress:
        pixels, grid, contents = next(batches)
        features = tower(pixels, grid_thw=grid).last_hidden_state
        features = nn.functional.layer_norm(features, (width,))
        told = content_head(features.view(-1, width * patches_per_cell))
        placed = place_head(features)
        places = torch.arange(cells * patches_per_cell).repeat(len(contents))
        wanted = contents.view(-1)
        loss = nn.functional.cross_entropy(told, wanted) + nn.functional.cross_entropy(
            placed, places
        )
        if not torch.isfinite(loss):
            raise FloatingPointError(
                "the vision tower's loss is not finite; lower its learning rate"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        full = wanted > 0
        hits.append(
            (
                (told.argmax(-1) == wanted)[full].float().mean().item(),
                (placed.argmax(-1) == places).float().mean().item(),
            )
        )
        progress.set_postfix(content=f"{hits[-1][0]:.3f}", place=f"{hits[-1][1]:.3f}")
    last = np.mean(hits[-max(1, steps // 10) :], axis=0)
    return {"content_accuracy": float(last[0]), "place_accuracy": float(last[1])}
