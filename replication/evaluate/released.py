"""Released checkpoints through the one path to a score, benchmark by benchmark, resumable.

Results lie under ``<results>/paper`` in the layout of :mod:`replication.results.scores`, a run for
a
checkpoint. What was measured before and follows from the same weights, protocol and code stays in
them when other benchmarks are added.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from grace.errors import InputError
from replication.base import hub, provenance
from replication.base.scales import FULL_SCALE
from replication.benchmarks import BENCHMARKS, PRINTED, Published
from replication.benchmarks.published import prepare
from replication.evaluate import parts as evaluate_shard
from replication.evaluate.parts import EvaluationError, Part, Request
from replication.evaluate.score import evaluation_dtype
from replication.paper.released import Checkpoint, Files, find_files
from replication.results.scores import outcomes_path, scores_path, write_outcomes, write_scores
from replication.settings.schema import Params, section


@dataclass(frozen=True)
class Places:
    """Where things are read from and written to.

    path, mirror: where to look for checkpoints and data. data: what is made of published data.
    parts: finished benchmarks.
    """

    results: Path
    path: Path | None = None
    mirror: Path | None = None
    data: Path = Path("data") / FULL_SCALE / "benchmarks"
    parts: Path = Path("models") / ".released"


@dataclass(frozen=True)
class Attempt:
    """What came of one checkpoint: where it was found, and why something was not run.

    missing: the reason by benchmark, and under "" that of the whole checkpoint.
    """

    checkpoint: Checkpoint
    directory: Path | None = None
    missing: dict[str, str] = field(default_factory=dict)


def prepare_data(
    names: Iterable[str], params: Params, places: Places
) -> tuple[dict[str, Published], dict[str, str]]:
    """The published data that can be had, and the reasons for those that cannot."""
    sources = section(params.data, "data").benchmarks
    found, missing = {}, {}
    for name in names:
        try:
            found[name] = prepare(BENCHMARKS[name], sources[name], places.data, places.mirror)
        except InputError as error:
            missing[name] = str(error)
    return found, missing


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    data: Mapping[str, Published],
    params: Params,
    places: Places,
    *,
    processes: int = 1,
    device: str = "auto",
) -> Attempt:
    """Evaluate a checkpoint on data and write its results; a failure is a reason, no exception."""
    import torch

    try:
        files = find_files(checkpoint, places.path, places.mirror)
        if data:
            request = _request(checkpoint, files, data, params, places)
            request = replace(request, device=device)
            parts = evaluate_shard.evaluate(request, processes)
            _write(checkpoint, files, request, parts, places)
    except (InputError, EvaluationError, MemoryError, torch.OutOfMemoryError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        return Attempt(checkpoint, missing={"": reason})
    return Attempt(checkpoint, files.model)


def _request(
    checkpoint: Checkpoint,
    files: Files,
    data: Mapping[str, Published],
    params: Params,
    places: Places,
) -> Request:
    released: dict[str, Any] | None = None
    if checkpoint.format == "released":
        released = {"bits": checkpoint.bits, "base": str(files.base) if files.base else None}
    return Request(
        model=str(files.model),
        processor=str(files.processor),
        released=released,
        data=dict(data),
        parts=str(places.parts / checkpoint.name),
        cache=str(places.data / "tables"),
        weights=files.sha256(),
        batch_size=params.evaluate.batch_size,
        max_new_tokens=params.evaluate.max_new_tokens,
        dtype=evaluation_dtype(params.evaluate.dtype),
    )


def _write(
    checkpoint: Checkpoint,
    files: Files,
    request: Request,
    parts: Mapping[str, Part],
    places: Places,
) -> None:
    place = (places.results, FULL_SCALE, checkpoint.family, checkpoint.name)
    origins = {PRINTED[name]: request.origin(name) for name in parts}
    scores = {PRINTED[name]: part.score for name, part in parts.items()}
    frames = [p.outcomes.assign(seed=0, benchmark=PRINTED[name]) for name, p in parts.items()]
    told = {PRINTED[name]: part.settings for name, part in parts.items()}
    from_data = {
        PRINTED[name]: {"repository": one.repository, "commit": one.commit}
        for name, one in request.data.items()
    }
    if old := _earlier(place, origins):
        scores = {**old.scores, **scores}
        origins, told = {**old.origins, **origins}, {**old.settings, **told}
        from_data = {**old.data, **from_data}
        frames.append(old.outcomes)
    outcomes = pd.concat(frames)
    record = {
        "family": checkpoint.family,
        "run": checkpoint.name,
        "method": "grace",
        "bits": checkpoint.bits,
        "scale": FULL_SCALE,
        "standin": False,
        "seeds": {"0": {"benchmarks": scores}},
        "origin": origins,
        "provenance": provenance.collect(
            {"settings": json.dumps(origins, sort_keys=True)},
            [0],
            f"python -m replication.released --models {checkpoint.name}",
            device=provenance.device_description(),
            extra={
                "settings": told,
                "data": from_data,
                "checkpoint": {
                    "repository": checkpoint.repository,
                    "commit": hub.commit_of(files.model),
                    "sha256": request.weights,
                },
            },
        ),
    }
    if _is_written(place, origins):
        return
    scores_path(*place).unlink(missing_ok=True)  # scores beside other outcomes would be wrong
    columns = {name: outcomes[name] for name in outcomes}
    write_outcomes(*place, columns)
    write_scores(places.results, record)


@dataclass(frozen=True)
class _Earlier:
    scores: dict[str, Any]
    origins: dict[str, Any]
    settings: dict[str, Any]
    data: dict[str, Any]
    outcomes: pd.DataFrame


def _record(place: tuple[Path, str, str, str]) -> dict[str, Any]:
    try:
        return json.loads(scores_path(*place).read_text())
    except (OSError, ValueError):
        return {}


def _is_written(place: tuple[Path, str, str, str], origins: dict[str, Any]) -> bool:
    return _record(place).get("origin") == origins and outcomes_path(*place).is_file()


def _earlier(place: tuple[Path, str, str, str], new: dict[str, Any]) -> _Earlier | None:
    """Results on other benchmarks of the same weights, protocol and code."""

    def protocol(origin: Mapping[str, str]) -> dict[str, str]:
        return {k: v for k, v in origin.items() if k not in ("questions", "official_task")}

    try:
        record = _record(place)
        outcomes = pd.read_parquet(outcomes_path(*place))
        current = protocol(next(iter(new.values())))
        kept = [
            name
            for name, origin in record["origin"].items()
            if name not in new and protocol(origin) == current
        ]
        told = record["provenance"]

        def of_kept(values: Mapping[str, Any]) -> dict[str, Any]:
            return {name: values[name] for name in kept}

        return _Earlier(
            scores=of_kept(record["seeds"]["0"]["benchmarks"]),
            origins=of_kept(record["origin"]),
            settings=of_kept(told["settings"]),
            data=of_kept(told["data"]),
            outcomes=outcomes[outcomes["benchmark"].isin(kept)],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
