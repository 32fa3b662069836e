"""Types that several parts of the package share."""

ImageSpan = tuple[int, int, int]
"""One image's visual tokens: (row of the batch, first position, one past the last position)."""
