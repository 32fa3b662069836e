"""What a measurement was made on, in words."""

import functools
import platform
from pathlib import Path

import torch

from grace.arithmetic import multiplies_bfloat16


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
