"""grace bench: a packed model against its 16-bit version."""

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from grace.cli.models import (
    add_device,
    open_image,
    positive,
    processor_of,
    question,
)
from grace.errors import InputError

DESCRIPTION = """\
Measure a packed model beside the same model in bfloat16: time to the first token of a question
about an image, decoded tokens a second, bytes of weights, and peak memory (of the process; on CUDA
of the allocator). Each model runs in a process of its own; times are medians over the repeats, with
the least and the greatest. Nothing is written, unless --json names a file.

Run it on a machine that does nothing else: memory bandwidth limits decoding.
"""
EXAMPLES = """\
  grace bench student student-int4
  grace bench student student-int4 --image photo.jpg --batch-size 4 --tokens 64 --json bench.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="directory that `grace train` wrote, run in bfloat16")
    parser.add_argument("packed", help="directory that `grace pack` wrote of it")
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
    """Measure both models, print a table, and write the numbers if --json says where."""
    from multiprocessing import get_context

    from grace.files import atomic_path

    _check(arguments)
    results = {}
    for name, path in (("bfloat16", arguments.model), ("packed", arguments.packed)):
        with get_context("spawn").Pool(1) as pool:  # peak memory belongs to a process
            results[name] = pool.apply(measure, (path, vars(arguments)))
    print("\n".join(table(results)))
    if arguments.json is not None:
        with atomic_path(arguments.json) as temporary:
            temporary.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _check(arguments: argparse.Namespace) -> None:
    """Check everything that can be checked before a model is loaded. Raises InputError."""
    from grace.arithmetic import chosen_device
    from grace.export.packed import PACKED_FILE
    from grace.files import check_free
    from grace.models import check_model_directory

    if arguments.image is not None:
        open_image(arguments.image)
    for path in (arguments.model, arguments.packed):
        check_model_directory(path)
    if (Path(arguments.model) / PACKED_FILE).is_file():
        raise InputError(f"{arguments.model!r} is packed: give the 16-bit model first")
    if not (Path(arguments.packed) / PACKED_FILE).is_file():
        raise InputError(f"{arguments.packed!r} is not packed: run `grace pack` first")
    if arguments.json is not None:
        check_free(arguments.json, overwrite=False)
    chosen_device(arguments.device)


def measure(path: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The numbers of one model, in the process that this runs in.

    Args:
        path: A packed or other model directory.
        settings: device, image, prompt, batch_size, tokens and repeats, as the command takes them.

    Returns:
        weight_bytes, peak_bytes, and as {"median", "low", "high"} first_token_seconds and
        tokens_per_second; device, threads and prompt_tokens.
    """
    import torch

    from grace.arithmetic import chosen_device
    from grace.decoding import Decoder
    from grace.export import load_student

    device = chosen_device(settings["device"])

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    model: Any = load_student(path, device=device, dtype="bfloat16")
    processor = processor_of(path)
    image = noise() if settings["image"] is None else open_image(settings["image"])
    inputs = question(processor, [image], settings["prompt"])
    inputs = dict(inputs.to(device, model.dtype))
    rows, tokens, repeats = (settings[name] for name in ("batch_size", "tokens", "repeats"))
    reader = Decoder(model, 1, inputs["input_ids"].shape[1] + tokens + 1)
    first, rates = [], []
    for _ in range(repeats + 1):  # the first is to warm up
        start = now()
        reader.prefill(inputs)
        reader.tokens().tolist()
        first.append(now() - start)
    decoder = reader
    if rows > 1:
        decoder = Decoder(model, rows, reader.capacity)
        decoder.start_from(reader)
    for _ in range(repeats + 1):
        decoder.rewind()
        start = now()
        decoder.run(tokens)
        rates.append(rows * tokens / (now() - start))
    return {
        "first_token_seconds": spread(first[1:]),
        "tokens_per_second": spread(rates[1:]),
        "weight_bytes": weight_bytes(model),
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else peak_resident(),
        "device": device,
        "threads": torch.get_num_threads(),
        "prompt_tokens": inputs["input_ids"].shape[1],
    }


def noise() -> Any:
    """A picture of 336 by 336 random pixels, always the same."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (336, 336, 3), dtype=np.uint8))


def weight_bytes(model: Any) -> int:
    """Bytes of all tensors of a model, packed codes and scales too, shared ones once."""
    stored: dict[int, int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        stored[storage.data_ptr()] = storage.nbytes()
    return sum(stored.values())


def peak_resident() -> int:
    """The most bytes of memory that this process has had."""
    try:  # of this program alone; getrusage counts the process it was forked from
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def table(results: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of a table: both models side by side, and the quotients."""
    both = before, after = results["bfloat16"], results["packed"]

    def cells(key: str, places: int) -> list[str]:
        return [
            f"{value['median']:.{places}f} [{value['low']:.{places}f}, {value['high']:.{places}f}]"
            for value in (model[key] for model in both)
        ]

    def quotient(key: str, above: dict[str, Any], below: dict[str, Any]) -> float:
        return above[key]["median"] / below[key]["median"]

    speed = quotient("tokens_per_second", after, before)
    first = quotient("first_token_seconds", before, after)
    rows = [
        ["", *results, ""],
        ["tokens/s", *cells("tokens_per_second", 2), f"{speed:.2f} times"],
        ["first token, s", *cells("first_token_seconds", 3), f"{first:.2f} times as fast"],
    ]
    for label, key in (("weights, MiB", "weight_bytes"), ("peak memory, MiB", "peak_bytes")):
        sizes = [f"{model[key] / 2**20:.1f}" for model in both]
        rows.append([label, *sizes, f"{100 * (1 - after[key] / before[key]):.1f} % less"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)) for row in rows]
    return [line.rstrip() for line in lines]
