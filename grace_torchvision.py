"""Make ``import torchvision`` work where its compiled operators do not load.

The Qwen2-VL and Qwen3-VL processors of transformers need torchvision, but only its Python
code. The torchvision wheel on the package index is compiled for CUDA builds of torch; beside
a CPU build its operators do not load, and the import then trips over two schemas that its
Python code registers fake kernels for. Declaring these two schemas is all that is missing.
Where the compiled operators load, this module changes nothing.

The entry point ``torch.backends`` in pyproject.toml has ``import torch`` call :func:`install`, so
that packages may be imported in any order; ``import grace`` calls it too, which serves where grace
is not installed. It costs nothing: operators are tried only when something looks for torchvision.

A module of its own beside the package: a folder named ``grace`` in the working directory, such as
a clone, hides an editable package ``grace``, and ``import torch`` would fail with it.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library: Any = None  # the registrations of a torch.library.Library end when it is collected


class _DeclareFirst(MetaPathFinder):
    """Finds no module itself, but declares the schemas when torchvision is first looked for."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        if fullname == "torchvision" and self in sys.meta_path:
            sys.meta_path.remove(self)
            ensure_importable()


def install() -> None:
    """Declare the missing schemas as soon as anything looks for torchvision."""
    if "torchvision" in sys.modules:  # its own import of torch led here
        ensure_importable()
    elif not any(isinstance(finder, _DeclareFirst) for finder in sys.meta_path):
        sys.meta_path.insert(0, _DeclareFirst())


def ensure_importable() -> bool:
    """Declare the missing operator schemas now.

    Returns:
        Whether that was needed.
    """
    global _library
    if _library is not None:
        return True
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _operators_load(Path(spec.origin).parent):
        return False
    import torch

    _library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS.values():
        _library.define(schema)
    return True


def _operators_load(package: Path) -> bool:
    import torch

    for binary in package.glob("_C*.so"):
        try:
            torch.ops.load_library(str(binary))
        except OSError:
            return False
        return hasattr(torch.ops.torchvision, "nms")
    return False
