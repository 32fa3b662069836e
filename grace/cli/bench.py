"""grace bench: a packed model against its 16-bit version."""

import argparse
from typing import Any

from grace.cli.models import add_device, positive

DESCRIPTION = """\
Measure a packed model beside the same model in bfloat16: time to the first token of a question
about an image, decoded tokens a second, bytes of weights, and peak memory (of the process; on CUDA
of the allocator). Each runs in a process of its own; medians over repeats with the least and the
greatest. Nothing is written, unless --json names a file.

Run it on a machine that does nothing else: decoding is limited by memory bandwidth.
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
        "--tokens", type=positive, default=32, help="decoded in a run (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=positive, default=5, help="default: %(default)s")
    parser.add_argument(
        "--batch-size", type=positive, default=1, help="of decoding (default: %(default)s)"
    )
    parser.add_argument("--json", help="file for the numbers")
    add_device(parser)


def run(given: argparse.Namespace) -> None:
    import json
    from multiprocessing import get_context
    from pathlib import Path

    from grace.cli.models import check_free, device_of, open_image
    from grace.errors import InputError
    from grace.export.packed import PACKED_FILE
    from grace.files import atomic_path
    from grace.models import check_model_directory

    open_image(given.image)
    for path in (given.model, given.packed):
        check_model_directory(path)
    if (Path(given.model) / PACKED_FILE).is_file():
        raise InputError(f"{given.model!r} is packed: give the 16-bit model first")
    if not (Path(given.packed) / PACKED_FILE).is_file():
        raise InputError(f"{given.packed!r} is not packed: run `grace pack` first")
    if given.json is not None:
        check_free(given.json, overwrite=False)
    device_of(given.device)
    found = {}
    for name, path in (("bfloat16", given.model), ("packed", given.packed)):
        with get_context("spawn").Pool(1) as pool:  # peak memory belongs to a process
            found[name] = pool.apply(measure, (path, vars(given)))
    print("\n".join(table(found)))
    if given.json is not None:
        with atomic_path(given.json) as temporary:
            temporary.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def measure(path: str, given: dict[str, Any]) -> dict[str, Any]:
    """The numbers of one model, in the process that this runs in.

    Returns weight_bytes, peak_bytes, and as {"median", "low", "high"} first_token_seconds and
    tokens_per_second.
    """
    import time

    import torch

    from grace.cli.models import device_of, load, open_image, processor_of, question
    from grace.decoding import Decoder

    device = device_of(given["device"])

    def wait() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    model, processor = load(path, device, "bfloat16"), processor_of(path)
    image = open_image(given["image"]) or noise()
    inputs = question(processor, image, given["prompt"], device, model.dtype)
    rows, tokens = given["batch_size"], given["tokens"]
    reader = Decoder(model, 1, inputs["input_ids"].shape[1] + tokens + 1)
    first, rates = [], []
    for _ in range(given["repeats"] + 1):  # the first is to warm up
        start = wait()
        reader.prefill(inputs)
        reader.tokens().tolist()
        first.append(wait() - start)
    decoder = reader
    if rows > 1:
        decoder = Decoder(model, rows, reader.capacity)
        decoder.start_from(reader)
    for _ in range(given["repeats"] + 1):
        decoder.rewind()
        start = wait()
        decoder.run(tokens)
        rates.append(rows * tokens / (wait() - start))
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
    """Bytes of all that a model stores, packed codes and scales included, shared tensors once."""
    stored: dict[int, int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        stored[storage.data_ptr()] = storage.nbytes()
    return sum(stored.values())


def peak_resident() -> int:
    """Bytes of memory that this process had at most."""
    import resource
    import sys
    from pathlib import Path

    try:  # of this program alone; the other also counts what it was started from
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def spread(values: list[float]) -> dict[str, float]:
    """Median and ends."""
    import statistics

    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def table(found: dict[str, dict[str, Any]]) -> list[str]:
    """The two side by side, and the quotients."""
    before, after = found["bfloat16"], found["packed"]

    def shown(one: dict[str, float], places: int) -> str:
        ends = ", ".join(f"{one[end]:.{places}f}" for end in ("low", "high"))
        return f"{one['median']:.{places}f} [{ends}]"

    mib = 2**20
    speed = after["tokens_per_second"]["median"] / before["tokens_per_second"]["median"]
    first = before["first_token_seconds"]["median"] / after["first_token_seconds"]["median"]
    rows: list[tuple[str, ...]] = [("", "bfloat16", "packed", "")]
    sides = [before["tokens_per_second"], after["tokens_per_second"]]
    rows.append(("tokens/s", *(shown(one, 2) for one in sides), f"{speed:.2f} times"))
    sides = [before["first_token_seconds"], after["first_token_seconds"]]
    rows.append(("first token, s", *(shown(one, 3) for one in sides), f"{first:.2f} times as fast"))
    for label, key in (("weights, MiB", "weight_bytes"), ("peak memory, MiB", "peak_bytes")):
        saved = 100 * (1 - after[key] / before[key])
        both = (f"{one[key] / mib:.1f}" for one in (before, after))
        rows.append((label, *both, f"{saved:.1f} % less"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    return [line.rstrip() for line in lines]
