"""Questions as prompts, and prompts as model inputs."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from grace.errors import InputError, one_line


def render_question(processor: Any, question: str, images: int = 0) -> str:
    """A question as a processor's chat template writes it, with the start of an answer.

    Example::

        prompt = render_question(processor, "What is this?", images=1)
        inputs = read_prompts(processor, [prompt], [[image]])

    Args:
        processor: The model's processor.
        question: The text.
        images: Number of images, which come before the text.

    Raises:
        InputError: There is no chat template, or none of messages with parts.
    """
    parts = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": question}]
    chat = [{"role": "user", "content": parts}]
    try:
        text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        if str(parts) in text:
            raise TypeError("it writes the list of parts as it is")
    except Exception as error:  # templates raise what they like
        reason = one_line(error, 300)
        raise InputError(
            f"the processor's chat template cannot render a question of image and text "
            f"({reason}); give the directory the chat_template.jinja of the model's family"
        ) from error
    return str(text)


def read_prompts(
    processor: Any,
    prompts: Sequence[str],
    images: Sequence[Sequence[Image.Image]],
    **options: Any,
) -> Any:
    """A processor's output for prompts that its chat template wrote.

    A start token that the template has written is not written again, as in
    ``apply_chat_template(tokenize=True)``::

        prompt = render_question(processor, "Why?", images=1)
        tokens = model.generate(**read_prompts(processor, [prompt], [[image]]))

    Example::

        prompts = [render_question(processor, text, images=1) for text in questions]
        inputs = read_prompts(processor, prompts, [[image] for image in images], padding=True)

    Args:
        processor: The model's processor.
        prompts: Rendered, one a row.
        images: Those of each row, in order.
        **options: Further arguments of the processor, such as ``padding``.

    Returns:
        The inputs as tensors, without the labels that some processors add.
    """
    start = processor.tokenizer.bos_token
    if start and prompts[0].startswith(start):
        options["add_special_tokens"] = False
    shown = [list(row) for row in images]
    given = shown if any(shown) else None
    inputs = processor(text=list(prompts), images=given, return_tensors="pt", **options)
    inputs.pop("labels", None)
    return inputs
