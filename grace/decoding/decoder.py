"""Greedy decoding step by step: a cache that is allocated once, a step that is captured on CUDA.

A decode step reads every weight of the decoder once and computes little, so any time between two
steps counts. Here there is none: keys and values go into memory that is allocated before the first
step, and the token goes from the argmax to the embedding on the device. On CUDA a step, argmax
included, is captured once as a CUDA graph and then replayed: one launch a token instead of some
thousand.

The prompt is prepared by the model itself (`prepare_inputs_for_generation`), so positions, token
types and masks are those of its family. Where all decoder layers attend to everything before them,
the cache is ours; layers of other kinds (sliding windows, linear attention) have the library's.
"""

import copy
import functools
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, StaticCache

from grace.decoding.attention import decode_attention
from grace.decoding.cache import AllocatedLayer
from grace.errors import InputError
from grace.models import Family, family_of

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
        capture: Replay each step as a CUDA graph; by default wherever the model is on CUDA and
            every layer attends to everything. A captured step attends to all of the capacity under
            a mask, another step to what is filled, so the two may differ in the last bit.

    Attributes:
        family: The model's adapter.
        device: Where the model is.
        rows: As given.
        capacity: As given.
        captured: Whether steps are captured.
        generated: Tokens chosen since the prompt.

    Raises:
        InputError: The model's family is unknown, it has fewer positions, or a capture is asked
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
        check_room(model, capacity)
        library = DynamicCache(config=config).layers
        self._full = all(type(layer) is DynamicLayer for layer in library)
        self._sdpa = self._text._attn_implementation == "sdpa"
        possible = self.device.type == "cuda" and self._sdpa and self._full
        self.captured = possible if capture is None else capture
        if self.captured and not possible:
            raise InputError(
                "a captured step needs CUDA, the attention implementation sdpa and full attention "
                f"in every layer; the model is on {self.device} with "
                f"{self._text._attn_implementation} and "
                f"{', '.join(sorted({type(layer).__name__ for layer in library}))}: leave "
                "capture out"
            )
        self._graph: Any = None
        self._cache = self._new_cache()
        self._again: Callable[[], None]  # reads the prompt once more
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
        self._finite = torch.ones((), dtype=torch.bool, device=self.device)
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
        input_ids = check_inputs(self.family, inputs)
        rows, length = input_ids.shape
        assert rows == self.rows and length < self.capacity, (input_ids.shape, self.capacity)
        mask = inputs.get("attention_mask")
        padded = mask is not None and not bool((mask != 0).all())
        self._forget()
        prepared = self._prepared(inputs, input_ids, mask, padded)
        logits = self._model(**prepared, return_dict=True).logits
        self._again = functools.partial(self.prefill, inputs)
        self._begin(length, padded, prepared["position_ids"][..., -1:], mask)
        self._first(self._best(logits))

    def _prepared(
        self, inputs: Mapping[str, Tensor], input_ids: Tensor, mask: Tensor | None, padded: bool
    ) -> dict[str, Any]:
        """The arguments of the model's forward pass over a prompt, as the model prepares them."""
        skipped = ("input_ids", "attention_mask", "position_ids", "labels")
        rest = {name: value for name, value in inputs.items() if name not in skipped}
        full = torch.ones_like(input_ids) if mask is None else mask
        positions = self._model._prepare_position_ids_for_generation(
            input_ids, {**rest, "attention_mask": full}
        )
        if self._model._supports_logits_to_keep():
            rest["logits_to_keep"] = 1  # type: ignore[assignment]
        return self._model.prepare_inputs_for_generation(
            input_ids,
            **rest,
            attention_mask=mask if padded else None,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            is_first_iteration=True,
        )

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
        if self._full:
            for index, layer in enumerate(other._cache.layers):
                filled = [x[:, :, : other._prompt] for x in other._storage(layer)]
                keys, values = (x.repeat_interleave(copies, 0) for x in filled)
                self._cache.update(keys, values, index)
        else:
            if other.generated > 1:
                other.rewind()
            self._cache = copy.deepcopy(other._cache)
            order: Any = torch.arange(other.rows, device=self.device).repeat_interleave(copies)
            self._cache.reorder_cache(order)
        self._again = functools.partial(self.start_from, other)
        mask = other._real[:, : other._prompt].repeat_interleave(copies, 0)
        positions = other._first_position.repeat_interleave(copies, -2)
        self._begin(other._prompt, other._padded, positions, mask)
        self._first(other._output[:, :1].repeat_interleave(copies, 0))

    @torch.no_grad()
    def rewind(self) -> None:
        """Back to the end of the prompt: the first token is chosen, no step is taken."""
        assert self._prompt, "no prompt was read"
        if not self._full:  # the library's caches do not go back: the prompt is read again
            self._again()
            return
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

    def check_finite(self) -> None:
        """Refuse tokens that were chosen from logits of NaN or infinity; this waits for the device.

        Raises:
            InputError: There were such logits since the prompt.
        """
        if not bool(self._finite):
            raise InputError(not_finite(self._model))

    def cache_bytes(self) -> int:
        """Bytes of the keys and values, for all of the capacity where that is allocated."""
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
        self._keep(self._best(logits))
        self._slot += 1
        self._positions += 1

    def _mask(self) -> Tensor | None:
        """Which slots a step attends to: (rows, 1, 1, slots), or None for all that are filled."""
        if self.captured:
            return (self._real & (self._columns <= self._slot))[:, None, None]
        if not self._padded:
            return None
        mask = self._real[:, : self._prompt + self.generated]
        return mask[:, None, None] if self._sdpa and self._full else mask.long()

    def _best(self, logits: Tensor) -> Tensor:
        """The most likely next token of each row, (rows, 1)."""
        highest, token = logits[:, -1].float().max(-1, keepdim=True)
        self._finite &= highest.isfinite().all()  # of a captured step, too: nothing waits
        return token

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
        self._finite.fill_(True)
        if self._full:
            self._cache.reset()
        else:
            self._cache = self._new_cache()

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
        if not self._full:
            return DynamicCache(config=self._model.config)
        count = self._text.num_hidden_layers
        layers: list[Any] = [AllocatedLayer(self.capacity) for _ in range(count)]
        return Cache(layers=layers)

    @staticmethod
    def _storage(layer: Any) -> list[Tensor]:
        """The tensors that a layer keeps: keys and values first, where it has them."""
        if isinstance(layer, AllocatedLayer):
            return [layer.all_keys, layer.all_values]
        parts = [getattr(layer, name, None) for name in ("keys", "values")]
        for name in ("conv_states", "recurrent_states"):
            states = getattr(layer, name, None)
            parts += list(states.values() if isinstance(states, dict) else states or ())
        return [part for part in parts if isinstance(part, Tensor)]


