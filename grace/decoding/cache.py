"""A cache of keys and values without a copy at every step."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer


class AllocatedLayer(DynamicLayer):
    """One layer's keys and values, in memory that is allocated once and filled from the front.

    Attention reads the filled part, as with transformers' dynamic cache, but without that cache's
    copy of everything at every step.

    Attributes:
        capacity: Tokens that there is memory for.
        length: Tokens that are filled.
        all_keys: (rows, heads, capacity, width).
        all_values: (rows, heads, capacity, width).
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.length = capacity, 0
        self.all_keys = self.all_values = torch.empty(0)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate, now that shapes (rows, heads, tokens, width), type and device are known."""
        self.dtype, self.device = key_states.dtype, key_states.device
        for name, states in (("all_keys", key_states), ("all_values", value_states)):
            rows, heads, _, width = states.shape
            size, before = (rows, heads, self.capacity, width), getattr(self, name)
            kept = before.shape == size and before.dtype == states.dtype
            if not (kept and before.device == states.device):
                setattr(self, name, states.new_empty(size))
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values (rows, heads, tokens, width); return all that are filled."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        stop = self.length + key_states.shape[-2]
        self.all_keys[:, :, self.length : stop] = key_states
        self.all_values[:, :, self.length : stop] = value_states
        self.length = stop
        self.keys, self.values = self.all_keys[:, :, :stop], self.all_values[:, :, :stop]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Tokens that are filled."""
        return self.length

    def get_max_length(self) -> int:
        """Tokens that there is memory for."""
        return self.capacity

    def reset(self) -> None:
        """Forget all tokens and keep the memory."""
        self.length, self.is_initialized = 0, False
