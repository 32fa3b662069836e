"""Evaluation of the models of a folder, every seed of each, on the folder's benchmarks.

What is there already and follows from the same weights, questions, settings and code is kept. At
scale paper the questions are the published ones, and what is kept is every finished benchmark
(:mod:`replication.evaluate.parts`).
"""

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from grace.models import check_model_directory
from replication.base import hub, provenance
from replication.base.code import code_hash
from replication.base.scales import FULL_SCALE
from replication.base.workers import run_all
from replication.benchmarks import BENCHMARKS, PRINTED, Published
from replication.evaluate import parts as evaluate_shard
from replication.evaluate.score import evaluate_model, evaluation_dtype
from replication.results.scores import outcomes_path, scores_path, write_outcomes, write_scores
from replication.settings.paths import Layout, needed
from replication.settings.schema import Params, section

_Found = tuple[dict[str, dict[str, Any]], pd.DataFrame]
"""Scores by benchmark, and outcomes."""


@dataclass(frozen=True)
class Job:
    """One model to evaluate; ``paths`` are its directories by seed."""

    folder: str
    family: str
    name: str
    method: str
    bits: int
    paths: dict[int, Path]


def jobs_of(params: Params, folder: str) -> list[Job]:
    """The models of a folder: a family's teacher and baseline, or a group of runs."""
    layout, family = Layout(params), params.family_of(folder)
    if folder in params.families:
        return [
            Job(folder, family, name, name, 16, {0: layout.model(folder, name)})
            for name in ("teacher", "baseline")
        ]
    if folder in params.ptq.groups:
        return [
            Job(folder, family, name, model.method, model.bits, {0: layout.model(folder, name)})
            for name, model in params.ptq.groups[folder].models.items()
        ]
    jobs = []
    for name, run in params.group(folder).models.items():
        paths = {seed: layout.trained(folder, name, seed) for seed in run.seeds}
        jobs.append(Job(folder, family, name, run.method, run.bits, paths))
    return jobs


def _digest(path: Path) -> str:
    """Hash of a file, or of what a model directory says of its weights and how to ask it."""
    files = [path]
    if path.is_dir():
        files = [f for f in sorted(path.iterdir()) if f.name != "origin.json" and f.is_file()]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0")
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def origin_of(params: Params, job: Job) -> dict[str, str]:
    """What an evaluation follows from."""
    layout, settings = Layout(params), params.evaluate
    names = settings.benchmarks[job.folder]
    files = {name: needed(layout.benchmarks / f"{name}.parquet", "standins") for name in names}
    asked = {name: _digest(path) for name, path in files.items()}
    dtype = evaluation_dtype(settings.dtype)
    return {
        "weights": json.dumps({seed: _digest(path) for seed, path in job.paths.items()}),
        "questions": json.dumps(asked),
        "settings": json.dumps([settings.batch_size, settings.max_new_tokens, dtype]),
        "official_tasks": json.dumps({name: BENCHMARKS[name].sha256() for name in names}),
        "versions": json.dumps(provenance.library_versions(), sort_keys=True),
        "code": code_hash("replication.evaluate.jobs"),
    }


def published_origin(params: Params, job: Job, data: dict[str, Published]) -> dict[str, str]:
    """What an evaluation on published questions follows from."""
    requests = {seed: _request(params, job, seed, data) for seed in job.paths}
    first = next(iter(requests.values()))
    origins = {name: first.origin(name) for name in data}
    return {
        "weights": json.dumps({seed: request.weights for seed, request in requests.items()}),
        "questions": json.dumps({name: origin["questions"] for name, origin in origins.items()}),
        "official_tasks": json.dumps({n: origin["official_task"] for n, origin in origins.items()}),
        **{key: next(iter(origins.values()))[key] for key in ("settings", "versions", "code")},
    }


def _request(
    params: Params, job: Job, seed: int, data: dict[str, Published]
) -> evaluate_shard.Request:
    layout, settings = Layout(params), params.evaluate
    return evaluate_shard.Request(
        model=str(job.paths[seed]),
        data=data,
        parts=str(layout.models / ".evaluations" / job.folder / job.name / f"seed{seed}"),
        cache=str(layout.data / "benchmarks" / "tables"),
        weights=hub.directory_sha256(job.paths[seed], ["origin.json"]),
        batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens,
        dtype=evaluation_dtype(settings.dtype),
    )


