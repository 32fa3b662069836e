"""A training step of one decoder layer, fake-quantized and plain.

Forward and backward, from the layer's input to the gradients of its input and of all parameters,
at a published text model's widths. Three ways share the same parameters: `FakeQuantLinear`, the
plain linears, and LSQ by autograd (`straightforward.StraightThroughLinear`). No optimizer.
"""

import copy
import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from grace.quantization import QuantSpec, fake_quant_layers, prepare
from replication.measure.clock import Call
from replication.measure.method.compare import bound, compare, device_with
from replication.measure.method.straightforward import StraightThroughLinear
from replication.plan.architectures import architecture

TIME, MEMORY = 1.3, 1.15


@dataclass(frozen=True)
class Case:
    """A batch for one decoder layer.

    Attributes:
        model: of architectures.yaml.
        batch: number of sequences.
        length: tokens of a sequence.
        autocast: float32 weights under bfloat16 autocast, as the trainer has them, instead of
            bfloat16 weights.
        narrow: divides the widths, for a trial.
    """

    model: str
    batch: int
    length: int
    autocast: bool = False
    narrow: int = 1


DEFAULT = (
    Case("llava-1.5-7b", 2, 512),
    Case("qwen2-vl-2b", 1, 512),
    Case("qwen2-vl-2b", 2, 512),
    Case("qwen2-vl-2b", 2, 512, autocast=True),
)
QUICK = (Case("qwen2-vl-2b", 1, 64, narrow=2), Case("qwen2-vl-2b", 1, 64, True, narrow=2))


def measure_part(
    cases: Sequence[Mapping[str, Any]], repeats: int, seed: int, threads: int = 0
) -> dict[str, Any]:
    """Rows, one for each case, and the bounds of the published widths."""
    device = device_with(threads)
    rows = [_row(Case(**case), repeats, seed, device) for case in cases]
    bounds = []
    for row in rows:
        what = f"fake-quantized step over plain, {row['case']}"
        bounds += [
            bound(f"{what}: time", TIME, row["time"]["plain"]),
            bound(f"{what}: peak memory", MEMORY, row["memory"]["plain"]),
        ]
    return {"rows": rows, "bounds": bounds}


def _row(case: Case, repeats: int, seed: int, device: torch.device) -> dict[str, Any]:
    plain = decoder(case, seed, device)
    generator = torch.Generator(device).manual_seed(seed)
    shape = (case.batch, case.length, plain.config.hidden_size)
    x, upstream = (
        torch.randn(shape, generator=generator, device=device).to(plain.dtype) for _ in "xg"
    )
    ways = {"grace": fake_quantized(plain), "plain": plain}
    ways["straightforward"] = straight_through(ways["grace"])
    steps = {name: step_of(model, x, upstream, case.autocast) for name, model in ways.items()}
    parameters = {
        name: sum(weight.numel() * weight.element_size() for weight in model.parameters())
        for name, model in ways.items()
    }
    comparison = compare(steps, repeats, device, held=parameters)
    del ways, steps, plain
    gc.collect()
    return {
        "case": f"{case.model}, {case.batch * case.length:,} tokens, "
        + ("float32 weights under autocast" if case.autocast else "bfloat16 weights"),
        "sizes": {
            "tokens": case.batch * case.length,
            "width": shape[-1],
            "parameter_bytes": parameters["plain"],
        },
        **comparison,
    }


def decoder(case: Case, seed: int, device: torch.device) -> Any:
    """The text model of one layer and no vocabulary to speak of, random weights."""
    from transformers import AutoModel

    text = architecture(case.model).first_layers(1).config().get_text_config()
    text.vocab_size, text.pad_token_id = 8, None
    for name in ("hidden_size", "intermediate_size", "num_attention_heads"):
        setattr(text, name, getattr(text, name) // case.narrow)
    text.num_key_value_heads = min(text.num_key_value_heads, text.num_attention_heads)
    dtype = torch.float32 if case.autocast else torch.bfloat16
    # on a CPU in bfloat16 the fused attention's backward is several times slower
    attention = "sdpa" if device.type == "cuda" else "eager"
    torch.manual_seed(seed)
    model = AutoModel.from_config(text, dtype=dtype, attn_implementation=attention)
    model.embed_tokens.requires_grad_(False)
    return model.to(device).train()


def _shared(model: nn.Module) -> Any:
    """A copy of the modules around the same parameters."""
    return copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})


def fake_quantized(plain: nn.Module) -> Any:
    """The model with its layer's linears fake-quantized to four bits."""
    model = _shared(plain)
    names = [name for name, layer in model.named_modules() if type(layer) is nn.Linear]
    prepare(model, QuantSpec(init="max"), names)
    return model


def straight_through(quantized: nn.Module) -> Any:
    """The fake-quantized model by autograd."""
    model = _shared(quantized)
    for name, layer in list(fake_quant_layers(model)):
        model.set_submodule(name, StraightThroughLinear(layer))
    return model


def step_of(model: Any, x: torch.Tensor, upstream: torch.Tensor, autocast: bool) -> Call:
    """Forward and backward; the gradients are dropped at the end."""

    def step() -> None:
        inputs = x.detach().requires_grad_()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            hidden = model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        hidden.backward(upstream.to(hidden.dtype))
        model.zero_grad(set_to_none=True)

    return step
