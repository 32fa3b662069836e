"""Intervals as small inline SVG: what was measured as a point on its interval, what was reported
as a diamond, and a line at no difference. The numbers stand beside them as text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

_WIDTH, _HEIGHT, _PAD = 120, 16, 5


@dataclass(frozen=True)
class Axis:
    """The range that bars of one column share; the line stands at ``zero``."""

    low: float
    high: float
    zero: float = 0.0

    @classmethod
    def over(cls, values: Iterable[float | None], zero: float = 0.0) -> Axis | None:
        """The range of the values that there are, ``zero`` among them; None without values."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        low, high = min(*known, zero), max(*known, zero)
        return cls(low, high if high > low else low + 1.0, zero)

    def place(self, value: float) -> str:
        """Where a value stands across a bar, in units of its drawing."""
        share = (value - self.low) / (self.high - self.low)
        return f"{_PAD + share * (_WIDTH - 2 * _PAD):.1f}"


def bar(
    axis: Axis | None,
    point: float | None,
    low: float | None = None,
    high: float | None = None,
    reported: float | None = None,
) -> Markup:
    """One bar; without an axis nothing, and without numbers the line alone."""
    if axis is None:
        return Markup("")
    middle = _HEIGHT / 2
    zero = axis.place(axis.zero)
    parts = [f'<line class="zero" x1="{zero}" x2="{zero}" y1="0" y2="{_HEIGHT}"/>']
    if reported is not None:
        x = float(axis.place(reported))
        parts.append(f'<path class="reported" d="M{x:.1f} {middle - 4}l4 4l-4 4l-4 -4z"/>')
    if point is not None:
        if low is not None and high is not None:
            parts.append(
                f'<line class="interval" x1="{axis.place(low)}" x2="{axis.place(high)}" '
                f'y1="{middle}" y2="{middle}"/>'
            )
        parts.append(f'<circle class="point" cx="{axis.place(point)}" cy="{middle}" r="3"/>')
    body = "".join(parts)
    return Markup(
        f'<svg class="bar" viewBox="0 0 {_WIDTH} {_HEIGHT}" aria-hidden="true" '
        f'focusable="false">{body}</svg>'
    )
