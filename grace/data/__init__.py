"""Conversations to supervised token sequences, and batches of them.

:class:`ConversationDataset` reads files, folders, data sets of the hub and of the library
``datasets``; :class:`Collator` makes batches of its samples::

    data = ConversationDataset("train.jsonl", processor, model.config, image_folder="photos")
    collate = Collator(data.family, data.image_token_id, processor.tokenizer.pad_token_id)
    batch = collate([data[0], data[1]])

Everything is imported when it is first used: opening an image does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grace.data.collator import Collator
    from grace.data.dataset import ConversationDataset
    from grace.data.encoder import IGNORE_INDEX, Encoder
    from grace.data.images import image_size, read_image

__all__ = [
    "IGNORE_INDEX",
    "Collator",
    "ConversationDataset",
    "Encoder",
    "image_size",
    "read_image",
]

_HOMES = {
    "Collator": "collator",
    "ConversationDataset": "dataset",
    "IGNORE_INDEX": "encoder",
    "Encoder": "encoder",
    "image_size": "images",
    "read_image": "images",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
