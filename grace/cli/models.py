"""Models as commands take them: directories of any kind that `grace` writes or reads."""

import argparse
from pathlib import Path
from typing import Any

from grace.errors import InputError

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
        help="format of weights that are not packed (default: bfloat16 where the device multiplies "
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
