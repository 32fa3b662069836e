"""Relational alignment of visual tokens by centered kernel alignment (Eq. 10-13; arXiv 1905.00414).

For one image with n visual tokens, the rows of its hidden states are l2-normalised and, with
H = I - 11ᵀ/n, K~ = H V Vᵀ H. Centering the Gram matrix on both sides is centering the columns of V,
so K~ = X Xᵀ with X = H V, and its inner products need no n x n matrix when n exceeds the widths::

    <K~_T, K~_S> = ||X_Tᵀ X_S||²        (Frobenius)

The cheaper of the two forms is taken. Widths may differ between the models: no projection.

The unit is one image: all its visual tokens, in the order in which the decoder reads them. Where a
family cuts an image into crops or tiles, those of all crops are one image's; tokens between them
(row ends, marks of tiles, line breaks) are no visual tokens and are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from grace.distillation._common import compute_dtype, full_precision, shapes
from grace.types import ImageSpan


class RckaSums(NamedTuple):
    """What one micro-batch adds to the mean of 1 - CKA over images.

    Examples:
        >>> import torch
        >>> from grace.distillation import rcka_sums
        >>> student, teacher = torch.randn(1, 6, 4), torch.randn(1, 6, 8)
        >>> sums = rcka_sums(student, teacher, [(0, 1, 5)])
        >>> int(sums.image_count), int(sums.degenerate_count), bool(sums.finite)
        (1, 0, True)

    Attributes:
        loss_sum: Sum over non-degenerate images of 1 - CKA, scalar, differentiable in the student.
        image_count: Number of non-degenerate images, integer scalar.
        degenerate_count: Number of images left out because CKA is undefined on them.
        finite: Boolean scalar; where False the call was dropped: loss, gradient and counts are
            zero.
    """

    loss_sum: torch.Tensor
    image_count: torch.Tensor
    degenerate_count: torch.Tensor
    finite: torch.Tensor


def visual_tokens(hidden: torch.Tensor, span: ImageSpan) -> torch.Tensor:
    """The hidden states (n, d) of one image's visual tokens, in decoder order.

    Examples:
        >>> import torch
        >>> from grace.distillation import visual_tokens
        >>> visual_tokens(torch.randn(2, 9, 8), (1, 3, 7)).shape
        torch.Size([4, 8])

    Args:
        hidden: (B, S, d).
        span: Where they are.
    """
    index, *edges = span
    runs = [hidden[index, start:stop] for start, stop in _runs(edges)]
    return runs[0] if len(runs) == 1 else torch.cat(runs)


def visual_token_count(span: ImageSpan) -> int:
    """Number of visual tokens of one image.

    Examples:
        >>> from grace.distillation import visual_token_count
        >>> visual_token_count((0, 3, 7))
        4
    """
    return sum(stop - start for start, stop in _runs(span[1:]))


def _runs(edges: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(edges[::2], edges[1::2], strict=True))


def cka(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Linear CKA of two sets of features of the same n tokens (Eq. 10-13).

    Invariant to the scale of the rows, to orthogonal maps of either feature space, and to one
    permutation of the tokens applied to both.

    Examples:
        >>> import torch
        >>> from grace.distillation import cka
        >>> x = torch.randn(6, 4)
        >>> round(cka(x, 3 * x).item(), 4)
        1.0

    Args:
        x: (n, d1), any floating dtype; the work is done in float32 (float64 if either side is
            float64), whatever autocast says.
        y: (n, d2).

    Returns:
        Scalar in [0, 1]. Zero with zero gradient where CKA is undefined: n < 2, or all rows of x or
        of y pointing the same way.
    """
    assert x.dim() == y.dim() == 2 and x.shape[0] == y.shape[0], shapes(x, y)
    value, defined = _cka_of_features(x[None], y[None])
    return torch.where(defined, value, 0.0)[0]


def centered_gram(x: torch.Tensor) -> torch.Tensor:
    """K~ = H V Vᵀ H of features with l2-normalised rows V (Eq. 10-11).

    All that `cka_from_gram` and `rcka_sums` need of a teacher; it can be kept between epochs.

    Examples:
        >>> import torch
        >>> from grace.distillation import centered_gram
        >>> centered_gram(torch.randn(5, 8)).shape
        torch.Size([5, 5])

    Args:
        x: (n, d).

    Returns:
        (n, n), float32 (float64 for float64 features).
    """
    assert x.dim() == 2, shapes(x)
    with full_precision(x):
        features = _centered_features(x[None].to(compute_dtype(x)))[0]
        return features @ features.T


