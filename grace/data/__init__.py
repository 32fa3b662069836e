"""Conversations to supervised token sequences, and batches of them.

:class:`ConversationDataset` reads files, folders, data sets of the hub and of the library
``datasets``; :class:`Collator` makes batches of its samples::

    data = ConversationDataset("train.jsonl", processor, model.config, image_folder="photos")
    collate = Collator(data.family, data.image_token_id, processor.tokenizer.pad_token_id)
    batch = collate([data[0], data[1]])

Everything is imported when it is first used: opening an image does not wait for torch.
"""

from typing import TYPE_CHECKING

from grace.lazy import lazy

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

__getattr__ = lazy(
    __name__,
    {
        "grace.data.collator": ("Collator",),
        "grace.data.dataset": ("ConversationDataset",),
        "grace.data.encoder": ("IGNORE_INDEX", "Encoder"),
        "grace.data.images": ("image_size", "read_image"),
    },
)
