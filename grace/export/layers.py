"""The layers of a model that are exported: names, codes and scales, checked."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from grace.errors import InputError
from grace.models import Family, family_of
from grace.quantization import FakeQuantLinear, QuantSpec, dequantize, fake_quant_layers
from grace.types import Codes


@dataclass(frozen=True)
class Layers:
    """The quantized linear layers of a model: one grid for all, as the formats demand.

    Attributes:
        family: The adapter of the model's family.
        spec: Bits and group size.
        names: Dotted module names, in the model's order.
        left: Other linear layers, those of vision tower, projectors, output head and what the
            family leaves alone (`apart`) not counted.
    """

    family: Family
    spec: QuantSpec
    names: list[str]
    left: list[str]
    _modules: dict[str, nn.Module]
    _codes: Codes

    @property
    def apart(self) -> tuple[str, ...]:
        """Dotted names of the parts whose linears are never quantized."""
        return _apart(self.family)

    def left_places(self) -> list[str]:
        """Ends of the names of `left` on which loaders agree: within the decoder `layers.0.…`."""
        stem = self.family.decoder_layers.rpartition(".")[0]
        return [name.removeprefix(f"{stem}.").removeprefix("model.") for name in self.left]

    def group_widths(self) -> dict[str, int]:
        """Input features that share a scale, by layer."""
        modules: dict[str, Any] = {name: self._modules[name] for name in self.names}
        return {
            name: self.spec.group_width(module.in_features, name)
            for name, module in modules.items()
        }

    def items(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(name, codes int8 (out, in), scales float32 (out, groups)) on the CPU, layer by layer.

        Raises:
            InputError: Codes out of range, scales that are not finite and positive, or codes that
                are not those of the model's weight; the message names the tensor.
        """
        for name in self.names:
            module = self._modules[name]
            if isinstance(module, FakeQuantLinear):
                codes, scales = module.codes(), module.scales()
            else:
                codes, scales = self._codes[name]
            check_values(name, codes, scales, self.spec)
            if isinstance(module, nn.Linear):
                weight = module.weight.detach()
                if not torch.equal(
                    dequantize(codes.to(weight.device), scales, self.spec, weight.dtype), weight
                ):
                    raise InputError(
                        f"{name}.weight is not scale times code: give the codes that `bake` "
                        "returned for this very model"
                    )
            yield name, codes.cpu(), scales.cpu()


def quantized_layers(model: nn.Module, codes: Codes | None, bits: int | None) -> Layers:
    """The layers to export, before any of them is computed.

    Args:
        model: A transformers model.
        codes: Of a baked model; None for a model with `FakeQuantLinear`s.
        bits: Of these codes.

    Raises:
        InputError: Nothing is quantized, the family is unknown, a layer is missing, no linear or
            outside the decoder, shapes do not fit, or the layers have different grids.
    """
    family = family_of(_config_of(model))
    fake = dict(fake_quant_layers(model))
    modules: dict[str, nn.Module]
    if fake and codes is not None:
        raise InputError(
            f"export: codes are given, but {next(iter(fake))} is still fake-quantized: "
            "bake the model, or leave the codes out"
        )
    if fake:
        modules = dict(fake)
        specs = {name: layer.spec for name, layer in fake.items()}
    elif codes:
        linears = {name: linear_of(model, name, "export") for name in codes}
        specs = _specs(linears, codes, 4 if bits is None else bits)
        modules = dict(linears)
    else:
        raise InputError(
            "export: nothing is quantized: prepare the model, or give the codes that `bake` "
            "returned"
        )
    grids = {(spec.bits, spec.group_size): name for name, spec in specs.items()}
    if len(grids) > 1:
        (grid, name), (other_grid, other_name) = list(grids.items())[:2]
        raise InputError(
            f"export: {name} has (bits, group size) {grid} and {other_name} {other_grid}: the "
            "formats store one grid; quantize every layer alike"
        )
    decoder = [
        name
        for name, module in family.layers(model).named_modules(prefix=family.decoder_layers)
        if isinstance(module, nn.Linear | FakeQuantLinear)
    ]
    outside = [name for name in modules if name not in decoder]
    if outside:
        raise InputError(
            f"export: {outside[0]} is no linear of a decoder layer: only those are exported "
            "quantized"
        )
    names = [name for name in decoder if name in modules]
    apart = tuple(f"{part}." for part in _apart(family))
    left = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | FakeQuantLinear)
        and name not in modules
        and not f"{name}.".startswith(apart)
    ]
    return Layers(family, next(iter(specs.values())), names, left, modules, codes or {})


def _apart(family: Family) -> tuple[str, ...]:
    parts = (family.vision_tower, *family.projectors, *family.frozen, family.output_head)
    return tuple(dict.fromkeys(parts))


def check_values(name: str, codes: Tensor, scales: Tensor, spec: QuantSpec) -> None:
    """Refuse codes or scales that no such quantizer gives, by an InputError that names them."""
    low, high = codes.min().item(), codes.max().item()
    if low < spec.qmin or high > spec.qmax:
        raise InputError(
            f"{name}: codes from {low} to {high} do not fit {spec.bits} bits "
            f"({spec.qmin} to {spec.qmax}): give the codes' own number of bits"
        )
    check_scales(name, scales)


def check_scales(where: str, scales: Tensor) -> None:
    """Refuse a scale that is not finite and positive, by an InputError that names the tensor."""
    wrong = ~(torch.isfinite(scales) & (scales > 0))
    if wrong.any():
        raise InputError(
            f"{where} gives the scale {scales[wrong][0].item()!r}: scales are positive and finite"
        )


def linear_of(model: nn.Module, name: str, where: str) -> nn.Linear:
    """A linear layer by name.

    Args:
        model: The model.
        name: Dotted name of the layer.
        where: Source of the name, for the message.

    Raises:
        InputError: The model has no such linear layer.
    """
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise InputError(f"{where}: names {name}, which the model lacks") from error
    if type(module) is not nn.Linear:
        raise InputError(f"{where}: names {name}, which is a {type(module).__name__}, no linear")
    return module


def _config_of(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    if config is None:
        raise InputError(f"{type(model).__name__} has no configuration; pass a transformers model")
    return config


def _specs(linears: Mapping[str, nn.Linear], codes: Codes, bits: int) -> dict[str, QuantSpec]:
    specs, shapes = {}, {}
    for name, (integers, scales) in codes.items():
        weight = linears[name].weight
        if integers.dtype != torch.int8 or integers.shape != weight.shape:
            raise InputError(
                f"{name}: codes are {integers.dtype} {tuple(integers.shape)}, the weight needs "
                f"int8 {tuple(weight.shape)}"
            )
        rows, columns = integers.shape
        if scales.dtype != torch.float32 or scales.dim() != 2 or scales.shape[0] != rows:
            raise InputError(
                f"{name}: scales are {scales.dtype} {tuple(scales.shape)}: give float32 "
                f"({rows}, groups)"
            )
        if scales.shape[1] == 0 or columns % scales.shape[1]:
            raise InputError(
                f"{name}: {scales.shape[1]} scales a row do not divide {columns} input features"
            )
        shapes[name] = scales.shape[1], columns // scales.shape[1]
    # One scale a row is a group of its own width where all rows are equally wide, and "row" else.
    widths = {width for _, width in shapes.values()}
    by_row = all(groups == 1 for groups, _ in shapes.values()) and (
        len(widths) > 1 or not widths <= {32, 64, 128, 256}
    )
    for name, (_, width) in shapes.items():
        specs[name] = QuantSpec(bits=bits, group_size="row" if by_row else width)
    return specs
