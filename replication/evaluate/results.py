"""Parts of evaluated models as the score and outcome files that everything else reads."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from replication.base import provenance
from replication.base.scales import FULL_SCALE
from replication.benchmarks import PRINTED
from replication.evaluate.parts import Origin, Part, Request, earlier_parts, evaluate
from replication.results.scores import (
    outcomes_path,
    scores_path,
    write_outcomes,
    write_scores,
)


@dataclass(frozen=True)
class Job:
    """One model to evaluate.

    Attributes:
        folder: The folder of its results: its pair's, or that of a group of runs.
        family: Its family.
        pair: The name that its results go by; see ``replication.results.scores``.
        world: That its questions are of.
        name: Its name in the folder.
        method: The method that made it.
        bits: Of its weights.
        paths: Its directories, by seed.
    """

    folder: str
    family: str
    pair: str
    world: str
    name: str
    method: str
    bits: int
    paths: dict[int, Path]


@dataclass(frozen=True)
class Place:
    """Where results are written.

    Attributes:
        results: The directory of all scales.
        scale: The scale.
        command: The command line that writes them, for the provenance.
        params: The parameters that they follow from, for the provenance.
    """

    results: Path
    scale: str
    command: str
    params: Any


PARAMETERS = (
    *("evaluate.batch_size", "evaluate.dtype", "evaluate.max_new_tokens"),
    "data.benchmarks",
)
"""The parameters that every evaluation reads."""


def evaluate_job(
    job: Job,
    requests: Mapping[int, Request],
    place: Place,
    *,
    processes: int = 1,
    add: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Evaluate every seed of a model and write its scores and outcomes.

    What is there already and follows from the same weights, questions, settings and code is kept.

    Args:
        job: The model.
        requests: What to ask it, by seed.
        place: Where the results are written.
        processes: Of this machine, for each request.
        add: Whether benchmarks that were evaluated earlier, with the same weights, settings and
            code, stay in the results.
        extra: Further entries of the provenance.

    Raises:
        InputError: For bad input.
        EvaluationError: If a process fails.
    """
    origins = {seed: {n: r.origin(n) for n in r.data} for seed, r in requests.items()}
    if _is_written(job, place, origin_of(origins)):
        return
    parts = {seed: evaluate(request, processes) for seed, request in requests.items()}
    if add:
        parts = {seed: {**earlier_parts(requests[seed]), **own} for seed, own in parts.items()}
    origin = origin_of({s: {n: part.origin for n, part in own.items()} for s, own in parts.items()})
    if not _is_written(job, place, origin):
        _write(job, place, parts, origin, extra or {})


def origin_of(origins: Mapping[int, Mapping[str, Origin]]) -> Origin:
    """What a model's results follow from, of the origins by seed and benchmark."""
    by_benchmark = next(iter(origins.values()))
    shared = next(iter(by_benchmark.values()))
    weights = {seed: next(iter(own.values()))["weights"] for seed, own in origins.items()}
    return {
        "weights": json.dumps(weights),
        "questions": json.dumps({n: own["questions"] for n, own in by_benchmark.items()}),
        "official_tasks": json.dumps({n: own["official_task"] for n, own in by_benchmark.items()}),
        **{key: shared[key] for key in ("settings", "versions", "code")},
    }


def _is_written(job: Job, place: Place, origin: Origin) -> bool:
    where = (place.results, place.scale, job.folder, job.name)
    try:
        record = json.loads(scores_path(*where).read_text())
        return record["origin"] == origin and outcomes_path(*where).is_file()
    except (OSError, ValueError, KeyError):
        return False


def _write(
    job: Job,
    place: Place,
    parts: Mapping[int, Mapping[str, Part]],
    origin: Origin,
    extra: Mapping[str, Any],
) -> None:
    seeds, frames = {}, []
    for seed, own in parts.items():
        seeds[str(seed)] = {"benchmarks": {PRINTED[n]: part.score for n, part in own.items()}}
        for name, part in own.items():
            frames.append(part.outcomes.assign(seed=seed, benchmark=PRINTED[name]))
    outcomes = pd.concat(frames)
    own = next(iter(parts.values()))
    settings = {PRINTED[name]: part.settings for name, part in own.items()}
    data = {PRINTED[name]: part.data for name, part in own.items() if part.data}
    first = next(iter(settings.values()))
    details = {
        "settings": first if all(other == first for other in settings.values()) else settings,
        **({"data": data} if data else {}),
        **extra,
    }
    record = {
        "family": job.family,
        "pair": job.pair,
        "world": job.world,
        "run": job.name,
        "method": job.method,
        "bits": job.bits,
        "scale": place.scale,
        "standin": place.scale != FULL_SCALE,
        "seeds": seeds,
        "origin": origin,
        "provenance": provenance.collect(
            place.params,
            list(parts),
            place.command,
            device=provenance.device_description(),
            extra=details,
        ),
    }
    where = (place.results, place.scale, job.folder, job.name)
    scores_path(*where).unlink(missing_ok=True)  # scores beside other outcomes would be wrong
    columns = {name: outcomes[name] for name in outcomes}
    write_outcomes(place.results, place.scale, job.family, job.name, columns, folder=job.folder)
    write_scores(place.results, record, job.folder)
    for label, entry in seeds.items():
        rounded = {name: round(score["score"], 2) for name, score in entry["benchmarks"].items()}
        print(f"{job.pair}/{job.name}, seed {label}: {rounded}", file=sys.stderr)
