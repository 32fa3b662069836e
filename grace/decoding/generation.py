"""Greedy decoding for plain and packed models: a cache that is allocated once, captured on CUDA.

A decode step reads every weight of the decoder once and computes little, so what stands between
two steps counts. Here nothing does: keys and values go into memory that is allocated before the
first step, the token goes from the argmax to the embedding on the device, and the host asks only
every few steps whether all rows have ended. On CUDA a step, argmax included, is captured once as a
CUDA graph and then replayed: one launch a token instead of some thousand.

The prompt, images included, goes through the model's own forward pass. The tokens are those of
transformers' ``generate`` with ``do_sample=False``.

    tokens = generate(model, processor(...), max_new_tokens=64)      # (B, prompt + new)

`Decoder` is the same in parts, for measuring and for many prompts of one shape.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer, StaticCache

from grace.decoding.attention import decode_attention
from grace.errors import InputError
from grace.models import family_of

CHECK_EVERY = {"cuda": 16}
"""Steps between two looks at the end tokens, by device type; 1 elsewhere, where a look is free."""

_WARM_UP = 3  # steps before a capture, so that libraries have chosen and allocated what they need

# What else a generation config may ask of greedy decoding, with the values that ask nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "repetition_penalty": (None, 1.0),
    "encoder_repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "bad_words_ids": (None,),
    "suppress_tokens": (None,),
    "begin_suppress_tokens": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "sequence_bias": (None,),
    "exponential_decay_length_penalty": (None,),
    "guidance_scale": (None, 1.0),
    "stop_strings": (None,),
    "max_time": (None,),
    "watermarking_config": (None,),
}


@torch.no_grad()
def generate(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    max_new_tokens: int,
    *,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    check_every: int | None = None,
    capture: bool | None = None,
) -> Tensor:
    """The prompt and what the model says to it, (B, S + new): greedy decoding.

    model: a vision-language model of a known family, plain, fake-quantized or packed. inputs: what
        its processor made of text and images: ``input_ids`` (B, S) and the rest; batches are padded
        on the left. Without ``attention_mask`` no token is padding.
    max_new_tokens: at most so many. A row ends with its first end token and is then padded; the
        result is as long as the longest row.
    eos_token_id, pad_token_id: by default those of the model's generation config; padding falls
        back to the first end token.
    check_every: steps between two looks at the end tokens (`CHECK_EVERY`). The result does not
        depend on it.
    capture: replay a captured step; by default on CUDA. See `Decoder`.

    Raises InputError for inputs that `Decoder.prefill` refuses, and where the model's generation
    config asks for what greedy decoding here does not do (beams, penalties, forced tokens, stop
    strings); sampling settings are ignored.
    """
    config = getattr(model, "generation_config", None)
    _check_plain_greedy(config)
    if type(max_new_tokens) is not int or max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens!r}: give a whole number from 1")
    given = getattr(config, "eos_token_id", None) if eos_token_id is None else eos_token_id
    ends = [given] if isinstance(given, int) else list(given or [])
    if pad_token_id is None:
        pad_token_id = getattr(config, "pad_token_id", None)
    if pad_token_id is None and ends:
        pad_token_id = ends[0]
    prompt = _input_ids(inputs)
    device = prompt.device
    every = CHECK_EVERY.get(device.type, 1) if check_every is None else check_every
    if type(every) is not int or every < 1:
        raise InputError(f"check_every is {check_every!r}: give a number of steps, from 1")

    rows, length = prompt.shape
    decoder = Decoder(model, rows, length + max_new_tokens, capture=capture)
    decoder.prefill(inputs)
    stop = torch.tensor(ends, device=device)
    while decoder.generated < max_new_tokens:
        if ends and _all_ended(decoder.tokens(), stop):
            break
        decoder.run(min(every, max_new_tokens - decoder.generated))
    new = decoder.tokens()
    if ends:
        assert pad_token_id is not None
        new = _trimmed(new, stop, pad_token_id)
    return torch.cat([prompt, new], dim=1)


class Decoder:
    """Greedy decoding step by step, for `rows` sequences of at most `capacity` tokens each.

    capacity: prompt and generated tokens; keys and values of so many are allocated at once.
    capture: replay each step as a CUDA graph; by default wherever the model is on CUDA. A captured
        step attends to all of the capacity under a mask, another step to what is filled, so the
        two may differ in the last bit.

    A captured decoder keeps its graph: give it one prompt after another (`prefill`), or the same
    one again (`rewind`). The model must not be moved or repacked in between.

    Raises InputError for a model without an adapter, sizes below 1, and a capture that is asked
    for where there is none.
    """

    def __init__(
        self, model: nn.Module, rows: int, capacity: int, *, capture: bool | None = None
    ) -> None:
        self._model: Any = model
        config: Any = model.config
        self.family = family_of(config.model_type)
        self.device = next(model.parameters()).device
        for name, value in (("rows", rows), ("capacity", capacity)):
            if type(value) is not int or value < 1:
                raise InputError(f"{name} is {value!r}: give a whole number from 1")
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

    # ------------------------------------------------------------------------------------- prompt

    @torch.no_grad()
    def prefill(self, inputs: Mapping[str, Tensor]) -> None:
        """Read a prompt (`rows`, S), images included, and choose the first token.

        Raises InputError for inputs that the model does not take, another number of rows, a prompt
        that leaves no room, and padding that is not on the left.
        """
        input_ids = _input_ids(inputs)
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
        """Begin where `other` stood after its prompt, every row of it `rows / other.rows` times.

        Raises InputError where the rows do not divide, or its prompt leaves no room here.
        """
        if not other._prompt:
            raise InputError("the other decoder has no prompt yet: prefill it first")
        if self.rows % other.rows or other._prompt >= self.capacity:
            raise InputError(
                f"a prompt of {other.rows} rows and {other._prompt} tokens does not fit "
                f"{self.rows} rows of {self.capacity} tokens"
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
        if not self._prompt:
            raise InputError("there is no prompt to go back to: prefill one first")
        first = self._output[:, :1].clone()
        self._fill_to(self._prompt)
        self._begin(self._prompt, self._padded, self._first_position, None)
        self._first(first)

    # -------------------------------------------------------------------------------------- steps

    @torch.no_grad()
    def run(self, steps: int, after_step: Callable[[], None] | None = None) -> None:
        """Take so many steps, one token a row each; nothing is read back from the device.

        after_step: called after each, for example to take the time.

        Raises InputError where no prompt was read, or the capacity is exceeded.
        """
        if not self._prompt:
            raise InputError("there is no prompt to go on from: prefill one first")
        if self._prompt + self.generated + steps > self.capacity:
            raise InputError(
                f"{steps} steps after {self._prompt} + {self.generated} tokens exceed the capacity "
                f"of {self.capacity}: make a decoder with a larger one"
            )
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
        """What keys and values occupy, for all of the capacity."""
        parts = [x for layer in self._cache.layers for x in self._storage(layer)]
        return sum(x.numel() * x.element_size() for x in parts)

    # -------------------------------------------------------------------------------------- parts

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
            if isinstance(layer, _AllocatedLayer):
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
        layers: list[Any] = [_AllocatedLayer(self.capacity) for _ in range(count)]
        return Cache(layers=layers)

    @staticmethod
    def _storage(layer: Any) -> tuple[Tensor, Tensor]:
        if isinstance(layer, _AllocatedLayer):
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
        if rows != self.rows:
            raise InputError(f"the prompt has {rows} rows, the decoder {self.rows}")
        if length >= self.capacity:
            raise InputError(
                f"a prompt of {length} tokens leaves no room in {self.capacity}: make a decoder "
                "with a larger capacity"
            )
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


class _AllocatedLayer(DynamicLayer):
    """One layer's keys and values, in memory that is allocated once and filled from the front.

    What it gives to attention is the filled part, as transformers' dynamic cache does, without
    that cache's copy of everything at every step.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.length = capacity, 0
        self.all_keys = self.all_values = torch.empty(0)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        for name, states in (("all_keys", key_states), ("all_values", value_states)):
            rows, heads, _, width = states.shape
            setattr(self, name, states.new_empty(rows, heads, self.capacity, width))
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        stop = self.length + key_states.shape[-2]
        self.all_keys[:, :, self.length : stop] = key_states
        self.all_values[:, :, self.length : stop] = value_states
        self.length = stop
        self.keys, self.values = self.all_keys[:, :, :stop], self.all_values[:, :, :stop]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.capacity

    def reset(self) -> None:
        self.length = 0


