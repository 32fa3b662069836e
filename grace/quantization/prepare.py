"""Fake quantization of a model: put in by `prepare`, taken out by `bake`."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from grace.errors import InputError
from grace.quantization.linear import FakeQuantLinear
from grace.quantization.spec import QuantSpec


def prepare(model: nn.Module, spec: QuantSpec, names: Sequence[str] | None = None) -> list[str]:
    """Replace linear layers by `FakeQuantLinear`s that share their parameters, in place.

    Create the optimizer afterwards: the log_scale parameters are new.

    Examples:
        >>> import torch
        >>> from grace.quantization import QuantSpec, prepare
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.Linear(16, 2))
        >>> prepare(model, QuantSpec(group_size=64), ["0"])
        ['0']

    Args:
        model: The model; it is left as it was where an error is raised.
        spec: The quantizer.
        names: Dotted module names, each of a plain `nn.Linear`. By default every linear layer of
            the language model's decoder layers.

    Returns:
        The names, in the same order.

    Raises:
        InputError: A name is missing, repeated, no `nn.Linear`, or prepared already; the group size
            does not divide; weights are not finite; or there is nothing to quantize.
    """
    assert isinstance(spec, QuantSpec), spec
    if names is None:
        from grace.models import decoder_linears

        names = decoder_linears(model)
    assert not isinstance(names, str), f"{names!r} is one string: give a list of names"
    names = list(names)
    linears = _linears(model, spec, names)
    # All are created before any replaces a linear: the scale search refuses non-finite weights.
    layers: dict[nn.Linear, FakeQuantLinear] = {}
    for name, linear in linears.items():
        if linear not in layers:  # one module under two names stays one module
            layers[linear] = FakeQuantLinear.from_linear(linear, spec, name)
    for name, linear in linears.items():
        _replace(model, name, layers[linear])
    return names


def _linears(model: nn.Module, spec: QuantSpec, names: list[str]) -> dict[str, nn.Linear]:
    """The named linear layers, or the InputError of `prepare`."""
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
    return linears


def fake_quant_layers(model: nn.Module) -> Iterator[tuple[str, FakeQuantLinear]]:
    """Every `FakeQuantLinear` of the model with its dotted name, in the order of its modules.

    Examples:
        >>> import torch
        >>> from grace.quantization import QuantSpec, fake_quant_layers, prepare
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 16))
        >>> names = prepare(model, QuantSpec(group_size=64), ["0"])
        >>> [(name, layer.codes().shape) for name, layer in fake_quant_layers(model)]
        [('0', torch.Size([16, 64]))]
    """
    for name, module in model.named_modules():
        if isinstance(module, FakeQuantLinear):
            yield name, module


@torch.no_grad()
def bake(model: nn.Module, dtype: torch.dtype | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    """Replace every `FakeQuantLinear` by an `nn.Linear` with the quantized weight, in place.

    Examples:
        >>> import torch
        >>> from grace.quantization import QuantSpec, bake, prepare
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 16))
        >>> names = prepare(model, QuantSpec(group_size=64), ["0"])
        >>> codes, scales = bake(model)["0"]
        >>> codes.dtype, scales.shape, type(model[0]).__name__
        (torch.int8, torch.Size([16, 1]), 'Linear')

    Args:
        model: A prepared model.
        dtype: Of the new weights and biases, by default each weight's own. float32 holds s * q
            exactly (up to one rounding where the scales are float32); bfloat16 rounds s * q to 8
            significant bits, as the fake-quantized bfloat16 model also computes it.

    Returns:
        name -> (codes int8 (out, in), scales float32 (out, groups)), on the layer's device: the
        exact quantized weights, to keep where the baked ones are rounded.

    Raises:
        InputError: The model has no fake-quantized layer, or is one itself.
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
