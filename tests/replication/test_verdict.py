"""From an interval to a status: every relation of an interval to a band or a rule."""

import math

import pytest

from grace.errors import InputError
from replication.stats.verdict import (
    Band,
    Interval,
    Rule,
    Status,
    combine_all,
    combine_each,
    judge,
)

R, H, U, F, C, N = (
    Status.REPRODUCED,
    Status.DIRECTION_HOLDS,
    Status.INCONCLUSIVE,
    Status.DIRECTION_FAILS,
    Status.CONTRADICTED,
    Status.NOT_RUN,
)
BAND = Rule(within_band=True)
MARGIN = Rule(above=-1, below=1)


@pytest.mark.parametrize(
    ("rule", "low", "high", "status"),
    [
        # a band from 1 to 3 has two ends, which belong to it; nothing is rounded
        (BAND, 1.0, 3.0, H),
        (BAND, 1.5, 2.5, H),
        (BAND, 0.999999, 2.5, U),
        (BAND, 1.5, 3.000001, U),
        (BAND, 0.0, 5.0, U),
        (BAND, 0.0, 0.999999, C),
        (BAND, 3.000001, 4.0, C),
        (BAND, 0.0, 1.0, U),
        (BAND, 3.0, 4.0, U),
        # a direction; touching the value does not satisfy it
        (Rule(above=0), 0.1, 2.0, H),
        (Rule(above=0), 0.0, 2.0, U),
        (Rule(above=0), -0.1, 2.0, U),
        (Rule(above=0), -2.0, 0.0, U),
        (Rule(above=0), -2.0, -0.1, C),
        (Rule(above=-1.5), -1.4, 0.2, H),
        (Rule(above=-1.5), -1.6, 0.2, U),
        (Rule(above=-1.5), -3, -1.6, C),
        (Rule(below=1.0), -2.0, 0.9, H),
        (Rule(below=1.0), -2.0, 1.0, U),
        (Rule(below=1.0), 0.0, 2.0, U),
        (Rule(below=1.0), 1.0, 2.0, U),
        (Rule(below=1.0), 1.1, 2.0, C),
        # both: a test of equivalence
        (MARGIN, -0.9, 0.9, H),
        (MARGIN, -1.1, 0.9, U),
        (MARGIN, -0.9, 1.1, U),
        (MARGIN, 1.1, 2.0, C),
        (MARGIN, -2.0, -1.1, C),
        # every condition must hold
        (Rule(above=1.2, within_band=True), 1.3, 2, H),
        (Rule(above=1.2, within_band=True), 1.1, 2, U),
        (Rule(above=1.2, within_band=True), 1.05, 1.1, C),
        (Rule(above=1.2, within_band=True), 3.5, 5, C),
    ],
)
def test_a_status_comes_from_the_interval_and_not_from_the_point(rule, low, high, status):
    reduced = {C: F, H: H, U: U}[status]
    full = {C: C, H: R, U: U}[status]
    for point in (low, high):
        interval, band = Interval(point, low, high), Band(1, 3, "a reason")
        assert judge(interval, rule, band, full=False) is reduced
        assert judge(interval, rule, band, full=True) is full


def test_a_rule_with_a_band_needs_one():
    with pytest.raises(AssertionError):
        judge(Interval(1, 0, 2), BAND, None, full=True)


@pytest.mark.parametrize(
    ("parts", "conjunction", "separate"),
    [
        ([H, H], H, H),
        ([R, R], R, R),
        ([R, H], H, H),
        ([H, U], U, U),
        ([H, U, C], C, C),
        ([H, N], N, U),
        ([N, N], N, N),
        ([C, N], C, C),
        ([F, N], F, F),
        ([R, F], F, F),
        ([F, C], C, C),
        ([U, N], N, U),
    ],
)
def test_parts_combine(parts, conjunction, separate):
    assert combine_all(parts) is conjunction
    assert combine_each(parts) is separate


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Rule, "a rule needs"),
        (lambda: Rule(above=1.0, below=1.0), "'above' 1.0 is not less than 'below' 1.0"),
        (lambda: Rule(above=2.0, below=1.0), "not less"),
        (lambda: Band(3.0, 1.0, "r"), "low lies above high"),
        (lambda: Band(math.nan, 1.0, "r"), "finite"),
        (lambda: Band(0.0, math.inf, "r"), "finite"),
        (lambda: Band(0.0, 1.0, " "), "no reason"),
        (lambda: Interval(0.0, 1.0, -1.0), "low 1.0 lies above high -1.0"),
        (lambda: Interval(math.nan, 0.0, 1.0), "finite"),
        (lambda: Interval(0.0, -math.inf, 1.0), "finite"),
        (lambda: Interval(0.0, 0.0, math.inf), "finite"),
    ],
)
def test_what_can_judge_nothing_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_what_is_counted_has_no_width():
    counted = Interval.exact(2.0)
    assert counted == Interval(2.0, 2.0, 2.0, 0.95, 0.0)
    assert Band(2.0, 2.0, "counted").contains(counted)
    assert Band(2.0, 2.0, "counted").excludes(Interval.exact(2.5))


def test_statuses_are_those_of_the_evidence_vocabulary():
    assert [status.value for status in Status] == [
        *("REPRODUCED", "DIRECTION HOLDS", "INCONCLUSIVE"),
        *("DIRECTION FAILS", "CONTRADICTED", "NOT RUN"),
    ]
    assert [status for status in Status if status.holds] == [R, H]
    assert [status for status in Status if status.fails] == [F, C]
