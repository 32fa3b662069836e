"""Small instances of the real model classes, with a tokenizer, processor and chat template.

What these functions build is saved and loaded as ordinary Hugging Face directories.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
)
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from grace.errors import InputError
from grace.models import family_of
from replication.standins import conversations
from replication.standins.scenes import SIZE

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# The fixed parts of prompts and questions are one token each: a small model has no words to spare,
# and two in five tokens are saved.
FIXED_PHRASES = (
    "<|im_start|>user\n",
    "<|im_start|>user\n<|vision_start|>",
    "<|im_end|>\n<|im_start|>assistant\n",
    "\n<|im_start|>user\n",
    *conversations.FIXED_PHRASES,
)
# The splitting rule of the Qwen2 tokenizer, but that a digit takes the space before it along, as
# words do: then every option is one token.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+| ?\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on ``texts``, with the special tokens of Qwen2-VL."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS) - len(FIXED_PHRASES),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # any text can be written
        show_progress=False,
    )
    phrases = re.compile("|".join(re.escape(p) for p in sorted(FIXED_PHRASES, key=len)[::-1]))
    words = (part for text in texts for part in phrases.split(text) if part)
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS]
    )
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in FIXED_PHRASES])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_start_token": "<|vision_start|>",
            "vision_end_token": "<|vision_end|>",
        },
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_processor(
    family: str, texts: Iterable[str], vocab_size: int, vision: dict[str, Any]
) -> Any:
    """The processor of a family for the scenes' images, which it never resizes.

    Args:
        texts: what its tokenizer is trained on.
        vision: configuration of the vision tower.
    """
    _check_family(family)
    tokenizer = build_tokenizer((text.replace("<image>\n", "") for text in texts), vocab_size)
    sizes = {
        "patch_size": vision["patch_size"],
        "merge_size": vision["spatial_merge_size"],
        "temporal_patch_size": vision["temporal_patch_size"],
        "size": {"shortest_edge": SIZE**2, "longest_edge": SIZE**2},
    }
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**sizes),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    family: str, processor: Any, text: dict[str, Any], vision: dict[str, Any], seed: int
) -> Qwen2VLForConditionalGeneration:
    """A randomly initialised small model; ``text`` and ``vision`` are its configurations."""
    _check_family(family)
    tokenizer = processor.tokenizer
    token = tokenizer.convert_tokens_to_ids
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **text,
        },
        vision_config={"hidden_size": text["hidden_size"], **vision},
        tie_word_embeddings=True,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


_TOWER_ONLY = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}


def build_tower(family: str, processor: Any, vision: dict[str, Any], seed: int):
    """A random vision tower and the configuration of the (otherwise unused) model around it."""
    model = build_model(family, processor, _TOWER_ONLY, vision, seed)
    return model.get_submodule(family_of(family).vision_tower), model.config


def load_tower(family: str, processor: Any, vision: dict[str, Any], weights: str | Path):
    """The model around a pretrained tower."""
    model = build_model(family, processor, _TOWER_ONLY, vision, seed=0)
    adapter = family_of(family)
    model.get_submodule(adapter.vision_tower).load_state_dict(load_file(weights))
    return model.eval()


def take_tower(model: Any, family: str, weights: str | Path) -> None:
    """Put a pretrained tower into ``model``; the projector keeps its own weights.

    Raises:
        InputError: when the weights are not those of such a tower.
    """
    adapter = family_of(family)
    tower = model.get_submodule(adapter.vision_tower)
    projector = adapter.projector.removeprefix(adapter.vision_tower + ".") + "."
    given = {k: v for k, v in load_file(weights).items() if not k.startswith(projector)}
    own = {k for k in tower.state_dict() if not k.startswith(projector)}
    if own != set(given):
        raise InputError(
            f"{str(weights)!r} does not hold this vision tower (differs in "
            f"{', '.join(sorted(own ^ set(given))[:3])}); pretrain it again"
        )
    tower.load_state_dict(given, strict=False)


def _check_family(family: str) -> None:
    if family != "qwen2_vl":
        raise InputError(f"family {family!r} has no small instance; known: qwen2_vl")
