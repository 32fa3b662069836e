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
    shapes,
)
from grace.distillation.gate import confidence_gate, entropy_of_rows, gate_of_entropy
from grace.errors import InputError

#: (chunk, V) tensors in the working precision alive at once in a chunk.
BUFFERS = 3

_CACHED = 1 << 18  # elements: 1 MiB of float32
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class DistillationSums(NamedTuple):
    """What one micro-batch adds to the numerator and the denominator of Eq. 6.

    Examples:
        >>> import torch
        >>> from grace.distillation import distillation_sums
        >>> logits = torch.randn(3, 11)
        >>> sums = distillation_sums(logits, logits, torch.tensor([0, 4, 7]))
        >>> bool(sums.finite), abs(round(sums.loss_sum.item(), 4))
        (True, 0.0)

    Attributes:
        loss_sum: sum_i g_i * term_i, scalar, differentiable in the student's logits.
        gate_sum: sum_i g_i, scalar, no gradient.
        finite: Boolean scalar; where False the call was dropped: both sums and the gradient are
            zero.
    """

    loss_sum: torch.Tensor
    gate_sum: torch.Tensor
    finite: torch.Tensor


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

    Examples:
        >>> from grace.distillation import shared_vocabulary
        >>> shared_vocabulary(152064, 151936, 151665, 151665)
        151936

    Args:
        student_vocab: Rows of the student's output layer.
        teacher_vocab: Rows of the teacher's.
        student_tokenizer_size: Tokens that the student's tokenizer really has.
        teacher_tokenizer_size: Tokens that the teacher's has.

    Raises:
        InputError: Tokenizers of different sizes, or an output layer smaller than its tokenizer.
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

    Backward runs once: it scales the stored gradient in place rather than keep a second one.

    Examples:
        >>> import torch
        >>> from grace.distillation import distillation_sums
        >>> student, teacher = torch.randn(2, 3, 11).unbind()
        >>> sums = distillation_sums(student, teacher, torch.tensor([0, 4, 7]))
        >>> bool(sums.loss_sum / sums.gate_sum > 0)
        True

    Args:
        student_logits: (N, V_S), any floating dtype; the work is done in float32 (float64 if either
            side is float64), whatever autocast says. Where V_S != V_T only the first
            min(V_S, V_T) columns are read, see `shared_vocabulary`; the gradient in the student's
            other columns is zero.
        teacher_logits: (N, V_T).
        targets: (N,) class indices, each below min(V_S, V_T). This is not checked here, because
            the check would wait for the device; PyTorch's indexing fails on a violation.
        temperature: Softens both distributions, > 0; terms carry the factor temperature².
        alpha: Weight of the target-class term, >= 0.
        beta: Weight of the non-target-class term, >= 0.
        kappa: Sharpness of the confidence gate, see `confidence_gate`.
        decoupled: False replaces DKD by the full KL divergence, `kd`; alpha and beta are unused.
        chunk_size: Tokens per chunk. By default as many as fit in a workspace of 32 MiB, the bound
            on memory beyond the logits and the student's gradient (one token at the least).

    Returns:
        `DistillationSums`. A non-finite value in any term, gate or gradient drops the whole call,
        decided on the device: nothing here makes the host wait.

    Raises:
        InputError: An option outside its range.
    """
    options = _Options(temperature, alpha, beta, kappa, decoupled, chunk_size)
    options.check(student_logits.dtype)
    every = shapes(student_logits, teacher_logits, targets)
    assert (student_logits.dim(), teacher_logits.dim(), targets.dim()) == (2, 2, 1), every
    assert student_logits.shape[0] == teacher_logits.shape[0] == targets.shape[0], every
    return _sums(student_logits, teacher_logits, targets, None, options)


def gate_sum(
    teacher_logits: torch.Tensor,
    kappa: float = 1.0,
    vocab_size: int | None = None,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """Sum of the confidence gates alone: the denominator of Eq. 6, ahead of any student forward.

    Examples:
        >>> import torch
        >>> from grace.distillation import gate_sum
        >>> gate_sum(torch.zeros(2, 4))  # two tokens of which the teacher knows nothing: 2 / e
        tensor(0.7358)

    Args:
        teacher_logits: (N, V_T) of the selected tokens.
        kappa: Sharpness, as in `confidence_gate`.
        vocab_size: Shared columns; pass min(V_S, V_T) so that this equals the ``gate_sum`` that
            `distillation_sums` reports. By default all.
        chunk_size: As in `distillation_sums`.

    Returns:
        Scalar without gradient; zero if a gate is non-finite, as in `distillation_sums`.

    Raises:
        InputError: A sharpness that is not a finite number.
    """
    if vocab_size is not None:
        assert 2 <= vocab_size <= teacher_logits.shape[1], (vocab_size, shapes(teacher_logits))
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

    Examples:
        >>> import torch
        >>> from grace.distillation import gated_decoupled_kd
        >>> student, teacher = torch.randn(2, 2, 5, 11).unbind()
        >>> labels = torch.tensor([[-100, -100, -100, 7, 4]] * 2)  # the answers' two tokens
        >>> bool(gated_decoupled_kd(student, teacher, labels) > 0)
        True

    Args:
        student_logits: (B, S, V_S).
        teacher_logits: (B, S, V_T).
        labels: (B, S) token ids, `ignore_index` where unsupervised. As in a causal language model,
            logits at position s are compared at the label of position s + 1.
        temperature: As in `distillation_sums`, and so `alpha`, `beta`, `kappa`, `decoupled` and
            `chunk_size`.
        alpha: Weight of the target-class term.
        beta: Weight of the non-target-class term.
        kappa: Sharpness of the confidence gate.
        decoupled: False for the full KL divergence.
        ignore_index: The label of unsupervised positions.
        chunk_size: Tokens per chunk.

    Returns:
        Scalar. Zero with zero gradient if no label is supervised or a value is non-finite. Over
        several micro-batches use `distillation_sums`: a mean of these means is not Eq. 6.
        Selecting the supervised positions waits for the device once.

    Raises:
        InputError: An option outside its range.
    """
    options = _Options(temperature, alpha, beta, kappa, decoupled, chunk_size)
    options.check(student_logits.dtype)
    every = shapes(student_logits, teacher_logits, labels)
    assert student_logits.dim() == teacher_logits.dim() == 3, every
    assert student_logits.shape[:2] == teacher_logits.shape[:2] == labels.shape, every
    following = nn.functional.pad(labels[:, 1:], (0, 1), value=ignore_index).flatten()
    # Row numbers rather than logits[mask], which would copy the logits of every supervised token.
    rows = (following != ignore_index).nonzero()[:, 0]
    sums = _sums(
        student_logits.flatten(0, 1),
        teacher_logits.flatten(0, 1),
        following[rows],
        rows,
        options,
    )
    return sums.loss_sum / torch.where(sums.gate_sum > 0, sums.gate_sum, 1.0)


