"""Checkpoints of quantized models that other libraries load, and the authors' own.

`save_compressed_tensors` and `save_awq` write a fake-quantized (or baked) model as an ordinary
Hugging Face directory with packed integer weights, `save_gguf` as files for llama.cpp.
`load_released` reads the checkpoints released with the paper. `save_packed` and `load_packed` are
for packed models (`grace.int4`); `load_student` reads all of them but GGUF. Layouts are in
`packing`, what is exported in `layers`, files in `checkpoint`.
"""

from grace.export.awq import save_awq
from grace.export.compressed_tensors import save_compressed_tensors
from grace.export.gguf import save_gguf
from grace.export.loading import load_student
from grace.export.packed import load_packed, save_packed
from grace.export.released import load_released

__all__ = [
    "load_packed",
    "load_released",
    "load_student",
    "save_awq",
    "save_compressed_tensors",
    "save_gguf",
    "save_packed",
]
