"""The projector's first lesson: to say what is in every cell in the decoder's own words.

As published models align vision and language before they are tuned on instructions, so that a
decoder that can read finds in an image what it knows from text.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from grace.models import Family
from replication.data.world.looks import Look
from replication.data.world.scenes import GRID, HALF
from replication.data.world.vision import aspects_of


def align_projector(
    family: Family,
    model: Any,
    tokenizer: Any,
    look: Look,
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]],
    *,
    steps: int,
    learning_rate: float,
) -> float:
    """Train the main projector towards the decoder's embeddings of what every cell shows.

    Args:
        family: The model's.
        model: Trained in place; the other parameters stay as they are.
        tokenizer: The model's.
        look: The world's words.
        batches: Features of the vision tower (images, patches, width) and contents of the cells
            (images, cells).
        steps: Number of batches.
        learning_rate: The highest of a one-cycle schedule.

    Returns:
        The share of the targets' variance that is left at the end, on the last batch.
    """
    words = cell_words(look, tokenizer, model.get_input_embeddings().weight.detach())
    projector = model.get_submodule(family.projectors[0])
    optimizer = torch.optim.AdamW(projector.parameters(), lr=learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.1)
    core = model.get_submodule("model")
    loss = torch.ones(())
    with family.take_vision_features(model), torch.enable_grad():
        progress: Any = tqdm(range(steps), desc="projector")
        for _, (features, contents) in zip(progress, batches, strict=False):
            (said,) = core.get_image_features(features.flatten(0, 1)).pooler_output
            target = words[contents, torch.arange(GRID * GRID)].flatten(0, 1)
            loss = nn.functional.mse_loss(said.flatten(0, -2), target) / target.var()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return loss.item()


@torch.no_grad()
def cell_words(look: Look, tokenizer: Any, embeddings: torch.Tensor) -> torch.Tensor:
    """What a visual token shall be: the sum of the embeddings of colour, shape or text, and the
    quarter of the image; zero where nothing is: (contents, cells, width)."""

    def table(words: tuple[str, ...]) -> torch.Tensor:
        ids = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
        return torch.stack([embeddings[one].mean(0) for one in ids])

    none = torch.zeros(1, embeddings.shape[-1])
    # a sign's kind has no word of its own: it is what it says
    pools = (
        torch.cat([none, table(tuple(look.colors))]),
        torch.cat([none, table(look.shapes), none]),
        torch.cat([none, table(look.signs)]),
    )
    aspects = aspects_of(look)
    shown = torch.stack([pool[index] for pool, index in zip(pools, aspects.T, strict=True)]).sum(0)
    cells = torch.arange(GRID * GRID)
    quarters = table(look.quadrants)[cells // GRID // HALF * 2 + cells % GRID // HALF]
    # not where nothing is: else every name of a quarter would be in every image
    return (shown[:, None] + quarters) * aspects.any(1)[:, None, None]
