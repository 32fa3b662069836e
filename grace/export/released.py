"""The checkpoints released with the paper, as fake-quantized models.

The authors' code (github.com/ForeverBlue816/GRACE) writes two kinds of directories:

- weights in bfloat16 on the integer grid, beside a pickled sidecar `qat_quantized_weights.bin`:
  for every quantized linear `<name>.weight` (out, in), `<name>.log_scale` (out groups,) and
  perhaps `<name>.bias`;
- packed: `awq_quantized_modules.json` with the names of the quantized linears, their bits and
  group size, and for each qweight, qzeros and scales in AutoAWQ's GEMM layout.

Neither says how it is quantized in its configuration, so no other library loads them.
"""

import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from grace.errors import InputError, one_line
from grace.export.awq import MODULES_FILE
from grace.export.checkpoint import DTYPES, read_tensors
from grace.export.layers import check_scales, linear_of
from grace.export.llava import from_original, is_original
from grace.export.packing import AWQ_BITS, AWQ_ORDER, AWQ_ZERO, unpack_awq
from grace.files import read_json
from grace.models import (
    FAMILIES,
    Family,
    check_model_directory,
    family_of,
    model_directory,
    read_generation_config,
)
from grace.quantization import FakeQuantLinear, QuantSpec, dequantize

SIDECAR = "qat_quantized_weights.bin"
_PACKED = {
    "qweight": torch.int32,
    "qzeros": torch.int32,
    "scales": torch.float16,
}
# A decoder layer's linear, under the names of today's and earlier versions of transformers.
_DECODER_NAME = re.compile(r"(?:model\.language_model|language_model\.model|model)\.layers\.(.+)")


def load_released(
    path_or_hub_id: str | Path,
    *,
    bits: int = 4,
    dtype: torch.dtype | None = None,
    base: str | Path | None = None,
) -> nn.Module:
    """A released checkpoint as a model with `FakeQuantLinear`s, on the CPU.

    Their codes() and scales() are exactly those of the checkpoint, so the model can be evaluated,
    packed, exported or trained on.

    Example::

        model = load_released("released/qwen3-vl-2b-w4g128")
        pack(model)    # or evaluate, export, train on

    Args:
        path_or_hub_id: A directory, or a repository of the Hugging Face hub.
        bits: Of a checkpoint with a sidecar, which does not say; 4 or 8. Packed ones have 4.
        dtype: Of the weights; by default the one that the configuration names.
        base: For LLaVA, which was released in the layout of its original code: transformers'
            version of the base model (such as llava-hf/llava-1.5-7b-hf), for vision tower and
            configuration.

    Raises:
        InputError: A directory in neither format; files that are missing, truncated or hold a
            pickle with code in it; layers that the model lacks or the checkpoint does not have;
            shapes that do not fit the group size; scales that are not finite and positive; or
            weights that are not on the grid or whose codes do not fit the bits. The message names
            the file and the tensor.
    """
    if bits not in (4, 8):
        raise InputError(f"load_released: bits is {bits!r}: give 4 or 8")
    check_model_directory(path_or_hub_id)
    directory = model_directory(path_or_hub_id, also=[SIDECAR])
    sidecar, modules = directory / SIDECAR, directory / MODULES_FILE
    if sidecar.is_file() == modules.is_file():
        have = "both" if sidecar.is_file() else "neither"
        raise InputError(
            f"{directory} has {have} of {SIDECAR} and {MODULES_FILE}: a released checkpoint has "
            "one of them"
        )
    config = read_json(directory / "config.json")
    original = is_original(config)
    if original and base is None:
        raise InputError(
            f"{directory / 'config.json'}: this is the layout of LLaVA's original code: give the "
            'base model as transformers has it, for example base="llava-hf/llava-1.5-7b-hf"'
        )
    if base is not None and not original:
        raise InputError(f"{directory}: is complete: base is for LLaVA's original layout only")
    family = FAMILIES["llava"] if original else family_of(_configuration(directory))
    tensors = read_tensors(directory)
    dtype = dtype or _stored_dtype(config, tensors)
    if modules.is_file():
        file, layers = modules, _packed_layers(modules, family, tensors, dtype)
    else:
        file, layers = sidecar, _sidecar_layers(sidecar, family, bits)
    if base is not None:
        model = from_original(directory, tensors, base, dtype)
    else:
        model = _build(directory, tensors, dtype)
    for layer in layers:
        _place(model, layer, file)
    return model


