"""Packed models as directories.

    packed.safetensors    every tensor of the packed model, linears as two codes a byte and scales,
                          in no back end's layout: it can be loaded on any device
    config.json, ...      as transformers writes them

The file has a name of its own, because transformers' loader would take a packed linear for a
missing one and draw its weights at random.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from grace.errors import InputError, one_line
from grace.export.layers import linear_of
from grace.files import atomic_directory, open_tensors, read_json
from grace.int4 import PackedLinear
from grace.int4.backends import AUTO
from grace.int4.layouts import unpack_stored
from grace.int4.linear import LAYERS
from grace.models import mend_generation_config, read_generation_config

PACKED_FILE = "packed.safetensors"
_DEPTHS = ("num_hidden_layers", "depth")


def save_packed(
    model: nn.Module, path: str | Path, *, processor: Any = None, overwrite: bool = False
) -> Path:
    """Write a packed model (`grace.int4.pack`) as a directory.

    Example::

        pack(student)
        save_packed(student, "student-int4", processor=processor)

    Args:
        model: With packed layers.
        path: Of the new directory.
        processor: Written beside the model where given.
        overwrite: Replace a model directory at `path`; until the new one is complete the old stays.

    Returns:
        The directory.

    Raises:
        InputError: The model has no packed layer, or `path` is taken.
    """
    from safetensors.torch import save_file

    layers = {n: m for n, m in model.named_modules() if isinstance(m, PackedLinear)}
    if not layers:
        raise InputError("save_packed: the model has no packed layer: call grace.int4.pack first")
    state: dict[str, Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()  # a tied tensor is written once
    for key, tensor in model.state_dict().items():
        place = tensor.data_ptr(), tensor.shape
        if place not in seen:
            seen.add(place)
            state[key] = tensor.detach().cpu().contiguous()
    bits = {name: layer.bits for name, layer in layers.items()}
    saved: Any = model
    mend_generation_config(model)
    with atomic_directory(path, overwrite=overwrite) as directory:
        saved.config.save_pretrained(directory)
        if getattr(saved, "generation_config", None) is not None:
            saved.generation_config.save_pretrained(directory)
        if processor is not None:
            processor.save_pretrained(directory)
        save_file(state, directory / PACKED_FILE, {"bits": json.dumps(bits, sort_keys=True)})
    return Path(path)


@torch.no_grad()
def load_packed(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    backend: str = AUTO,
    crossover: int | None = None,
) -> nn.Module:
    """A model that `save_packed` wrote, in evaluation mode; its dense weights are never made.

    Example::

        model = load_packed("student-int4", device="cuda")

    Args:
        path: The directory.
        device: Where the model is loaded.
        backend: As of `Int4Linear.from_codes`.
        crossover: Likewise.

    Raises:
        InputError: No packed weights, a file that is damaged or of another model, or codes or
            scales that do not fit; the message names the file and the tensor.
    """
    directory = Path(path)
    file = directory / PACKED_FILE
    state, bits = _read(file)
    _check_depth(read_json(directory / "config.json"), len(state), directory)
    model = _without_weights(directory)
    for name, width in bits.items():
        layer = _layer(
            file,
            model,
            name,
            width,
            state=state,
            device=device,
            backend=backend,
            crossover=crossover,
        )
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
    _fill(model, state, file)
    generation = read_generation_config(directory)
    if generation is not None:
        model.generation_config = generation
    return model.eval().requires_grad_(False).to(device)


def _without_weights(directory: Path) -> Any:
    """The model of a directory's configuration, with its parameters on the meta device."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForImageTextToText

    kind: Any = AutoModelForImageTextToText
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        with init_empty_weights(include_buffers=False):
            return kind.from_config(config, trust_remote_code=False)
    except Exception as error:  # the library's classes fail with types of their own
        reason = one_line(error, 300)
        raise InputError(f"{directory}: its configuration makes no model ({reason})") from error


def _fill(model: Any, state: dict[str, Tensor], file: Path) -> None:
    """Put the tensors that are not packed into the model; each of its own has to be there."""
    packed = {name for name, module in model.named_modules() if isinstance(module, PackedLinear)}
    for key, value in {**dict(model.named_parameters()), **_buffers(model)}.items():
        stored = state.get(key)
        if stored is None or key.rpartition(".")[0] in packed:
            continue
        if stored.shape != value.shape or stored.is_floating_point() != value.is_floating_point():
            raise InputError(
                f"{file}: {key} is {stored.dtype} {tuple(stored.shape)}, the model needs "
                f"{value.dtype} {tuple(value.shape)}: write the directory again"
            )
    report = model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    lacking = [name for name, value in model.named_parameters() if value.is_meta]
    for what, keys in (("lacks", lacking), ("also holds", report.unexpected_keys)):
        if keys:
            raise InputError(f"{file}: {what} {min(keys)}: write the directory again")
    model.config.dtype = next(iter(model.parameters())).dtype


def _check_depth(config: Any, tensors: int, directory: Path) -> None:
    """Refuse, before it is built, a model of more layers than its file has tensors."""
    waiting = [config]
    while waiting:
        for key, value in waiting.pop().items():
            if isinstance(value, dict):
                waiting.append(value)
            elif key in _DEPTHS and isinstance(value, int | float) and not value <= tensors:
                raise InputError(
                    f"{directory / 'config.json'}: {key} is {value}, but the file has {tensors} "
                    "tensors: write the directory again"
                )


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    kept = set(model.state_dict())
    return {name: buffer for name, buffer in model.named_buffers() if name in kept}


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, int]]:
    if not file.is_file():
        raise InputError(f"{file}: no such file: give a directory that `save_packed` wrote")
    with open_tensors(file) as content:
        state = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118
        metadata = content.metadata() or {}
    try:
        bits = json.loads(metadata.get("bits", "null"))
    except (ValueError, RecursionError):
        bits = None
    known = isinstance(bits, dict) and all(
        type(width) is int and width in LAYERS for width in bits.values()
    )
    if not known or not bits:
        raise InputError(f"{file}: does not say how many bits which layer has; write it again")
    return state, bits


def _layer(
    file: Path,
    model: nn.Module,
    name: str,
    bits: int,
    *,
    state: dict[str, Tensor],
    device: str | torch.device,
    backend: str,
    crossover: int | None,
) -> PackedLinear:
    """A packed layer; its codes, scales and bias are taken out of `state`."""
    linear = linear_of(model, name, str(file))
    keys = [f"{name}.packed", f"{name}.scales"]
    for key in keys:
        if key not in state:
            raise InputError(f"{file}: lacks {key}: write the directory again")
    packed, scales = state.pop(keys[0]), state.pop(keys[1])
    size = (linear.out_features, linear.in_features)
    codes = unpack_stored(packed, size, bits, f"{file}: {keys[0]}").to(device)
    bias = state.pop(f"{name}.bias", None)
    if (bias is None) != (linear.bias is None):
        raise InputError(f"{file}: {name}.bias is {'missing' if bias is None else 'too many'}")
    return LAYERS[bits].from_codes(
        codes,
        scales.to(device),
        None if bias is None else bias.to(device),
        backend,
        crossover=crossover,
        name=name,
    )
