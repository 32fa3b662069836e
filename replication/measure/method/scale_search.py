"""The search for the start of the scales (init="mse"), on the linears of one decoder layer.

All layers of a published decoder have the same shapes, so the whole decoder takes as many times as
long as it has layers: an extrapolation, for the search goes linear by linear.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from grace.quantization import QuantSpec, initial_scales
from replication.measure.method.compare import bound, compare, device_with
from replication.measure.method.straightforward import scale_search
from replication.plan.architectures import architecture

SECONDS = 60.0


@dataclass(frozen=True)
class Case:
    """The linears of one decoder layer.

    Attributes:
        model: of architectures.yaml.
        narrow: divides the widths, for a trial.
    """

    model: str
    narrow: int = 1


DEFAULT = (Case("llava-1.5-7b"),)
QUICK = (Case("qwen2-vl-2b", narrow=2),)


def measure_part(
    cases: Sequence[Mapping[str, Any]], repeats: int, seed: int, threads: int = 0
) -> dict[str, Any]:
    """Rows, one for each case, with the extrapolated seconds of the whole decoder."""
    device = device_with(threads)
    rows = [_row(Case(**case), repeats, seed, device) for case in cases]
    bounds = [
        bound(
            f"scale search of {case['model']}, extrapolated: seconds",
            SECONDS,
            row["extrapolated_seconds"],
        )
        for case, row in zip(cases, rows, strict=True)
    ]
    return {"rows": rows, "bounds": bounds}


def _row(case: Case, repeats: int, seed: int, device: torch.device) -> dict[str, Any]:
    model = architecture(case.model)
    layers = model.config().get_text_config().num_hidden_layers
    shapes = [
        tuple(size // case.narrow for size in model.meta_model.get_submodule(name).weight.shape)
        for name in model.decoder_linears[: len(model.decoder_linears) // layers]
    ]
    generator = torch.Generator(device).manual_seed(seed)
    weights = [
        torch.randn(shape, generator=generator, device=device).mul_(0.02).bfloat16()
        for shape in shapes
    ]
    spec = QuantSpec()
    comparison = compare(
        {
            "grace": lambda: [initial_scales(weight, spec) for weight in weights],
            "straightforward": lambda: [scale_search(weight, spec) for weight in weights],
        },
        repeats,
        device,
    )
    seconds = comparison["ways"]["grace"]["seconds"]
    return {
        "case": f"{case.model}, the {len(weights)} linears of one of {layers} layers",
        "sizes": {"weights": sum(weight.numel() for weight in weights), "layers": layers},
        "extrapolated_seconds": {
            name: layers * seconds[name] for name in ("median", "low", "high")
        },
        **comparison,
    }
