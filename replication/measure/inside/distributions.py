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
from grace.training import CachedTeacher

_PART = 200  # samples whose logits are in memory at once


def histogram(edges: np.ndarray, **samples: np.ndarray) -> dict[str, Any]:
    """How many values of each sample lie in each bin, and statistics of each sample.

    Args:
        edges: (bins + 1,), increasing; the last bin has its upper edge.
        **samples: values by the sample's name, any shape.

    Returns:
        "edges", and by sample "counts", "count", "mean", "standard_deviation", "percentile_1",
        "median" and "percentile_99".

    Raises:
        InputError: for a value that lies in no bin.
    """
    result: dict[str, Any] = {"edges": edges.tolist()}
    for name, values in samples.items():
        counts, _ = np.histogram(values, edges)
        if counts.sum() != values.size:
            raise InputError(
                f"{name}: {values.size - counts.sum()} of {values.size} values lie outside the "
                f"bins from {edges[0]:g} to {edges[-1]:g}"
            )
        low, median, high = np.percentile(values, [1, 50, 99])
        result[name] = {
            "counts": counts.tolist(),
            "count": int(values.size),
            "mean": float(values.mean()),
            "standard_deviation": float(values.std()),
            "percentile_1": float(low),
            "median": float(median),
            "percentile_99": float(high),
        }
    return result


def gates(
    teacher: CachedTeacher, samples: np.ndarray, supervised: Sequence[int], kappa: float
) -> np.ndarray:
    """The confidence gate (Eq. 5) at every supervised token of some training samples.

    Args:
        teacher: the teacher's outputs.
        samples: the samples' places in the data set.
        supervised: number of supervised tokens of each sample.
        kappa: the gate's sharpness.

    Returns:
        (tokens,) float64.

    Raises:
        InputError: where the teacher's outputs are of other samples.
    """
    parts = []
    for start in range(0, len(samples), _PART):
        part = slice(start, start + _PART)
        targets = torch.empty(sum(supervised[part]), dtype=torch.long)  # only their number counts
        batch = {"indices": samples[part].tolist(), "targets": targets, "image_spans": []}
        parts.append(confidence_gate(teacher.outputs(batch).logits.float(), kappa=kappa))
    return torch.cat(parts).double().numpy()


def gate_histogram(values: np.ndarray, kappa: float, bins: int) -> dict[str, Any]:
    """Gates in equal bins from the lowest possible one, exp(-kappa), to the highest, 1."""
    low, high = sorted((1.0, math.exp(-kappa)))
    if low == high:  # no gate
        low, high = 0.5, 1.5
    # float32 rounds a gate at the bound to either side of it
    return histogram(np.linspace(low, high, bins + 1), gate=values.clip(low, high))


def quantizer_histograms(
    baseline: Path, trained: Path, spec: QuantSpec, bins: int
) -> dict[str, dict[str, Any]]:
    """Decoder weights and scales before and after quantization-aware training, in equal bins.

    Args:
        baseline: directory of the model that training started from.
        trained: directory of the trained model.
        spec: how training quantized.
        bins: number of bins.

    Returns:
        Three histograms. "weights": all weights of the decoder's linears, those of the baseline and
        those on the grid that training ended with, s * q; the bins lie evenly about zero. "scales":
        of all groups, as `spec` initializes them from the baseline's weights, and as trained.
        "scale_ratio": trained over initial, group by group.

    Raises:
        InputError: where the two models' decoders are not the same linears.
    """
    before, after, initial, final = _weights_and_scales(baseline, trained, spec)
    widest = max(np.abs(before).max(), np.abs(after).max())
    ratio = final / initial
    scale_edges = np.histogram_bin_edges(np.concatenate([initial, final]), bins)
    return {
        "weights": histogram(np.linspace(-widest, widest, bins + 1), before=before, after=after),
        "scales": histogram(scale_edges, before=initial, after=final),
        "scale_ratio": histogram(np.histogram_bin_edges(ratio, bins), ratio=ratio),
    }


def _weights_and_scales(baseline: Path, trained: Path, spec: QuantSpec) -> tuple[np.ndarray, ...]:
    """Weights before and after, scales before and after, of all linears: flat, float64."""
    model = load_model(baseline)
    exact = CodesFile(trained / CODES_FILE)
    names = decoder_linears(model)
    if sorted(names) != sorted(exact):
        raise InputError(
            f"{exact.path} has codes of other linears than {str(baseline)!r} has; train again"
        )
    layers = []
    for name in names:
        weight: Any = model.get_submodule(name).weight
        codes, scales = exact[name]
        initial = initial_scales(weight, spec, name)
        if initial.shape != scales.shape or weight.shape != codes.shape:
            raise InputError(
                f"{exact.path}: {name} has codes {tuple(codes.shape)} and scales "
                f"{tuple(scales.shape)}, the baseline makes {tuple(weight.shape)} and "
                f"{tuple(initial.shape)}; train again"
            )
        layers.append((weight.detach(), dequantize(codes, scales, spec), initial, scales))
    return tuple(
        torch.cat([tensor.flatten() for tensor in tensors]).double().numpy()
        for tensors in zip(*layers, strict=True)
    )
