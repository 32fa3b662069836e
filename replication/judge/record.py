"""The verdicts as the content of claims.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from replication.base.files import read_json
from replication.base.scales import FULL_SCALE
from replication.judge.cells import CellResult, cells_data
from replication.judge.claims import POWER, ClaimResult, PartResult
from replication.paper import FOLDER, Ledger
from replication.paper.history import History, Written, ledger_history, precedes, world_commit
from replication.stats.verdict import Status

BY = {
    "paper": "claims of the paper",
    "reviewers": "wishes of its reviewers",
    "repository": "properties of this repository",
}
"""Whose claims are counted together."""


def counts(claims: Iterable[ClaimResult]) -> dict[str, dict[str, int]]:
    """How many claims have each status: the paper's, its reviewers', this repository's."""
    found = Counter((result.claim.by, result.status) for result in claims)
    return {by: {status.value: found[by, status] for status in Status} for by in BY}  # type: ignore[index]


def stale(claims: Sequence[ClaimResult], ledger: Ledger, scale: str) -> list[str]:
    """What the ledger explains and does not fail: the explanation is out of date."""
    parts = [part for result in claims for part in result.parts]
    run = [part for part in parts if part.status is not Status.NOT_RUN]
    return [
        ", ".join(one.of)
        for one in ledger.explanations
        if (own := [part for part in run if one.explains(part.part.id, scale)])
        and not any(part.status.fails for part in own)
    ]


def written(when: Written | None) -> dict[str, str | None]:
    """The date and commit of a sentence; null where git knows none."""
    return {"date": None, "commit": None} if when is None else asdict(when)


def _expected(part: PartResult, scale: str, history: History, measured: Sequence[str]) -> Any:
    expected = part.part.expected.get(scale)
    if expected is None:
        return None
    when = history.first(expected.reason)
    before = None if when is None else precedes(when, measured)
    # an expectation is written before measuring; what was written afterwards explains
    kind = {True: "expectation", False: "explanation", None: "not recorded"}[before]
    return {**asdict(expected), **written(when), "written": kind}


def _part_data(
    result: PartResult, scale: str, history: History, measured: Sequence[str]
) -> dict[str, Any]:
    part, mcnemar, explanation = result.part, result.mcnemar, result.explanation
    rule = part.rule(scale)
    return {
        "id": part.id,
        "text": part.text,
        "quantity": dict(part.quantity),
        "coefficients": "launcher" if part.twin else "code",
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
        "expected": _expected(result, scale, history, measured),
        "explanation": explanation
        and {"text": explanation.text, **written(history.first(explanation.text))},
        "status": result.status.value,
        "failed": result.failed,
        "note": result.note,
    }


def _claim_data(
    result: ClaimResult, scale: str, history: History, measured: Sequence[str]
) -> dict[str, Any]:
    claim = result.claim
    return {
        "id": claim.id,
        "by": claim.by,
        "text": claim.text,
        "where": claim.where,
        "reported": claim.reported,
        "combine": claim.combine,
        "status": result.status.value,
        "under": {name: status.value for name, status in result.under.items()} or None,
        "failed": result.failed,
        "note": result.note,
        "parts": [_part_data(part, scale, history, measured) for part in result.parts],
        "further": [
            {
                "text": one.part.text,
                "unit": one.part.unit,
                "measured": one.interval and asdict(one.interval),
                "note": one.note,
            }
            for one in result.further
        ],
    }


def document(
    claims: Sequence[ClaimResult],
    cells: Sequence[CellResult],
    scale: str,
    ledger: Ledger,
    measured: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> dict[str, Any]:
    """The verdicts: the claims and, at full scale, the cells.

    Args:
        claims: the verdicts on claims.
        cells: those on cells.
        scale: at which they were reached.
        ledger: that they follow.
        measured: the commits of the results, by method; see `result_commits`.
    """
    history, world = ledger_history(FOLDER / "claims.yaml"), world_commit()
    commits = sorted({commit for own in measured.values() for commit in own})
    judged = measured.get("grace", ())  # the others are what the world was chosen by
    return {
        "scale": scale,
        "world": {**written(world), "before_grace": world and precedes(world, judged)},
        "coefficients": ledger.coefficients.reason,
        "bootstrap": {
            "seed": ledger.seed,
            "resamples": ledger.resamples,
            "level": ledger.level,
            "power_of_smallest_resolvable_difference": POWER,
        },
        "summary": counts(claims),
        "failed": [result.claim.id for result in claims if result.failed],
        "stale_explanations": stale(claims, ledger, scale),
        "claims": [_claim_data(result, scale, history, commits) for result in claims],
        **(cells_data(cells) if scale == FULL_SCALE else {}),
    }


def result_commits(results: Path) -> dict[str, set[str]]:
    """The commits that the score files of a scale's folder were measured at, by method."""
    found: dict[str, set[str]] = {}
    for path in results.glob("scores/*/*.json"):
        content = read_json(path)
        commit = content.get("provenance", {}).get("commit")
        if commit:
            found.setdefault(content.get("method", ""), set()).add(commit)
    return found