def _is_done(params: Params, job: Job, origin: dict[str, str]) -> bool:
    place = (Layout(params).results.parent, params.scale, job.folder, job.name)
    try:
        return (
            outcomes_path(*place).is_file()
            and json.loads(scores_path(*place).read_text())["origin"] == origin
        )
    except (OSError, ValueError, KeyError):
        return False


def evaluate_one(params: Params, job: Job) -> None:
    """Evaluate every seed of a model on the stand-ins and write its scores and outcomes."""
    layout, settings = Layout(params), params.evaluate
    origin = origin_of(params, job)
    if _is_done(params, job, origin):
        return
    found: dict[int, _Found] = {}
    told: dict[str, Any] = {}
    for seed, path in job.paths.items():
        evaluation = evaluate_model(
            path,
            settings.benchmarks[job.folder],
            layout.benchmarks,
            batch_size=settings.batch_size,
            max_new_tokens=settings.max_new_tokens,
            dtype=evaluation_dtype(settings.dtype),
        )
        found[seed] = evaluation.scores, evaluation.outcomes
        told = evaluation.settings
    _write(params, job, found, origin, {"settings": told})


def evaluate_published(params: Params, job: Job, data: dict[str, Published]) -> None:
    """Evaluate every seed of a model on published questions and write its scores and outcomes."""
    origin = published_origin(params, job, data)
    if _is_done(params, job, origin):
        return
    processes = evaluate_shard.count_processes(params.evaluate.processes)
    found: dict[int, _Found] = {}
    told: dict[str, Any] = {}
    for seed in job.paths:
        parts = evaluate_shard.evaluate(_request(params, job, seed, data), processes)
        scores = {name: part.score for name, part in parts.items()}
        found[seed] = scores, pd.concat([part.outcomes for part in parts.values()])
        told = {name: part.settings for name, part in parts.items()}
    commits = {n: {"repository": p.repository, "commit": p.commit} for n, p in data.items()}
    _write(params, job, found, origin, {"settings": told, "data": commits})


def _write(
    params: Params,
    job: Job,
    found: dict[int, _Found],
    origin: dict[str, str],
    extra: dict[str, Any],
) -> None:
    results = Layout(params).results.parent
    place = (results, params.scale, job.folder, job.name)
    seeds, frames = {}, []
    for seed, (scores, outcomes) in found.items():
        seeds[str(seed)] = {"benchmarks": {PRINTED[n]: entry for n, entry in scores.items()}}
        frame = outcomes.assign(seed=seed)
        frames.append(frame.assign(benchmark=frame["benchmark"].map(PRINTED)))
    outcomes = pd.concat(frames)
    record = {
        "family": job.family,
        "run": job.name,
        "method": job.method,
        "bits": job.bits,
        "scale": params.scale,
        "standin": params.scale != FULL_SCALE,
        "seeds": seeds,
        "origin": origin,
        "provenance": provenance.collect(
            params.subset(
                *("evaluate.batch_size", "evaluate.dtype", "evaluate.max_new_tokens"),
                *("data.benchmarks", f"evaluate.benchmarks.{job.folder}"),
            ),
            list(job.paths),
            f"python -m replication.stages.evaluate {job.folder}",
            device=provenance.device_description(),
            extra=extra,
        ),
    }
    scores_path(*place).unlink(missing_ok=True)  # scores beside other outcomes would be wrong
    columns = {name: outcomes[name] for name in outcomes}
    write_outcomes(results, params.scale, job.family, job.name, columns, folder=job.folder)
    write_scores(results, record, job.folder)
    for label, entry in seeds.items():
        shown = {name: round(values["score"], 2) for name, values in entry["benchmarks"].items()}
        print(f"{job.family}/{job.name}, seed {label}: {shown}", file=sys.stderr)


def evaluate_folder(params: Params, folder: str) -> None:
    """Evaluate the models of a folder, and remove what earlier parameters left of it."""
    layout = Layout(params)
    jobs = jobs_of(params, folder)
    for job in jobs:
        for path in job.paths.values():
            check_model_directory(path)
    if params.scale == FULL_SCALE:
        sources = section(params.data, "data").benchmarks
        names = params.evaluate.benchmarks[folder]
        data = evaluate_shard.prepare_data(names, sources, layout.data / "benchmarks")
        for job in jobs:
            evaluate_published(params, job, data)
    else:
        run_all(evaluate_one, [(params, job) for job in jobs])
    known = {job.name for job in jobs}
    for kind in (layout.scores(folder), layout.outcomes(folder)):
        for path in kind.iterdir():
            if path.stem not in known:
                path.unlink()
