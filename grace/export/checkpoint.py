"""Writing and reading of model directories: whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from grace.errors import InputError

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@contextmanager
def atomic_directory(path: str | Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary directory beside `path`, renamed to `path` when the block ends well.

    On any exception the temporary directory is removed and what was at `path` stays as it was.
    Every file is on the disk before the directory gets its name: a full disk or quota is an error
    here, and never a shorter file.

    Raises InputError where something is at `path` already; with `overwrite`, where that is no
    model directory (nothing else is ever replaced).
    """
    path = Path(path)
    check_target(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as content:
                    os.fsync(content.fileno())
        _put(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raises InputError where `atomic_directory` would refuse `path`."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise InputError(f"{path} exists: name another directory, or pass overwrite=True")
    if not (path.is_dir() and (path / "config.json").is_file()):
        raise InputError(f"{path} is no model directory: it is not overwritten; name another")


def _put(temporary: Path, path: Path) -> None:
    if not path.exists():
        temporary.rename(path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
    path.rename(old)  # onto an empty directory
    try:
        temporary.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old)


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

    packed: layer name -> tensors that replace its weight, by their last name. Everything else is
    cast to `dtype`. Tensors get the names under which the family's published checkpoints have
    them. quantization: the `quantization_config` of config.json.

    Raises InputError, naming the tensor, where a weight is not finite, or not any more in `dtype`.
    """
    gone = {f"{name}.{part}" for name in packed for part in ("weight", "log_scale")}
    state: dict[str, Tensor] = {}
    casts: dict[tuple[int, torch.Size], Tensor] = {}  # tied weights stay one tensor
    for key, tensor in model.state_dict().items():
        if key not in gone:
            place = tensor.data_ptr(), tensor.shape
            if place not in casts:
                casts[place] = _cast(key, tensor, dtype)
            state[key] = casts[place]
    for name, parts in packed.items():
        state.update({f"{name}.{part}": tensor.contiguous() for part, tensor in parts.items()})
    saved: Any = model
    before = saved.config.dtype
    try:
        saved.save_pretrained(directory, state_dict=state)
    finally:
        saved.config.dtype = before
    if processor is not None:
        processor.save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    _set_dtype(config, str(dtype).removeprefix("torch."))
    config["quantization_config"] = dict(quantization)
    write_json(directory / "config.json", config)


def write_json(path: Path, value: Any) -> None:
    """`value` as JSON; whoever calls this writes into a directory that is renamed at the end."""
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises InputError, naming the file, if it is missing or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not an object")
    return content


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """Every tensor of a directory's *.safetensors files, by name.

    Raises InputError, naming the file, for a file that is corrupt or truncated, a tensor in two
    files, and an index that promises more than there is.
    """
    tensors: dict[str, Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        with _opened(file) as content:
            found = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        twice = sorted(found.keys() & tensors.keys())
        if twice:
            raise InputError(f"{file}: {twice[0]} is in another file as well")
        tensors.update(found)
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
    """Names of every tensor of a directory's *.safetensors files. Raises InputError as above."""
    names: list[str] = []
    for file in sorted(directory.glob("*.safetensors")):
        with _opened(file) as content:
            names.extend(content.keys())
    return sorted(names)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt", device="cpu") as content:
            yield content
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: corrupt or truncated ({error}); fetch it again") from error


def _cast(key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
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


def _set_dtype(config: dict[str, Any], dtype: str) -> None:
    """Sets the dtype of a configuration and of those nested in it."""
    config["dtype"] = dtype
    for value in config.values():
        if isinstance(value, dict) and "dtype" in value:
            _set_dtype(value, dtype)
