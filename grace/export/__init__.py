"""Checkpoints of quantized models that other libraries load, and the authors' own.

`save_compressed_tensors` and `save_awq` write a fake-quantized (or baked) model as an ordinary
Hugging Face directory with packed integer weights; `load_released` reads the checkpoints released
with the paper. Layouts are in `packing`, what is exported in `layers`, files in `checkpoint`.
"""

from grace.export.awq import save_awq
from grace.export.compressed_tensors import save_compressed_tensors
from grace.export.released import load_released

__all__ = ["load_released", "save_awq", "save_compressed_tensors"]
