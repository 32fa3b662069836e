"""Answers of plain and packed models.

The prompt, images included, goes through the model's own forward pass; `Decoder` takes the greedy
steps after it. The host asks only every few steps whether all rows have ended. What is not greedy
decoding is left to the model's own ``generate``.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from grace.decoding.decoder import Decoder, check_inputs, check_room, not_finite
from grace.errors import InputError
from grace.models import family_of

CHECK_EVERY = {"cuda": 16}
"""Steps between two looks at the end tokens, by device type; 1 elsewhere, where a look is free."""

# Other settings of a generation config that change greedy decoding, with the values that do not.
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


_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "top_h",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
)


def special_settings(model: nn.Module) -> dict[str, Any]:
    """What a model's generation config asks for beyond plain greedy decoding, sampling left out.

    Example::

        special_settings(model)    # {"repetition_penalty": 1.05}
    """
    config = getattr(model, "generation_config", None)
    found = {name: getattr(config, name, None) for name in _NEUTRAL}
    return {name: value for name, value in found.items() if value not in _NEUTRAL[name]}


@torch.no_grad()
def generate(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    max_new_tokens: int,
    *,
    strategy: Literal["model", "greedy", "sample"] = "model",
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    tokenizer: Any = None,
    check_every: int | None = None,
    capture: bool | None = None,
) -> Tensor:
    """An answer to a prompt, by greedy decoding unless something else is asked for.

    ::

        tokens = generate(model, processor(...), max_new_tokens=64)

    The tokens are those of transformers' ``generate`` with ``do_sample=False``.

    Args:
        model: A vision-language model of a known family, plain, fake-quantized or packed.
        inputs: The processor's output for text and images: ``input_ids`` (B, S) and the rest;
            batches are padded on the left. Without ``attention_mask`` no token is padding.
        max_new_tokens: The most that are generated. A row ends with its first end token and is then
            padded; the result is as long as the longest row.
        strategy: "model": as the generation config says, without sampling. Where it asks for more
            than greedy decoding (`special_settings`: beams, penalties, stop strings), the model's
            own ``generate`` runs. "greedy": the most likely token, whatever the config says.
            "sample": the model's own ``generate`` with ``do_sample=True``.
        eos_token_id: End token or tokens; by default those of the model's generation config.
        pad_token_id: By default that of the model's generation config, else the first end token.
        tokenizer: For stop strings.
        check_every: Steps between two looks at the end tokens (`CHECK_EVERY`). The result does not
            depend on it.
        capture: Replay a captured step; by default on CUDA. See `Decoder`.

    Returns:
        (B, S + new): the prompt and the answer.

    Raises:
        InputError: The model does not take the inputs, has too few positions, or its logits are
            NaN or infinite, as where activations leave float16's range.
    """
    if type(max_new_tokens) is not int or max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens!r}: give a whole number from 1")
    assert strategy in {"model", "greedy", "sample"}, strategy
    config = getattr(model, "generation_config", None)
    ends, pad = _end_tokens(config, eos_token_id, pad_token_id)
    if strategy == "sample" or (strategy == "model" and special_settings(model)):
        settings = {
            "do_sample": strategy == "sample",
            "max_new_tokens": max_new_tokens,
            "eos_token_id": ends or None,
            "pad_token_id": pad,
        }
        return _by_the_library(model, inputs, settings, tokenizer)
    prompt = check_inputs(family_of(model.config), inputs)  # type: ignore[union-attr]
    device = prompt.device
    every = CHECK_EVERY.get(device.type, 1) if check_every is None else check_every
    assert every >= 1, every
    rows, length = prompt.shape
    decoder = Decoder(model, rows, length + max_new_tokens, capture=capture)
    decoder.prefill(inputs)
    stop = torch.tensor(ends, device=device)
    while decoder.generated < max_new_tokens:
        if ends and _all_ended(decoder.tokens(), stop):
            break
        decoder.run(min(every, max_new_tokens - decoder.generated))
    decoder.check_finite()
    new = decoder.tokens()
    if ends:
        assert pad is not None
        new = _trimmed(new, stop, pad)
    return torch.cat([prompt, new], dim=1)


def _by_the_library(
    model: Any,
    inputs: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    tokenizer: Any,
) -> Tensor:
    """What the model's own ``generate`` answers, by its generation config and these settings."""
    from transformers import GenerationConfig

    prompt = check_inputs(family_of(model.config), inputs)
    check_room(model, prompt.shape[1] + settings["max_new_tokens"])
    config, default = copy.deepcopy(model.generation_config), GenerationConfig()
    alone = ("max_length", "num_return_sequences", "return_dict_in_generate")
    for name in alone if settings["do_sample"] else (*alone, *_SAMPLING):
        setattr(config, name, getattr(default, name))
    config.update(**settings)
    finite = _Finite()
    tokens = model.generate(
        **{name: value for name, value in inputs.items() if name != "labels"},
        generation_config=config,
        logits_processor=[finite],
        tokenizer=tokenizer if config.stop_strings else None,
    )
    if not finite:
        raise InputError(not_finite(model))
    return tokens


class _Finite:
    """A logits processor that changes nothing: are the logits finite? Asked at the end."""

    def __init__(self) -> None:
        self._all: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        finite = scores.amax(-1).isfinite().all()
        self._all = finite if self._all is None else self._all & finite
        return scores

    def __bool__(self) -> bool:
        return self._all is None or bool(self._all)


def _end_tokens(
    config: Any, eos: int | Sequence[int] | None, pad: int | None
) -> tuple[list[int], int | None]:
    """The tokens that end a row and the token that then pads it, from arguments and config."""
    eos = getattr(config, "eos_token_id", None) if eos is None else eos
    ends = [eos] if isinstance(eos, int) else list(eos or [])
    if pad is None:
        pad = getattr(config, "pad_token_id", None)
    return ends, ends[0] if pad is None and ends else pad


def _all_ended(tokens: Tensor, ends: Tensor) -> bool:
    return bool(torch.isin(tokens, ends).any(dim=1).all())


def _trimmed(tokens: Tensor, ends: Tensor, pad: int) -> Tensor:
    """Rows up to their first end token, padded to the longest."""
    ended = torch.isin(tokens, ends)
    after = (ended.cumsum(dim=1) - ended.long()) > 0  # an end token stands before
    longest = int((~after).sum(dim=1).max())
    return tokens.masked_fill(after, pad)[:, :longest]
