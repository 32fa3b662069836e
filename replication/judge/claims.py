"""The verdict on every claim: what was measured, judged by the ledger's rules, as data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replication.base.scales import FULL_SCALE
from replication.judge.quantities import Measured, Sources, measure
from replication.paper import Claim, Ledger, Part, Reported, load_ledger, load_tables
from replication.paper.bands import quantity_band
from replication.results.scores import ResultSet
from replication.stats import verdict
from replication.stats.bootstrap import McNemar, minimum_detectable_difference
from replication.stats.verdict import Band, Interval, Status

POWER = 0.8


@dataclass(frozen=True)
class PartResult:
    """The verdict on one part. band: what it was judged by, the part's as long as nothing was
    measured. failed: contradicted, and the ledger does not excuse it."""

    part: Part
    status: Status
    band: Band | None
    interval: Interval | None = None
    questions: int | None = None
    seeds: dict[str, list[int]] | None = None
    resolvable: float | None = None
    mcnemar: McNemar | None = None
    note: str = ""
    failed: bool = False


@dataclass(frozen=True)
class ClaimResult:
    """The verdict on a claim, from those on its parts."""

    claim: Claim
    status: Status
    parts: tuple[PartResult, ...]
    note: str

    @property
    def failed(self) -> bool:
        return any(part.failed for part in self.parts)


def _band(part: Part, interval: Interval | None, sources: Sources) -> Band | None:
    """The part's band; one of printed cells at full scale with the paired error as measured, as
    `replication.judge.cells` has it."""
    if not part.of_cells or interval is None or sources.results.scale != FULL_SCALE:
        return part.band
    return quantity_band(
        part.quantity, part.benchmarks, sources.reported, standard_error=interval.standard_error
    )


def _status(part: Part, found: Measured, band: Band | None, scale: str) -> Status:
    full = scale == FULL_SCALE or part.scale_free
    rule = part.full if full else part.reduced
    if found.interval is None or rule is None or part.expected[scale].outcome == "undecidable":
        return Status.INCONCLUSIVE
    holds = Status.REPRODUCED if full else Status.DIRECTION_HOLDS
    status = verdict.judge(found.interval, rule, band, holds)
    return Status.INCONCLUSIVE if found.undecided and not status.holds else status


def evaluate_part(part: Part, sources: Sources) -> PartResult:
    """The verdict on one part at the results' scale. Raises InputError for results that are wrong;
    results that are missing give NOT RUN."""
    scale = sources.results.scale
    found = measure(part, sources)
    if found.missing:
        return PartResult(part, Status.NOT_RUN, part.band, note=found.missing)
    resolvable = None
    if found.interval is not None and found.resolves:
        resolvable = minimum_detectable_difference(
            found.interval.standard_error, POWER, level=sources.ledger.level
        )
    band = _band(part, found.interval, sources)
    status, expected = _status(part, found, band, scale), part.expected[scale]
    known = expected.outcome == "known_deviation"
    remarks = [found.note] if found.note else []
    if status is Status.CONTRADICTED and known and found.excusable:
        remarks.append(f"known deviation: {expected.reason}")
    elif status is Status.CONTRADICTED and known:
        remarks.append("not the deviation that is known")
    elif status.holds and known:
        remarks.append("the ledger lists a deviation that no longer shows: update it")
    elif expected.outcome == "undecidable":
        remarks.append(f"not judged at scale {scale}: {expected.reason}")
    elif status is Status.INCONCLUSIVE and found.undecided:
        remarks.append(found.undecided)
    elif status is Status.INCONCLUSIVE and expected.outcome == "inconclusive-ok":
        remarks.append(expected.reason)
    elif status is Status.INCONCLUSIVE:
        remarks.append("was expected to hold")
    return PartResult(
        part=part,
        status=status,
        band=band,
        interval=found.interval,
        questions=found.questions,
        seeds=found.seeds,
        resolvable=resolvable,
        mcnemar=found.mcnemar,
        note="; ".join(remarks),
        failed=status is Status.CONTRADICTED and not (known and found.excusable),
    )


def evaluate_claim(claim: Claim, sources: Sources) -> ClaimResult:
    """The verdict on a claim: that on each of its parts at this scale, combined."""
    parts = tuple(
        evaluate_part(part, sources) for part in claim.parts if sources.results.scale in part.scales
    )
    statuses = [part.status for part in parts]
    combine = verdict.combine_all if claim.combine == "all" else verdict.combine_each
    status = combine(statuses)
    notes = []
    run = [one for one in statuses if one is not Status.NOT_RUN]
    if run and len(run) < len(parts):
        held = sum(one.holds for one in run)
        notes.append(f"parts run: {len(run)} of {len(parts)}; holding: {held}")
    failed = [part.part.id for part in parts if part.failed]
    if failed:
        notes.append("contradicted: " + ", ".join(failed))
    elif status is Status.CONTRADICTED:
        notes.append("known deviation")
    return ClaimResult(claim, status, parts, "; ".join(notes))


def verify(
    results: str | Path,
    scale: str,
    ledger: Ledger | None = None,
    reported: Reported | None = None,
    only: Iterable[str] | None = None,
) -> list[ClaimResult]:
    """Judge every claim of the ledger (or those whose ids are in `only`).

    results: the folder that holds <scale>/scores, outcomes, training and measurements.
    Raises InputError for an unknown scale, or results that are wrong in themselves.
    """
    ledger = load_ledger() if ledger is None else ledger
    reported = load_tables() if reported is None else reported
    sources = Sources(ResultSet(results, scale), ledger, reported)
    wanted = None if only is None else set(only)
    return [
        evaluate_claim(claim, sources)
        for claim in ledger.claims
        if wanted is None or claim.id in wanted
    ]


# --- as data --------------------------------------------------------------------------------------


def _part_data(result: PartResult, scale: str) -> dict[str, Any]:
    part, interval, band = result.part, result.interval, result.band
    rule = part.full if (scale == FULL_SCALE or part.scale_free) else part.reduced
    expected = part.expected.get(scale)
    return {
        "id": part.id,
        "text": part.text,
        "quantity": dict(part.quantity),
        "benchmarks": list(part.benchmarks),
        "unit": part.unit,
        "reported": part.reported,
        "measured": None
        if interval is None
        else {
            "point": interval.point,
            "low": interval.low,
            "high": interval.high,
            "level": interval.level,
            "standard_error": interval.standard_error,
        },
        "band": band and {"low": band.low, "high": band.high, "reason": band.reason},
        "rule": rule
        and {
            "above": rule.above,
            "below": rule.below,
            "within_band": rule.within_band,
            "reason": rule.reason,
        },
        "questions": result.questions,
        "seeds": result.seeds,
        "smallest_resolvable_difference": result.resolvable,
        "mcnemar": result.mcnemar
        and {
            "only_run_right": result.mcnemar.only_first,
            "only_against_right": result.mcnemar.only_second,
            "p_value": result.mcnemar.p_value,
        },
        "expected": expected and {"outcome": expected.outcome, "reason": expected.reason},
        "status": result.status.value,
        "failed": result.failed,
        "note": result.note,
    }


def to_data(results: Sequence[ClaimResult], scale: str, ledger: Ledger) -> dict[str, Any]:
    """The verdicts as the content of claims.json."""
    counts = Counter(result.status for result in results)
    return {
        "scale": scale,
        "bootstrap": {
            "seed": ledger.seed,
            "resamples": ledger.resamples,
            "level": ledger.level,
            "power_of_smallest_resolvable_difference": POWER,
        },
        "summary": {status.value: counts.get(status, 0) for status in Status},
        "failed": [result.claim.id for result in results if result.failed],
        "claims": [
            {
                "id": result.claim.id,
                "text": result.claim.text,
                "where": result.claim.where,
                "reported": result.claim.reported,
                "combine": result.claim.combine,
                "status": result.status.value,
                "failed": result.failed,
                "note": result.note,
                "parts": [_part_data(part, scale) for part in result.parts],
            }
            for result in results
        ],
    }
