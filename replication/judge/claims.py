"""The verdict on every claim: what was measured, judged by the ledger's rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from replication.base.scales import FULL_SCALE
from replication.judge.devices import deployments
from replication.judge.quantities import Measured, Sources, measure
from replication.paper import Claim, Explanation, Ledger, Part, Reported, load_ledger, load_tables
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
        explanation: of a failure, where the ledger has one.
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
    explanation: Explanation | None = None

    @property
    def failed(self) -> bool:
        """Whether it fails without an explanation: that is not on record."""
        return self.status.fails and self.explanation is None


@dataclass(frozen=True)
class ClaimResult:
    """The verdict on a claim, from those on its parts.

    Attributes:
        claim: the claim.
        status: the verdict.
        parts: the verdicts on its parts.
        note: what a reader should know.
        further: what was measured besides, and is not judged.
        under: of a claim about GRACE, the verdict under each set of coefficients; `status` is that
            of the launcher's where these were run, else that of the code's.
    """

    claim: Claim
    status: Status
    parts: tuple[PartResult, ...]
    note: str
    further: tuple[PartResult, ...] = ()
    under: dict[str, Status] = field(default_factory=dict)

    @property
    def deciding(self) -> list[PartResult]:
        """The parts that decide: of a part and its twin, the twin where it was run."""
        return _deciding(self.parts)

    @property
    def failed(self) -> bool:
        """Whether any part of it fails without an explanation."""
        return any(part.failed for part in self.parts)


def _band(part: Part, interval: Interval | None, sources: Sources) -> Band | None:
    """The part's band; one of printed cells at full scale with the paired error as measured, as
    `replication.judge.cells` has it."""
    if not part.of_cells or interval is None or sources.results.scale != FULL_SCALE:
        return part.band
    return quantity_band(
        (part.twin or part).quantity,
        part.benchmarks,
        sources.reported,
        standard_error=interval.standard_error,
    )


def _status(part: Part, measured: Measured, band: Band | None, scale: str) -> Status:
    rule = part.rule(scale)
    judged = part.expected[scale].outcome != "undecidable"
    if measured.interval is None or rule is None or measured.open or not judged:
        return Status.INCONCLUSIVE
    full = scale == FULL_SCALE or part.scale_free
    status = verdict.judge(measured.interval, rule, band, full=full)
    return Status.INCONCLUSIVE if measured.undecided and status.fails else status


def _remark(part: Part, measured: Measured, status: Status, scale: str) -> str:
    """What the ledger's expectation says of a status; "" where there is nothing to say."""
    expected = part.expected[scale]
    if status.fails and not measured.excusable:
        return "not what the ledger explains"
    if expected.outcome == "undecidable":
        return f"not judged at scale {scale}: {expected.reason}"
    if status is not Status.INCONCLUSIVE:
        return ""
    if reason := measured.open or measured.undecided:
        return reason
    return expected.reason if expected.outcome == "inconclusive-ok" else "was expected to hold"


def _judged(part: Part, measured: Measured, sources: Sources) -> PartResult:
    scale = sources.results.scale
    if measured.missing:
        return PartResult(part, Status.NOT_RUN, part.band, note=measured.missing)
    resolvable = None
    if measured.interval is not None and measured.resolves:
        resolvable = minimum_detectable_difference(
            measured.interval.standard_error, POWER, level=sources.ledger.level
        )
    band = _band(part, measured.interval, sources)
    status = _status(part, measured, band, scale)
    explained = status.fails and measured.excusable
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
        explanation=sources.ledger.explanation(part.id, scale) if explained else None,
    )


def evaluate_part(part: Part, sources: Sources) -> list[PartResult]:
    """The verdict on one part at the results' scale; NOT RUN where results are missing.

    A part of a published architecture has one verdict for every device that it was measured on.

    Raises:
        InputError: for results that are wrong.
    """
    if part.kind == "repeats":
        return [_judged(part, _repeats(part, sources), sources)]
    if part.kind != "deployment":
        return [_judged(part, measure(part, sources), sources)]
    return [
        _judged(replace(part, id=f"{part.id}{suffix}"), measured, sources)
        for suffix, measured in deployments(part, sources)
    ]


def _combined(claim: Claim, statuses: Sequence[Status]) -> Status:
    return (verdict.combine_all if claim.combine == "all" else verdict.combine_each)(statuses)