def cka_from_gram(gram_t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """`cka` with one side given as its `centered_gram`.

    Examples:
        >>> import torch
        >>> from grace.distillation import centered_gram, cka_from_gram
        >>> x = torch.randn(6, 4)
        >>> round(cka_from_gram(centered_gram(x), x).item(), 4)
        1.0

    Args:
        gram_t: (n, n), as returned by `centered_gram`.
        x: (n, d).
    """
    assert x.dim() == 2 and gram_t.shape == (x.shape[0], x.shape[0]), shapes(gram_t, x)
    value, defined = _cka_of_gram(gram_t[None], x[None])
    return torch.where(defined, value, 0.0)[0]


def rcka_loss(
    student_hidden: torch.Tensor, teacher_hidden: torch.Tensor, image_spans: Sequence[ImageSpan]
) -> torch.Tensor:
    """Mean of 1 - CKA over the images of a batch (Eq. 13); text tokens never enter.

    Examples:
        >>> import torch
        >>> from grace.distillation import rcka_loss
        >>> hidden = torch.randn(1, 9, 4)
        >>> abs(round(rcka_loss(hidden, 2 * hidden, [(0, 1, 5)]).item(), 4))
        0.0

    Args:
        student_hidden: (B, S, d_S).
        teacher_hidden: (B, S, d_T), taken as constant.
        image_spans: (batch index, start, stop) of each image's visual tokens, stop exclusive; with
            further starts and stops where other tokens stand between them.

    Returns:
        Scalar in [0, 1]; zero with zero gradient if no image is usable or a value is non-finite.
    """
    sums = rcka_sums(student_hidden, teacher_hidden, image_spans)
    return sums.loss_sum / sums.image_count.clamp(min=1)


def rcka_sums(
    student_hidden: torch.Tensor,
    teacher: torch.Tensor | Sequence[torch.Tensor],
    image_spans: Sequence[ImageSpan],
) -> RckaSums:
    """Sum of 1 - CKA over the images of a micro-batch, for the caller to divide by a global count.

    Examples:
        >>> import torch
        >>> from grace.distillation import rcka_sums
        >>> student, teacher = torch.randn(2, 9, 4), torch.randn(2, 9, 8)
        >>> sums = rcka_sums(student, teacher, [(0, 1, 5), (1, 2, 6)])  # two images
        >>> bool(0 <= sums.loss_sum / sums.image_count <= 1)
        True

    Args:
        student_hidden: (B, S, d_S).
        teacher: (B, S, d_T) hidden states, or one `centered_gram` (n, n) per span. Taken as
            constant either way.
        image_spans: (batch index, start, stop) of each image's visual tokens, stop exclusive, as
            plain integers; with further starts and stops where other tokens stand between them.
            Images with as many tokens are computed together.

    Returns:
        `RckaSums`. An image on which CKA is undefined (fewer than two visual tokens, or a centered
        Gram matrix of zero norm on either side) contributes neither value nor gradient and is
        counted. A non-finite visual token drops the whole call, decided on the device: nothing
        here makes the host wait.
    """
    _assert_fit(student_hidden, teacher, image_spans)
    pairs, too_short = _pairs(student_hidden, teacher, image_spans)
    device = student_hidden.device
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


def _pairs(
    student_hidden: torch.Tensor,
    teacher: torch.Tensor | Sequence[torch.Tensor],
    image_spans: Sequence[ImageSpan],
) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], int]:
    """(student (m, n, d), teacher's features or Gram matrices) per number of tokens n >= 2.

    The second value is the number of images with fewer tokens.
    """
    groups: dict[int, list[int]] = {}
    for number, span in enumerate(image_spans):
        groups.setdefault(visual_token_count(span), []).append(number)
    pairs, too_short = [], 0
    for length, numbers in groups.items():
        if length < 2:
            too_short += len(numbers)
            continue
        spans = [image_spans[number] for number in numbers]
        if isinstance(teacher, torch.Tensor):
            reference = torch.stack([visual_tokens(teacher, span) for span in spans])
        else:
            grams = [teacher[number] for number in numbers]
            reference = torch.stack(grams).to(student_hidden.device)
        ours = torch.stack([visual_tokens(student_hidden, span) for span in spans])
        pairs.append((ours, reference.detach()))
    return pairs, too_short


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


def _assert_fit(
    student_hidden: torch.Tensor,
    teacher: torch.Tensor | Sequence[torch.Tensor],
    image_spans: Sequence[ImageSpan],
) -> None:
    """Asserts that hidden states, Gram matrices and spans fit each other."""
    assert student_hidden.dim() == 3, shapes(student_hidden)
    batch, length = student_hidden.shape[:2]
    for index, *edges in image_spans:
        ordered = len(edges) >= 2 and sorted(edges) == edges
        fits = 0 <= index < batch and edges[0] >= 0 and edges[-1] <= length
        assert ordered and fits, (index, edges, shapes(student_hidden))
    if isinstance(teacher, torch.Tensor):
        both = shapes(student_hidden, teacher)
        assert teacher.dim() == 3 and teacher.shape[:2] == student_hidden.shape[:2], both
        return
    assert len(teacher) == len(image_spans), (len(teacher), len(image_spans))
    for gram, span in zip(teacher, image_spans, strict=True):
        count = visual_token_count(span)
        assert gram.shape == (count, count), (shapes(gram), span)
