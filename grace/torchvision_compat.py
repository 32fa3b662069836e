"""Make ``import torchvision`` work where its compiled operators do not load.

The Qwen2-VL and Qwen3-VL processors of transformers need torchvision, but only its Python
code. The torchvision wheel on the package index is compiled for CUDA builds of torch; beside
a CPU build its operators do not load, and the import then trips over two schemas that its
Python code registers fake kernels for. Declaring these two schemas is all that is missing.
Where the compiled operators load, this module changes nothing.

Call :func:`ensure_importable` before anything imports torchvision or a processor.
"""

import importlib.util
import pathlib

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library: torch.library.Library | None = None  # its registrations end when it is collected


def ensure_importable() -> bool:
    """Declare the missing operator schemas; return whether that was needed."""
    global _library
    if _library is not None:
        return True
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _operators_load(pathlib.Path(spec.origin).parent):
        return False
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS.values():
        _library.define(schema)
    return True


def _operators_load(package: pathlib.Path) -> bool:
    for binary in package.glob("_C*.so"):
        try:
            torch.ops.load_library(str(binary))
        except OSError:
            return False
        return hasattr(torch.ops.torchvision, "nms")
    return False
