"""One question about pictures as the inputs of a model."""

from collections.abc import Sequence
from typing import Any

from grace.errors import InputError, one_line
from grace.models.prompts import read_prompts, render_question


def question(processor: Any, images: Sequence[Any], prompt: str) -> Any:
    """Model inputs (1, S) of one question about some images, on the CPU in the processor's formats.

    Raises:
        InputError: The processor has no chat template, or none of messages with parts; or it
            refuses an image.
    """
    text = render_question(processor, prompt, len(images))
    try:
        inputs = read_prompts(processor, [text], [images])
    except Exception as error:  # processors fail with types of their own
        what = _refused_image(processor, images)
        raise InputError(f"the processor refuses {what}: {one_line(error, 300)}") from error
    token = getattr(processor, "image_token_id", None)
    if images and token is not None and not (inputs["input_ids"] == token).any():
        raise InputError(
            "the processor's chat template writes no image into the question; give the directory "
            "the chat_template.jinja of the model's family"
        )
    return inputs


def _refused_image(processor: Any, images: Sequence[Any]) -> str:
    """What the processor refuses: one of the images, or all of the question."""
    for index, image in enumerate(images):
        try:
            processor.image_processor(images=[image], return_tensors="pt")
        except Exception:
            return f"image {index + 1} of {len(images)}, {image.width} x {image.height} pixels"
    return f"a question with {len(images)} images" if images else "a question without an image"
