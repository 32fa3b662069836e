"""Histograms of gates, weights and scales; those that are compared share their bins."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grace.distillation import confidence_gate
from grace.errors import InputError
from grace.models import decoder_linears, load_model
from grace.quantization import CODES_FILE, CodesFile, QuantSpec, dequantize, initial_scales
from grace.teacher import CachedTeacher

_PART = 200  # samples whose logits are in memory at once


def histogram(edges: np.ndarray, **samples: np.ndarray) -> dict[str, Any]:
    """How many values of each sample lie in each bin, and what sums the sample up.

    edges: (bins + 1,), increasing; the last bin has its upper edge.

    Raises InputError for a value that lies in no bin.
    """
    found: dict[str, Any] = {"edges": edges.tolist()}
    for name, values in samples.items():
        counts, _ = np.histogram(values, edges)
        if counts.sum() != values.size:
            raise InputError(
                f"{name}: {values.size - counts.sum()} of {values.size} values lie outside the "
                f"bins from {edges[0]:g} to {edges[-1]:g}"
            )
        low, median, high = np.percentile(values, [1, 50, 99])
        found[name] = {
            "counts": counts.tolist(),
            "count": int(values.size),
            "mean": float(values.mean()),
            "standard_deviation": float(values.std()),
            "percentile_1": float(low),
            "median": float(median),
            "percentile_99": float(high),
        }
    return found


def gates(
    teacher: CachedTeacher, picked: np.ndarray, supervised: Sequence[int], kappa: float
) -> np.ndarray:
    """(tokens,) the confidence gate (Eq. 5) at every supervised token of some training samples.

    picked: the samples' places in the data set; supervised: how many such tokens each has.

    Raises InputError where the teacher's outputs are of other samples.
    """
    found = []
    for start in range(0, len(picked), _PART):
        part = slice(start, start + _PART)
        targets = torch.empty(sum(supervised[part]), dtype=torch.long)  # only their number counts
        batch = {"indices": picked[part].tolist(), "targets": targets}
        found.append(confidence_gate(teacher.outputs(batch).logits.float(), kappa=kappa))
    return torch.cat(found).double().numpy()


def gate_histogram(values: np.ndarray, kappa: float, bins: int) -> dict[str, Any]:
    """Gates in equal bins from the lowest that there can be, exp(-kappa), to the highest."""
    low, high = sorted((1.0, math.exp(-kappa)))
    if low == high:  # no gate
        low, high = 0.5, 1.5
    # float32 rounds a gate at the bound to either side of it
    return histogram(np.linspace(low, high, bins + 1), gate=values.clip(low, high))


def quantizer_histograms(
    baseline: Path, trained: Path, spec: QuantSpec, bins: int
) -> dict[str, dict[str, Any]]:
    """Decoder weights and scales before and after quantization-aware training, in equal bins.

    "weights": all weights of the decoder's linears, those of the baseline and those on the grid
    that training ended with, s * q; the bins lie evenly about zero. "scales": of all groups, as
    `spec` starts them from the baseline's weights, and as trained. "scale_ratio": trained over
    start, group by group.

    Raises InputError where the two models' decoders are not the same linears.
    """
    model = load_model(baseline)
    exact = CodesFile(trained / CODES_FILE)
    names = decoder_linears(model)
    if sorted(names) != sorted(exact):
        raise InputError(
            f"{exact.path} has codes of other linears than {str(baseline)!r} has; train again"
        )
    parts: dict[str, list[torch.Tensor]] = {key: [] for key in ("w0", "w1", "s0", "s1")}
    for name in names:
        weight: Any = model.get_submodule(name).weight
        codes, scales = exact[name]
        start = initial_scales(weight, spec, name)
        if start.shape != scales.shape or weight.shape != codes.shape:
            raise InputError(
                f"{exact.path}: {name} has codes {tuple(codes.shape)} and scales "
                f"{tuple(scales.shape)}, the baseline makes {tuple(weight.shape)} and "
                f"{tuple(start.shape)}; train again"
            )
        parts["w0"].append(weight.detach().flatten())
        parts["w1"].append(dequantize(codes, scales, spec).flatten())
        parts["s0"].append(start.flatten())
        parts["s1"].append(scales.flatten())
    w0, w1, s0, s1 = (torch.cat(part).double().numpy() for part in parts.values())
    widest = max(np.abs(w0).max(), np.abs(w1).max())
    ratio = s1 / s0
    both = np.concatenate([s0, s1])
    return {
        "weights": histogram(np.linspace(-widest, widest, bins + 1), before=w0, after=w1),
        "scales": histogram(np.histogram_bin_edges(both, bins), before=s0, after=s1),
        "scale_ratio": histogram(np.histogram_bin_edges(ratio, bins), ratio=ratio),
    }
