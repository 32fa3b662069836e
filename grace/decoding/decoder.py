"""Greedy decoding step by step: a cache that is allocated once, a step that is captured on CUDA.

A decode step reads every weight of the decoder once and computes little, so any time between two
steps counts. Here there is none: keys and values go into memory that is allocated before the first
step, and the token goes from the argmax to the embedding on the device. On CUDA a step, argmax
included, is captured once as a CUDA graph and then replayed: one launch a token instead of some
thousand.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, StaticCache

from grace.decoding.attention import decode_attention
from grace.decoding.cache import AllocatedLayer
from grace.errors import InputError
from grace.models import family_of

_WARM_UP = 3  # steps before a capture, so that libraries have chosen and allocated what they need


class Decoder:
    """Greedy decoding step by step, for measuring and for many prompts of one shape.

    ::

        decoder = Decoder(model, rows=1, capacity=700)
        decoder.prefill(processor(...))    # the first token is chosen
        decoder.run(63)
        decoder.tokens()                   # (1, 64)

    A captured decoder keeps its graph: give it one prompt after another (`prefill`), or the same
    one again (`rewind`). The model must not be moved or repacked in between.

    Args:
        model: A vision-language model of a known family, plain, fake-quantized or packed.
        rows: Number of sequences.
        capacity: Tokens of each, prompt and generated; keys and values of so many are allocated at
            once.
        capture: Replay each step as a CUDA graph; by default wherever the model is on CUDA. A
            captured step attends to all of the capacity under a mask, another step to what is
            filled, so the two may differ in the last bit.

    Attributes:
        family: The model's adapter.
        device: Where the model is.
        rows: As given.
        capacity: As given.
        captured: Whether steps are captured.
        generated: Tokens chosen since the prompt.

    Raises:
        InputError: The model has no adapter or layers without a cache here, or a capture is asked
            for where it is not possible.
    """

    def __init__(
        self, model: nn.Module, rows: int, capacity: int, *, capture: bool | None = None
    ) -> None:
        self._model: Any = model
        config: Any = model.config
        self.family = family_of(config)
        self.device = next(model.parameters()).device
        assert rows >= 1 and capacity >= 1, (rows, capacity)
        self.rows, self.capacity = rows, capacity
        self._text = config.get_text_config(decoder=True)
        kinds = set(getattr(self._text, "layer_types", None) or ()) - {"full_attention"}
        if kinds:
            raise InputError(f"layers of kind {', '.join(sorted(kinds))} have no cache here yet")
        self._sdpa = self._text._attn_implementation == "sdpa"
        self.captured = self.device.type == "cuda" and self._sdpa if capture is None else capture
        if self.captured and (self.device.type != "cuda" or not self._sdpa):
            raise InputError(
                f"a captured step needs CUDA and the attention implementation sdpa; the model is "
                f"on {self.device} with {self._text._attn_implementation}: move it, or leave "
                "capture out"
            )
        self._graph: Any = None
        self._cache = self._new_cache()
        self._prompt = 0  # length; 0: none yet
        self._padded = False
        # What a captured step reads and writes: always changed in place.
        self._tokens = torch.zeros(rows, 1, dtype=torch.long, device=self.device)
        self._output = torch.zeros(rows, capacity, dtype=torch.long, device=self.device)
        self._count = torch.zeros(1, dtype=torch.long, device=self.device)
        self._slot = torch.zeros(1, dtype=torch.long, device=self.device)
        self._columns = torch.arange(capacity, device=self.device)
        self._real = torch.ones(rows, capacity, dtype=torch.bool, device=self.device)
        self._positions = torch.empty(0)
        self.generated = 0

    @torch.no_grad()
    def prefill(self, inputs: Mapping[str, Tensor]) -> None:
        """Read a prompt, images included, and choose the first token.

        Args:
            inputs: ``input_ids`` (rows, S) and the rest of the processor's output; S has to be
                below the capacity.

        Raises:
            InputError: The model does not take these inputs, or padding is not on the left.
        """
        input_ids = prompt_ids(inputs)
        self._check(inputs, input_ids)
        length = input_ids.shape[1]
        mask = inputs.get("attention_mask")
        padded = mask is not None and not bool((mask != 0).all())
        positions = self.family.positions(self._model, inputs)
        rest = {k: v for k, v in inputs.items() if k not in ("attention_mask", "position_ids")}
        self._forget()
        logits = self._model(
            **rest,
            attention_mask=mask if padded else None,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        self._begin(length, padded, positions[..., -1:], mask)
        self._first(_best(logits))

    @torch.no_grad()
    def start_from(self, other: "Decoder") -> None:
        """Begin where another decoder was after its prompt.

        Args:
            other: Has read a prompt that fits here; every row of it is repeated rows / other.rows
                times.
        """
        assert other._prompt, "the other decoder has read no prompt"
        assert self.rows % other.rows == 0 and other._prompt < self.capacity, (
            other.rows,
            self.rows,
        )
        copies = self.rows // other.rows
        self._forget()
        for index, layer in enumerate(other._cache.layers):
            filled = [x[:, :, : other._prompt] for x in other._storage(layer)]
            keys, values = (x.repeat_interleave(copies, 0) for x in filled)
            self._cache.update(keys, values, index)
        mask = other._real[:, : other._prompt].repeat_interleave(copies, 0)
        positions = other._first_position.repeat_interleave(copies, -2)
        self._begin(other._prompt, other._padded, positions, mask)
        self._first(other._output[:, :1].repeat_interleave(copies, 0))

    @torch.no_grad()
    def rewind(self) -> None:
        """Back to the end of the prompt: the first token is chosen, no step is taken."""
        assert self._prompt, "no prompt was read"
        first = self._output[:, :1].clone()
        self._fill_to(self._prompt)
        self._begin(self._prompt, self._padded, self._first_position, None)
        self._first(first)

    @torch.no_grad()
    def run(self, steps: int, after_step: Callable[[], None] | None = None) -> None:
        """Generate tokens after the prompt; nothing is read back from the device.

        Args:
            steps: Tokens of each row.
            after_step: Called after each step, for example to take the time.
        """
        assert self._prompt, "no prompt was read"
        assert self._prompt + self.generated + steps <= self.capacity, "beyond the capacity"
        if self.captured and self._graph is None and steps:
            self._capture()
        for _ in range(steps):
            if self._graph is not None:
                self._graph.replay()
            else:
                self._step()
            self.generated += 1
            if after_step is not None:
                after_step()

    def tokens(self) -> Tensor:
        """The tokens chosen so far, (rows, generated)."""
        return self._output[:, : self.generated]

    def cache_bytes(self) -> int:
        """Bytes of the keys and values, for all of the capacity."""
        parts = [x for layer in self._cache.layers for x in self._storage(layer)]
        return sum(x.numel() * x.element_size() for x in parts)

    def _step(self) -> None:
        vectors = self._sdpa and self.device.type == "cpu"
        with decode_attention(self._text) if vectors else nullcontext():
            logits = self._model(
                input_ids=self._tokens,
                position_ids=self._positions,
                attention_mask=self._mask(),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
        self._keep(_best(logits))
        self._slot += 1
        self._positions += 1

    def _mask(self) -> Tensor | None:
        """Which slots a step attends to: (rows, 1, 1, slots), or None for all that are filled."""
        if self.captured:
            return (self._real & (self._columns <= self._slot))[:, None, None]
        if not self._padded:
            return None
        mask = self._real[:, : self._prompt + self.generated]
        return mask[:, None, None] if self._sdpa else mask.long()

    def _first(self, token: Tensor) -> None:
        """Keep the token that the prompt ends in."""
        self._keep(token)
        self.generated = 1

    def _keep(self, token: Tensor) -> None:
        self._tokens.copy_(token)
        self._output.index_copy_(1, self._count, self._tokens)
        self._count += 1

    def _begin(self, length: int, padded: bool, position: Tensor, mask: Tensor | None) -> None:
        """State after a prompt of so many tokens, before its first token is chosen."""
        self._prompt, self._padded, self.generated = length, padded, 0
        if mask is not None:
            self._real[:, :length] = mask != 0
        self._first_position = position.clone()
        if self._positions.shape == position.shape:
            self._positions.copy_(position)  # a captured step reads it where it lies
        else:
            self._positions = position.clone()
        self._positions += 1
        self._slot.fill_(length)
        self._count.zero_()

    def _forget(self) -> None:
        self._prompt = 0
        self._real.fill_(True)
        self._cache.reset()

    def _fill_to(self, length: int) -> None:
        """Let the cache hold its first `length` slots."""
        layer: Any
        for layer in self._cache.layers:
            if isinstance(layer, AllocatedLayer):
                layer.length = length
            else:
                layer.cumulative_length.fill_(length)

    def _capture(self) -> None:
        """Record one step as a CUDA graph; the decoder then stands where it stood."""
        positions, slot, count = self._positions.clone(), self._slot.clone(), self._count.clone()
        tokens, filled = self._tokens.clone(), self._prompt + self.generated - 1
        kept = self._output.clone()

        def restore() -> None:
            self._positions.copy_(positions)
            self._slot.copy_(slot)
            self._count.copy_(count)
            self._tokens.copy_(tokens)
            self._output.copy_(kept)
            self._fill_to(filled)

        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                self._step()
                restore()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        self._graph = graph

    def _new_cache(self) -> Cache:
        if self.captured:
            return StaticCache(self._model.config, max_cache_len=self.capacity)
        count = self._text.num_hidden_layers
        layers: list[Any] = [AllocatedLayer(self.capacity) for _ in range(count)]
        return Cache(layers=layers)

    @staticmethod
    def _storage(layer: Any) -> tuple[Tensor, Tensor]:
        if isinstance(layer, AllocatedLayer):
            return layer.all_keys, layer.all_values
        return layer.keys, layer.values

    def _check(self, inputs: Mapping[str, Tensor], input_ids: Tensor) -> None:
        known = {*self.family.model_inputs, "token_type_ids"}
        for name in inputs:
            if name not in known:
                raise InputError(
                    f"{self.family.model_type} takes no input {name!r} here: give "
                    f"{', '.join(self.family.model_inputs)}"
                )
        rows, length = input_ids.shape
        assert rows == self.rows and length < self.capacity, (input_ids.shape, self.capacity)
        mask = inputs.get("attention_mask")
        if mask is None:
            return
        if mask.shape != input_ids.shape:
            raise InputError(
                f"attention_mask has shape {tuple(mask.shape)}, input_ids {tuple(input_ids.shape)}"
            )
        real = mask != 0
        if not bool((real[:, -1].all()) & (real[:, 1:] >= real[:, :-1]).all()):
            raise InputError(
                "a prompt is padded on the right or within: pad on the left "
                '(tokenizer.padding_side = "left")'
            )


def _best(logits: Tensor) -> Tensor:
    """The most likely next token of each row, (rows, 1)."""
    return logits[:, -1].float().argmax(-1, keepdim=True)


def prompt_ids(inputs: Mapping[str, Tensor]) -> Tensor:
    """The token ids (B, S) of a processor's output.

    Raises:
        InputError: There are none.
    """
    input_ids = inputs.get("input_ids")
    if not isinstance(input_ids, Tensor) or input_ids.dim() != 2 or not input_ids.numel():
        raise InputError("inputs hold no input_ids of shape (batch, tokens): give the processor's")
    return input_ids
