"""Confidence of the teacher at each token, and the weight that the token gets from it."""

from __future__ import annotations

import math

import torch

from grace.distillation._common import check_number, chunks, compute_dtype, full_precision, shapes


def teacher_entropy(teacher_logits: torch.Tensor, *, chunk_size: int | None = None) -> torch.Tensor:
    """Entropy of the teacher at temperature 1, in nats (Eq. 4): H = -sum_j p_j log p_j.

    Examples:
        >>> import torch
        >>> from grace.distillation import teacher_entropy
        >>> teacher_entropy(torch.zeros(1, 4))  # ln 4
        tensor([1.3863])

    Args:
        teacher_logits: (N, V), any floating dtype, V >= 2.
        chunk_size: Tokens per chunk; by default what a workspace of 32 MiB allows.

    Returns:
        (N,) in [0, log V], float32 (float64 for float64 logits), without gradient: the teacher is
        frozen. A row with a non-finite logit gives NaN.
    """
    assert teacher_logits.dim() == 2 and teacher_logits.shape[1] >= 2, shapes(teacher_logits)
    teacher_logits = teacher_logits.detach()
    tokens, vocab = teacher_logits.shape
    dtype = compute_dtype(teacher_logits)
    entropy = torch.empty(tokens, dtype=dtype, device=teacher_logits.device)
    with full_precision(teacher_logits):
        for rows in chunks(tokens, vocab, dtype, 2, chunk_size, device=entropy.device):
            shifted = teacher_logits[rows].to(dtype, copy=True)
            entropy[rows] = entropy_of_rows(shifted, shifted, torch.empty_like(shifted))
    return entropy


def entropy_of_rows(
    logits: torch.Tensor, shifted: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Entropy of each row of (n, V).

    `shifted` and `weights` are scratch of the same shape; `shifted` may be `logits` itself.

    H = log Z + sum_j exp(x_j) (-x_j) / Z with x the logits less their maximum: two terms that are
    never negative, so that nothing cancels when the teacher is almost certain.
    """
    torch.sub(logits, logits.amax(1, keepdim=True), out=shifted)
    torch.exp(shifted, out=weights)
    total = weights.sum(1)
    entropy = total.log() - weights.mul_(shifted).sum(1) / total
    return entropy.clamp_(0.0, math.log(logits.shape[1]))


def confidence_gate(
    teacher_logits: torch.Tensor, kappa: float = 1.0, *, chunk_size: int | None = None
) -> torch.Tensor:
    """Confidence gate of each token (Eq. 5): g = exp(-kappa * h) with h = H / log V in [0, 1].

    Examples:
        >>> import torch
        >>> from grace.distillation import confidence_gate
        >>> confidence_gate(torch.zeros(1, 4))  # the teacher knows nothing: 1 / e
        tensor([0.3679])

    Args:
        teacher_logits: (N, V) with V >= 2.
        kappa: Sharpness. 1 is the published gate, g in [1/e, 1]; 0 is no gate (all ones); a
            negative value is the inverted gate, which favours uncertain tokens.
        chunk_size: As in `teacher_entropy`.

    Returns:
        (N,), without gradient.

    Raises:
        InputError: A sharpness that is not a finite number.
    """
    check_number("kappa", kappa)
    entropy = teacher_entropy(teacher_logits, chunk_size=chunk_size)
    return gate_of_entropy(entropy, teacher_logits.shape[1], kappa)


def gate_of_entropy(entropy: torch.Tensor, vocab: int, kappa: float) -> torch.Tensor:
    """exp(-kappa * H / log V), elementwise."""
    if kappa == 0:
        return torch.ones_like(entropy)  # also where the entropy is NaN: no gate looks at it
    return torch.exp(entropy * (-kappa / math.log(vocab)))
