"""A language model without images, as the trainer sees a model family."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from grace.models import FAMILIES
from grace.models.family import Family
from grace.types import ImageSpan

MODEL_TYPE = "llama"


@dataclass(frozen=True)
class DecoderFamily(Family):
    """A decoder alone: nothing is frozen, and no token stands for an image."""

    def freeze_vision(self, model: nn.Module) -> None:
        """There is none."""

    def image_spans(self, input_ids: torch.Tensor, image_token_id: int) -> list[ImageSpan]:
        """There are none."""
        return []

    def image_token_id(self, config: Any) -> int:
        """No token's id."""
        return -1

    def image_layout(self, config: Any) -> dict[str, Any]:
        """Nothing about images that two models could differ in."""
        return {}


DECODER = DecoderFamily(
    model_type=MODEL_TYPE,
    decoder_layers="model.layers",
    vision_tower="",
    projectors=(),
    output_head="lm_head",
    image_inputs=(),
)


@contextmanager
def decoders_are_trained() -> Iterator[None]:
    """Within this context the trainer takes language models of Llama's classes."""
    FAMILIES[MODEL_TYPE] = DECODER
    try:
        yield
    finally:
        del FAMILIES[MODEL_TYPE]
