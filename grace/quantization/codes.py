"""The integers of a quantized model, in a file beside its weights."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from grace.errors import InputError
from grace.files import open_tensors
from grace.quantization.spec import QuantSpec

CODES_FILE = "quantized.safetensors"


def write_codes(
    directory: str | Path, exact: Mapping[str, tuple[Tensor, Tensor]], settings: Mapping[str, Any]
) -> None:
    """Write what `bake` returned beside the model it baked, for `CodesFile` to read.

    ``<linear>.codes`` is int8 (out, in), ``<linear>.scales`` float32 (out, groups).

    Example::

        write_codes("student", bake(model), spec.to_dict())

    Args:
        directory: Where `CODES_FILE` is written.
        exact: Codes and scales by the dotted names of the linear layers.
        settings: Of the quantizer (`QuantSpec.to_dict`). They become the only entry,
            ``quantization``, of the file's metadata: safetensors writes several entries in an order
            that changes from call to call, and the same model would not be the same bytes.
    """
    from safetensors.torch import save_file

    tensors = {}
    for name, (codes, scales) in exact.items():
        tensors[f"{name}.codes"], tensors[f"{name}.scales"] = codes.cpu(), scales.cpu()
    metadata = {"quantization": json.dumps(dict(settings), sort_keys=True)}
    save_file(tensors, Path(directory) / CODES_FILE, metadata)


class CodesFile(Mapping[str, tuple[Tensor, Tensor]]):
    """`<linear>.codes` and `<linear>.scales` of a safetensors file, read layer by layer.

    A mapping: name of a linear layer -> (codes int8 (out, in), scales float32 (out, groups)).

    Example::

        exact = CodesFile("student/quantized.safetensors")
        codes, scales = exact["model.language_model.layers.0.mlp.up_proj"]

    Attributes:
        path: The file.
        bits: Bit width of the codes, from the quantizer's settings that the file's metadata holds
            as JSON under ``quantization``; 4 where it does not say.

    Raises:
        InputError: The file is missing, truncated, or holds anything else; the message names the
            file and the tensor.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"{self.path}: no such file: name the file of codes and scales")
        with open_tensors(self.path) as content:
            keys = set(content.keys())
            metadata = content.metadata() or {}
        self._names = sorted(key[: -len(".codes")] for key in keys if key.endswith(".codes"))
        expected = {f"{name}.{part}" for name in self._names for part in ("codes", "scales")}
        for key in sorted(keys ^ expected):
            what = "lacks" if key in expected else "also holds"
            raise InputError(
                f"{self.path}: {what} {key}: give a file of <linear>.codes and <linear>.scales"
            )
        if not self._names:
            raise InputError(f"{self.path}: holds no codes: write it again")
        self.bits = self._read_bits(metadata)

    def _read_bits(self, metadata: Mapping[str, str]) -> int:
        try:
            settings = json.loads(metadata.get("quantization", "{}"))
            return QuantSpec(bits=settings.get("bits", 4)).bits
        except (ValueError, AttributeError) as error:  # an InputError is a ValueError
            raise InputError(
                f"{self.path}: its metadata `quantization` is {metadata['quantization']!r}, "
                f"without a bit width ({error}): write the file again"
            ) from error

    def __getitem__(self, name: str) -> tuple[Tensor, Tensor]:
        if name not in self._names:
            raise KeyError(name)
        with open_tensors(self.path) as content:
            return content.get_tensor(f"{name}.codes"), content.get_tensor(f"{name}.scales")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
