"""A small decoder of one family as the start of another's.

The three families' decoders are the same stack of attention and gated feed-forward layers, and the
small world says the same to all of them. So what one small model has learned of language need not
be learned again: layers are copied by name, and embeddings by the token's string.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from grace.errors import InputError
from grace.models import Family, family_of
from replication.standins.chat import chat_of

_SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "rms_norm_eps",
)


@dataclass
class Transfer:
    """What :func:`warm_start` did.

    Attributes:
        copied: parameters with the source's values; of embeddings, the rows of mapped tokens.
        zeroed: biases that the source does not have, set to zero.
        fresh: trainable parameters that keep the values they had.
        tokens: token of the model to token of the source.
        fresh_tokens: tokens that have no counterpart, whose rows keep the values they had.
    """

    copied: list[str] = field(default_factory=list)
    zeroed: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    tokens: dict[str, str] = field(default_factory=dict)
    fresh_tokens: list[str] = field(default_factory=list)


@torch.no_grad()
def warm_start(model: Any, tokenizer: Any, source: Any, source_tokenizer: Any) -> Transfer:
    """Copy the decoder of ``source`` into ``model``: embeddings, layers, final norm, head, and the
    projector where its shapes are the source's.

    Tokens are matched by their string, and those of the chat format by their place in it
    (``replication.standins.chat``). On text of matched tokens the two models then give the same
    logits, unless the model has norms of queries and keys (Qwen3), which keep their own values.

    Raises:
        InputError: for decoders that differ in shape, activation, norm or rotary base, or a model
            without the biases that the source has.
    """
    target, origin = family_of(model.config.model_type), family_of(source.config.model_type)
    _check(model.config, source.config)
    done = Transfer(tokens=map_tokens(target, tokenizer, origin, source_tokenizer))
    done.fresh_tokens = sorted(tokenizer.get_vocab().keys() - done.tokens.keys())
    own, given = dict(model.named_parameters()), dict(source.named_parameters())

    decoder = target.decoder_layers.removesuffix(".layers")
    theirs = origin.decoder_layers.removesuffix(".layers")
    pairs = {
        name: theirs + name.removeprefix(decoder)
        for name in own
        if name.startswith((f"{target.decoder_layers}.", f"{decoder}.norm."))
    }
    lost = sorted(
        name
        for name in given
        if name.startswith(f"{origin.decoder_layers}.") and name not in pairs.values()
    )
    if lost:
        raise InputError(
            f"the {model.config.model_type} model has no place for {lost[0]!r} of the "
            f"{source.config.model_type} model"
            + ("; set attention_bias: true in its text configuration" if "bias" in lost[0] else "")
        )
    for name, other in pairs.items():
        if other in given:
            if own[name].shape != given[other].shape:
                raise InputError(
                    f"{name!r} is of shape {tuple(own[name].shape)} in the "
                    f"{model.config.model_type} model and {tuple(given[other].shape)} in the "
                    f"{source.config.model_type} model; make the text configurations one"
                )
            own[name].copy_(given[other])
            done.copied.append(name)
        elif name.endswith("o_proj.bias"):
            own[name].zero_()
            done.zeroed.append(name)
    _copy_rows(
        model.get_input_embeddings(),
        source.get_input_embeddings(),
        tokenizer,
        source_tokenizer,
        done.tokens,
    )
    done.copied.append(_name_of(model, model.get_input_embeddings().weight))
    head, other_head = model.get_output_embeddings(), source.get_output_embeddings()
    if head.weight is not model.get_input_embeddings().weight:
        _copy_rows(head, other_head, tokenizer, source_tokenizer, done.tokens)
        done.copied.append(_name_of(model, head.weight))
    done.copied += _copy_projector(model, target, source, origin)
    seen = {*done.copied, *done.zeroed, *target.tower_parameters(model)}
    done.fresh = [name for name in own if name not in seen]
    return done


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


def _check(config: Any, source: Any) -> None:
    text, other = config.get_text_config(), source.get_text_config()
    for key in _SHAPE:
        mine, given = getattr(text, key), getattr(other, key)
        if mine != given:
            raise InputError(
                f"{key} is {mine} in the {config.model_type} model and {given} in the "
                f"{source.model_type} model to start from; make the text configurations one"
            )
    mine, given = (part.rope_parameters["rope_theta"] for part in (text, other))
    if mine != given:
        raise InputError(
            f"rope_theta is {mine} in the {config.model_type} model and {given} in the "
            f"{source.model_type} model to start from; make the text configurations one"
        )


def _copy_rows(
    module: nn.Module, source: nn.Module, tokenizer: Any, source_tokenizer: Any, tokens: dict
) -> None:
    weight, given = module.weight, source.weight
    rows = tokenizer.convert_tokens_to_ids(list(tokens))
    places = source_tokenizer.convert_tokens_to_ids(list(tokens.values()))
    weight[torch.tensor(rows)] = given[torch.tensor(places)].to(weight.dtype)


def _name_of(model: nn.Module, parameter: torch.Tensor) -> str:
    return next(name for name, value in model.named_parameters() if value is parameter)


def _copy_projector(model: Any, target: Family, source: Any, origin: Family) -> list[str]:
    """Copy the main projector when all its parameters are of the source's shapes, in order."""
    path = target.projectors[0]
    own = dict(model.get_submodule(path).named_parameters())
    given = list(source.get_submodule(origin.projectors[0]).parameters())
    if [value.shape for value in own.values()] != [value.shape for value in given]:
        return []
    for value, other in zip(own.values(), given, strict=True):
        value.copy_(other)
    return [f"{path}.{name}" for name in own]
