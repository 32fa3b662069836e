"""One model on one question: where its answer looks, and what its visual tokens have become."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grace.errors import InputError
from grace.models import Family, family_of, load_model, load_processor
from replication.measure.inside.questions import Question


@dataclass(frozen=True)
class Observation:
    """What one model does with one question.

    Attributes:
        attention: (layers, n), mean over heads of the attention from the position that predicts
            the first token of the answer to each of the n visual tokens, by decoder layer. A row
            sums to the share of the attention that the image gets.
        tokens: (n, d) float32, visual tokens at the penultimate decoder layer, where RCKA reads
            (Eq. 10).
        grid: rows and columns of the visual tokens; they stand in reading order.
        answer: the likeliest first token.
    """

    attention: np.ndarray
    tokens: np.ndarray
    grid: tuple[int, int]
    answer: str


def token_grid(family: Family, config: Any, images: Mapping[str, torch.Tensor]) -> tuple[int, int]:
    """Rows and columns of the visual tokens of one image.

    Args:
        family: the model's family.
        config: the model's configuration.
        images: the image processor's output for the image.

    Raises:
        InputError: for a LLaVA that also reads its tower's class token, which has no place.
    """
    if "image_grid_thw" in images:
        merge = config.vision_config.spatial_merge_size
        frames, height, width = images["image_grid_thw"][0].tolist()
        grid = frames * height // merge, width // merge
    else:
        patch = config.vision_config.patch_size
        height, width = images["pixel_values"].shape[-2:]
        grid = height // patch, width // patch
    (tokens,) = family.tokens_per_image(config, images)
    if grid[0] * grid[1] != tokens:
        raise InputError(
            f"an image of {family.model_type} has {tokens} visual tokens, which are no grid of "
            f"{grid[0]} x {grid[1]}; its class token has no place in the image"
        )
    return grid


def observe(model: Any, processor: Any, question: Question) -> Observation:
    """Pose a question as the evaluation does, alone in its batch.

    Args:
        model: with eager attention; the other implementations compute no attention weights.
        processor: the model's processor.
        question: the question.
    """
    family = family_of(model.config)
    content = [{"type": "image"}, {"type": "text", "text": question.prompt}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    inputs = processor(text=[prompt], images=[question.image], return_tensors="pt")
    ((_, start, stop),) = family.image_spans(inputs["input_ids"], model.config.image_token_id)
    states: list[torch.Tensor] = []

    def keep(_module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        states.append(args[0] if args else kwargs["hidden_states"])

    hook = family.relational_layer(model).register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with torch.no_grad():
            output = model(**inputs, output_attentions=True, use_cache=False)
    finally:
        hook.remove()
    rows = [layer[0, :, -1, start:stop].double().mean(0) for layer in output.attentions]
    answer = processor.tokenizer.decode(int(output.logits[0, -1].argmax()))
    return Observation(
        attention=torch.stack(rows).numpy(),
        tokens=states[0][0, start:stop].float().numpy(),
        grid=token_grid(family, model.config, inputs),
        answer=answer.strip(),
    )


def observe_model(path: Path, questions: Sequence[Question]) -> list[Observation]:
    """What the model in a directory does with every question, in float32 on the CPU: the same
    numbers on every machine with the same arithmetic."""
    model: Any = load_model(path).eval()
    model.set_attn_implementation("eager")
    processor = load_processor(path)
    return [observe(model, processor, question) for question in questions]
