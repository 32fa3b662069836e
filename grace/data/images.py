"""The one way to open an image: for training, generation, evaluation and calibration.

An image becomes 8-bit RGB as a person would see it: upright (EXIF orientation), on white where it
is transparent, greys of more than 8 bits scaled by their range, the first frame of an animation.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from grace.errors import InputError, one_line

ImageSource = str | Path | bytes | BinaryIO | Image.Image
"""A path, the content of a file, an open binary file, or an image that is open already."""

MAX_PIXELS = 178_956_970
"""Larger images are refused as decompression bombs: PIL's own bound, whatever its settings are."""

_Transpose = Image.Transpose
_UPRIGHT = {
    2: _Transpose.FLIP_LEFT_RIGHT,
    3: _Transpose.ROTATE_180,
    4: _Transpose.FLIP_TOP_BOTTOM,
    5: _Transpose.TRANSPOSE,
    6: _Transpose.ROTATE_270,
    7: _Transpose.TRANSVERSE,
    8: _Transpose.ROTATE_90,
}
"""By EXIF orientation: what turns the image upright."""
_GREATEST = 65535  # of 16 bits


def read_image(source: ImageSource, name: str, mend: str = "") -> Image.Image:
    """An image in RGB, upright, on white.

    ::

        image = read_image("photo.jpg", "--image 'photo.jpg'", "give a picture")

    Args:
        source: A path, the content of a file, an open binary file, or an image.
        name: What the error message calls it.
        mend: What the error message advises.

    Raises:
        InputError: It is missing, broken, truncated, or has more than `MAX_PIXELS` pixels.
    """
    with _opened(source, name, mend) as image:
        image.load()
        turn = _UPRIGHT.get(_orientation(image))
        rgb = _to_rgb(image)
        return rgb if turn is None else rgb.transpose(turn)


def image_size(source: ImageSource, name: str, mend: str = "") -> tuple[int, int]:
    """(width, height) of an image as :func:`read_image` gives it, after a check that it is whole.

    A JPEG's coefficients are decoded without making all pixels of them: a third of the time that
    reading takes.

    Example::

        image_size("photo.jpg", "photo.jpg")    # (3024, 4032): of a phone's photo, upright

    Args:
        source: A path, the content of a file, an open binary file, or an image.
        name: What the error message calls it.
        mend: What the error message advises.

    Raises:
        InputError: As :func:`read_image`.
    """
    with _opened(source, name, mend) as image:
        width, height = image.size  # before a draft shrinks it
        if _orientation(image) >= 5:
            width, height = height, width
        image.draft(None, (1, 1))  # of effect on JPEG alone
        image.load()
        return width, height


@contextmanager
def _opened(source: ImageSource, name: str, mend: str) -> Iterator[Image.Image]:
    """An open image of a bounded size; whatever fails in the block is an `InputError`."""
    # a truncated image is an error, also where another library has told PIL otherwise
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        if isinstance(source, Image.Image):
            _check_pixels(source)
            yield source
            return
        if isinstance(source, bytes) and not source:
            raise ValueError("it has 0 bytes")
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            _check_pixels(image)
            yield image
    except Exception as error:  # every image format fails with types of its own
        advice = f"; {mend}" if mend else ""
        reason = one_line(error)
        if isinstance(error, UnidentifiedImageError):  # it gives a place in memory
            reason = "cannot identify an image in it"
        raise InputError(f"{name} cannot be read ({reason}){advice}") from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _check_pixels(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}×{height} pixels are more than {MAX_PIXELS}")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8."""
    if image.format == "TIFF":
        return 1  # PIL turns TIFF files itself
    file = isinstance(image, ImageFile.ImageFile)
    if file and not any("exif" in str(key) or "xmp" in str(key) for key in image.info):
        return 1  # to ask PIL takes as long as to decode a small image
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF data: the image is still one
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    page = Image.new("RGBA", image.size, "white")
    page.alpha_composite(image.convert("RGBA"))
    return page.convert("RGB")


def _eight_bits(image: Image.Image) -> np.ndarray:
    """A grey image of 16 or 32 bits as one of 8 bits, (height, width).

    Black to white is 0 to 65535 for integers that fit, 0 to 1 for floats that fit, and the image's
    own darkest to brightest value for all others.
    """
    values = np.nan_to_num(np.asarray(image), posinf=0, neginf=0)
    low, high = float(values.min()), float(values.max())
    greatest = 1 if image.mode == "F" else _GREATEST
    if low >= 0 and high <= greatest:
        low, high = 0.0, float(greatest)
    scaled = (values.astype(np.float64) - low) * (255 / max(high - low, 1e-12))
    return scaled.round().astype(np.uint8)