class _Options(NamedTuple):
    temperature: float
    alpha: float
    beta: float
    kappa: float
    decoupled: bool
    chunk_size: int | None

    def check(self, dtype: torch.dtype) -> None:
        """Refuse options outside their range, or whose gradients could overflow `dtype`."""
        check_number("temperature", self.temperature, low=0.0, low_open=True)
        check_number("alpha", self.alpha, low=0.0)
        check_number("beta", self.beta, low=0.0)
        check_number("kappa", self.kappa, low=-50.0, high=50.0)
        if self.chunk_size is not None:
            check_count("chunk_size", self.chunk_size, low=1)
        # Probabilities are at most one, so this bounds every element of the gradient: with it, and
        # finite terms, the gradient needs no pass of its own to be known finite.
        bound = self.temperature * max(self.alpha + 2 * self.beta, 2.0)
        bound *= max(1.0, math.exp(-self.kappa))
        if bound > torch.finfo(dtype).max:
            raise InputError(
                f"temperature {self.temperature!r}, alpha {self.alpha!r}, beta {self.beta!r}, "
                f"kappa {self.kappa!r} allow gradients up to {bound:g}, beyond {dtype}; choose "
                "smaller values"
            )


def _sums(
    student: torch.Tensor,
    teacher: torch.Tensor,
    targets: torch.Tensor,
    rows: torch.Tensor | None,
    options: _Options,
) -> DistillationSums:
    assert min(student.shape[1], teacher.shape[1]) >= 2, shapes(student, teacher)
    keep_gradient = torch.is_grad_enabled() and student.requires_grad
    return DistillationSums(
        *_DistillationSums.apply(student, teacher, targets, rows, options, keep_gradient)
    )


