"""Writing and reading of model directories: whole or not at all."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from grace.errors import InputError
from grace.files import open_tensors, read_json, write_json
from grace.models import family_of, mend_generation_config

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def write_checkpoint(
    model: nn.Module,
    directory: Path,
    packed: Mapping[str, Mapping[str, Tensor]],
    quantization: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    processor: Any,
) -> None:
    """`model` as a Hugging Face directory whose layers `packed` have packed weights.

    Tensors get the names under which the family's published checkpoints have them.

    Args:
        model: A transformers model.
        directory: Where it is written.
        packed: Layer name -> tensors that replace its weight, by their last name.
        quantization: The `quantization_config` of config.json.
        dtype: Of everything that is not packed.
        processor: Written beside the model where given.

    Raises:
        InputError: A weight is not finite, or not any more in `dtype`; the message names it.
    """
    gone = {f"{name}.{part}" for name in packed for part in ("weight", "log_scale")}
    state: dict[str, Tensor] = {}
    casts: dict[tuple[int, torch.Size], Tensor] = {}  # tied weights stay one tensor
    for key, tensor in model.state_dict().items():
        if key not in gone:
            place = tensor.data_ptr(), tensor.shape
            if place not in casts:
                casts[place] = cast_weight(key, tensor, dtype)
            state[key] = casts[place]
    for name, parts in packed.items():
        state.update({f"{name}.{part}": tensor.contiguous() for part, tensor in parts.items()})
    saved: Any = model
    mend_generation_config(model)
    before = saved.config.dtype
    try:
        with published_names(saved):
            saved.save_pretrained(directory, state_dict=state)
    finally:
        saved.config.dtype = before
    if processor is not None:
        processor.save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    _set_dtype(config, str(dtype).removeprefix("torch."))
    add_earlier_settings(config)
    config["quantization_config"] = dict(quantization)
    write_json(directory / "config.json", config)


@contextmanager
def published_names(model: Any) -> Iterator[None]:
    """Within this context a model is saved under its family's published names.

    Left to itself, transformers takes the names that the model was loaded from, and for a model
    that was built or saved by this version of it leaves out `vision_model.` before a tower's
    parameters, without which vLLM does not find them.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange

    tower = family_of(model.config).vision_tower.removeprefix(f"{model.base_model_prefix}.")
    before = vars(model).get("_weight_conversions")
    model._weight_conversions = [
        change
        for change in get_model_conversion_mapping(model, add_legacy=False)
        if not isinstance(change, PrefixChange) or change.scope_prefix == tower
    ]
    try:
        yield
    finally:
        if before is None:
            del model._weight_conversions
        else:
            model._weight_conversions = before


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """Every tensor of a directory's *.safetensors files, by name.

    Raises:
        InputError: A file is corrupt or truncated, a tensor is in two files, or an index promises
            more than there is; the message names the file.
    """
    tensors: dict[str, Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        with open_tensors(file) as content:
            part = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        repeated = sorted(part.keys() & tensors.keys())
        if repeated:
            raise InputError(f"{file}: {repeated[0]} is in another file as well")
        tensors.update(part)
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        promised = read_json(index).get("weight_map", {})
        if not isinstance(promised, dict):
            raise InputError(f"{index}: weight_map is no mapping; fetch the directory again")
        lacking = sorted(set(promised) - tensors.keys())
        if lacking:
            raise InputError(
                f"{index}: {lacking[0]} should be in {promised[lacking[0]]}, but is not there; "
                "fetch the directory again"
            )
    return tensors


def tensor_names(directory: Path) -> list[str]:
    """Names of every tensor of a directory's *.safetensors files; errors as of `read_tensors`."""
    names: list[str] = []
    for file in sorted(directory.glob("*.safetensors")):
        with open_tensors(file) as content:
            names.extend(content.keys())
    return sorted(names)


def cast_weight(key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight in the dtype of an export, on the CPU; integers stay as they are.

    Raises:
        InputError: A value is not finite, or not any more in `dtype`; the message names `key`.
    """
    tensor = tensor.detach().cpu()
    if not tensor.is_floating_point():
        return tensor
    if not torch.isfinite(tensor).all():
        raise InputError(f"{key} has values that are not finite: nothing is exported")
    cast = tensor.to(dtype)
    if not torch.isfinite(cast).all():
        largest = tensor.abs().max().item()
        raise InputError(
            f"{key} has the value {largest:g}, out of range for {dtype}: export with dtype "
            "torch.bfloat16 or torch.float32"
        )
    return cast


def add_earlier_settings(config: dict[str, Any]) -> None:
    """Add, in place, the settings that transformers 4 and engines built on it read elsewhere.

    They do not know ``rope_parameters``, and look for ``tie_word_embeddings`` in the text's
    configuration: silently they would take defaults. transformers 5 reads the same as before.

    Args:
        config: The content of a config.json.
    """
    tied = config.get("tie_word_embeddings")
    if tied is not None and isinstance(config.get("text_config"), dict):
        config["text_config"]["tie_word_embeddings"] = tied
    _add_earlier_rope(config)


def _add_earlier_rope(config: dict[str, Any]) -> None:
    rope = config.get("rope_parameters")
    if isinstance(rope, dict):
        full = rope.get("full_attention", rope)
        if "rope_theta" in full:
            config.setdefault("rope_theta", full["rope_theta"])
        rest = {name: value for name, value in full.items() if name != "rope_theta"}
        if rest not in ({}, {"rope_type": "default"}):
            config.setdefault("rope_scaling", rest)
        local = rope.get("sliding_attention", {}).get("rope_theta")
        if local is not None:
            config.setdefault("rope_local_base_freq", local)
    for value in config.values():
        if isinstance(value, dict):
            _add_earlier_rope(value)


def _set_dtype(config: dict[str, Any], dtype: str) -> None:
    """Set the dtype of a configuration and of those nested in it."""
    config["dtype"] = dtype
    for value in config.values():
        if isinstance(value, dict) and "dtype" in value:
            _set_dtype(value, dtype)
