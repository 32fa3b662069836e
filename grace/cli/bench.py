"""grace bench: one model in several formats, side by side."""

import argparse
import json
from pathlib import Path
from typing import Any

from grace.cli.models import add_device, open_image, positive
from grace.errors import InputError

DESCRIPTION = """\
Measure formats of one model side by side: time to the first token of a question about an image,
decoded tokens a second, bytes of weights, and peak memory (of the process; on CUDA of the
allocator). Each runs in a process of its own; times are medians over the repeats, with the least
and the greatest. What is not packed runs in bfloat16 where the device multiplies it natively, else
in float32. A GGUF file runs in llama.cpp (pip install xllamacpp gguf), on the CPU. Formats of
different models are refused. Nothing is written, unless --json names a file.

Run it on a machine that does nothing else: memory bandwidth limits decoding.
"""
EXAMPLES = """\
  grace bench student student-int4
  grace bench student student-int4 student-gguf --image photo.jpg --batch-size 4 --json bench.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="directory to compare with, as `grace train` wrote it")
    parser.add_argument(
        "others",
        nargs="+",
        metavar="other",
        help="what `grace pack` or `grace export` wrote of it, or a file model-*.gguf",
    )
    parser.add_argument("--image", help="picture (default: noise of 336 pixels a side)")
    parser.add_argument(
        "--prompt", default="Describe the image in detail.", help="default: %(default)s"
    )
    parser.add_argument(
        "--tokens", type=positive, default=32, help="tokens decoded in a run (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=positive, default=5, help="default: %(default)s")
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=1,
        help="rows decoded together (default: %(default)s)",
    )
    parser.add_argument("--json", help="file to write the numbers to")
    add_device(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measure all formats, print a table, and write the numbers if --json says where."""
    from multiprocessing import get_context

    from grace.bench.settings import Settings
    from grace.bench.table import table
    from grace.files import atomic_path

    candidates = _checked(arguments)
    machine = _machine(arguments.device)
    names = ("image", "prompt", "batch_size", "tokens", "repeats")
    given = {name: getattr(arguments, name) for name in names}
    settings = Settings(device=machine["device"], threads=machine["threads"], **given)
    results = {}
    for one in candidates:
        with get_context("spawn").Pool(1) as pool:  # peak memory belongs to a process
            results[one.path] = pool.apply(measure, (one, settings))
    rows = f"{settings.batch_size} row{'s' if settings.batch_size > 1 else ''}"
    print(f"{machine['name']} ({machine['instructions']}), {machine['threads']} threads, {rows}")
    print("\n".join(table(results)))
    if arguments.json is not None:
        content = {"machine": machine, "settings": given, "models": results}
        with atomic_path(arguments.json) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def measure(one: Any, settings: Any) -> dict[str, Any]:
    """The numbers of one format, in the process that this runs in."""
    from grace.bench import directory, llama_cpp

    if one.file is None:
        return directory.measure(one.path, settings)
    return llama_cpp.measure(one.file, one.vision, one.path, settings)


def _machine(choice: str) -> dict[str, Any]:
    import torch

    from grace.arithmetic import chosen_device
    from grace.machine import instruction_set, processor_name

    device = chosen_device(choice)
    name = torch.cuda.get_device_name() if device == "cuda" else processor_name()
    return {
        "device": device,
        "name": name,
        "instructions": "CUDA" if device == "cuda" else instruction_set(),
        "threads": torch.get_num_threads(),
    }


def _checked(arguments: argparse.Namespace) -> list[Any]:
    """What is compared, after all that can be checked before a model is loaded.

    Raises:
        InputError: As `candidate` and `check_same`, for a path that is given twice, for a picture
            that is none, and for a GGUF file that cannot be run here.
    """
    from grace.arithmetic import chosen_device
    from grace.bench import llama_cpp
    from grace.bench.candidates import candidate, check_same
    from grace.files import check_free

    if arguments.image is not None:
        open_image(arguments.image)
    paths = [arguments.model, *arguments.others]
    for path in paths:
        if sum(Path(path) == Path(other) for other in paths) > 1:
            raise InputError(f"{path!r} is given twice: give formats that differ")
    candidates = [candidate(path) for path in paths]
    device = chosen_device(arguments.device)
    files = [one for one in candidates if one.file is not None]
    if files and (reason := llama_cpp.available()):
        raise InputError(f"{files[0].path!r}: {reason}")
    if files and device != "cpu":
        raise InputError(f"{files[0].path!r}: llama.cpp is measured on the CPU: add --device cpu")
    check_same(candidates)
    if arguments.json is not None:
        check_free(arguments.json, overwrite=False)
    return candidates
