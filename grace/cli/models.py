"""Models as commands take them: directories of any kind that `grace` writes or reads."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grace.errors import InputError, one_line

DTYPES = ("bfloat16", "float16", "float32")


def processor_of(path: str) -> Any:
    """The processor beside a model."""
    from grace.models import load_processor

    return load_processor(path)


def trained_codes(path: str) -> Any:
    """The codes and scales beside a trained model. Raises InputError where there are none."""
    from grace.models import check_model_directory
    from grace.quantization import CODES_FILE, CodesFile

    check_model_directory(path)
    file = Path(path) / CODES_FILE
    if not file.is_file():
        raise InputError(
            f"{path!r} has no {CODES_FILE}: give a directory that `grace train` wrote with fewer "
            "than 16 bits"
        )
    return CodesFile(file)


def add_device(parser: Any) -> None:
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where it runs (default: cuda where there is one)",
    )


def add_loading(parser: Any) -> None:
    """How a model is loaded to answer: format, kernel and device."""
    parser.add_argument(
        "--dtype",
        choices=("auto", *DTYPES),
        default="auto",
        help="format of a model that is not packed (default: bfloat16 where the device multiplies "
        "it natively, else float32)",
    )
    parser.add_argument(
        "--backend",
        choices=("auto", "cpu", "cuda", "reference"),
        default="auto",
        help="kernel of packed layers (default: %(default)s, that of the device)",
    )
    add_device(parser)


def add_overwrite(parser: Any) -> None:
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a model directory at --out, once the new one is complete",
    )


def question(processor: Any, images: Sequence[Any], prompt: str) -> Any:
    """Model inputs (1, S) of one question about some images, on the CPU in the processor's formats.

    Raises:
        InputError: The processor has no chat template, or none of messages with parts; or it
            refuses an image.
    """
    from grace.models import read_prompts, render_question

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


def open_image(path: str) -> Any:
    """The picture of --image, upright and on white.

    Raises:
        InputError: The file is missing or no picture.
    """
    from grace.data.images import read_image

    return read_image(path, f"--image {path!r}", "give a picture")


def positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)
