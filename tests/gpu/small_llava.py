"""A LLaVA of two layers with random weights, and batches for it, made of transformers alone."""

from typing import Any

import numpy as np
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from grace.data import IGNORE_INDEX

IMAGE, WORDS, SIDE, PATCH = 3, 160, 32, 8
PATCHES = (SIDE // PATCH) ** 2


def small_llava(seed: int, width: int = 128) -> Any:
    """Float32, heads of 32; equal seeds and widths give equal weights."""
    text = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=256,
    )
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
    )
    torch.manual_seed(seed)
    config = LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=IMAGE, image_seq_length=PATCHES
    )
    model = LlavaForConditionalGeneration(config)
    for parameter in model.parameters():  # answers that differ between prompts
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=1.5 / parameter[0].numel() ** 0.5)
    return model


def sample(index: int, words: int = 12, answer: int = 5) -> dict[str, Any]:
    """An image of noise, a question and an answer, as a data set of `grace.data` gives them."""
    rng = np.random.default_rng(index)
    text = rng.integers(10, WORDS, words)
    tokens = np.concatenate([[1], np.full(PATCHES, IMAGE), text])
    labels = np.full(len(tokens), IGNORE_INDEX)
    labels[-answer:] = tokens[-answer:]
    pixels = rng.standard_normal((1, 3, SIDE, SIDE)).astype(np.float32)
    return {
        "index": index,
        "input_ids": tokens,
        "labels": labels,
        "image_spans": [(1, 1 + PATCHES)],
        "pixel_values": torch.from_numpy(pixels),
    }


class Samples(torch.utils.data.Dataset):
    """A few of them, with what a trainer asks of a data set."""

    processor = None
    lengths = (1 + PATCHES + 12,) * 8

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        return sample(index)


def prompt(seed: int, rows: int) -> dict[str, torch.Tensor]:
    """Model inputs of one image and some words a row."""
    samples = [sample(100 * seed + row) for row in range(rows)]
    ids = torch.from_numpy(np.stack([one["input_ids"] for one in samples]))
    pixels = torch.cat([one["pixel_values"] for one in samples])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
