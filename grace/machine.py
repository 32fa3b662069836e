"""This machine: what it is, in words, where what was found out about it is kept, and the memory
that this process took of it."""

import functools
import os
import platform
import resource
import sys
from pathlib import Path

import torch

from grace.arithmetic import multiplies_bfloat16

CACHE_ENVIRONMENT = "GRACE_CACHE"
_NAMES = {"AVX512": "AVX-512", "DEFAULT": "no vector instructions"}


def cache_folder() -> Path:
    """$GRACE_CACHE, or grace/ in the user's cache directory.

    Examples:
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
    """The widest vector instructions that torch uses here, and whether they multiply bfloat16.

    Returns:
        For example "AVX-512 with bfloat16", "AVX-512, AMX with bfloat16" or "AVX2".
    """
    capability = torch.backends.cpu.get_cpu_capability()
    name = _NAMES.get(capability, capability)
    if torch.cpu.get_capabilities().get("amx_bf16"):
        name = f"{name}, AMX"
    # a capability lower than the processor's own (ATEN_CPU_CAPABILITY) binds torch's kernels only;
    # the matrix products are oneDNN's, which asks the processor
    return f"{name} with bfloat16" if multiplies_bfloat16() else name


def peak_resident() -> int:
    """The most bytes of memory that this process has had."""
    try:  # of this program alone; getrusage counts the process it was forked from
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
