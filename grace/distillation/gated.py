"""Gated (decoupled) knowledge distillation over a large vocabulary, in bounded memory.

At 150,000 classes one float32 copy of the logits of 2,048 tokens is 1.2 GB, and autograd through
`decoupled_kd` keeps several. Here the tokens are visited in chunks; each chunk yields its loss and,
in closed form, its gradient with respect to the student's logits, and only that gradient is kept,
in the student's dtype.

The closed form. Write z for the logits over the temperature T, p and q for the teacher's and the
student's target probability, p^ and q^ for their distributions over the other classes, and m for
the margin z_y - logsumexp_{j != y} z_j, so that q = sigmoid(m_S). Then ::

    dTCKD/dm_S = q - p,     dm_S/dz_y = 1,     dm_S/dz_j = -q^_j       (j != y)
    dNCKD/dz_y = 0,         dNCKD/dz_j = q^_j - p^_j                   (j != y)

hence, with the factors T² (convention) and 1/T (chain rule), for DKD = a TCKD + b NCKD ::

    dDKD/d(student logit y) = T a (q - p)
    dDKD/d(student logit j) = T [ (b - a (q - p)) q^_j - b p^_j ]

q - p is taken as (1 - p) - (1 - q) where p is near one: both are then tiny and known to full
relative precision, as sigmoids of the negative margins.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from grace.distillation._common import (
    check_count,
    check_number,
    chunks,
    compute_dtype,
    full_precision,
)
from grace.distillation.gate import confidence_gate, entropy_of_rows, gate_of_entropy
from grace.errors import InputError

#: (chunk, V) tensors in the working precision alive at once in a chunk.
BUFFERS = 3

_CACHED = 1 << 18  # elements: 1 MiB of float32
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class DistillationSums(NamedTuple):
    """What one micro-batch adds to the numerator and the denominator of Eq. 6."""

    loss_sum: torch.Tensor
    """sum_i g_i * term_i, scalar, differentiable with respect to the student's logits."""
    gate_sum: torch.Tensor
    """sum_i g_i, scalar, no gradient."""
    finite: torch.Tensor
    """Boolean scalar; where False the call was dropped: both sums and the gradient are zero."""


def shared_vocabulary(
    student_vocab: int,
    teacher_vocab: int,
    student_tokenizer_size: int,
    teacher_tokenizer_size: int,
) -> int:
    """Number of leading logit columns that mean the same token in both models.

    Models of one family may pad their output layers to different sizes (152,064 rows against
    151,936 for the same 151,665 tokens): the surplus is padding, and distillation runs over the
    first ``min`` columns.

    Args:
        student_vocab, teacher_vocab: rows of the two output layers.
        student_tokenizer_size, teacher_tokenizer_size: tokens the two tokenizers really have.

    Raises:
        InputError: tokenizers of different sizes, or an output layer smaller than its tokenizer.
    """
    if student_tokenizer_size != teacher_tokenizer_size:
        raise InputError(
            f"the student's tokenizer has {student_tokenizer_size} tokens and the teacher's "
            f"{teacher_tokenizer_size}; distillation compares logits token by token, so choose a "
            "teacher with the student's tokenizer"
        )
    for name, vocab in (("student", student_vocab), ("teacher", teacher_vocab)):
        if vocab < student_tokenizer_size:
            raise InputError(
                f"the {name}'s output layer has {vocab} rows for {student_tokenizer_size} tokens; "
                "load the checkpoint that belongs to its tokenizer"
            )
    return min(student_vocab, teacher_vocab)