@dataclass(frozen=True)
class _Layer:
    """One quantized linear layer of a checkpoint.

    Attributes:
        module: Dotted name in the model.
        spec: The quantizer.
        codes: int8 (out, in).
        scales: float32 (out, groups).
        log_scale: float32 (out, groups).
        weight: Where it has to be put into the model, because the model's own is another.
        bias: Likewise.
    """

    module: str
    spec: QuantSpec
    codes: Tensor
    scales: Tensor
    log_scale: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None


def _packed_layers(
    file: Path, family: Family, tensors: dict[str, Tensor], dtype: torch.dtype
) -> list[_Layer]:
    """Replace the packed tensors in `tensors` by the weights that they stand for."""
    names, group_size = _modules_of(file)
    spec = _spec(file, AWQ_BITS, group_size, "float16")
    layers = []
    for name in names:
        where = f"{file.parent}: {name}"
        parts = {}
        for part in _PACKED:
            if f"{name}.{part}" not in tensors:
                raise InputError(f"{where}.{part} is missing, but {file.name} lists the module")
            parts[part] = tensors.pop(f"{name}.{part}")
        if f"{name}.weight" in tensors:
            raise InputError(f"{where}.weight is there, packed and not: which one holds is open")
        codes, scales = _unpack(where, parts, spec)
        tensors[f"{name}.weight"] = dequantize(codes, scales, spec, dtype)
        layers.append(_Layer(_module_name(family, name), spec, codes, scales, scales.log()))
    unlisted = sorted(name for name in tensors if name.rpartition(".")[2] in _PACKED)
    if unlisted:
        raise InputError(f"{file.parent}: {unlisted[0]} is there, but {file.name} does not list it")
    return layers


def _sidecar_layers(file: Path, family: Family, bits: int) -> list[_Layer]:
    sidecar = _unpickle(file)
    names = sorted(key.removesuffix(".log_scale") for key in sidecar if key.endswith(".log_scale"))
    known = {f"{name}.{part}" for name in names for part in ("weight", "log_scale", "bias")}
    strange = sorted(sidecar.keys() - known)
    if not names or strange:
        what = strange[0] if strange else "no <name>.log_scale"
        raise InputError(f"{file}: has {what}: expected weight, log_scale and bias of linears")
    layers = []
    for name in names:
        where = f"{file}: {name}"
        if f"{name}.weight" not in sidecar:
            raise InputError(f"{where}.weight is missing")
        weight = sidecar[f"{name}.weight"]
        spec, log_scale = _sidecar_spec(where, weight, sidecar[f"{name}.log_scale"], bits)
        scales = log_scale.exp()
        check_scales(f"{where}.log_scale", scales)
        layers.append(
            _Layer(
                _module_name(family, name),
                spec,
                _codes_on_grid(where, weight, scales, spec),
                scales,
                log_scale,
                weight,
                sidecar.get(f"{name}.bias"),
            )
        )
    return layers


def _modules_of(file: Path) -> tuple[list[str], int]:
    content = read_json(file)
    names, bits, group_size = (content.get(key) for key in ("modules", "bits", "group_size"))
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise InputError(f"{file}: modules is {str(names)[:80]!r}: expected a list of names")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{file}: {twice} is listed twice")
    if bits != AWQ_BITS:
        raise InputError(f"{file}: bits is {bits!r}: the layout has 4")
    if type(group_size) is not int:
        raise InputError(f"{file}: group_size is {group_size!r}: expected an integer")
    return names, group_size