def check_inputs(family: Family, inputs: Mapping[str, Tensor]) -> Tensor:
    """The token ids (B, S) of a processor's output, once it is known to fit a model.

    Raises:
        InputError: There are no token ids, the family does not take these inputs, or padding is not
            on the left.
    """
    input_ids = inputs.get("input_ids")
    if not isinstance(input_ids, Tensor) or input_ids.dim() != 2 or not input_ids.numel():
        raise InputError("inputs hold no input_ids of shape (batch, tokens): give the processor's")
    known = {*family.model_inputs, "token_type_ids", "labels"}  # PaliGemma's processor gives both
    for name in inputs:
        if name not in known:
            raise InputError(
                f"{family.model_type} takes no input {name!r} here: give "
                f"{', '.join(family.model_inputs)}"
            )
    mask = inputs.get("attention_mask")
    if mask is None:
        return input_ids
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
    return input_ids


def check_room(model: Any, tokens: int) -> None:
    """Refuse more tokens, prompt and answer, than the model has positions.

    Raises:
        InputError: As the configuration's ``max_position_embeddings`` says.
    """
    most = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if most is not None and tokens > most:
        raise InputError(
            f"prompt and answer are {tokens} tokens, and the model has {most} positions "
            "(max_position_embeddings): ask for fewer new tokens, or shorten the prompt"
        )


def not_finite(model: Any) -> str:
    """What is said of a model whose logits are NaN or infinite."""
    return (
        f"the logits are not finite: in {model.dtype} the model's activations leave the format's "
        "range, or its weights are damaged; load or pack it with bfloat16 or float32"
    )
