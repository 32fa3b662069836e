"""Types that several parts of the package share."""

from collections.abc import Mapping

from torch import Tensor

Codes = Mapping[str, tuple[Tensor, Tensor]]
"""By the dotted name of a linear: codes int8 (out, in) and scales (out, groups)."""

ImageSpan = tuple[int, int, int]
"""One image's visual tokens: (row of the batch, first position, one past the last position)."""
