"""Models as commands take them: directories of any kind that `grace` writes or reads."""

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


def check_free(path: str, overwrite: bool) -> None:
    """Refuse a directory to write to before long work starts."""
    from grace.files import check_target

    try:
        check_target(Path(path), overwrite=overwrite)
    except InputError as error:
        raise InputError(str(error).replace("pass overwrite=True", "pass --overwrite")) from error


def device_of(name: str) -> str:
    """The device of --device: "auto" is CUDA where there is one.

    Raises:
        InputError: The device is not there.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no CUDA device here; choose cpu")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def add_device(parser: Any) -> None:
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where it runs (default: cuda where there is one)",
    )


def add_overwrite(parser: Any) -> None:
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a model directory at --out, once the new one is complete",
    )


def question(processor: Any, image: Any, prompt: str, device: str, dtype: Any) -> dict[str, Any]:
    """Model inputs (1, S) of one question, about an image or none."""
    content = [{"type": "image"}] if image is not None else []
    chat = [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}]
    text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[text], images=None if image is None else [image], return_tensors="pt")
    return dict(inputs.to(device, dtype))


def open_image(path: str | None) -> Any:
    """The picture of --image, or None without a path.

    Raises:
        InputError: The file is missing or no picture.
    """
    from grace.data.images import read_image

    return None if path is None else read_image(path, f"--image {path!r}", "give a picture")


def positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value
