"""Small instances of the real model classes, with a tokenizer, processor and chat template.

What these functions build is saved and loaded as ordinary Hugging Face directories.
"""

import re
from collections.abc import Callable, Iterable
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
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from grace.errors import InputError
from grace.models import family_of
from replication.data.world.chat import chat_of
from replication.data.world.conversations import FIXED_PHRASES
from replication.data.world.scenes import SIZE

# The splitting rule of the Qwen2 tokenizer, but that a digit takes the space before it along, as
# words do: then every option is one token.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+| ?\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build_tokenizer(family: str, texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on ``texts``, with the special tokens of a family."""
    chat = chat_of(family)
    fixed = (*chat.phrases, *FIXED_PHRASES)
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
        vocab_size=vocab_size - len(chat.special_tokens) - len(fixed),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # any text can be written
        show_progress=False,
    )
    if chat.spaced_answers:
        texts = (said for text in texts for said in (text, f" {text}"))
    phrases = re.compile("|".join(re.escape(p) for p in sorted(fixed, key=len)[::-1]))
    words = (part for text in texts for part in phrases.split(text) if part)
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in chat.special_tokens]
    )
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in fixed])
    start = {} if chat.start is None else {"bos_token": chat.start, "add_bos_token": True}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=chat.end,
        pad_token=chat.pad,
        extra_special_tokens=chat.names,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **start,
    )


def build_processor(
    family: str, texts: Iterable[str], vocab_size: int, vision: dict[str, Any]
) -> Any:
    """The processor of a family for the scenes' images, which it never resizes.

    Args:
        family: The family.
        texts: What its tokenizer is trained on.
        vocab_size: Upper bound of the tokenizer's size.
        vision: Configuration of the vision tower.

    Raises:
        InputError: For a tower of another image size than the scenes'.
    """
    chat = chat_of(family)
    texts = (text.replace("<image>\n", "") for text in texts)
    tokenizer = build_tokenizer(family, texts, vocab_size)
    return _PROCESSORS[family](tokenizer, vision, chat.template)


def _llava_processor(tokenizer: Any, vision: dict[str, Any], template: str) -> LlavaProcessor:
    if vision["image_size"] != SIZE:
        raise InputError(
            f"the vision tower's image_size is {vision['image_size']}, the scenes' images have "
            f"{SIZE} pixels a side; make it {SIZE}"
        )
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
        ),
        tokenizer=tokenizer,
        patch_size=vision["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which the strategy then drops
        chat_template=template,
    )


def _qwen_sizes(vision: dict[str, Any]) -> dict[str, Any]:
    return {
        "patch_size": vision["patch_size"],
        "merge_size": vision["spatial_merge_size"],
        "temporal_patch_size": vision["temporal_patch_size"],
        "size": {"shortest_edge": SIZE**2, "longest_edge": SIZE**2},
    }


def _qwen2_processor(tokenizer: Any, vision: dict[str, Any], template: str) -> Qwen2VLProcessor:
    sizes = _qwen_sizes(vision)
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**sizes),
        chat_template=template,
    )


def _qwen3_processor(tokenizer: Any, vision: dict[str, Any], template: str) -> Qwen3VLProcessor:
    centred = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    sizes = _qwen_sizes(vision) | centred
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**sizes),
        chat_template=template,
    )


_PROCESSORS: dict[str, Callable[[Any, dict[str, Any], str], Any]] = {
    "llava": _llava_processor,
    "qwen2_vl": _qwen2_processor,
    "qwen3_vl": _qwen3_processor,
}


def build_model(
    family: str, processor: Any, text: dict[str, Any], vision: dict[str, Any], seed: int
) -> Any:
    """A randomly initialised small model; ``text`` and ``vision`` are its configurations."""
    chat, tokenizer = chat_of(family), processor.tokenizer
    vocabulary = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = vocabulary | text
    marks = {
        f"{name}_id": tokenizer.convert_tokens_to_ids(mark) for name, mark in chat.names.items()
    }
    torch.manual_seed(seed)
    model: Any
    if family == "llava":
        model = LlavaForConditionalGeneration(
            LlavaConfig(
                text_config=text,
                vision_config={"projection_dim": vision["hidden_size"], **vision},
                tie_word_embeddings=True,
                image_token_index=processor.image_token_id,
                image_seq_length=(vision["image_size"] // vision["patch_size"]) ** 2,
            )
        )
    elif family == "qwen2_vl":
        model = Qwen2VLForConditionalGeneration(
            Qwen2VLConfig(
                text_config=text,
                vision_config={"hidden_size": text["hidden_size"], **vision},
                tie_word_embeddings=True,
                **marks,
            )
        )
    else:
        head = {"head_dim": text["hidden_size"] // text["num_attention_heads"]}
        model = Qwen3VLForConditionalGeneration(
            Qwen3VLConfig(
                text_config=head | text,
                vision_config={"out_hidden_size": text["hidden_size"], **vision},
                tie_word_embeddings=True,
                **marks,
            )
        )
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


def build_tower(family: str, processor: Any, vision: dict[str, Any], seed: int) -> Any:
    """A random vision tower in an otherwise unused model."""
    return build_model(family, processor, _TOWER_ONLY, vision, seed)


def load_tower(family: str, processor: Any, vision: dict[str, Any], weights: str | Path) -> Any:
    """The model around a pretrained tower."""
    model = build_tower(family, processor, vision, seed=0)
    model.get_submodule(family_of(family).vision_tower).load_state_dict(load_file(weights))
    return model.eval()


def take_tower(model: Any, family: str, weights: str | Path) -> None:
    """Put a pretrained tower into ``model``; the projectors keep their own weights."""
    adapter = family_of(family)
    tower = model.get_submodule(adapter.vision_tower)
    trained = tuple(
        f"{name}.".removeprefix(f"{adapter.vision_tower}.") for name in adapter.projectors
    )
    values = {k: v for k, v in load_file(weights).items() if not k.startswith(trained)}
    own = {k: v.shape for k, v in tower.state_dict().items() if not k.startswith(trained)}
    assert own == {k: v.shape for k, v in values.items()}, "another tower; pretrain it again"
    tower.load_state_dict(values, strict=False)
