"""What the map says in words: a sentence follows from intervals, and is left out without them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from replication.judge.quantities import signed
from replication.report.tables.text import NOT_RUN
from replication.stats.verdict import Interval

if TYPE_CHECKING:
    from replication.report.tables.regimes import Measured

GRACE, KD, SFT = "GRACE, code's coefficients", "KD", "SFT"
OVER_SFT, OVER_KD, OVER_QAT = "KD − SFT", "GRACE − KD", "GRACE − QAT, 4 bits"
_SHOWN = 2  # cells that a sentence names
_LEAST = 5  # cells that a relation needs
_Z = 1.96


def above(interval: Interval | None) -> bool:
    """Whether a gain is resolved."""
    return interval is not None and interval.low > 0


def below(interval: Interval | None) -> bool:
    """Whether a loss is resolved."""
    return interval is not None and interval.high < 0


def outcome(measured: Measured) -> str:
    """What a cell says of GRACE at 16 bits: "beats KD", "SFT is enough", "KD is enough",
    "costs", "no gain", "gains", or that it was not run."""
    found = measured.intervals
    grace, kd, over = found.get(GRACE), found.get(KD), found.get(OVER_KD)
    if grace is None or kd is None or over is None:
        return NOT_RUN
    if above(grace) and above(over):
        return "beats KD"
    if below(grace):
        return "costs"
    if above(found.get(SFT)) and not above(found.get(OVER_SFT)):
        return "SFT is enough"
    if above(kd):
        return "KD is enough"
    return "gains" if above(grace) else "no gain"


def text_of(interval: Interval) -> str:
    return f"{signed(interval.point)} [{signed(interval.low)}, {signed(interval.high)}]"


def place_of(measured: Measured) -> str:
    """A cell in words: 'a quarter, clean labels, fresh data'."""
    share, labels, data = measured.regime.place
    shares = {
        "all": "all data seen",
        "quarter": "a quarter seen",
        "little": "a twenty-fifth seen",
        "both_little": "both on a twenty-fifth",
    }
    wrong = "clean labels" if labels == "clean" else "a fifth of the labels wrong"
    return f"{shares[share]}, {wrong}, {data} data"


def _listed(cells: Sequence[Measured], name: str) -> str:
    """The cells with the largest effects of a name, the others counted."""
    ordered = sorted(cells, key=lambda one: -abs(one.intervals[name].point))
    words = [f"{place_of(one)}: {text_of(one.intervals[name])}" for one in ordered[:_SHOWN]]
    more = len(ordered) - _SHOWN
    return "; ".join(words) + (f"; and {more} more" if more > 0 else "")


def _count(some: Sequence[Measured], every: Sequence[Measured]) -> str:
    return f"In {len(some)} of {len(every)} cells"


def sentences(cells: Sequence[Measured]) -> list[str]:
    """When to use the method, when plain distillation or QAT is enough, and what tells beforehand.

    A sentence appears only where the intervals of the cells that it names support it.
    """
    run = [one for one in cells if outcome(one) != NOT_RUN]
    missing = len(cells) - len(run)
    if not run:
        return [f"The map was {NOT_RUN}: no cell has results of GRACE, KD and their baseline."]
    found = [*_when(run), *_four_bits(run), *_beforehand(run)]
    if missing:
        found.append(f"{missing} of {len(cells)} cells: {NOT_RUN}.")
    return found


def _when(run: Sequence[Measured]) -> list[str]:
    by: dict[str, list[Measured]] = {}
    for one in run:
        by.setdefault(outcome(one), []).append(one)
    said = []
    if best := by.get("beats KD"):
        said.append(
            f"Use GRACE: {_count(best, run).lower()} it gains over the baseline and over plain KD "
            f"(GRACE − KD, points: {_listed(best, OVER_KD)})."
        )
    if labels := by.get("SFT is enough"):
        said.append(
            f"No teacher is needed: {_count(labels, run).lower()} SFT gains on the same data, "
            "and neither a gain of KD over it nor of GRACE over KD is resolved (SFT, points: "
            f"{_listed(labels, SFT)})."
        )
    if enough := by.get("KD is enough"):
        said.append(
            f"Plain KD is enough: {_count(enough, run).lower()} KD gains and GRACE does not gain "
            f"more (KD, points: {_listed(enough, KD)})."
        )
    if gains := by.get("gains"):
        said.append(
            f"{_count(gains, run)} GRACE gains, KD's gain is not resolved, and neither is the "
            f"difference of the two ({_listed(gains, GRACE)})."
        )
    if costs := by.get("costs"):
        said.append(
            f"Do not use GRACE with the code's coefficients: {_count(costs, run).lower()} it loses "
            f"against the baseline ({_listed(costs, GRACE)})."
        )
    if nothing := by.get("no gain"):
        said.append(
            f"{_count(nothing, run)} no gain is resolved of either KD or GRACE: train longer or on "
            f"other data first ({_listed(nothing, GRACE)})."
        )
    return said


def _four_bits(run: Sequence[Measured]) -> list[str]:
    known = [one for one in run if OVER_QAT in one.intervals]
    said = []
    if better := [one for one in known if above(one.intervals[OVER_QAT])]:
        said.append(
            f"At 4 bits GRACE ends above QAT alone {_count(better, known).lower()} "
            f"({_listed(better, OVER_QAT)})."
        )
    if enough := [one for one in known if not above(one.intervals[OVER_QAT])]:
        worse = [one for one in enough if below(one.intervals[OVER_QAT])]
        said.append(
            f"QAT alone is enough at 4 bits {_count(enough, known).lower()}: GRACE's gain over it "
            f"is not resolved, and in {len(worse)} of them GRACE ends below."
        )
    return said


# --- what can be measured beforehand --------------------------------------------------------------


def rank_relation(first: Sequence[float], second: Sequence[float]) -> Interval | None:
    """Spearman's rank correlation with its interval by Fisher's transformation; None for fewer
    than five pairs, or values that do not vary."""
    from scipy.stats import spearmanr  # slow to import

    if len(first) < _LEAST or len(set(first)) < 2 or len(set(second)) < 2:
        return None
    point = float(spearmanr(first, second).statistic)
    inner = min(max(point, -1 + 1e-9), 1 - 1e-9)
    # the standard error of Bonett and Wright (2000)
    reach = _Z * math.sqrt((1 + inner**2 / 2) / (len(first) - 3))
    middle = math.atanh(inner)
    return Interval(point, math.tanh(middle - reach), math.tanh(middle + reach))


_SIGNS: dict[str, Callable[[Measured], float | None]] = {
    "SFT's effect": lambda one: one.intervals[SFT].point if SFT in one.intervals else None,
    "the teacher's gate": lambda one: one.numbers.get("Gate"),
    "GDKD at the start against τ": lambda one: (
        one.numbers["GDKD, start"] / one.numbers["τ"]
        if {"GDKD, start", "τ"} <= one.numbers.keys()
        else None
    ),
}
"""What a user can measure before training with the method."""


def _beforehand(run: Sequence[Measured]) -> list[str]:
    resolved, not_resolved = [], []
    for name, sign in _SIGNS.items():
        values = [(value, one) for one in run if (value := sign(one)) is not None]
        relation = rank_relation(
            [value for value, _ in values], [one.intervals[OVER_KD].point for _, one in values]
        )
        if relation is None:
            continue
        words = f"{relation.point:.2f} [{relation.low:.2f}, {relation.high:.2f}]"
        words = f"{name} (rank correlation {words.replace('-', '−')}, {len(values)} cells)"
        if above(relation) or below(relation):
            side = "larger" if relation.point > 0 else "smaller"
            resolved.append(f"{words}: the {side} it is, the more GRACE gains over KD")
        else:
            not_resolved.append(words)
    said = []
    if resolved:
        said.append(f"What tells beforehand, over the cells: {'; '.join(resolved)}.")
    if not_resolved:
        said.append(
            "No relation with GRACE's gain over KD is resolved over the cells: "
            f"{'; '.join(not_resolved)}."
        )
    return said
