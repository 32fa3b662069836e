"""grace generate: an answer about an image."""

import argparse
import sys
from typing import Any

from grace.cli.models import (
    add_loading,
    open_image,
    positive,
    processor_of,
)

DESCRIPTION = """\
Ask a model about an image, several, or none. The most likely token is taken at every step, with a
cache that is allocated once; on CUDA the decode step is captured. Where the model's generation
config asks for more (a repetition penalty, beams, stop strings), its own generate runs, and a line
on standard error says so; --greedy leaves that out.

MODEL is a directory that `grace pack` or `grace train` wrote, a released or AWQ-exported one, which
is packed when it is loaded, or any checkpoint of a known family. The answer is printed; nothing is
written.
"""
EXAMPLES = """\
  grace generate student-int4 --image photo.jpg --prompt "What is on the table?"
  grace generate student-int4 --image a.jpg --image b.jpg --prompt "What differs?"
  grace generate student-int4 --prompt "Hello" --max-new-tokens 16 --sample --seed 1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="directory, or hub name, of a model")
    parser.add_argument("--prompt", required=True, help="the question")
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        help="picture that the question is about; may be repeated",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=positive,
        default=64,
        help="most tokens of the answer (default: %(default)s)",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--greedy",
        dest="strategy",
        action="store_const",
        const="greedy",
        default="model",
        help="the most likely token, whatever the model's generation config asks for",
    )
    how.add_argument(
        "--sample",
        dest="strategy",
        action="store_const",
        const="sample",
        help="sample with the temperature and so on of the model's generation config",
    )
    parser.add_argument("--seed", type=int, default=0, help="of --sample (default: %(default)s)")
    add_loading(parser)


def run(arguments: argparse.Namespace) -> None:
    """Answer and print."""
    import torch

    from grace.arithmetic import chosen_device
    from grace.decoding import generate, special_settings
    from grace.export import load_student
    from grace.models.questions import question

    images = [open_image(path) for path in arguments.image]
    device = chosen_device(arguments.device)
    processor = processor_of(arguments.model)
    inputs = question(processor, images, arguments.prompt)
    model: Any = load_student(
        arguments.model, device=device, dtype=arguments.dtype, backend=arguments.backend
    )
    special = special_settings(model)
    if arguments.strategy == "model" and special:
        asked = ", ".join(f"{name} = {value!r}" for name, value in special.items())
        print(
            f"note: the model's generation config asks for {asked}: its own generate runs; "
            "--greedy leaves this out",
            file=sys.stderr,
        )
    torch.manual_seed(arguments.seed)
    tokens = generate(
        model,
        dict(inputs.to(device, model.dtype)),
        arguments.max_new_tokens,
        strategy=arguments.strategy,
        tokenizer=processor.tokenizer,
    )
    new = tokens[0, inputs["input_ids"].shape[1] :]
    print(processor.tokenizer.decode(new, skip_special_tokens=True).strip())