def _spec(file: Path, bits: int, group_size: int, scale_dtype: str) -> QuantSpec:
    try:
        return QuantSpec(
            bits=bits,
            group_size="row" if group_size == -1 else group_size,
            scale_dtype=scale_dtype,
        )
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _unpack(where: str, parts: Mapping[str, Tensor], spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """(codes int8 (out, in), scales float32 (out, groups)) of one packed linear."""
    for part, dtype in _PACKED.items():
        if parts[part].dtype != dtype or parts[part].dim() != 2:
            raise InputError(
                f"{where}.{part} is {parts[part].dtype} {tuple(parts[part].shape)}: expected a "
                f"matrix of {dtype}"
            )
    in_features, words = parts["qweight"].shape
    width = spec.group_width(in_features, where)
    groups, out_features = in_features // width, words * len(AWQ_ORDER)
    for part, shape in (("qzeros", (groups, words)), ("scales", (groups, out_features))):
        if parts[part].shape != shape:
            raise InputError(
                f"{where}.{part} has shape {tuple(parts[part].shape)}: group size {width} and "
                f"qweight {(in_features, words)} need {shape}"
            )
    zeros = unpack_awq(parts["qzeros"])
    if (zeros != AWQ_ZERO).any():
        other = zeros[zeros != AWQ_ZERO][0].item()
        raise InputError(
            f"{where}.qzeros has the zero point {other}: a symmetric grid has {AWQ_ZERO}"
        )
    scales = parts["scales"].t().to(torch.float32).contiguous()
    check_scales(f"{where}.scales", scales)
    codes = (unpack_awq(parts["qweight"]) - AWQ_ZERO).t().contiguous()
    return codes, scales


def _unpickle(file: Path) -> dict[str, Tensor]:
    """The sidecar's tensors; nothing but tensors is unpickled, so no code in it runs."""
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()  # compares checksums
            if damaged:
                raise InputError(f"{file}: {damaged} in it is damaged; fetch it again")
        content = torch.load(file, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        function = re.search(r"GLOBAL (\S+)", str(error))
        asks = f"it asks for {function[1]} and may run code" if function else "it may run code"
        raise InputError(
            f"{file}: is no pickle of tensors alone: {asks}, so it is not loaded"
        ) from error
    except Exception as error:  # a damaged pickle fails in any way
        reason = one_line(error, 200)
        raise InputError(f"{file}: corrupt or truncated ({reason}); fetch it again") from error
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and _is_plain(value) for key, value in content.items()
    ):
        raise InputError(f"{file}: expected tensors by name, dense and in memory")
    return content


def _is_plain(value: Any) -> bool:
    """Whether a value is a tensor with a number at every place: none that is sparse, or only
    described."""
    plain = isinstance(value, Tensor) and value.layout == torch.strided
    return plain and value.device.type == "cpu" and not value.is_quantized


def _sidecar_spec(
    where: str, weight: Tensor, log_scale: Tensor, bits: int
) -> tuple[QuantSpec, Tensor]:
    """The quantizer that a flat log_scale (out groups,) means, and it as (out, groups) float32."""
    for part, tensor in (("weight", weight), ("log_scale", log_scale)):
        if not tensor.is_floating_point():
            raise InputError(f"{where}.{part} is {tensor.dtype}: expected floating point")
    if weight.dim() != 2 or weight.numel() == 0:
        raise InputError(f"{where}.weight has shape {tuple(weight.shape)}: expected a matrix")
    rows, columns = weight.shape
    groups, rest = divmod(log_scale.numel(), rows)
    if rest or groups == 0 or columns % groups:
        raise InputError(
            f"{where}.log_scale has {log_scale.numel()} values, which make no groups of a weight "
            f"{rows} x {columns}"
        )
    width = columns // groups
    # Where the group size does not divide, the authors' code takes the whole row.
    size = -1 if groups == 1 and width not in (32, 64, 128, 256) else width
    spec = _spec(Path(where), bits, size, "float32")
    return spec, log_scale.to(torch.float32).reshape(rows, groups)


def _codes_on_grid(where: str, weight: Tensor, scales: Tensor, spec: QuantSpec) -> Tensor:
    if not torch.isfinite(weight).all():
        raise InputError(f"{where}.weight has values that are not finite")
    real = weight.to(torch.float32)
    ratio = (real.unflatten(1, (scales.shape[1], -1)) / scales.unsqueeze(-1)).round_()
    low, high = ratio.min().item(), ratio.max().item()
    if low < spec.qmin or high > spec.qmax:
        raise InputError(
            f"{where}.weight has codes from {low:.0f} to {high:.0f}, which do not fit "
            f"{spec.bits} bits: give the right bits, or the file was changed"
        )
    codes = ratio.flatten(1).to(torch.int8)
    # One unit in the last place: another machine's exp may differ in the last bit of the scale.
    info = torch.finfo(weight.dtype)
    error = (dequantize(codes, scales, spec) - real).abs_()
    if (error > info.eps * real.abs() + info.smallest_normal * info.eps).any():
        raise InputError(
            f"{where}.weight is not on the grid of its log_scale: the file was changed"
        )
    return codes


def _module_name(family: Family, name: str) -> str:
    match = _DECODER_NAME.fullmatch(name)
    return f"{family.decoder_layers}.{match[1]}" if match else name


def _stored_dtype(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype that a config.json names, or else that of the first weight."""
    named = config.get("dtype") or config.get("torch_dtype")
    for dtype in DTYPES:
        if named == str(dtype).removeprefix("torch."):
            return dtype
    floating = (tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())
    return next(floating, torch.float32)


def _configuration(directory: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # the library's classes fail with types of their own
        reason = one_line(error, 300)
        raise InputError(f"{directory / 'config.json'}: makes no model ({reason})") from error


def _build(directory: Path, tensors: dict[str, Tensor], dtype: torch.dtype) -> nn.Module:
    """The directory's model with these weights; every one of its own has to be there."""
    from transformers import AutoModelForImageTextToText

    config = _configuration(directory)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the tensors at hand are not packed any more
    kind: Any = AutoModelForImageTextToText._model_mapping[type(config)]
    try:
        model, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=dtype,
            output_loading_info=True,
        )
    except (ValueError, RuntimeError) as error:
        reason = one_line(error, 300)
        raise InputError(f"{directory}: the tensors do not fit the model: {reason}") from error
    if report["missing_keys"]:
        raise InputError(f"{directory}: {min(report['missing_keys'])} is missing")
    if report["unexpected_keys"]:
        raise InputError(f"{directory}: {min(report['unexpected_keys'])} is not the model's")
    generation = read_generation_config(directory)
    if generation is not None:
        model.generation_config = generation
    return model


def _place(model: nn.Module, layer: _Layer, file: Path) -> None:
    """Replace a linear layer by a `FakeQuantLinear` with the checkpoint's codes and scales."""
    name, spec = layer.module, layer.spec
    linear = linear_of(model, name, str(file))
    if layer.weight is not None:
        _check_same_model(linear, layer, file)
        with torch.no_grad():
            linear.weight.copy_(layer.weight)
            if layer.bias is not None:
                linear.bias.copy_(layer.bias)
    fake = FakeQuantLinear(
        linear.weight, linear.bias, nn.Parameter(layer.log_scale), spec, name=name
    )
    if not (torch.equal(fake.scales(), layer.scales) and torch.equal(fake.codes(), layer.codes)):
        raise InputError(
            f"{file}: {name} does not keep its codes in {linear.weight.dtype}: load with "
            "dtype=torch.float32"
        )
    model.set_submodule(name, fake.train(linear.training))


def _check_same_model(linear: nn.Linear, layer: _Layer, file: Path) -> None:
    """The directory's weights, baked or not, have to round to the sidecar's codes."""
    for part in ("weight", "bias"):
        own, stored = getattr(linear, part), getattr(layer, part)
        if stored is None:
            continue
        if own is None or own.shape != stored.shape:
            shape = "none" if own is None else tuple(own.shape)
            raise InputError(
                f"{file}: {layer.module}.{part} has shape {tuple(stored.shape)}, the model's "
                f"is {shape}"
            )
        if not torch.isfinite(stored).all():
            raise InputError(f"{file}: {layer.module}.{part} has values that are not finite")
    real = linear.weight.detach().to(torch.float32).unflatten(1, (layer.scales.shape[1], -1))
    ratio = (real / layer.scales.unsqueeze(-1)).clamp_(layer.spec.qmin, layer.spec.qmax)
    # Half a step, and a little, for ties that another machine rounded the other way.
    if not ((ratio.flatten(1) - layer.codes).abs_() <= 0.51).all():
        raise InputError(
            f"{file}: {layer.module}.weight has other codes than the weights beside it: the two "
            "are not of one model"
        )
