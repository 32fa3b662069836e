"""LLaVA checkpoints of its original code, put into transformers' model.

The authors trained LLaVA-1.5 in the original code (haotian-liu/LLaVA): the language model stands at
`model.`, the projector at `model.mm_projector`, the vision tower mostly elsewhere, and there is no
image token in the vocabulary. transformers' conversion of the same base model supplies what is
missing.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from grace.errors import InputError
from grace.models import load_model

_RENAMED = (
    ("model.mm_projector.0.", "model.multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "model.multi_modal_projector.linear_2."),
    ("model.vision_tower.vision_tower.vision_model.", "model.vision_tower."),
    ("lm_head.", "lm_head."),
    ("model.", "model.language_model."),
)
_ROWS = ("model.language_model.embed_tokens.weight", "lm_head.weight")
_BUFFERS = (".inv_freq", ".position_ids")  # earlier versions stored these constants


def is_original(config: dict[str, Any]) -> bool:
    """Whether a config.json was written by LLaVA's original code."""
    return "mm_vision_tower" in config


def from_original(
    directory: Path, tensors: dict[str, Tensor], base: str | Path, dtype: torch.dtype
) -> nn.Module:
    """The model of `base`, a transformers directory or hub name, with these tensors in it.

    Vocabulary rows that the checkpoint lacks (the image token, padding) stay those of `base`, and
    so does the vision tower where the checkpoint has none.

    Raises:
        InputError: A tensor that `base` lacks or has in another shape, or that is missing.
    """
    model: Any = load_model(base, dtype=dtype)
    if model.config.model_type != "llava":
        raise InputError(f"{base}: is no model of type llava: name transformers' LLaVA-1.5")
    state = model.state_dict()
    renamed = {}
    for name, tensor in tensors.items():
        if name.endswith(_BUFFERS):
            continue
        new = _rename(name)
        if new not in state:
            raise InputError(f"{directory}: {name} has no place in {base}")
        shape = state[new].shape
        if new in _ROWS and tensor.shape[0] < shape[0] and tensor.shape[1:] == shape[1:]:
            tensor = torch.cat([tensor.to(dtype), state[new][len(tensor) :]])  # noqa: PLW2901
        if tensor.shape != shape:
            raise InputError(
                f"{directory}: {name} has shape {tuple(tensor.shape)}, {base} has {tuple(shape)}"
            )
        renamed[new] = tensor
    tied = model.config.tie_word_embeddings
    lacking = [
        name
        for name in state
        if name not in renamed
        and not name.startswith("model.vision_tower.")
        and not (tied and name == "lm_head.weight")
    ]
    if lacking:
        raise InputError(f"{directory}: {lacking[0]} is missing")
    model.load_state_dict(renamed, strict=False)
    return model


def _rename(name: str) -> str:
    for old, new in _RENAMED:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
