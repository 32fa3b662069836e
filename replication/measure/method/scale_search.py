"""The search for the start of the scales (init="mse"), on the linears of one decoder layer.

All layers of a published decoder have the same shapes, so the whole decoder takes as many times as
long as it has layers: an extrapolation, for the search goes linear by linear.
"""

from dataclasses import dataclass
from typing import Any

import torch

from grace.quantization import QuantSpec, initial_scales
from replication.measure.method.measure import bound, compare
from replication.measure.method.straightforward import scale_search
from replication.plan.architectures import architecture

SECONDS = 60.0


@dataclass(frozen=True)
class Case:
    """model: of architectures.yaml. narrow: divides the widths, for a trial."""

    model: str
    narrow: int = 1


DEFAULT = (Case("llava-1.5-7b"),)
QUICK = (Case("qwen2-vl-2b", narrow=2),)


def run(cases: tuple[Case, ...], repeats: int, seed: int, device: torch.device) -> dict[str, Any]:
    """Rows, one a case, with the extrapolated seconds of the whole decoder."""
    rows, bounds = [], []
    for case in cases:
        one = architecture(case.model)
        layers = one.config().get_text_config().num_hidden_layers
        shapes = [
            tuple(size // case.narrow for size in one.meta_model.get_submodule(name).weight.shape)
            for name in one.decoder_linears[: len(one.decoder_linears) // layers]
        ]
        generator = torch.Generator(device).manual_seed(seed)
        weights = [
            torch.randn(shape, generator=generator, device=device).mul_(0.02).bfloat16()
            for shape in shapes
        ]
        spec = QuantSpec()
        found = compare(
            {
                "grace": lambda: [initial_scales(weight, spec) for weight in weights],  # noqa: B023
                "straightforward": lambda: [scale_search(weight, spec) for weight in weights],  # noqa: B023
            },
            repeats,
            device,
        )
        seconds = found["ways"]["grace"]["seconds"]
        whole = {name: layers * seconds[name] for name in ("median", "low", "high")}
        count = sum(weight.numel() for weight in weights)
        rows.append(
            {
                "case": f"{case.model}, the {len(weights)} linears of one of {layers} layers",
                "sizes": {"weights": count, "layers": layers},
                "extrapolated_seconds": whole,
                **found,
            }
        )
        bounds.append(bound(f"scale search of {case.model}, extrapolated: seconds", SECONDS, whole))
    return {"rows": rows, "bounds": bounds}
