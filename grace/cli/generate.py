"""grace generate: an answer about an image."""

import argparse
from typing import Any

from grace.cli.models import (
    DTYPES,
    add_device,
    device_of,
    open_image,
    positive,
    processor_of,
    question,
)

DESCRIPTION = """\
Ask a model about an image, or without one. Greedy decoding, with a cache that is allocated once;
on CUDA the decode step is captured.

MODEL is a directory that `grace pack` or `grace train` wrote, a released or AWQ-exported one, which
is packed when it is loaded, or any checkpoint of a known family. The answer is printed; nothing is
written.
"""
EXAMPLES = """\
  grace generate student-int4 --image photo.jpg --prompt "What is on the table?"
  grace generate student-int4 --prompt "Hello" --max-new-tokens 16
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="directory, or hub name, of a model")
    parser.add_argument("--prompt", required=True, help="the question")
    parser.add_argument("--image", help="picture that the question is about")
    parser.add_argument(
        "--max-new-tokens",
        type=positive,
        default=64,
        help="most tokens of the answer (default: %(default)s)",
    )
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


def run(arguments: argparse.Namespace) -> None:
    """Answer and print."""
    from grace.decoding import generate
    from grace.export import load_student

    image = open_image(arguments.image)
    device = device_of(arguments.device)
    processor = processor_of(arguments.model)
    model: Any = load_student(
        arguments.model, device=device, dtype=arguments.dtype, backend=arguments.backend
    )
    inputs = question(processor, image, arguments.prompt, device, model.dtype)
    tokens = generate(model, inputs, arguments.max_new_tokens)
    new = tokens[0, inputs["input_ids"].shape[1] :]
    print(processor.tokenizer.decode(new, skip_special_tokens=True).strip())
