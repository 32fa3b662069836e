"""The integers behind a quantized model's weights, in a file beside them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

CODES_FILE = "quantized.safetensors"


def write_codes(
    directory: Path, exact: Mapping[str, tuple[Tensor, Tensor]], settings: Mapping[str, Any]
) -> None:
    """Write ``<linear>.codes`` (int8, (out, in)) and ``<linear>.scales`` (float32, (out, groups)).

    exact: by the linears' dotted names. settings: of the quantizer, plain JSON values; they become
    the one entry ``quantization`` of the file's metadata. safetensors writes several entries in an
    order that changes from call to call, and the same model would not be the same bytes.
    """
    from safetensors.torch import save_file

    tensors = {}
    for name, (codes, scales) in exact.items():
        tensors[f"{name}.codes"], tensors[f"{name}.scales"] = codes, scales
    metadata = {"quantization": json.dumps(dict(settings), sort_keys=True)}
    save_file(tensors, directory / CODES_FILE, metadata)
