"""Types that several parts of the package share."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Codes = Mapping[str, "tuple[Tensor, Tensor]"]
"""By the dotted name of a linear: codes int8 (out, in) and scales (out, groups)."""

ImageSpan = tuple[int, ...]
"""One image's visual tokens: (row of the batch, start, stop), stop exclusive.

Where other tokens stand between them (row ends, marks of tiles), every run of visual tokens has a
start and a stop: (row, start, stop, start, stop, ...).
"""
