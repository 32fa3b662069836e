"""Random models of a configuration, built on the meta device and filled layer by layer."""

import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from grace.models import family_of

Convert = Callable[[nn.Linear, str], nn.Module]
"""Makes of a decoder's filled linear, and its name, what takes its place."""

STANDARD_DEVIATION = 0.02
# A prime, so that no width divides it and no two rows of a matrix are the same numbers.
_POOL = 16_777_213


class Noise:
    """Normal numbers of a seed and a name, as fast as memory can be written.

    A parameter is filled from one pool, from a place that its name chooses: drawing billions of
    numbers one by one would take longer than everything that is measured.
    """

    def __init__(self, seed: int, *, device: torch.device, dtype: torch.dtype, size: int = _POOL):
        generator = torch.Generator().manual_seed(seed)
        pool = torch.randn(size, generator=generator).mul_(STANDARD_DEVIATION)
        self.pool = pool.to(device, dtype)

    def fill(self, target: Tensor, name: str) -> None:
        """Fill a contiguous tensor."""
        size = self.pool.numel()
        place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % size
        flat, done = target.view(-1), 0
        while done < flat.numel():
            count = min(size - place, flat.numel() - done)
            flat[done : done + count] = self.pool[place : place + count]
            done, place = done + count, 0


@torch.no_grad()
def random_model(
    config: Any,
    seed: int,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    convert: Convert | None = None,
) -> Any:
    """A model of a configuration with random weights, for inference.

    Matrices, embeddings and biases are normal with standard deviation 0.02, norms are 1. The same
    seed gives the same weights whatever `convert` makes of them.

    Args:
        config: of transformers.
        seed: of the weights.
        device: where the model is built.
        dtype: of the weights.
        convert: replaces each linear of the decoder's layers as soon as it is filled, so that there
            is never more than one such weight in `dtype`.
    """
    from transformers import AutoModelForImageTextToText

    device = torch.device(device)
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    model.eval().requires_grad_(False)
    noise = Noise(seed, device=device, dtype=dtype)
    linears = set(family_of(config).decoder_linears(model)) if convert else set()
    filled: dict[int, nn.Parameter] = {}  # by the meta parameter: tied ones stay tied
    meta = list(model.parameters())  # kept, so that no identity is used again
    for name in [name for name, _ in model.named_modules()]:
        module = model.get_submodule(name)
        _fill_buffers(model, name, module, device)
        own = {part: p for part, p in module._parameters.items() if p is not None}
        for part, parameter in own.items():
            if id(parameter) not in filled:
                value = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
                if part == "weight" and value.dim() == 1:
                    value.fill_(1.0)
                else:
                    noise.fill(value, f"{name}.{part}")
                filled[id(parameter)] = nn.Parameter(value, requires_grad=False)
            module._parameters[part] = filled[id(parameter)]
        if convert and name in linears:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, convert(module, name))
            for parameter in own.values():  # nothing else refers to what was replaced
                del filled[id(parameter)]
        del module
    del meta
    left = [n for n, t in [*model.named_parameters(), *model.named_buffers()] if t.is_meta]
    assert not left, f"not filled: {left}"
    return model


def _fill_buffers(model: nn.Module, name: str, module: nn.Module, device: torch.device) -> None:
    """Buffers hold what a configuration determines: the library's own initialisation fills them."""
    buffers = {part: buffer for part, buffer in module._buffers.items() if buffer is not None}
    if not buffers:
        return
    for part, buffer in buffers.items():
        empty = torch.full(buffer.shape, math.nan if buffer.is_floating_point() else -1)
        module._buffers[part] = empty.to(device, buffer.dtype)
    _owner(model, name)._init_weights(module)
    for part in buffers:
        filled: Any = module._buffers[part]
        if bool((filled.isnan() if filled.is_floating_point() else filled < 0).any()):
            raise RuntimeError(f"{name}.{part}: transformers leaves this buffer without a value")


def _owner(model: nn.Module, name: str) -> Any:
    """The innermost transformers model that a module belongs to: it knows how to initialise it."""
    from transformers import PreTrainedModel

    owner: Any = model
    path = ""
    for part in name.split("."):
        path = f"{path}.{part}".lstrip(".")
        module = model.get_submodule(path)
        if isinstance(module, PreTrainedModel):
            owner = module
    return owner


def stored_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Every tensor that holds a part of the model: parameters, buffers, and what quantizers of
    other libraries keep beside them."""
    for module in model.modules():
        for tensor in [*module._parameters.values(), *module._buffers.values()]:
            if tensor is not None:
                yield from _inner(tensor)


def _inner(tensor: Any) -> Iterator[Tensor]:
    state = getattr(tensor, "quant_state", None)  # of bitsandbytes
    for outer in (state, getattr(state, "state2", None)):
        for part in ("absmax", "code"):
            if isinstance(getattr(outer, part, None), Tensor):
                yield getattr(outer, part)
    if hasattr(tensor, "__tensor_flatten__"):  # a tensor subclass, of torchao for example
        for part in tensor.__tensor_flatten__()[0]:
            yield from _inner(getattr(tensor, part))
    else:
        yield tensor


def stored_bytes(model: nn.Module) -> int:
    """Bytes of everything that holds the model, what is shared once."""
    sizes = {}
    for tensor in stored_tensors(model):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())
