"""Decoding of images, with errors that name the record."""

from pathlib import Path
from typing import BinaryIO

from PIL import Image

from grace.errors import InputError


def read_image(source: str | Path | BinaryIO, name: str, mend: str) -> Image.Image:
    """An image in RGB.

    Args:
        source: A file, or its content.
        name: What the error message calls it.
        mend: What the error message advises.

    Raises:
        InputError: It is missing or cannot be decoded.
    """
    try:
        with Image.open(source) as image:
            return image.convert("RGB")
    except Exception as error:  # every image format fails with types of its own
        raise InputError(f"{name} cannot be read ({error}); {mend}") from error
