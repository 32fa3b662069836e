"""This machine: what it is, in words, and where what was found out about it is kept."""

import functools
import os
import platform
from pathlib import Path

import torch

from grace.arithmetic import multiplies_bfloat16

CACHE_ENVIRONMENT = "GRACE_CACHE"


def cache_folder() -> Path:
    """$GRACE_CACHE, or grace/ in the user's cache directory.

    Example:
        >>> from grace.machine import cache_folder
        >>> cache_folder().is_absolute()
        True
    """
    folder = os.environ.get(CACHE_ENVIRONMENT)
    if not folder:
        cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        folder = str(Path(cache) / "grace")
    return Path(folder)


@functools.cache
def processor_name() -> str:
    """The name that the processor gives itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def instruction_set() -> str:
    """What torch's kernels use on this processor.

    Example:
        >>> from grace.machine import instruction_set
        >>> instruction_set().split(",")[0].isupper()
        True
    """
    native = "bfloat16 products" if multiplies_bfloat16() else "no bfloat16 products"
    return f"{torch.backends.cpu.get_cpu_capability()}, {native}"
