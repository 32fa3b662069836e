"""Puts fake quantization into a model, and takes it out again."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from grace.errors import InputError
from grace.quantization.linear import FakeQuantLinear
from grace.quantization.spec import QuantSpec


def prepare(model: nn.Module, spec: QuantSpec, names: Sequence[str] | None = None) -> list[str]:
    """Replaces the named linears by `FakeQuantLinear`s that share their parameters, in place.

    names: dotted module names, each of a plain `nn.Linear`; by default every linear of the
    language model's decoder layers. Returns the names, in the order given. The optimizer has to
    be made afterwards, for the log_scale parameters are new.

    Raises InputError, and leaves the model as it was, for a name that is missing, given twice, no
    `nn.Linear` or prepared already, for a group size that does not divide, for weights that are
    not finite, and where there is nothing to quantize.
    """
    if not isinstance(spec, QuantSpec):
        raise InputError(f"prepare: spec is {spec!r}: give a QuantSpec")
    if names is None:
        from grace.models import decoder_linears

        names = decoder_linears(model)
    if isinstance(names, str):
        raise InputError(f"prepare: names is the string {names!r}: give a list of names")
    names = list(names)
    if not names:
        raise InputError("prepare: no linear is named, so nothing would be quantized: name some")

    modules = dict(model.named_modules(remove_duplicate=False))
    linears: dict[str, nn.Linear] = {}
    for name in names:
        if name in linears:
            raise InputError(f"prepare: {name} is named twice: name each module once")
        if name == "" or name not in modules:
            raise InputError(f"prepare: the model has no submodule {name!r}: see named_modules()")
        module = modules[name]
        if isinstance(module, FakeQuantLinear):
            raise InputError(f"prepare: {name} is prepared already: prepare a model once")
        # A subclass computes something else, which replacing it would drop.
        if type(module) is not nn.Linear:
            raise InputError(f"prepare: {name} is a {type(module).__name__}: name nn.Linear only")
        spec.group_width(module.in_features, name)
        linears[name] = module

    # All are made before any is put in place: the scale search refuses non-finite weights.
    made: dict[nn.Linear, FakeQuantLinear] = {}
    for name, linear in linears.items():
        if linear not in made:  # one module under two names stays one module
            made[linear] = FakeQuantLinear.from_linear(linear, spec, name)
    for name, linear in linears.items():
        _replace(model, name, made[linear])
    return names


def fake_quant_layers(model: nn.Module) -> Iterator[tuple[str, FakeQuantLinear]]:
    """Every `FakeQuantLinear` of the model with its dotted name, in module order."""
    for name, module in model.named_modules():
        if isinstance(module, FakeQuantLinear):
            yield name, module


@torch.no_grad()
def bake(model: nn.Module, dtype: torch.dtype | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    """Replaces every `FakeQuantLinear` by an `nn.Linear` that holds the quantized weight, in place.

    dtype: of the new weights and biases, by default each weight's own. Stored in float32, the
    weights are s * q exactly (up to one rounding where the scales are float32); stored in
    bfloat16, s * q is rounded to 8 significant bits, as the fake-quantized bfloat16 model also
    computes it.

    Returns name -> (codes int8 (out, in), scales float32 (out, groups)), on the layer's device:
    the exact quantized weights, to keep where the baked ones are rounded.

    Raises InputError for a model without fake quantization.
    """
    layers = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, FakeQuantLinear)
    }
    if not layers:
        raise InputError("bake: the model has no fake-quantized layer: call prepare first")
    if "" in layers:
        raise InputError("bake: the model itself is a FakeQuantLinear: wrap it in a parent module")
    exact: dict[str, tuple[Tensor, Tensor]] = {}
    baked: dict[FakeQuantLinear, tuple[nn.Linear, tuple[Tensor, Tensor]]] = {}
    for name, layer in layers.items():
        if layer not in baked:
            baked[layer] = _bake_layer(layer, dtype), (layer.codes(), layer.scales())
        linear, exact[name] = baked[layer]
        _replace(model, name, linear)
    return exact


def _bake_layer(layer: FakeQuantLinear, dtype: torch.dtype | None) -> nn.Linear:
    # On the meta device, so that no memory is spent on weights that are replaced at once.
    linear = nn.Linear(
        layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta"
    )
    weight = layer.dequantized(dtype)
    linear.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    if layer.bias is not None:
        linear.bias = nn.Parameter(
            layer.bias.detach().to(weight.dtype), requires_grad=layer.bias.requires_grad
        )
    return linear.train(layer.training)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
