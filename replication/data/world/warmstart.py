"""A small decoder of one family as the start of another's.

The three families' decoders are the same stack of attention and gated feed-forward layers, and the
small world says the same to all of them. So what one small model has learned of language need not
be learned again: layers are copied by name, and embeddings by the token's string.
"""

from collections.abc import Mapping
from typing import Any

import torch

from grace.errors import InputError
from grace.models import Family, family_of
from replication.data.world.chat import chat_of

_SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "rms_norm_eps",
)


@torch.no_grad()
def warm_start(model: Any, tokenizer: Any, source: Any, source_tokenizer: Any) -> None:
    """Copy the decoder of ``source`` into ``model``: embeddings, layers, final norm and head.

    Tokens are matched by their string, and those of the chat format by their place in it
    (``replication.data.world.chat``). On text of matched tokens the two models then give the same
    logits, unless the model has norms of queries and keys (Qwen3), which keep their own values.
    Biases of output projections that the source lacks become zero.

    Args:
        model: The model to change, in place.
        tokenizer: Its tokenizer.
        source: The model to copy from.
        source_tokenizer: The source's tokenizer.

    Raises:
        InputError: For decoders that differ in shape, activation, norm, rotary base or tying of the
            head, or a model without the biases that the source has. Nothing is copied then.
    """
    target, origin = family_of(model.config), family_of(source.config)
    _check(model.config, source.config)
    own, source_values = dict(model.named_parameters()), dict(source.named_parameters())
    for name, other in _decoder_pairs(own, target, source_values, origin).items():
        if other in source_values:
            own[name].copy_(source_values[other])
        elif name.endswith("o_proj.bias"):
            own[name].zero_()
    tokens = map_tokens(target, tokenizer, origin, source_tokenizer)
    rows = torch.tensor(tokenizer.convert_tokens_to_ids(list(tokens)))
    source_rows = torch.tensor(source_tokenizer.convert_tokens_to_ids(list(tokens.values())))
    tables = [(model.get_input_embeddings().weight, source.get_input_embeddings().weight)]
    head = model.get_output_embeddings().weight
    if head is not tables[0][0]:
        tables.append((head, source.get_output_embeddings().weight))
    for weight, source_weight in tables:
        weight[rows] = source_weight[source_rows].to(weight.dtype)


def map_tokens(
    family: Family, tokenizer: Any, source_family: Family, source_tokenizer: Any
) -> dict[str, str]:
    """Each token of one tokenizer and its counterpart in the other, where there is one."""
    chat, other = chat_of(family.model_type), chat_of(source_family.model_type)
    known = source_tokenizer.get_vocab()
    mapped = {token: token for token in tokenizer.get_vocab() if token in known}
    places = {chat.image: other.image, chat.pad: other.pad, chat.end: other.end}
    places |= {token: other.roles[role] for role, token in chat.roles.items()}
    return mapped | places


def _decoder_pairs(
    own: Mapping[str, torch.Tensor],
    target: Family,
    source_values: Mapping[str, torch.Tensor],
    origin: Family,
) -> dict[str, str]:
    """Names of the decoder's parameters in the model and what they are called in the source."""
    decoder = target.decoder_layers.removesuffix(".layers")
    theirs = origin.decoder_layers.removesuffix(".layers")
    pairs = {
        name: theirs + name.removeprefix(decoder)
        for name in own
        if name.startswith((f"{target.decoder_layers}.", f"{decoder}.norm."))
    }
    lost = sorted(
        name
        for name in source_values
        if name.startswith(f"{origin.decoder_layers}.") and name not in pairs.values()
    )
    if lost:
        mend = "set attention_bias: true in its text configuration"
        raise InputError(
            f"the {target.model_type} model has no place for {lost[0]!r} of the "
            f"{origin.model_type} model; {mend if 'bias' in lost[0] else 'choose another source'}"
        )
    for name, other in pairs.items():
        if other in source_values and own[name].shape != source_values[other].shape:
            raise InputError(
                f"{name!r} is of shape {tuple(own[name].shape)} in the {target.model_type} model "
                f"and {tuple(source_values[other].shape)} in the {origin.model_type} model to "
                "start from; make the text configurations one"
            )
    return pairs


def _check(config: Any, source: Any) -> None:
    mine, theirs = (
        {key: getattr(part.get_text_config(), key) for key in _SHAPE}
        | {
            "rope_theta": part.get_text_config().rope_parameters["rope_theta"],
            "tie_word_embeddings": part.tie_word_embeddings,
        }
        for part in (config, source)
    )
    for key, value in mine.items():
        if value != theirs[key]:
            raise InputError(
                f"{key} is {value} in the {config.model_type} model and {theirs[key]} in the "
                f"{source.model_type} model to start from; make the text configurations one"
            )
