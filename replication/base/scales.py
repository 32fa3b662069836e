"""The three scales of the replication."""

from typing import Literal, get_args

from grace.errors import InputError
from replication.base.messages import unknown

Scale = Literal["smoke", "small", "paper"]
SCALES: tuple[Scale, ...] = get_args(Scale)

COMMITTED = "small"
"""The scale whose parameters, lock file and results are committed."""

FULL_SCALE = "paper"
"""The scale of the published checkpoints and data."""


def check_scale(scale: str) -> str:
    """``scale``, if it is one of ``SCALES``.

    Raises:
        InputError: naming the known ones if it is not.
    """
    if not scale:
        raise InputError(f"the scale is empty; choose one of {', '.join(SCALES)}")
    if scale not in SCALES:
        raise InputError(unknown(f"scale {scale!r}", scale, SCALES))
    return scale
