"""Greedy decoding of answers by plain and packed models.

The prompt, images included, goes through the model's own forward pass; `Decoder` takes the steps
after it. The host asks only every few steps whether all rows have ended.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from grace.decoding.decoder import Decoder, prompt_ids
from grace.errors import InputError

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
    """Greedy decoding of an answer to a prompt.

    ::

        tokens = generate(model, processor(...), max_new_tokens=64)

    The tokens are those of transformers' ``generate`` with ``do_sample=False``.

    Args:
        model: A vision-language model of a known family, plain, fake-quantized or packed.
        inputs: The processor's output for text and images: ``input_ids`` (B, S) and the rest;
            batches are padded on the left. Without ``attention_mask`` no token is padding.
        max_new_tokens: The most that are generated. A row ends with its first end token and is then
            padded; the result is as long as the longest row.
        eos_token_id: End token or tokens; by default those of the model's generation config.
        pad_token_id: By default that of the model's generation config, else the first end token.
        check_every: Steps between two looks at the end tokens (`CHECK_EVERY`). The result does not
            depend on it.
        capture: Replay a captured step; by default on CUDA. See `Decoder`.

    Returns:
        (B, S + new): the prompt and the answer.

    Raises:
        InputError: `Decoder.prefill` refuses the inputs, or the model's generation config asks for
            something other than plain greedy decoding (beams, penalties, forced tokens, stop
            strings); sampling settings are ignored.
    """
    config = getattr(model, "generation_config", None)
    _check_plain_greedy(config)
    if type(max_new_tokens) is not int or max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens!r}: give a whole number from 1")
    ends, pad = _end_tokens(config, eos_token_id, pad_token_id)
    prompt = prompt_ids(inputs)
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
    new = decoder.tokens()
    if ends:
        assert pad is not None
        new = _trimmed(new, stop, pad)
    return torch.cat([prompt, new], dim=1)


def _end_tokens(
    config: Any, eos: int | Sequence[int] | None, pad: int | None
) -> tuple[list[int], int | None]:
    """The tokens that end a row and the token that then pads it, from arguments and config."""
    eos = getattr(config, "eos_token_id", None) if eos is None else eos
    ends = [eos] if isinstance(eos, int) else list(eos or [])
    if pad is None:
        pad = getattr(config, "pad_token_id", None)
    return ends, ends[0] if pad is None and ends else pad


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
