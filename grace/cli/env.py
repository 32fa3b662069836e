"""grace env: versions, device and instruction set, for reports."""

import argparse
import sys
from importlib.metadata import PackageNotFoundError, version

DESCRIPTION = """\
Print what a report should name: versions of this package and of the libraries that decide its
numbers, the device, the processor's instruction set, and which INT4 kernels run here. Nothing is
measured, written or sent anywhere.
"""
EXAMPLES = """\
  grace env
  grace env --device cpu
"""
PACKAGES = (
    *("torch", "transformers", "accelerate", "numpy", "safetensors", "bitsandbytes"),
    *("compressed-tensors", "gguf", "lmms-eval", "xllamacpp"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from grace.cli.models import add_device

    add_device(parser)


def run(arguments: argparse.Namespace) -> None:
    """Print the lines."""
    for name, value in lines(arguments.device):
        print(f"{name:20}{value}")


def lines(choice: str = "auto") -> list[tuple[str, str]]:
    """(name, value) of every line."""
    import platform

    import torch

    from grace import __version__
    from grace.arithmetic import chosen_device, native_dtype
    from grace.int4 import available
    from grace.int4.backends.compiled import compiled
    from grace.machine import instruction_set, processor_name

    device = chosen_device(choice)
    found = [("grace", __version__), ("python", sys.version.split()[0])]
    found += [(name, _version(name)) for name in PACKAGES]
    found += [
        ("system", platform.platform()),
        ("processor", processor_name()),
        ("instruction set", instruction_set()),
        ("threads", str(torch.get_num_threads())),
        ("device", torch.cuda.get_device_name() if device == "cuda" else "cpu"),
        ("native arithmetic", str(native_dtype(device)).removeprefix("torch.")),
        ("compiled product", compiled()[1] or "runs"),
    ]
    found += [(f"INT4 on {name}", why or "runs") for name, why in available(device).items()]
    return found


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