def _best(logits: Tensor) -> Tensor:
    """The most likely next token of each row, (rows, 1)."""
    return logits[:, -1].float().argmax(-1, keepdim=True)


def _input_ids(inputs: Mapping[str, Tensor]) -> Tensor:
    input_ids = inputs.get("input_ids")
    if not isinstance(input_ids, Tensor) or input_ids.dim() != 2 or not input_ids.numel():
        raise InputError("inputs hold no input_ids of shape (batch, tokens): give the processor's")
    return input_ids


def _check_plain_greedy(config: Any) -> None:
    for name, neutral in _NEUTRAL.items():
        value = getattr(config, name, None)
        if value not in neutral:
            raise InputError(
                f"the generation config asks for {name} = {value!r}, which this decoding does not "
                f"do: set it to {neutral[-1]!r}, or use the model's own generate"
            )


def _all_ended(tokens: Tensor, ends: Tensor) -> bool:
    return bool(torch.isin(tokens, ends).any(dim=1).all())


def _trimmed(tokens: Tensor, ends: Tensor, pad: int) -> Tensor:
    """Rows up to their first end token, padded to the longest."""
    ended = torch.isin(tokens, ends)
    after = (ended.cumsum(dim=1) - ended.long()) > 0  # an end token stands before
    longest = int((~after).sum(dim=1).max())
    return tokens.masked_fill(after, pad)[:, :longest]