def _deciding(parts: Sequence[PartResult]) -> list[PartResult]:
    twins = {
        part.part.twin.id: part
        for part in parts
        if part.part.twin is not None and part.status is not Status.NOT_RUN
    }
    return [twins.get(part.part.id, part) for part in parts if part.part.twin is None]


def _under(claim: Claim, parts: Sequence[PartResult]) -> dict[str, Status]:
    """The verdict under each set of coefficients; the parts that no set changes decide both."""
    twins = [part for part in parts if part.part.twin is not None]
    if not twins:
        return {}
    own = [part.status for part in parts if part.part.twin is None]
    run = any(part.status is not Status.NOT_RUN for part in twins)
    return {
        "launcher": _combined(claim, [part.status for part in _deciding(parts)])
        if run
        else Status.NOT_RUN,
        "code": _combined(claim, own),
    }


def evaluate_claim(claim: Claim, sources: Sources) -> ClaimResult:
    """The verdict on a claim: that on each of its parts at this scale, combined."""
    scale = sources.results.scale
    parts = tuple(
        result
        for part in claim.parts
        if scale in part.scales
        for result in evaluate_part(part, sources)
    )
    return ClaimResult(
        claim,
        _combined(claim, [part.status for part in _deciding(parts)]),
        parts,
        _claim_note(parts),
        tuple(_shown(part, sources) for part in claim.further),
        _under(claim, parts),
    )


def _claim_note(parts: Sequence[PartResult]) -> str:
    notes = []
    own = [part.status for part in parts if part.part.twin is None]
    run = [status for status in own if status is not Status.NOT_RUN]
    if run and len(run) < len(own):
        held = sum(status.holds for status in run)
        notes.append(f"parts run: {len(run)} of {len(own)}; holding: {held}")
    if failed := [part.part.id for part in parts if part.failed]:
        notes.append("failing without an explanation: " + ", ".join(failed))
    if repeated := [part.interval.point for part in parts
                    if part.part.kind == "repeats" and part.interval is not None]:  # fmt: skip
        notes.append(f"{sum(repeated):.0f} of {len(repeated)} verdicts repeat")
    return "; ".join(notes)


def _shown(part: Part, sources: Sources) -> PartResult:
    """Further evidence: measured, and not judged."""
    measured = measure(part, sources)
    status = Status.NOT_RUN if measured.missing else Status.INCONCLUSIVE
    note = measured.missing or measured.note
    return PartResult(part, status, None, measured.interval, note=note)


def _repeats(part: Part, sources: Sources) -> Measured:
    """Whether a claim has the same verdict with a second world's pair of teacher and baseline."""
    family, pair = part.quantity["family"], part.quantity["pair"]
    claim = next(one for one in sources.ledger.claims if one.id == part.quantity["claim"])
    own = tuple(one for one in claim.parts if one.quantity.get("family") == family)
    if not own:
        return Measured(missing=f"{claim.id} has no part of {family}, whose classes {pair} has")
    moved = tuple(replace(one, quantity={**one.quantity, "family": pair}) for one in own)
    first, second = (
        evaluate_claim(replace(claim, parts=parts, further=()), sources).status
        for parts in (own, moved)
    )
    note = f"{first.value} in the first world, {second.value} in the second"
    if Status.NOT_RUN in (first, second):
        return Measured(missing=note)
    same, decided = first is second, first is not Status.INCONCLUSIVE is not second
    return Measured(
        Interval.exact(float(same)),
        note=note,
        open="" if decided else "one of the two is inconclusive",
    )


def verify(
    results: str | Path,
    scale: str,
    ledger: Ledger | None = None,
    reported: Reported | None = None,
    *,
    only: Iterable[str] | None = None,
    recorded: str | Path | None = None,
) -> list[ClaimResult]:
    """Judge every claim of the ledger.

    Args:
        results: the folder that holds <scale>/scores, outcomes, training and measurements.
        scale: which of them.
        ledger: default: the project's.
        reported: default: the paper's tables.
        only: ids of the claims; default: all.
        recorded: the folder of results recorded on other devices, if there is one.

    Raises:
        InputError: for an unknown scale, or results that are wrong in themselves.
    """
    ledger = load_ledger() if ledger is None else ledger
    reported = load_tables() if reported is None else reported
    folder = None if recorded is None else Path(recorded)
    sources = Sources(ResultSet(results, scale), ledger, reported, folder)
    chosen = None if only is None else set(only)
    return [
        evaluate_claim(claim, sources)
        for claim in ledger.claims
        if chosen is None or claim.id in chosen
    ]
