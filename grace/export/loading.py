"""Models ready to answer, from directories of every kind that `grace` writes or reads."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from grace.arithmetic import native_dtype
from grace.export.awq import MODULES_FILE
from grace.export.packed import PACKED_FILE, load_packed
from grace.export.released import SIDECAR, load_released
from grace.int4 import pack
from grace.models import load_model, model_directory


def load_student(
    path: str | Path, *, device: str = "cpu", dtype: str = "auto", backend: str = "auto"
) -> nn.Module:
    """A model ready to answer: packed, released or exported as AWQ (then it is packed), trained or
    published.

    Example::

        model = load_student("student-int4", device="cuda")

    Args:
        path: A directory or hub name.
        device: "cpu" or "cuda".
        dtype: Format of weights that are not packed: "float32", "bfloat16" or "float16"; "auto" is
            what the device multiplies natively. So a model packed in bfloat16 runs in float32 where
            bfloat16 would be emulated; elsewhere "auto" leaves a packed model as it is stored.
        backend: Kernel of packed layers.

    Raises:
        InputError: Nothing readable is there.
    """
    chosen = native_dtype(device) if dtype == "auto" else getattr(torch, dtype)
    directory = model_directory(path, also=[SIDECAR])
    model: Any
    if (directory / PACKED_FILE).is_file():
        model = load_packed(directory, device=device, backend=backend)
        as_stored = dtype == "auto" and chosen == torch.bfloat16
        return model if as_stored else model.to(chosen)
    if (directory / MODULES_FILE).is_file() or (directory / SIDECAR).is_file():
        model = load_released(directory, dtype=chosen).to(device)
        pack(model, backend=backend)
    else:
        model = load_model(directory, dtype=chosen)
    return model.eval().requires_grad_(False).to(device)
