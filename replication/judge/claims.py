"""The verdict on every claim: what was measured, judged by the ledger's rules, as data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from replication.base.scales import FULL_SCALE
from replication.judge.cells import CellResult, cells_data
from replication.judge.quantities import Measured, Sources, measure
from replication.paper import Claim, Ledger, Part, Reported, load_ledger, load_tables
from replication.paper.bands import quantity_band
from replication.results.scores import ResultSet
from replication.stats import verdict
from replication.stats.bootstrap import McNemar, minimum_detectable_difference
from replication.stats.verdict import Band, Interval, Status

POWER = 0.8
"""Of the smallest difference that is said to be resolvable."""


@dataclass(frozen=True)
class PartResult:
    """The verdict on one part.

    Attributes:
        part: the part.
        status: the verdict.
        band: what it was judged by, the part's as long as nothing was measured.
        interval: what was measured; None where there is no value.
        questions: how many were answered.
        seeds: by run, those of its trainings.
        resolvable: the smallest difference that would have been told from none.
        mcnemar: the exact test of a single pair of runs on one benchmark.
        note: what a reader should know.
        failed: contradicted, and the ledger does not excuse it.
    """

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
        """Whether any part of it is contradicted without an excuse."""
        return any(part.failed for part in self.parts)


def _band(part: Part, interval: Interval | None, sources: Sources) -> Band | None:
    """The part's band; one of printed cells at full scale with the paired error as measured, as
    `replication.judge.cells` has it."""
    if not part.of_cells or interval is None or sources.results.scale != FULL_SCALE:
        return part.band
    return quantity_band(
        part.quantity, part.benchmarks, sources.reported, standard_error=interval.standard_error
    )


def _status(part: Part, measured: Measured, band: Band | None, scale: str) -> Status:
    rule = part.rule(scale)
    if measured.interval is None or rule is None or part.expected[scale].outcome == "undecidable":
        return Status.INCONCLUSIVE
    full = scale == FULL_SCALE or part.scale_free
    holds = Status.REPRODUCED if full else Status.DIRECTION_HOLDS
    status = verdict.judge(measured.interval, rule, band, holds)
    return Status.INCONCLUSIVE if measured.undecided and not status.holds else status


def _remark(part: Part, measured: Measured, status: Status, scale: str) -> str:
    """What the ledger's expectation says of a status; "" where there is nothing to say."""
    expected = part.expected[scale]
    known = expected.outcome == "known_deviation"
    if status is Status.CONTRADICTED and known:
        excuse = f"known deviation: {expected.reason}"
        return excuse if measured.excusable else "not the deviation that is known"
    if status.holds and known:
        return "the ledger lists a deviation that no longer shows: update it"
    if expected.outcome == "undecidable":
        return f"not judged at scale {scale}: {expected.reason}"
    if status is not Status.INCONCLUSIVE:
        return ""
    if measured.undecided:
        return measured.undecided
    return expected.reason if expected.outcome == "inconclusive-ok" else "was expected to hold"


def evaluate_part(part: Part, sources: Sources) -> PartResult:
    """The verdict on one part at the results' scale; NOT RUN where results are missing.

    Raises:
        InputError: for results that are wrong.
    """
    scale = sources.results.scale
    measured = measure(part, sources)
    if measured.missing:
        return PartResult(part, Status.NOT_RUN, part.band, note=measured.missing)
    resolvable = None
    if measured.interval is not None and measured.resolves:
        resolvable = minimum_detectable_difference(
            measured.interval.standard_error, POWER, level=sources.ledger.level
        )
    band = _band(part, measured.interval, sources)
    status = _status(part, measured, band, scale)
    excused = part.expected[scale].outcome == "known_deviation" and measured.excusable
    return PartResult(
        part=part,
        status=status,
        band=band,
        interval=measured.interval,
        questions=measured.questions,
        seeds=measured.seeds,
        resolvable=resolvable,
        mcnemar=measured.mcnemar,
        note="; ".join(filter(None, (measured.note, _remark(part, measured, status, scale)))),
        failed=status is Status.CONTRADICTED and not excused,
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
    run = [status for status in statuses if status is not Status.NOT_RUN]
    if run and len(run) < len(parts):
        held = sum(status.holds for status in run)
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
    """Judge every claim of the ledger.

    Args:
        results: the folder that holds <scale>/scores, outcomes, training and measurements.
        scale: which of them.
        ledger: default: the project's.
        reported: default: the paper's tables.
        only: ids of the claims; default: all.

    Raises:
        InputError: for an unknown scale, or results that are wrong in themselves.
    """
    ledger = load_ledger() if ledger is None else ledger
    reported = load_tables() if reported is None else reported
    sources = Sources(ResultSet(results, scale), ledger, reported)
    chosen = None if only is None else set(only)
    return [
        evaluate_claim(claim, sources)
        for claim in ledger.claims
        if chosen is None or claim.id in chosen
    ]


# --- as data --------------------------------------------------------------------------------------


def _part_data(result: PartResult, scale: str) -> dict[str, Any]:
    part, mcnemar = result.part, result.mcnemar
    rule, expected = part.rule(scale), part.expected.get(scale)
    return {
        "id": part.id,
        "text": part.text,
        "quantity": dict(part.quantity),
        "benchmarks": list(part.benchmarks),
        "unit": part.unit,
        "reported": part.reported,
        "measured": result.interval and asdict(result.interval),
        "band": result.band and asdict(result.band),
        "rule": rule and asdict(rule),
        "questions": result.questions,
        "seeds": result.seeds,
        "smallest_resolvable_difference": result.resolvable,
        "mcnemar": mcnemar
        and {
            "only_run_right": mcnemar.only_first,
            "only_against_right": mcnemar.only_second,
            "p_value": mcnemar.p_value,
        },
        "expected": expected and asdict(expected),
        "status": result.status.value,
        "failed": result.failed,
        "note": result.note,
    }


def document(
    claims: Sequence[ClaimResult], cells: Sequence[CellResult], scale: str, ledger: Ledger
) -> dict[str, Any]:
    """The verdicts as the content of claims.json: the claims and, at full scale, the cells."""
    counts = Counter(result.status for result in claims)
    return {
        "scale": scale,
        "bootstrap": {
            "seed": ledger.seed,
            "resamples": ledger.resamples,
            "level": ledger.level,
            "power_of_smallest_resolvable_difference": POWER,
        },
        "summary": {status.value: counts.get(status, 0) for status in Status},
        "failed": [result.claim.id for result in claims if result.failed],
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
            for result in claims
        ],
        **(cells_data(cells) if scale == FULL_SCALE else {}),
    }
