"""AWQ and GPTQ through llm-compressor, on the grid of `grace.quantization.QuantSpec`.

llm-compressor's symmetric integer grid has the codes of QuantSpec and, with `scale_dtype`, scales
that bfloat16 represents. Its scales are max|W| over half the number of steps, (2^bits - 1) / 2, not
over the highest code: the largest weight of a group is clipped by half a step if it is positive.
Both methods keep these scales as they are.
"""

import contextlib
import io
import re
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQMapping, AWQModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from torch import Tensor, nn
from torch.utils.data import DataLoader

from grace.errors import InputError
from grace.models import decoder_linears, family_of
from grace.quantization import QuantSpec, dequantize, quantize
from grace.quantization.spec import SCALE_DTYPES


def compress(
    model: Any, processor: Any, method: str, spec: QuantSpec, batches: DataLoader
) -> dict[str, tuple[Tensor, Tensor]]:
    """Run awq or gptq on a model, in place; decoder layer by decoder layer, each on the
    activations that the quantized layers before it produce.

    After gptq the linears hold their quantized weights. After awq the model is the smoothed one,
    the same function as before, its linears not yet rounded.

    model: loaded from a directory, with an adapter in `grace.models`. Returns name -> (codes int8
    (out, in), scales float32 (out, groups)) for the decoder's linears.

    Raises:
        InputError: when the calibration activations of a linear are degenerate.
    """
    linears = decoder_linears(model)
    family = family_of(model.config)
    groups = {"decoder": QuantizationScheme(targets=linears, weights=_arguments(spec))}
    recipe: list[Any] = [_Gptq(config_groups=groups)]
    if method == "awq":
        recipe = [
            AWQModifier(mappings=mappings(family.decoder_layers)),
            QuantizationModifier(config_groups=groups),
        ]
    with contextlib.redirect_stderr(io.StringIO()), _without_pinned_memory():  # progress bars
        oneshot(
            model=model,
            processor=processor,
            dataset=batches,
            recipe=recipe,
            pipeline="independent",  # smoothing is done before scales are taken
            sequential_targets=[type(family.layers(model)[0]).__name__],
        )
    exact = {}
    for name in linears:
        linear = model.get_submodule(name)
        scales = linear.weight_scale.detach().to(torch.float32)
        exact[name] = quantize(linear.weight.detach(), scales, spec), scales
    return exact


@torch.no_grad()
def take(
    model: nn.Module,
    compressed: nn.Module,
    exact: dict[str, tuple[Tensor, Tensor]],
    spec: QuantSpec,
) -> None:
    """Give `model` what :func:`compress` made: the weights of `compressed` (the norms that awq
    folded its smoothing into are among them), and scale times code in the linears."""
    state = compressed.state_dict()
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    for name, (codes, scales) in exact.items():
        weight: Any = model.get_submodule(name).weight
        weight.copy_(dequantize(codes, scales, spec, weight.dtype))


def mappings(decoder_layers: str) -> list[AWQMapping]:
    """What AWQ smooths, in decoder layers of Llama's shape, as Qwen2's and Qwen3's are too.

    The library's own lists match by the last part of a name, and would find the projections of
    some vision towers as well; Qwen2-VL, LLaVA and Qwen3-VL have none there. v_proj is smoothed
    against o_proj only where it has as many heads: the library leaves the mapping out otherwise.

    decoder_layers: dotted name of the list of decoder layers.
    """
    layer = rf"re:{re.escape(decoder_layers)}\.\d+\."
    return [
        AWQMapping(
            layer + r"input_layernorm$",
            [layer + rf"self_attn\.{name}_proj$" for name in ("q", "k", "v")],
        ),
        AWQMapping(layer + r"self_attn\.v_proj$", [layer + r"self_attn\.o_proj$"]),
        AWQMapping(
            layer + r"post_attention_layernorm$",
            [layer + rf"mlp\.{name}_proj$" for name in ("gate", "up")],
        ),
        AWQMapping(layer + r"mlp\.up_proj$", [layer + r"mlp\.down_proj$"]),
    ]


class _Gptq(GPTQModifier):
    """GPTQ that does not pass round-to-nearest off as its own result."""

    def on_finalize(self, state: Any, **kwargs: Any) -> bool:
        if self._rtn_fallback_module_names:
            raise InputError(
                "GPTQ cannot invert the Hessian of "
                f"{', '.join(self._rtn_fallback_module_names[:3])} ...; calibrate on more or "
                "other conversations"
            )
        return super().on_finalize(state, **kwargs)


def _arguments(spec: QuantSpec) -> QuantizationArgs:
    whole_row = spec.group_size == "row"
    return QuantizationArgs(
        num_bits=spec.bits,
        type="int",
        symmetric=True,
        strategy="channel" if whole_row else "group",
        group_size=None if whole_row else spec.group_size,
        scale_dtype=SCALE_DTYPES[spec.scale_dtype],
        observer="memoryless_minmax",
    )


@contextlib.contextmanager
def _without_pinned_memory() -> Iterator[None]:
    """AWQ pins cached activations for copies to an accelerator; without one, pinning raises."""
    if torch.accelerator.is_available():
        yield
        return
    with patch.object(IntermediatesCache, "pin_memory", lambda *_args, **_kwargs: None):
        yield
