"""Rendered prompts as model inputs."""

from collections.abc import Sequence
from typing import Any

from PIL import Image


def read_prompts(
    processor: Any,
    prompts: Sequence[str],
    images: Sequence[Sequence[Image.Image]],
    **options: Any,
) -> Any:
    """A processor's output for prompts that its chat template wrote.

    A start token that the template has written is not written again, as in
    ``apply_chat_template(tokenize=True)``.

    Args:
        processor: The model's processor.
        prompts: Rendered, one a row.
        images: Those of each row, in order.
        **options: Further arguments of the processor, such as ``padding``.

    Returns:
        The inputs as tensors.
    """
    start = processor.tokenizer.bos_token
    if start and prompts[0].startswith(start):
        options["add_special_tokens"] = False
    shown = [list(row) for row in images]
    return processor(
        text=list(prompts), images=shown if any(shown) else None, return_tensors="pt", **options
    )
