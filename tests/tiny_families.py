"""A tiny random model and a real processor of every family, made without a network.

    processor = tiny_processor("qwen2_5_vl")
    student, teacher = tiny_model("qwen2_5_vl"), tiny_model("qwen2_5_vl", seed=1, larger=True)
    save(student, processor, folder)      # AutoProcessor and AutoModelForImageTextToText load it

Models have two decoder layers of width 64 (a teacher three of width 96) and images of a few dozen
pixels. The classes, special tokens and chat templates are the published checkpoints'; vocabularies
and sizes are not.
"""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AyaVisionProcessor,
    CLIPImageProcessor,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Glm4vImageProcessor,
    Glm4vProcessor,
    GotOcr2ImageProcessor,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLProcessor,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    PaliGemmaProcessor,
    PixtralImageProcessor,
    PixtralProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen3VLProcessor,
    SiglipImageProcessor,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
)
from transformers.models.glm4v.video_processing_glm4v import Glm4vVideoProcessor
from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor
from transformers.models.llava_onevision.video_processing_llava_onevision import (
    LlavaOnevisionVideoProcessor,
)
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

FAMILIES = [
    ("llava", "LLaVA-1.5"),
    ("llava_next", "LLaVA-NeXT"),
    ("llava_onevision", "LLaVA-OneVision"),
    ("qwen2_vl", "Qwen2-VL"),
    ("qwen2_5_vl", "Qwen2.5-VL"),
    ("qwen3_vl", "Qwen3-VL"),
    ("qwen3_5", "Qwen3.5"),
    ("internvl", "InternVL3"),
    ("gemma3", "Gemma 3"),
    ("smolvlm", "SmolVLM2"),
    ("idefics3", "Idefics3"),
    ("mistral3", "Mistral Small 3.1"),
    ("paligemma", "PaliGemma"),
    ("glm4v", "GLM-4.1V"),
    ("aya_vision", "Aya Vision"),
]
"""Every family that is tested end to end: ``model_type`` and published name."""

NEEDS = {"smolvlm": "num2words"}
"""What transformers' processor of a family needs beyond the project's own requirements."""

PATCH = 8
SIDE = 32  # pixels of a tile, or of a whole image where a family resizes to a square

CORPUS = (
    "What is in the picture? A red circle and a blue square.",
    "How many shapes are there? There are three shapes.",
    "Name the colour of the first image, then of the second. Green, and yellow.",
    "You are a helpful assistant. Answer briefly.",
)


def family_params() -> list[Any]:
    """One pytest parameter a family; families whose processor cannot be made here are skipped."""
    return [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None,
                reason=f"{name}'s processor needs {NEEDS.get(name)}",
            ),
        )
        for name, _ in FAMILIES
    ]


@dataclass(frozen=True)
class _Chat:
    """Special tokens and chat template of a family.

    Attributes:
        end: The tokenizer's end token.
        template: Jinja source.
        stops: Further tokens that end an answer, as the generation configuration lists them.
        special: Further special tokens, in the order of their ids.
        names: Special tokens by the attribute under which the processor asks the tokenizer.
        start: The token before every text, if there is one.
        pad: The token of padding.
        prepends_start: Whether the tokenizer writes the start token itself.
    """

    end: str
    template: str
    stops: tuple[str, ...] = ()
    special: tuple[str, ...] = ()
    names: dict[str, str] = field(default_factory=dict)
    start: str | None = None
    pad: str = "<pad>"
    prepends_start: bool = False


def _chatml(image: str, before: str = "") -> str:
    """ChatML with an image written as ``image``; ``before`` opens a conversation."""
    return (
        f"{before}{{% for message in messages %}}<|im_start|>{{{{ message['role'] }}}}\n"
        "{% if message['content'] is string %}{{ message['content'] }}"
        "{% else %}{% for part in message['content'] %}"
        f"{{% if part['type'] == 'image' %}}{image}"
        "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
        "<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}"
)