def distillation_sums(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    temperature: float = 2.0,
    alpha: float = 1.0,
    beta: float = 4.0,
    kappa: float = 1.0,
    decoupled: bool = True,
    chunk_size: int | None = None,
) -> DistillationSums:
    """Sums of gated distillation terms over selected tokens (Eq. 1-6).

    The caller divides by the sum of gates over the *global* batch, accumulation steps and ranks
    included: GDKD = sum of ``loss_sum`` / sum of ``gate_sum``. Either sum may be zero (no token, or
    everything dropped), which the caller must not divide by.

    Args:
        student_logits: (N, V_S); teacher_logits: (N, V_T). Any floating dtypes; the work is done in
            float32 (float64 if either is float64), whatever autocast says. Where V_S != V_T only
            the first min(V_S, V_T) columns are read, see `shared_vocabulary`; the gradient in the
            student's other columns is zero.
        targets: (N,) class indices, each below min(V_S, V_T). This is not checked here, because
            the check would wait for the device; PyTorch's indexing fails on a violation.
        temperature: softens both distributions, > 0; terms carry the factor temperature².
        alpha, beta: weights of the target-class and the non-target-class term, >= 0.
        kappa: sharpness of the confidence gate, see `confidence_gate`.
        decoupled: False replaces DKD by the full KL divergence, `kd`; alpha and beta are unused.
        chunk_size: tokens per chunk. By default as many as fit in a workspace of 32 MiB, the bound
            on memory beyond the logits and the student's gradient (one token at the least).

    Returns:
        `DistillationSums`. A non-finite value in any term, gate or gradient drops the whole call,
        decided on the device: nothing here makes the host wait.

    Backward runs once: it scales the stored gradient in place rather than keep a second one.

    Raises:
        InputError: shapes that do not match, or an option outside its range.
    """
    _check_options(temperature, alpha, beta, kappa, student_logits.dtype)
    if student_logits.dim() != 2 or teacher_logits.dim() != 2 or targets.dim() != 1:
        raise InputError(
            f"student_logits, teacher_logits, targets have shapes {tuple(student_logits.shape)}, "
            f"{tuple(teacher_logits.shape)}, {tuple(targets.shape)}; give (N, V), (N, V), (N,)"
        )
    if not student_logits.shape[0] == teacher_logits.shape[0] == targets.shape[0]:
        raise InputError(
            f"student_logits, teacher_logits, targets have {student_logits.shape[0]}, "
            f"{teacher_logits.shape[0]}, {targets.shape[0]} rows; give the same tokens to all three"
        )
    return _sums(
        student_logits,
        teacher_logits,
        targets,
        None,
        _Options(temperature, alpha, beta, kappa, decoupled, chunk_size),
    )


