"""Relational alignment of visual tokens by centered kernel alignment (Eq. 10-13; arXiv 1905.00414).

For one image with n visual tokens, the rows of its hidden states are l2-normalised and, with
H = I - 11ᵀ/n, K~ = H V Vᵀ H. Centering the Gram matrix on both sides is centering the columns of V,
so K~ = X Xᵀ with X = H V, and its inner products need no n x n matrix when n exceeds the widths::

    <K~_T, K~_S> = ||X_Tᵀ X_S||²        (Frobenius)

The cheaper of the two forms is taken. Widths may differ between the models: no projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from grace.distillation._common import compute_dtype, full_precision
from grace.errors import InputError

ImageSpan = tuple[int, int, int]
"""(index in the batch, first position, position after the last) of one image's visual tokens."""


class RckaSums(NamedTuple):
    """What one micro-batch adds to the mean of 1 - CKA over images."""

    loss_sum: torch.Tensor
    """sum over non-degenerate images of 1 - CKA, scalar, differentiable in the student."""
    image_count: torch.Tensor
    """Non-degenerate images, integer scalar."""
    degenerate_count: torch.Tensor
    """Images left out because CKA is undefined on them, integer scalar."""
    finite: torch.Tensor
    """Boolean scalar; where False the call was dropped: loss, gradient and counts are zero."""