class _DistillationSums(torch.autograd.Function):
    """(loss_sum, gate_sum, finite); the forward pass computes the gradient, chunk by chunk."""

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
        gradient = None
        if keep_gradient:
            covered = rows is None and student.shape[1] <= teacher.shape[1]
            gradient = torch.empty_like(student) if covered else torch.zeros_like(student)
        with full_precision(student):
            terms, gates = _terms(student, teacher, targets, rows, options, gradient)
            loss_sum, total_gate = (gates * terms).sum(), gates.sum()
            # An infinite or undefined term makes the sum so too: one scalar tells the whole story.
            finite = loss_sum.isfinite() & total_gate.isfinite()
            loss_sum = torch.where(finite, loss_sum, 0.0)
            total_gate = torch.where(finite, total_gate, 0.0)
        ctx.mark_non_differentiable(total_gate, finite)
        ctx.gradient, ctx.dropped = gradient, ~finite
        return loss_sum, total_gate, finite

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor, *_: object) -> tuple[torch.Tensor | None, ...]:
        gradient, ctx.gradient = ctx.gradient, None
        assert gradient is not None, "differentiated twice: the gradient is kept for one backward"
        _scale(gradient, grad_loss, ctx.dropped)
        return gradient, None, None, None, None, None


def _terms(  # noqa: PLR0917
    student: torch.Tensor,
    teacher: torch.Tensor,
    targets: torch.Tensor,
    rows: torch.Tensor | None,
    options: _Options,
    gradient: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Terms and gates (N,) of the targets, chunk by chunk.

    Args:
        student: (M, V_S).
        teacher: (M, V_T).
        targets: (N,).
        rows: (N,) rows of the logits that the targets belong to; None where M = N.
        options: Of the loss.
        gradient: Where the gradient of sum(gates * terms) in the student's logits goes, (M, V_S),
            or None.
    """
    tokens, vocab = targets.shape[0], min(student.shape[1], teacher.shape[1])
    dtype = compute_dtype(student, teacher)
    terms = torch.empty(tokens, dtype=dtype, device=student.device)
    gates = torch.ones_like(terms)
    workspace: list[torch.Tensor] = []
    parts = chunks(tokens, vocab, dtype, BUFFERS, options.chunk_size, device=student.device)
    for part in parts:
        count = part.stop - part.start
        if not workspace:
            workspace = [terms.new_empty(count, vocab) for _ in range(BUFFERS)]
        where = part if rows is None else rows[part]
        terms[part], gates[part], chunk_gradient = _chunk(
            student[where, :vocab],
            teacher[where, :vocab],
            targets[part],
            options,
            keep_gradient=gradient is not None,
            workspace=[buffer[:count] for buffer in workspace],
        )
        if gradient is not None and rows is None:
            gradient[part, :vocab].copy_(chunk_gradient)  # casts without a temporary
        elif gradient is not None:
            gradient[where, :vocab] = chunk_gradient.to(gradient.dtype)
    return terms, gates


def _scale(gradient: torch.Tensor, factor: torch.Tensor, dropped: torch.Tensor) -> None:
    """Multiply (N, V) by a scalar in place; all zero where the boolean scalar `dropped` is True."""
    # As a (1, 1) tensor the factor keeps its float32 precision against a half-precision
    # gradient; a scalar on a GPU would first be rounded to half precision, off by up to 0.4 %.
    factor = factor.reshape(1, 1)
    # All bits or none: cheaper than a fill under a mask, and exactly zero whatever is there.
    whole = _INTEGERS[gradient.element_size()]
    keep = (dropped.to(whole) - 1).reshape(1, 1)
    # Chunked because some devices copy a half-precision operand to float32 for that; on a CPU
    # so small that the copy stays in its cache.
    (tokens, vocab), device = gradient.shape, gradient.device
    rows = max(1, _CACHED // vocab) if device.type == "cpu" else None
    for part in chunks(tokens, vocab, factor.dtype, BUFFERS, rows, device=device):
        gradient[part].mul_(factor).view(whole).bitwise_and_(keep)


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

    gate = _gates(teacher_part.copy_(teacher), options.kappa, scratch=(ratio, student_part))
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


def _gates(
    logits: torch.Tensor, kappa: float, scratch: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Gates (n,) of the teacher's logits (n, V); without a gate the entropy is not computed."""
    if kappa == 0:
        return torch.ones_like(logits[:, 0])
    return gate_of_entropy(entropy_of_rows(logits, *scratch), logits.shape[1], kappa)


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
