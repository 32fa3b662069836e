"""From an interval to a verdict: bands, rules, statuses, and how statuses combine.

A status is derived from the interval, never from the point. Nothing is rounded before it is
compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from grace.errors import InputError

LEVEL = 0.95
"""The level of every interval that is not given another."""


class Status(StrEnum):
    """What can be said of a claim.

    Small models cannot contradict a claim about published ones: at reduced scale its direction
    holds or fails.

    Attributes:
        REPRODUCED: full scale, an exact claim or the published architecture: within the band.
        DIRECTION_HOLDS: reduced scale: the whole interval is on the claimed side.
        INCONCLUSIVE: the interval allows both answers.
        DIRECTION_FAILS: reduced scale: the whole interval is on the other side.
        CONTRADICTED: full scale, an exact claim or the published architecture: outside the band.
        NOT_RUN: an input is missing.
    """

    REPRODUCED = "REPRODUCED"
    DIRECTION_HOLDS = "DIRECTION HOLDS"
    INCONCLUSIVE = "INCONCLUSIVE"
    DIRECTION_FAILS = "DIRECTION FAILS"
    CONTRADICTED = "CONTRADICTED"
    NOT_RUN = "NOT RUN"

    @property
    def holds(self) -> bool:
        """Whether the claim holds, as far as the scale can tell."""
        return self in (Status.REPRODUCED, Status.DIRECTION_HOLDS)

    @property
    def fails(self) -> bool:
        """Whether the claim fails, as far as the scale can tell."""
        return self in (Status.CONTRADICTED, Status.DIRECTION_FAILS)


@dataclass(frozen=True)
class Interval:
    """A point estimate with its two-sided interval.

    Attributes:
        point: the estimate.
        low: the interval's lower end.
        high: its upper end.
        level: the probability that it is made for.
        standard_error: of the estimate, by the bootstrap.

    Raises:
        InputError: for a number that is not finite, or ends in the wrong order.
    """

    point: float
    low: float
    high: float
    level: float = LEVEL
    standard_error: float = 0.0

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.point, self.low, self.high))):
            raise InputError(f"interval {self.point} [{self.low}, {self.high}] is not finite")
        if self.low > self.high:
            raise InputError(f"interval low {self.low} lies above high {self.high}")

    @classmethod
    def exact(cls, value: float) -> Interval:
        """The interval of something counted, not sampled: it has no width."""
        return cls(value, value, value)


@dataclass(frozen=True)
class Band:
    """A two-sided tolerance band, to which both ends belong.

    Attributes:
        low: the lower end.
        high: the upper end.
        reason: why it is as wide as this.

    Raises:
        InputError: for an end that is not finite, ends in the wrong order, or no reason.
    """

    low: float
    high: float
    reason: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise InputError(f"band [{self.low}, {self.high}]: both ends must be finite")
        if self.low > self.high:
            raise InputError(f"band [{self.low}, {self.high}]: low lies above high")
        if not self.reason.strip():
            raise InputError(f"band [{self.low}, {self.high}] carries no reason")

    def contains(self, interval: Interval) -> bool:
        """Whether the whole interval lies in the band."""
        return self.low <= interval.low and interval.high <= self.high

    def excludes(self, interval: Interval) -> bool:
        """Whether the whole interval lies outside of the band."""
        return interval.high < self.low or interval.low > self.high


@dataclass(frozen=True)
class Rule:
    """What must be true of an interval; every condition that is set must hold.

    Attributes:
        above: the whole interval lies above this value. Together with `below` it is a test of
            equivalence: the interval lies inside a margin.
        below: the whole interval lies below this value.
        within_band: the whole interval lies in the band.
        reason: why a margin is what it is.

    Raises:
        InputError: for a rule without a condition, or that no interval can satisfy.
    """

    above: float | None = None
    below: float | None = None
    within_band: bool = False
    reason: str = ""

    def __post_init__(self) -> None:
        if self.above is None and self.below is None and not self.within_band:
            raise InputError("a rule needs 'above', 'below' or 'within_band'")
        if self.above is not None and self.below is not None and self.above >= self.below:
            raise InputError(f"a rule's 'above' {self.above} is not less than 'below' {self.below}")


def judge(interval: Interval, rule: Rule, band: Band | None, *, full: bool) -> Status:
    """The status of an interval under a rule.

    Args:
        interval: an interval that only touches `above` or `below` does not satisfy it.
        rule: the conditions.
        band: needed by a rule with `within_band`.
        full: whether the thing itself was measured (full scale, an exact claim, the published
            architecture), and not a direction at reduced scale.

    Returns:
        CONTRADICTED or DIRECTION FAILS if the whole interval violates any condition, REPRODUCED or
        DIRECTION HOLDS if it satisfies all of them, otherwise INCONCLUSIVE.
    """
    satisfied, violated = [], []
    if rule.above is not None:
        satisfied.append(interval.low > rule.above)
        violated.append(interval.high < rule.above)
    if rule.below is not None:
        satisfied.append(interval.high < rule.below)
        violated.append(interval.low > rule.below)
    if rule.within_band:
        assert band is not None
        satisfied.append(band.contains(interval))
        violated.append(band.excludes(interval))
    if any(violated):
        return Status.CONTRADICTED if full else Status.DIRECTION_FAILS
    if all(satisfied):
        return Status.REPRODUCED if full else Status.DIRECTION_HOLDS
    return Status.INCONCLUSIVE


def combine_all(statuses: Sequence[Status]) -> Status:
    """The status of a conjunction of at least one part.

    No correction for several parts is needed: a conjunction that holds only if each part does is
    an intersection-union test, of the parts' own level.

    Returns:
        CONTRADICTED or else DIRECTION FAILS if any part is (that is enough), otherwise NOT RUN if
        any part is, the weaker of the parts' statuses if all hold, otherwise INCONCLUSIVE.
    """
    assert statuses
    for failure in (Status.CONTRADICTED, Status.DIRECTION_FAILS):
        if failure in statuses:
            return failure
    if Status.NOT_RUN in statuses:
        return Status.NOT_RUN
    if all(status.holds for status in statuses):
        weaker = Status.DIRECTION_HOLDS in statuses
        return Status.DIRECTION_HOLDS if weaker else Status.REPRODUCED
    return Status.INCONCLUSIVE


def combine_each(statuses: Sequence[Status]) -> Status:
    """The status of a claim made of separate findings (one per family, say), some not run yet.

    Returns:
        As `combine_all`, but NOT RUN only if no part was run; a claim whose parts hold as far as
        they were run is INCONCLUSIVE until all were.
    """
    run = [status for status in statuses if status is not Status.NOT_RUN]
    if not run or len(run) == len(statuses):
        return combine_all(statuses)
    combined = combine_all(run)
    return combined if combined.fails else Status.INCONCLUSIVE