def cka(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Linear CKA of two sets of features of the same n tokens (Eq. 10-13).

    Invariant to the scale of the rows, to orthogonal maps of either feature space, and to one
    permutation of the tokens applied to both.

    Args:
        x: (n, d1); y: (n, d2). Any floating dtype; the work is done in float32 (float64 if either
            is float64), whatever autocast says.

    Returns:
        Scalar in [0, 1]. Zero with zero gradient where CKA is undefined: n < 2, or all rows of x or
        of y pointing the same way.

    Raises:
        InputError: inputs that are not matrices with the same number of rows.
    """
    _check_matrix("x", x)
    _check_matrix("y", y)
    if x.shape[0] != y.shape[0]:
        raise InputError(
            f"x has {x.shape[0]} rows and y {y.shape[0]}; give features of the same tokens"
        )
    value, defined = _cka_of_features(x[None], y[None])
    return torch.where(defined, value, 0.0)[0]


def centered_gram(x: torch.Tensor) -> torch.Tensor:
    """K~ = H V Vᵀ H of features (n, d), rows l2-normalised (Eq. 10-11): (n, n), float32 or float64.

    All that `cka_from_gram` and `rcka_sums` need of a teacher; it can be kept between epochs.
    """
    _check_matrix("x", x)
    with full_precision(x):
        features = _centered_features(x[None].to(compute_dtype(x)))[0]
        return features @ features.T


def cka_from_gram(gram_t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """`cka` with one side given as its `centered_gram`.

    Args:
        gram_t: (n, n), as returned by `centered_gram`; x: (n, d).

    Raises:
        InputError: shapes that do not match.
    """
    _check_matrix("x", x)
    if gram_t.shape != (x.shape[0], x.shape[0]):
        raise InputError(
            f"gram_t has shape {tuple(gram_t.shape)}; give ({x.shape[0]}, {x.shape[0]}), "
            "the centered Gram matrix of the tokens of x"
        )
    value, defined = _cka_of_gram(gram_t[None], x[None])
    return torch.where(defined, value, 0.0)[0]


def rcka_loss(
    student_hidden: torch.Tensor, teacher_hidden: torch.Tensor, image_spans: Sequence[ImageSpan]
) -> torch.Tensor:
    """Mean of 1 - CKA over the images of a batch (Eq. 13); text tokens never enter.

    Args:
        student_hidden: (B, S, d_S); teacher_hidden: (B, S, d_T), taken as constant.
        image_spans: (batch index, start, stop) of each image's visual tokens, stop exclusive.

    Returns:
        Scalar in [0, 1]; zero with zero gradient if no image is usable or a value is non-finite.

    Raises:
        InputError: hidden states or spans that do not fit together.
    """
    sums = rcka_sums(student_hidden, teacher_hidden, image_spans)
    return sums.loss_sum / sums.image_count.clamp(min=1)


def rcka_sums(
    student_hidden: torch.Tensor,
    teacher: torch.Tensor | Sequence[torch.Tensor],
    image_spans: Sequence[ImageSpan],
) -> RckaSums:
    """Sum of 1 - CKA over the images of a micro-batch, for the caller to divide by a global count.

    Args:
        student_hidden: (B, S, d_S).
        teacher: (B, S, d_T) hidden states, or one `centered_gram` (n, n) per span. Taken as
            constant either way.
        image_spans: (batch index, start, stop) of each image's visual tokens, stop exclusive, as
            plain integers. Images with as many tokens are computed together.

    Returns:
        `RckaSums`. An image on which CKA is undefined (fewer than two visual tokens, or a centered
        Gram matrix of zero norm on either side) contributes neither value nor gradient and is
        counted. A non-finite visual token drops the whole call, decided on the device: nothing
        here makes the host wait.

    Raises:
        InputError: hidden states, Gram matrices or spans that do not fit together.
    """
    _check_spans(student_hidden, teacher, image_spans)
    groups: dict[int, list[int]] = {}
    for number, (_, start, stop) in enumerate(image_spans):
        groups.setdefault(stop - start, []).append(number)
    too_short = sum(len(numbers) for length, numbers in groups.items() if length < 2)

    device = student_hidden.device
    pairs = []
    for length, numbers in groups.items():
        if length < 2:
            continue
        spans = [image_spans[number] for number in numbers]
        if isinstance(teacher, torch.Tensor):
            reference = _visual_tokens(teacher, spans)
        else:
            reference = torch.stack([teacher[number] for number in numbers]).to(device)
        pairs.append((_visual_tokens(student_hidden, spans), reference.detach()))

    finite = torch.ones((), dtype=torch.bool, device=device)
    for ours, reference in pairs:
        finite = finite & ours.isfinite().all() & reference.isfinite().all()
    # Empty, hence exactly zero whatever the hidden states hold; keeps backward() legal when no
    # image contributes.
    loss_sum = student_hidden[:0].sum(dtype=compute_dtype(student_hidden))
    used = torch.zeros((), dtype=torch.long, device=device)
    degenerate = torch.full((), too_short, dtype=torch.long, device=device)
    similarity = _cka_of_features if isinstance(teacher, torch.Tensor) else _cka_of_gram
    for ours, reference in pairs:
        # Non-finite input is replaced before anything is computed from it: masking the loss alone
        # would send 0 * NaN through the backward pass.
        pair = [torch.where(finite, side, 0.0) for side in (reference, ours)]
        value, defined = similarity(*pair)
        loss_sum = loss_sum + torch.where(defined, 1.0 - value, 0.0).sum()
        used = used + defined.sum()
        degenerate = degenerate + (~defined).sum()
    return RckaSums(
        torch.where(finite, loss_sum, 0.0),
        torch.where(finite, used, 0),
        torch.where(finite, degenerate, 0),
        finite,
    )


def _visual_tokens(hidden: torch.Tensor, spans: Sequence[ImageSpan]) -> torch.Tensor:
    return torch.stack([hidden[index, start:stop] for index, start, stop in spans])


def _centered_features(x: torch.Tensor) -> torch.Tensor:
    """(m, n, d) -> rows l2-normalised, then columns centered over the n tokens of each image."""
    # A row's scale does not matter, so the largest entry is divided out as a constant first: no
    # square overflows or underflows, and the gradient is the same.
    top = x.detach().abs().amax(2, keepdim=True)
    x = x / torch.where(top > 0, top, 1.0)
    square = (x * x).sum(2, keepdim=True)
    # Substituting before the root keeps a zero row's gradient finite instead of NaN.
    x = x * torch.where(square > 0, square, 1.0).rsqrt()
    return x - x.mean(1, keepdim=True)


def _cka_of_features(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """CKA (m,) of (m, n, d1) and (m, n, d2), and where it is defined (m,)."""
    dtype = compute_dtype(x, y)
    with full_precision(x):
        x, y = _centered_features(x.to(dtype)), _centered_features(y.to(dtype))
        n, d1, d2 = x.shape[1], x.shape[2], y.shape[2]
        if n * (d1 + d2) <= d1 * d1 + d1 * d2 + d2 * d2:
            gram_x, gram_y = x @ x.mT, y @ y.mT
            inner = (gram_x * gram_y).sum((1, 2))
            square_x, square_y = _square_norm(gram_x), _square_norm(gram_y)
        else:
            inner = _square_norm(x.mT @ y)
            square_x, square_y = _square_norm(x.mT @ x), _square_norm(y.mT @ y)
        return _normalised(inner, square_x, square_y, n)


def _cka_of_gram(gram: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """CKA (m,) of centered Gram matrices (m, n, n) and features (m, n, d), and where defined."""
    dtype = compute_dtype(gram, x)
    with full_precision(x):
        gram, x = gram.to(dtype), _centered_features(x.to(dtype))
        n, d = x.shape[1], x.shape[2]
        if n <= d:
            gram_x = x @ x.mT
            inner, square_x = (gram * gram_x).sum((1, 2)), _square_norm(gram_x)
        else:
            inner, square_x = ((gram @ x) * x).sum((1, 2)), _square_norm(x.mT @ x)
        return _normalised(inner, _square_norm(gram), square_x, n)


def _square_norm(matrices: torch.Tensor) -> torch.Tensor:
    return (matrices * matrices).sum((1, 2))


def _normalised(
    inner: torch.Tensor, square_x: torch.Tensor, square_y: torch.Tensor, n: int
) -> tuple[torch.Tensor, torch.Tensor]:
    # ||K~|| / n is at most the variance of the unit rows. Rows that are equal in exact arithmetic
    # come out with a spread of a few roundings; a spread below 100 of them is taken as none.
    floor = (n * (100 * torch.finfo(inner.dtype).eps) ** 2) ** 2
    defined = (square_x > floor) & (square_y > floor)
    # Substituted before the root, so that the branch not taken has a finite gradient.
    value = torch.where(defined, inner, 0.0)
    value = value * torch.where(defined, square_x, 1.0).rsqrt()
    value = value * torch.where(defined, square_y, 1.0).rsqrt()
    return value.clamp(0.0, 1.0), defined


def _check_matrix(name: str, x: torch.Tensor) -> None:
    if x.dim() != 2:
        raise InputError(f"{name} has shape {tuple(x.shape)}; give a matrix (n, d)")


def _check_spans(
    student_hidden: torch.Tensor,
    teacher: torch.Tensor | Sequence[torch.Tensor],
    image_spans: Sequence[ImageSpan],
) -> None:
    if student_hidden.dim() != 3:
        raise InputError(f"student_hidden has shape {tuple(student_hidden.shape)}; give (B, S, d)")
    batch, length = student_hidden.shape[:2]
    for span in image_spans:
        index, start, stop = span
        if not (0 <= index < batch and 0 <= start <= stop <= length):
            raise InputError(
                f"image span {tuple(span)} does not fit hidden states of shape "
                f"{tuple(student_hidden.shape)}; give (batch index, start, stop) within them"
            )
    if isinstance(teacher, torch.Tensor):
        if teacher.dim() != 3 or teacher.shape[:2] != student_hidden.shape[:2]:
            raise InputError(
                f"the teacher's hidden states have shape {tuple(teacher.shape)} and the student's "
                f"{tuple(student_hidden.shape)}; give the same batch and positions to both"
            )
        return
    if len(teacher) != len(image_spans):
        raise InputError(
            f"{len(teacher)} Gram matrices for {len(image_spans)} image spans; give one per span"
        )
    for gram, (index, start, stop) in zip(teacher, image_spans, strict=True):
        if gram.shape != (stop - start, stop - start):
            raise InputError(
                f"the Gram matrix of image span {(index, start, stop)} has shape "
                f"{tuple(gram.shape)}; give ({stop - start}, {stop - start})"
            )
