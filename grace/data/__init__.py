"""Conversations to supervised token sequences, and batches of them.

:class:`ConversationDataset` reads a parquet file into memory; :class:`ShardedConversations` maps a
directory of Arrow shards; :class:`Collator` makes batches of either.
"""

from grace.data.collator import Collator
from grace.data.dataset import ConversationDataset
from grace.data.encoder import IGNORE_INDEX, Encoder
from grace.data.sharded_dataset import ShardedConversations
from grace.data.shards import Shards, write_shard

__all__ = [
    "IGNORE_INDEX",
    "Collator",
    "ConversationDataset",
    "Encoder",
    "ShardedConversations",
    "Shards",
    "write_shard",
]
