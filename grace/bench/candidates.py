"""What is compared: directories and GGUF files, of one model."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grace.errors import InputError
from grace.files import open_tensors
from grace.models import check_model_directory, model_directory

GGUF = ".gguf"
_MAIN, _VISION = f"model-*{GGUF}", f"mmproj-*{GGUF}"
_ROWS = 256  # of the embeddings, at most, by which a model is known again
_APART = 0.2  # of their norm: formats differ by less, and models by more
_SIZES = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
}
"""Sizes of a decoder: their names in config.json and in a GGUF file."""


@dataclass(frozen=True)
class Candidate:
    """One format of the model.

    Attributes:
        path: As it was given.
        file: The GGUF file with the decoder; None for a directory that transformers reads.
        vision: The GGUF file with the vision part.
    """

    path: str
    file: Path | None = None
    vision: Path | None = None


def candidate(path: str) -> Candidate:
    """What stands at a path.

    Args:
        path: A directory or hub name of any kind that `grace` reads, a directory that
            `grace export --format gguf` wrote, or the file `model-*.gguf` in one.

    Raises:
        InputError: Nothing is there, or parts are missing; the message says which.
    """
    place = Path(path)
    if place.suffix == GGUF:
        if not place.is_file():
            raise InputError(f"{path!r} does not exist; correct the path")
        return Candidate(path, place, _one(place.parent, _VISION, path))
    if place.is_dir() and any(place.glob(f"*{GGUF}")):
        return Candidate(path, _one(place, _MAIN, path), _one(place, _VISION, path))
    check_model_directory(path)
    return Candidate(path)


def _one(folder: Path, pattern: str, path: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise InputError(
            f"{path!r} has {len(found)} files {pattern} where one is needed; name the file, or "
            "export the student again"
        )
    return found[0]


def check_same(candidates: list[Candidate]) -> None:
    """Refuse formats of different models.

    Sizes of the decoder have to be equal, and the embeddings, which no format here quantizes and
    training hardly moves, nearly equal.

    Raises:
        InputError: Naming the two, the size, and both values.
    """
    first, *others = candidates
    sizes, rows = _sizes(first), _embeddings(first)
    for other in others:
        own = _sizes(other)
        for name, value in sizes.items():
            if own[name] != value:
                raise InputError(
                    f"{other.path!r} has {name} {own[name]} and {first.path!r} {value}: give "
                    "formats of one model"
                )
        embeddings = _embeddings(other)
        count = min(len(rows), len(embeddings))  # a vocabulary can be padded
        if count == 0 or rows.shape[1] != embeddings.shape[1]:
            apart = math.inf
        else:
            difference = rows[:count] - embeddings[:count]
            apart = float(difference.norm() / rows[:count].norm())
        if not apart < _APART:
            raise InputError(
                f"the embeddings of {other.path!r} and {first.path!r} differ by {apart:.2g} of "
                "their norm: these are different models; give formats of one"
            )


def _sizes(one: Candidate) -> dict[str, Any]:
    if one.file is None:
        config = check_model_directory(one.path)
        text = {**config, **config.get("text_config", {})}
        text.setdefault("num_key_value_heads", text.get("num_attention_heads"))
        return {name: text.get(name) for name in _SIZES}
    reader = _reader(one.file)
    prefix = reader.fields["general.architecture"].contents()
    fields = {name: reader.fields.get(f"{prefix}.{key}") for name, key in _SIZES.items()}
    return {name: None if field is None else field.contents() for name, field in fields.items()}


def _embeddings(one: Candidate) -> Tensor:
    """The first rows of the input embeddings, (rows, hidden_size) float32; no row where there are
    no embeddings under a known name."""
    if one.file is None:
        for file in sorted(model_directory(one.path).glob("*.safetensors")):
            with open_tensors(file) as content:
                for name in content.keys():  # noqa: SIM118
                    if name.endswith("embed_tokens.weight"):
                        return content.get_slice(name)[:_ROWS].float()
        return torch.empty(0, 0)
    from gguf.quants import dequantize

    for tensor in _reader(one.file).tensors:
        if tensor.name == "token_embd.weight":
            return torch.from_numpy(dequantize(tensor.data[:_ROWS], tensor.tensor_type)).float()
    return torch.empty(0, 0)


def _reader(file: Path) -> Any:
    from grace.export.gguf_file import library

    try:
        return library().GGUFReader(file)
    except (ValueError, OSError, IndexError) as error:
        raise InputError(f"{file}: no readable GGUF file ({error}); export it again") from error
