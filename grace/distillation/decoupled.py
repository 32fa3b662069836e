"""Knowledge-distillation terms per token, written for reading and differentiated by autograd.

`grace.distillation.gated` computes the same values chunk by chunk with a closed-form gradient; this
file is what it is checked against.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from grace.distillation._common import check_number, compute_dtype, full_precision, shapes


def decoupled_kd(  # noqa: PLR0917
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    target: torch.Tensor,
    temperature: float = 2.0,
    alpha: float = 1.0,
    beta: float = 4.0,
) -> torch.Tensor:
    """Decoupled knowledge distillation per token (Eq. 1-3; arXiv 2203.08679), times temperature².

    With p = softmax(logits / temperature) and y the target class::

        TCKD = KL([p_T(y), 1 - p_T(y)] || [p_S(y), 1 - p_S(y)])
        NCKD = KL(p_T without y, renormalised || p_S without y, renormalised)
        DKD  = alpha * TCKD + beta * NCKD

    ``alpha = 1`` and ``beta = 1 - p_T(y)`` per token give the full KL divergence back.

    Examples:
        >>> import torch
        >>> from grace.distillation import decoupled_kd
        >>> student, teacher = torch.zeros(1, 3), torch.tensor([[2.0, 0.0, 0.0]])
        >>> decoupled_kd(student, teacher, torch.tensor([0]))
        tensor([0.4931])

    Args:
        student_logits: (N, V), V >= 2, any floating dtype; the work is done in float32, or float64
            if either side is float64.
        teacher_logits: (N, V).
        target: (N,) class indices.
        temperature: Softens both distributions; > 0.
        alpha: Weight of TCKD.
        beta: Weight of NCKD.

    Returns:
        (N,) in nats, times temperature².

    Raises:
        InputError: An illegal temperature.
    """
    _check(student_logits, teacher_logits, temperature)
    assert target.shape == student_logits.shape[:1], shapes(student_logits, target)
    dtype = compute_dtype(student_logits, teacher_logits)
    with full_precision(student_logits):
        student, teacher = student_logits.to(dtype) / temperature, teacher_logits.to(dtype)
        teacher = teacher / temperature
        index = target[:, None]
        # log sum_{j != y} exp(z_j): the target leaves the sum *before* the exponential. Forming
        # 1 - p(y) afterwards would lose every digit of it once the margin passes 16 nats.
        teacher_rest = teacher.scatter(1, index, -torch.inf).logsumexp(1)
        student_rest = student.scatter(1, index, -torch.inf).logsumexp(1)
        # p(y) = sigmoid(margin) and 1 - p(y) = sigmoid(-margin).
        teacher_margin = teacher.gather(1, index)[:, 0] - teacher_rest
        student_margin = student.gather(1, index)[:, 0] - student_rest
        tckd = sum(
            functional.logsigmoid(sign * teacher_margin).exp()
            * (
                functional.logsigmoid(sign * teacher_margin)
                - functional.logsigmoid(sign * student_margin)
            )
            for sign in (1.0, -1.0)
        )
        # The target is masked in the probabilities (exactly 0) and left finite in the log-ratio:
        # the product is 0 with zero gradient, where a masked log-ratio would give 0 * (-inf).
        rest = (teacher.scatter(1, index, -torch.inf) - teacher_rest[:, None]).exp()
        nckd = (rest * (teacher - student - (teacher_rest - student_rest)[:, None])).sum(1)
        return (alpha * tckd + beta * nckd) * temperature**2


def kd(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 2.0
) -> torch.Tensor:
    """KL(p_T || p_S) of the full softened distributions per token, times temperature².

    The classic distillation term (arXiv 1503.02531). Shapes, precision and errors as in
    `decoupled_kd`; returns (N,).

    Examples:
        >>> import torch
        >>> from grace.distillation import kd
        >>> kd(torch.zeros(1, 2), torch.tensor([[2.0, 0.0]]), temperature=1.0)
        tensor([0.3278])
    """
    _check(student_logits, teacher_logits, temperature)
    dtype = compute_dtype(student_logits, teacher_logits)
    with full_precision(student_logits):
        student = functional.log_softmax(student_logits.to(dtype) / temperature, dim=1)
        teacher = functional.log_softmax(teacher_logits.to(dtype) / temperature, dim=1)
        return (teacher.exp() * (teacher - student)).sum(1) * temperature**2


def _check(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> None:
    check_number("temperature", temperature, low=0.0, low_open=True)
    both = shapes(student_logits, teacher_logits)
    assert student_logits.dim() == 2 and student_logits.shape == teacher_logits.shape, both
    assert student_logits.shape[1] >= 2, both
