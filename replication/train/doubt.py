"""How sure a teacher is at the supervised tokens: its entropy, and the gate of it."""

from pathlib import Path

import numpy as np
import torch

from grace.distillation import confidence_gate
from grace.training import CachedTeacher

DOUBT_FILE = "doubt.json"
"""In a directory of teacher outputs: what `doubt_of` says of them."""
_PART = 200  # samples at once


def token_doubts(outputs: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A teacher's doubt at every supervised token.

    Args:
        outputs: directory of its outputs.

    Returns:
        Entropies in nats, gates of Eq. 5 with the published sharpness, and the sample that each
        token is of, (tokens,) each.

    Raises:
        InputError: when the outputs cannot be read.
    """
    lengths = np.diff(np.load(outputs / "offsets.npy"))
    teacher = CachedTeacher(outputs, samples=len(lengths))
    entropies, gates = [], []
    for start in range(0, len(lengths), _PART):
        part = range(start, min(start + _PART, len(lengths)))
        targets = torch.empty(int(lengths[part.start : part.stop].sum()), dtype=torch.long)
        batch = {"indices": list(part), "targets": targets, "image_spans": []}
        logits = teacher.outputs(batch).logits.float()
        entropies.append(torch.distributions.Categorical(logits=logits).entropy())
        gates.append(confidence_gate(logits))
    return (
        torch.cat(entropies).double().numpy(),
        torch.cat(gates).double().numpy(),
        np.repeat(np.arange(len(lengths)), lengths),
    )


def doubt_of(outputs: Path) -> dict[str, float]:
    """The mean "entropy" in nats and "gate" over all supervised tokens."""
    entropies, gates, _ = token_doubts(outputs)
    return {"entropy": float(entropies.mean()), "gate": float(gates.mean())}
