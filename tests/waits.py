"""What would make the host wait for a device, found on a CPU by what is called."""

import contextlib
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_OPERATIONS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal.default", "masked_select")
_OPERATIONS += ("unique", "repeat_interleave.Tensor", "allclose")
_INDEXING = ("aten.index.Tensor", "aten.index_put", "aten._index_put_impl_")
# On a CPU these read the memory and call no operation.
_METHODS = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu, torch.Tensor.__array__}
_TORCH = str(Path(torch.__file__).parent)


class Wait(NamedTuple):
    operation: str
    file: str
    function: str


class HostWaits(contextlib.ExitStack):
    """Collects in `found` every call inside the context that waits on an accelerator.

    An operation whose result is on the host, or whose size depends on values: `.item()` and what
    calls it, `.tolist()`, `nonzero`, an index that is a mask. `file` and `function` are of the
    innermost frame outside torch.
    """

    def __init__(self):
        super().__init__()
        self.found: list[Wait] = []

    def __enter__(self):
        super().__enter__()
        self.enter_context(_Methods(self))
        self.enter_context(_Operations(self))
        return self

    def add(self, operation):
        frame = sys._getframe(2)
        while frame is not None:
            file = frame.f_code.co_filename
            if not file.startswith((_TORCH, __file__, "<")):
                self.found.append(Wait(operation, file, frame.f_code.co_name))
                return
            frame = frame.f_back


class _Operations(TorchDispatchMode):
    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        if any(known in name for known in _OPERATIONS):
            self.waits.add(name)
        elif name.startswith(_INDEXING) and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        ):
            self.waits.add(f"{name} by a mask")
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in _METHODS:
            self.waits.add(func.__name__)
        return func(*args, **(kwargs or {}))