@torch.no_grad()
def gate_sum(
    teacher_logits: torch.Tensor,
    kappa: float = 1.0,
    vocab_size: int | None = None,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """Sum of the confidence gates alone: the denominator of Eq. 6, ahead of any student forward.

    Args:
        teacher_logits: (N, V_T) of the selected tokens.
        kappa: sharpness, as in `confidence_gate`.
        vocab_size: shared columns; pass min(V_S, V_T) so that this equals the ``gate_sum`` that
            `distillation_sums` reports. By default all.
        chunk_size: as in `distillation_sums`.

    Returns:
        Scalar without gradient; zero if a gate is non-finite, as in `distillation_sums`.

    Raises:
        InputError: logits that are not (N, V), or an option outside its range.
    """
    if vocab_size is not None:
        if teacher_logits.dim() != 2:
            raise InputError(
                f"teacher_logits has shape {tuple(teacher_logits.shape)}; give (N, V) with V >= 2"
            )
        if not 2 <= vocab_size <= teacher_logits.shape[1]:
            raise InputError(
                f"vocab_size is {vocab_size}; give 2 to {teacher_logits.shape[1]}, the columns "
                "of teacher_logits"
            )
        teacher_logits = teacher_logits[:, :vocab_size]
    total = confidence_gate(teacher_logits, kappa, chunk_size=chunk_size).sum()
    return torch.where(total.isfinite(), total, 0.0)


def gated_decoupled_kd(  # noqa: PLR0917
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    temperature: float = 2.0,
    alpha: float = 1.0,
    beta: float = 4.0,
    kappa: float = 1.0,
    decoupled: bool = True,
    ignore_index: int = -100,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """Gated decoupled distillation of one batch (Eq. 6): sum_i g_i DKD_i / sum_i g_i.

    Args:
        student_logits: (B, S, V_S); teacher_logits: (B, S, V_T).
        labels: (B, S) token ids, `ignore_index` where unsupervised. As in a causal language model,
            logits at position s are compared at the label of position s + 1.
        temperature, alpha, beta, kappa, decoupled, chunk_size: as in `distillation_sums`.

    Returns:
        Scalar. Zero with zero gradient if no label is supervised or a value is non-finite. Over
        several micro-batches use `distillation_sums`: a mean of these means is not Eq. 6.

    Selecting the supervised positions waits for the device once.

    Raises:
        InputError: shapes that do not match, or an option outside its range.
    """
    _check_options(temperature, alpha, beta, kappa, student_logits.dtype)
    if (
        student_logits.dim() != 3
        or teacher_logits.dim() != 3
        or not student_logits.shape[:2] == teacher_logits.shape[:2] == labels.shape
    ):
        raise InputError(
            f"student_logits, teacher_logits, labels have shapes {tuple(student_logits.shape)}, "
            f"{tuple(teacher_logits.shape)}, {tuple(labels.shape)}; give (B, S, V), (B, S, V), "
            "(B, S)"
        )
    following = nn.functional.pad(labels[:, 1:], (0, 1), value=ignore_index).flatten()
    # Row numbers rather than logits[mask], which would copy the logits of every supervised token.
    rows = (following != ignore_index).nonzero()[:, 0]
    sums = _sums(
        student_logits.flatten(0, 1),
        teacher_logits.flatten(0, 1),
        following[rows],
        rows,
        _Options(temperature, alpha, beta, kappa, decoupled, chunk_size),
    )
    return sums.loss_sum / torch.where(sums.gate_sum > 0, sums.gate_sum, 1.0)


class _Options(NamedTuple):
    temperature: float
    alpha: float
    beta: float
    kappa: float
    decoupled: bool
    chunk_size: int | None


def _check_options(
    temperature: float, alpha: float, beta: float, kappa: float, dtype: torch.dtype
) -> None:
    check_number("temperature", temperature, low=0.0, low_open=True)
    check_number("alpha", alpha, low=0.0)
    check_number("beta", beta, low=0.0)
    check_number("kappa", kappa, low=-50.0, high=50.0)
    if not dtype.is_floating_point:
        raise InputError(f"student_logits has dtype {dtype}; give a floating dtype")
    # Probabilities are at most one, so this bounds every element of the gradient: with it, and
    # finite terms, the gradient needs no pass of its own to be known finite.
    bound = temperature * max(alpha + 2 * beta, 2.0) * max(1.0, math.exp(-kappa))
    if bound > torch.finfo(dtype).max:
        raise InputError(
            f"temperature {temperature!r}, alpha {alpha!r}, beta {beta!r}, kappa {kappa!r} allow "
            f"gradients up to {bound:g}, beyond {dtype}; choose smaller values"
        )


def _sums(
    student: torch.Tensor,
    teacher: torch.Tensor,
    targets: torch.Tensor,
    rows: torch.Tensor | None,
    options: _Options,
) -> DistillationSums:
    if min(student.shape[1], teacher.shape[1]) < 2:
        raise InputError(
            f"the logits have {student.shape[1]} and {teacher.shape[1]} classes; give at least 2"
        )
    if options.chunk_size is not None:
        check_count("chunk_size", options.chunk_size, low=1)
    keep_gradient = torch.is_grad_enabled() and student.requires_grad
    return DistillationSums(
        *_DistillationSums.apply(student, teacher, targets, rows, options, keep_gradient)
    )


class _DistillationSums(torch.autograd.Function):
    """(loss_sum, gate_sum, finite); the gradient is made in the forward pass, chunk by chunk."""

    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any,
        student: torch.Tensor,
        teacher: torch.Tensor,
        targets: torch.Tensor,
        rows: torch.Tensor | None,
        options: _Options,
        keep_gradient: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tokens, vocab = targets.shape[0], min(student.shape[1], teacher.shape[1])
        dtype = compute_dtype(student, teacher)
        terms = torch.empty(tokens, dtype=dtype, device=student.device)
        gates = torch.ones_like(terms)
        gradient = None
        if keep_gradient:
            covered = rows is None and student.shape[1] == vocab
            gradient = torch.empty_like(student) if covered else torch.zeros_like(student)
        workspace: list[torch.Tensor] = []
        with full_precision(student):
            parts = chunks(tokens, vocab, dtype, BUFFERS, options.chunk_size, device=student.device)
            for part in parts:
                count = part.stop - part.start
                if not workspace:
                    workspace = [terms.new_empty(count, vocab) for _ in range(BUFFERS)]
                where = part if rows is None else rows[part]
                result = _chunk(
                    student[where, :vocab],
                    teacher[where, :vocab],
                    targets[part],
                    options,
                    keep_gradient=keep_gradient,
                    workspace=[buffer[:count] for buffer in workspace],
                )
                terms[part], gates[part] = result[0], result[1]
                if gradient is not None and rows is None:
                    gradient[part, :vocab].copy_(result[2])  # casts without a temporary
                elif gradient is not None:
                    gradient[where, :vocab] = result[2].to(gradient.dtype)
            loss_sum, total_gate = (gates * terms).sum(), gates.sum()
            # An infinite or undefined term makes the sum so too: one scalar tells the whole story.
            finite = loss_sum.isfinite() & total_gate.isfinite()
            loss_sum = torch.where(finite, loss_sum, 0.0)
            total_gate = torch.where(finite, total_gate, 0.0)
        ctx.mark_non_differentiable(total_gate, finite)
        ctx.gradient, ctx.dropped, ctx.chunk_size = gradient, ~finite, options.chunk_size
        return loss_sum, total_gate, finite

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor, *_: object) -> tuple[torch.Tensor | None, ...]:
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError(
                "distillation_sums was differentiated twice; its gradient is kept for one backward"
            )
        # As a (1, 1) tensor the factor keeps its float32 precision against a half-precision
        # gradient; a scalar on a GPU would first be rounded to half precision, off by up to 0.4 %.
        factor = grad_loss.reshape(1, 1)
        # All bits or none: cheaper than a fill under a mask, and exactly zero whatever is there.
        whole = _INTEGERS[gradient.element_size()]
        keep = (ctx.dropped.to(whole) - 1).reshape(1, 1)
        # Chunked because some devices copy a half-precision operand to float32 for that; on a CPU
        # so small that the copy stays in its cache.
        (tokens, vocab), device = gradient.shape, gradient.device
        rows = max(1, _CACHED // vocab) if device.type == "cpu" else None
        for part in chunks(tokens, vocab, grad_loss.dtype, BUFFERS, rows, device=device):
            gradient[part].mul_(factor).view(whole).bitwise_and_(keep)
        return gradient, None, None, None, None, None


def _chunk(
    student: torch.Tensor,
    teacher: torch.Tensor,
    targets: torch.Tensor,
    options: _Options,
    *,
    keep_gradient: bool,
    workspace: list[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Terms (n,), gates (n,) and the gradient of sum(gates * terms) (n, V), in ``workspace``.

    Every vocabulary-wide operation is in place. Counted in full passes over (n, V): 7 for the gate,
    13 for the loss, 3 for the gradient.
    """
    teacher_part, student_part, ratio = workspace
    temperature, index = options.temperature, targets[:, None]

    teacher_part.copy_(teacher)
    gate = torch.ones_like(teacher_part[:, 0])
    if options.kappa != 0:
        entropy = entropy_of_rows(teacher_part, ratio, student_part)
        gate = gate_of_entropy(entropy, teacher_part.shape[1], options.kappa)
    student_part.copy_(student)

    # From here on "part" is the non-target classes (DKD) or all classes (KD), less its maximum.
    teacher_target = teacher_part.gather(1, index)
    student_target = student_part.gather(1, index)
    if options.decoupled:
        teacher_part.scatter_(1, index, -torch.inf)
        student_part.scatter_(1, index, -torch.inf)
    teacher_top = teacher_part.amax(1, keepdim=True)
    student_top = student_part.amax(1, keepdim=True)
    _divide(teacher_part.sub_(teacher_top), temperature)
    _divide(student_part.sub_(student_top), temperature)

    torch.sub(teacher_part, student_part, out=ratio)
    if options.decoupled:
        ratio.scatter_(1, index, 0.0)  # was (-inf) - (-inf); its weight below is exactly 0
    teacher_sum = teacher_part.exp_().sum(1, keepdim=True)
    student_sum = student_part.exp_().sum(1, keepdim=True)
    log_ratio = teacher_sum.log() - student_sum.log()
    # KL of the parts: NCKD if the target is masked, the full divergence if not.
    divergence = ratio.mul_(teacher_part).sum(1, keepdim=True) / teacher_sum - log_ratio

    from_student = from_teacher = torch.ones_like(divergence)
    term, target_gradient = divergence, None
    if options.decoupled:
        teacher_margin = (teacher_target - teacher_top) / temperature - teacher_sum.log()
        student_margin = (student_target - student_top) / temperature - student_sum.log()
        tckd, slope = _binary_kl(teacher_margin, student_margin)
        term = options.alpha * tckd + options.beta * divergence
        from_student = options.beta - options.alpha * slope
        from_teacher = torch.full_like(divergence, options.beta)
        target_gradient = gate[:, None] * (temperature * options.alpha) * slope
    if keep_gradient:
        scale = gate[:, None] * temperature
        student_part.mul_(scale * from_student / student_sum)
        student_part.addcmul_(teacher_part, scale * from_teacher / teacher_sum, value=-1.0)
        if target_gradient is not None:
            student_part.scatter_(1, index, target_gradient)
    return term[:, 0] * temperature**2, gate, student_part


def _divide(x: torch.Tensor, divisor: float) -> torch.Tensor:
    """x / divisor, in place. The inverse of a power of two is exact, and a product takes less."""
    return x.mul_(1 / divisor) if math.frexp(divisor)[0] == 0.5 else x.div_(divisor)


def _binary_kl(
    teacher_margin: torch.Tensor, student_margin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(sigmoid(m_T) || sigmoid(m_S)) of two binary variables, and its derivative q - p in m_S."""
    margins = torch.stack((teacher_margin, student_margin))
    log_in, log_out = nn.functional.logsigmoid(margins), nn.functional.logsigmoid(-margins)
    (p, q), (not_p, not_q) = log_in.exp(), log_out.exp()
    divergence = p * (log_in[0] - log_in[1]) + not_p * (log_out[0] - log_out[1])
    return divergence, torch.where(teacher_margin > 0, not_p - not_q, q - p)