def _qwen(template: str) -> _Chat:
    return _Chat(
        end="<|im_end|>",
        pad="<|endoftext|>",
        special=("<|im_start|>", "<|vision_start|>", "<|vision_end|>"),
        names={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
        template=template,
    )


# An empty block of thought stands before every answer, and in the generation prompt.
_QWEN3_5 = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    f"{{% if part['type'] == 'image' %}}{_QWEN_IMAGE}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)

# SmolVLM and Idefics3: no space between "User:" and an image, one before a text.
_IDEFICS = (
    "{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}<image>{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
_IDEFICS_SPECIAL = (
    "<fake_token_around_image>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)),
)

CHATS = {
    "llava": _Chat(
        end="</s>",
        start="<s>",
        prepends_start=True,
        names={"image_token": "<image>"},
        template=(
            "{% for message in messages %}{% if message['role'] != 'system' %}"
            "{{ message['role'] | upper }}: {% endif %}"
            "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
            "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }} "
            "{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
        ),
    ),
    # Mistral's: no generation prompt, "[/INST]" asks for the answer.
    "llava_next": _Chat(
        end="</s>",
        start="<s>",
        prepends_start=True,
        names={"image_token": "<image>"},
        template=(
            "{% for message in messages %}{% if message['role'] == 'system' %}"
            "<<SYS>>\n{{ message['content'][0]['text'] }}\n<</SYS>>\n\n"
            "{% elif message['role'] == 'user' %}[INST] "
            "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
            "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}"
            "{% endfor %} [/INST]{% else %} {{ message['content'][0]['text'] }}</s> {% endif %}"
            "{% endfor %}"
        ),
    ),
    # The published template writes a space after the role, its generation prompt does not.
    "llava_onevision": _Chat(
        end="<|im_end|>",
        pad="<|endoftext|>",
        special=("<|im_start|>",),
        names={"image_token": "<image>", "video_token": "<video>"},
        template=(
            "{% for message in messages %}<|im_start|>{{ message['role'] }} "
            "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
            "{% for part in message['content'] if part['type'] == 'text' %}"
            "{{ '\n' + part['text'] }}{% endfor %}<|im_end|>{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        ),
    ),
    "qwen2_vl": _qwen(_chatml(_QWEN_IMAGE, _DEFAULT_SYSTEM)),
    "qwen2_5_vl": _qwen(_chatml(_QWEN_IMAGE, _DEFAULT_SYSTEM)),
    "qwen3_vl": _qwen(_chatml(_QWEN_IMAGE)),
    "qwen3_5": _qwen(_QWEN3_5),
    "internvl": _Chat(
        end="<|im_end|>",
        pad="<|endoftext|>",
        special=("<|im_start|>",),
        names={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        template=_chatml("<IMG_CONTEXT>\n"),
    ),
    # A system turn goes into the first user turn; texts are stripped.
    "gemma3": _Chat(
        end="<eos>",
        stops=("<end_of_turn>",),
        start="<bos>",
        prepends_start=True,
        special=("<start_of_turn>",),
        names={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
        template=(
            "{{ bos_token }}{% set first = namespace(text='') %}"
            "{% if messages[0]['role'] == 'system' %}"
            "{% if messages[0]['content'] is string %}"
            "{% set first.text = messages[0]['content'] + '\n\n' %}"
            "{% else %}{% set first.text = messages[0]['content'][0]['text'] + '\n\n' %}{% endif %}"
            "{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}"
            "{% for message in turns %}"
            "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
            "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
            "<start_of_turn>{% if message['role'] == 'assistant' %}model{% else %}"
            "{{ message['role'] }}{% endif %}{{ '\n' }}"
            "{% if loop.first %}{{ first.text }}{% endif %}"
            "{% if message['content'] is string %}{{ message['content'] | trim }}"
            "{% else %}{% for part in message['content'] %}"
            "{% if part['type'] == 'image' %}<start_of_image>"
            "{% elif part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}"
            "{% endif %}<end_of_turn>\n{% endfor %}"
            "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
        ),
    ),
    "smolvlm": _Chat(
        end="<end_of_utterance>",
        start="<|im_start|>",
        special=_IDEFICS_SPECIAL,
        names={
            "fake_image_token": "<fake_token_around_image>",
            "image_token": "<image>",
            "end_of_utterance_token": "<end_of_utterance>",
            "global_image_token": "<global-img>",
        },
        template="<|im_start|>" + _IDEFICS,
    ),
    "idefics3": _Chat(
        end="<|end_of_text|>",
        stops=("<end_of_utterance>",),
        start="<|begin_of_text|>",
        special=(*_IDEFICS_SPECIAL, "<image>"),
        prepends_start=True,
        template="<|begin_of_text|>" + _IDEFICS,
    ),
    "mistral3": _Chat(
        end="</s>",
        start="<s>",
        special=(
            "[INST]",
            "[/INST]",
            "[IMG]",
            "[IMG_BREAK]",
            "[IMG_END]",
            "[SYSTEM_PROMPT]",
            "[/SYSTEM_PROMPT]",
        ),
        prepends_start=True,
        template=(
            "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
            "[SYSTEM_PROMPT]{% if message['content'] is string %}{{ message['content'] }}"
            "{% else %}{{ message['content'][0]['text'] }}{% endif %}[/SYSTEM_PROMPT]"
            "{% elif message['role'] == 'user' %}[INST]"
            "{% if message['content'] is string %}{{ message['content'] }}"
            "{% else %}{% for part in message['content'] %}"
            "{% if part['type'] == 'text' %}{{ part['text'] }}"
            "{% elif part['type'] == 'image' %}[IMG]{% endif %}{% endfor %}{% endif %}[/INST]"
            "{% elif message['role'] == 'assistant' %}"
            "{% if message['content'] is string %}{{ message['content'] }}"
            "{% else %}{{ message['content'][0]['text'] }}{% endif %}{{ eos_token }}"
            "{% else %}{{ raise_exception('Only user, system and assistant roles') }}{% endif %}"
            "{% endfor %}"
        ),
    ),
    # No template is published; the processor writes "<image>...<bos>question\n" around a question.
    "paligemma": _Chat(
        end="<eos>",
        start="<bos>",
        names={"image_token": "<image>"},
        template=(
            "{% for message in messages %}{% if message['role'] == 'assistant' %}"
            "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}"
            "{% endfor %}{{ eos_token }}{% else %}"
            "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
            "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}"
            "{% endfor %}{% endif %}{% endfor %}"
        ),
    ),
    # An answer is a string here, never a list of parts; the mark of the next question ends it.
    "glm4v": _Chat(
        end="<|endoftext|>",
        stops=("<|user|>",),
        pad="<|endoftext|>",
        special=(
            "[gMASK]",
            "<sop>",
            "<|system|>",
            "<|assistant|>",
            "<|begin_of_image|>",
            "<|end_of_image|>",
            "<|begin_of_video|>",
            "<|end_of_video|>",
        ),
        names={"image_token": "<|image|>", "video_token": "<|video|>"},
        template=(
            "[gMASK]<sop>{% for message in messages %}{% if message['role'] == 'system' %}"
            "<|system|>\n{{ message['content'] }}{% elif message['role'] == 'user' %}<|user|>\n"
            "{% if message['content'] is string %}{{ message['content'] }}"
            "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
            "<|begin_of_image|><|image|><|end_of_image|>"
            "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
            "{% else %}<|assistant|>\n{{ message['content'] }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
        ),
    ),
    "aya_vision": _Chat(
        end="<|END_OF_TURN_TOKEN|>",
        start="<BOS_TOKEN>",
        special=(
            "<|START_OF_TURN_TOKEN|>",
            "<|SYSTEM_TOKEN|>",
            "<|USER_TOKEN|>",
            "<|CHATBOT_TOKEN|>",
            "<|START_RESPONSE|>",
            "<|END_RESPONSE|>",
            "<|START_OF_IMG|>",
            "<|END_OF_IMG|>",
            "<|IMG_PATCH|>",
            "<|IMG_LINE_BREAK|>",
            "TILE_GLOBAL",
            "<image>",
        ),
        prepends_start=True,
        template=(
            "{{ bos_token }}{% for message in messages %}<|START_OF_TURN_TOKEN|>"
            "{% if message['role'] == 'system' %}<|SYSTEM_TOKEN|>"
            "{% elif message['role'] == 'user' %}<|USER_TOKEN|>"
            "{% else %}<|CHATBOT_TOKEN|><|START_RESPONSE|>{% endif %}"
            "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
            "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
            "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}"
            "{% endfor %}{% endif %}{% if message['role'] == 'assistant' %}<|END_RESPONSE|>"
            "{% endif %}<|END_OF_TURN_TOKEN|>{% endfor %}{% if add_generation_prompt %}"
            "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>{% endif %}"
        ),
    ),
}


@functools.cache
def tiny_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of a few hundred tokens, with a family's special tokens."""
    chat = CHATS[name]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=352,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    start = () if chat.start is None else (chat.start,)
    special = dict.fromkeys(
        (chat.pad, *start, chat.end, *chat.stops, *chat.special, *chat.names.values())
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=chat.end,
        pad_token=chat.pad,
        bos_token=chat.start,
        add_bos_token=chat.prepends_start,
        extra_special_tokens=chat.names,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


_CENTRED = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_SQUARE = {"height": SIDE, "width": SIDE}
_HALF = {"height": SIDE // 2, "width": SIDE // 2}
_PIXELS = {"shortest_edge": (2 * PATCH) ** 2, "longest_edge": (2 * SIDE) ** 2}
_GRID = {"patch_size": PATCH, "merge_size": 2, "temporal_patch_size": 2, "size": _PIXELS}
_TILES = {"size": _SQUARE, "crop_to_patches": True, "min_patches": 1, "max_patches": 4, **_CENTRED}
_CROPS = {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}}
_PINPOINTS = [[16, 16], [16, 32], [32, 16], [32, 32]]
_BASE_TOKENS = (SIDE // 2 // PATCH) ** 2


def _llava(tokenizer: Any) -> Any:
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=_SQUARE)
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def _llava_next(tokenizer: Any) -> Any:
    images = LlavaNextImageProcessor(
        size={"shortest_edge": SIDE // 2}, crop_size=_HALF, image_grid_pinpoints=_PINPOINTS
    )
    return LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def _llava_onevision(tokenizer: Any) -> Any:
    return LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=_HALF, image_grid_pinpoints=_PINPOINTS, **_CENTRED),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=_HALF),
        num_image_tokens=_BASE_TOKENS,
        vision_feature_select_strategy="full",
    )


_PROCESSORS: dict[str, Callable[[Any], Any]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": lambda t: Qwen2VLProcessor(
        Qwen2VLImageProcessor(**_GRID), t, Qwen2VLVideoProcessor(**_GRID)
    ),
    "qwen2_5_vl": lambda t: Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**_GRID), t, Qwen2VLVideoProcessor(**_GRID)
    ),
    "qwen3_vl": lambda t: Qwen3VLProcessor(
        Qwen2VLImageProcessor(**_GRID, **_CENTRED), t, Qwen3VLVideoProcessor(**_GRID)
    ),
    "qwen3_5": lambda t: Qwen3VLProcessor(
        Qwen2VLImageProcessor(**_GRID, **_CENTRED), t, Qwen3VLVideoProcessor(**_GRID)
    ),
    "internvl": lambda t: InternVLProcessor(
        GotOcr2ImageProcessor(**_TILES), t, InternVLVideoProcessor(size=_SQUARE), image_seq_length=4
    ),
    "gemma3": lambda t: Gemma3Processor(
        Gemma3ImageProcessor(size=_SQUARE, **_CENTRED), t, image_seq_length=4
    ),
    "smolvlm": lambda t: SmolVLMProcessor(
        SmolVLMImageProcessor(**_CROPS), t, SmolVLMVideoProcessor(**_CROPS), image_seq_len=4
    ),
    "idefics3": lambda t: Idefics3Processor(Idefics3ImageProcessor(**_CROPS), t, image_seq_len=4),
    "mistral3": lambda t: PixtralProcessor(
        PixtralImageProcessor(size={"longest_edge": 2 * SIDE}, patch_size=PATCH),
        t,
        patch_size=PATCH,
        spatial_merge_size=2,
    ),
    "paligemma": lambda t: PaliGemmaProcessor(
        SiglipImageProcessor(size=_SQUARE, image_seq_length=(SIDE // PATCH) ** 2, **_CENTRED), t
    ),
    "glm4v": lambda t: Glm4vProcessor(
        Glm4vImageProcessor(**_GRID), t, Glm4vVideoProcessor(**_GRID)
    ),
    "aya_vision": lambda t: AyaVisionProcessor(
        GotOcr2ImageProcessor(**_TILES),
        t,
        patch_size=PATCH,
        img_size=SIDE,
        downsample_factor=2,
    ),
}


@functools.cache
def tiny_processor(name: str) -> Any:
    """The processor of a family, for images of a few dozen pixels."""
    processor = _PROCESSORS[name](tiny_tokenizer(name))
    processor.chat_template = CHATS[name].template
    return processor


_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": PATCH,
}
_SIGLIP = {**_TOWER, "model_type": "siglip_vision_model", "image_size": SIDE}
_CLIP = {**_TOWER, "model_type": "clip_vision_model", "projection_dim": 16}
_GRID_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_heads": 2,
    "patch_size": PATCH,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_channels": 3,
}


def _config(name: str, text: dict[str, Any], ids: Callable[[str], int]) -> dict[str, Any]:
    """The configuration of a family around a decoder's; ``ids`` gives a token's id."""
    width = text["hidden_size"]
    mrope = {**text, "rope_parameters": {**_ROPE, "mrope_section": [2, 3, 3]}}
    interleaved = {**_ROPE, "mrope_section": [3, 3, 2], "mrope_interleaved": True}
    qwen = {
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
    }
    windows = {"sliding_window": 64, "layer_types": _kinds(text, "sliding_attention")}
    match name:
        case "llava":
            return {
                "text_config": {"model_type": "llama", **text},
                "vision_config": {**_CLIP, "image_size": SIDE},
                "image_token_index": ids("<image>"),
                "image_seq_length": (SIDE // PATCH) ** 2,
            }
        case "llava_next":
            return {
                "text_config": {"model_type": "mistral", **text},
                "vision_config": {**_CLIP, "image_size": SIDE // 2},
                "image_token_index": ids("<image>"),
                "image_grid_pinpoints": _PINPOINTS,
                "image_seq_length": _BASE_TOKENS,
            }
        case "llava_onevision":
            return {
                "text_config": {"model_type": "qwen2", **text},
                "vision_config": {**_SIGLIP, "image_size": SIDE // 2, "vision_use_head": False},
                "image_token_index": ids("<image>"),
                "video_token_index": ids("<video>"),
                "image_grid_pinpoints": _PINPOINTS,
                "vision_feature_select_strategy": "full",
                "vision_feature_layer": -1,
                "vision_aspect_ratio": "anyres_max_9",
            }
        case "qwen2_vl":
            tower = {**_GRID_TOWER, "depth": 2, "embed_dim": 16, "mlp_ratio": 2}
            return {
                "text_config": mrope,
                "vision_config": {**tower, "hidden_size": width},
                **qwen,
            }
        case "qwen2_5_vl":
            tower = {**_GRID_TOWER, "depth": 2, "out_hidden_size": width}
            windowed = {"window_size": 32, "fullatt_block_indexes": [1]}
            return {"text_config": mrope, "vision_config": {**tower, **windowed}, **qwen}
        case "qwen3_vl":
            tower = {**_GRID_TOWER, "depth": 2, "out_hidden_size": width}
            deep = {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
            return {
                "text_config": {**text, "rope_parameters": interleaved},
                "vision_config": {**tower, **deep},
                **qwen,
            }
        case "qwen3_5":
            tower = {**_GRID_TOWER, "depth": 2, "out_hidden_size": width}
            linear = {
                "linear_num_key_heads": 2,
                "linear_num_value_heads": 8,
                "linear_key_head_dim": 16,
                "linear_value_head_dim": 16,
                "layer_types": _kinds(text, "linear_attention"),
            }
            partial = {**interleaved, "partial_rotary_factor": 1.0}
            return {
                "text_config": {**text, **linear, "rope_parameters": partial},
                "vision_config": {**tower, "num_position_embeddings": 16},
                **qwen,
            }
        case "internvl":
            return {
                "text_config": {"model_type": "qwen2", **text},
                "vision_config": {
                    **_TOWER,
                    "image_size": [SIDE, SIDE],
                    "patch_size": [PATCH, PATCH],
                },
                "image_token_id": ids("<IMG_CONTEXT>"),
                "image_seq_length": 4,
            }
        case "gemma3":
            return {
                "text_config": {**text, **windows, "query_pre_attn_scalar": 16},
                "vision_config": {**_SIGLIP, "vision_use_head": False},
                "mm_tokens_per_image": 4,
                "boi_token_index": ids("<start_of_image>"),
                "eoi_token_index": ids("<end_of_image>"),
                "image_token_index": ids("<image_soft_token>"),
            }
        case "smolvlm" | "idefics3":
            return {
                "text_config": {"model_type": "llama", **text},
                "vision_config": {**_TOWER, "image_size": SIDE},
                "scale_factor": 2,
                "image_token_id": ids("<image>"),
                "pad_token_id": text["pad_token_id"],
            }
        case "mistral3":
            tower = {**_TOWER, "model_type": "pixtral", "image_size": 2 * SIDE, "head_dim": 8}
            return {
                "text_config": {"model_type": "mistral", **text},
                "vision_config": tower,
                "image_token_index": ids("[IMG]"),
                "spatial_merge_size": 2,
            }
        case "paligemma":
            return {
                "text_config": {"model_type": "gemma", **text},
                "vision_config": {**_SIGLIP, "vision_use_head": False, "projection_dim": width},
                "projection_dim": width,
                "hidden_size": width,
                "image_token_index": ids("<image>"),
            }
        case "glm4v":
            tower = {**_GRID_TOWER, "depth": 2, "out_hidden_size": width, "image_size": 2 * SIDE}
            return {
                "text_config": mrope,
                "vision_config": tower,
                "image_token_id": ids("<|image|>"),
                "video_token_id": ids("<|video|>"),
                "image_start_token_id": ids("<|begin_of_image|>"),
                "image_end_token_id": ids("<|end_of_image|>"),
                "video_start_token_id": ids("<|begin_of_video|>"),
                "video_end_token_id": ids("<|end_of_video|>"),
            }
        case "aya_vision":
            return {
                "text_config": {"model_type": "cohere2", **text, **windows, "logit_scale": 1.0},
                "vision_config": {**_SIGLIP, "vision_use_head": False},
                "downsample_factor": 2,
                "image_token_index": ids("<|IMG_PATCH|>"),
            }
    raise KeyError(name)


def _kinds(text: dict[str, Any], other: str) -> list[str]:
    """Layer types: the first of the other kind, the last of full attention, as in the family."""
    return [other] * (text["num_hidden_layers"] - 1) + ["full_attention"]


def tiny_config(name: str, *, larger: bool = False, **text: Any) -> Any:
    """The configuration of a tiny model, or of a teacher that is wider and deeper.

    Args:
        name: The ``model_type``.
        larger: The teacher's.
        **text: Settings of the decoder that differ.
    """
    tokenizer = tiny_tokenizer(name)
    tiny_processor(name)  # a processor may add tokens
    heads = 6 if larger else 4
    decoder = {
        "hidden_size": 16 * heads,
        "intermediate_size": 192 if larger else 128,
        "num_hidden_layers": 3 if larger else 2,
        "num_attention_heads": heads,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 1024,
        "rope_parameters": _ROPE,
        "initializer_range": 0.1,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **text,
    }
    if name == "gemma3":
        kinds = ("sliding_attention", "full_attention")
        decoder["rope_parameters"] = {kind: _ROPE for kind in kinds}
    values = _config(name, decoder, tokenizer.convert_tokens_to_ids)
    return AutoConfig.for_model(name, tie_word_embeddings=True, **values)


def tiny_model(name: str, *, seed: int = 0, larger: bool = False, **text: Any) -> Any:
    """A random model; equal arguments give equal weights. See :func:`tiny_config`."""
    config = tiny_config(name, larger=larger, **text)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config)
    tokenizer = tiny_tokenizer(name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            # what a family starts at zero, or scales by its width, would hide what is tested
            if parameter.dim() > 1 and "embed" not in key:
                scale = 1.5 / parameter[0].numel() ** 0.5
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    stops = tokenizer.convert_tokens_to_ids(list(CHATS[name].stops))
    end = tokenizer.eos_token_id
    model.generation_config.eos_token_id = [end, *stops] if stops else end
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.eval()


def save(model: Any, processor: Any, folder: str | Path) -> Path:
    """Write a Hugging Face directory."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


def picture(seed: int, width: int = 40, height: int = 40) -> Image.Image:
    """A random image."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
