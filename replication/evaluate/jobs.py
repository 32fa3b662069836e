"""Evaluation of the models of a folder, every seed of each, on the folder's benchmarks.

At scale paper the questions are the published ones, one model at a time on all accelerators; at
reduced scale they are stand-ins, and the models are evaluated side by side.
"""

import shutil
from pathlib import Path

from grace.files import directory_sha256
from grace.models import check_model_directory
from replication.base.scales import FULL_SCALE
from replication.base.workers import run_all
from replication.benchmarks import BENCHMARKS, Questions, Standins
from replication.benchmarks.published import prepare
from replication.evaluate.parts import Request, count_processes
from replication.evaluate.results import PARAMETERS, Job, Place, evaluate_job
from replication.evaluate.score import evaluation_dtype
from replication.settings.paths import Layout, needed
from replication.settings.schema import KINDS, REGIMES, Params


def jobs_of(params: Params, folder: str) -> list[Job]:
    """The models of a folder: a pair's teacher and baseline, the map's, or a group of runs."""
    layout, place = Layout(params), _place(params, folder)
    if folder in params.pairs:
        return [
            Job(folder, *place, name, name, 16, {0: layout.model(folder, name)}) for name in KINDS
        ]
    if folder == REGIMES and params.regimes is not None:
        return [
            Job(folder, *place, name, model.like, 16, {0: layout.model(folder, name)})
            for name, model in params.regimes.models.items()
        ]
    if folder in params.ptq.groups:
        return [
            Job(folder, *place, name, model.method, model.bits, {0: layout.model(folder, name)})
            for name, model in params.ptq.groups[folder].models.items()
        ]
    jobs = []
    for name, run in params.group(folder).models.items():
        paths = {seed: layout.trained(folder, name, seed) for seed in run.seeds}
        jobs.append(Job(folder, *place, name, run.method, run.bits, paths))
    return jobs


def _place(params: Params, folder: str) -> tuple[str, str, str]:
    """Family, pair and world of a folder's results."""
    return (
        params.family_of(folder),
        params.owner_of(folder),
        params.pair(params.pair_of(folder)).world,
    )


def questions_of(params: Params, names: list[str], folder: str) -> dict[str, Questions]:
    """The questions of benchmarks, of the world of a folder's models: published ones where the
    parameters name data, else stand-ins.

    Raises:
        InputError: When they are missing, or cannot be fetched.
    """
    layout = Layout(params, folder)
    if params.data is None:
        files = {name: layout.benchmarks / f"{name}.parquet" for name in names}
        return {n: Standins(str(needed(file, "standins").absolute())) for n, file in files.items()}
    sources, views = params.data.benchmarks, layout.data / "benchmarks"
    return {name: prepare(BENCHMARKS[name], sources[name], views, None) for name in names}


def _request(params: Params, job: Job, seed: int, data: dict[str, Questions]) -> Request:
    layout, settings = Layout(params), params.evaluate
    published = params.scale == FULL_SCALE
    return Request(
        model=str(job.paths[seed]),
        data=data,
        parts=str(layout.models / ".evaluations" / job.folder / job.name / f"seed{seed}"),
        weights=directory_sha256(job.paths[seed], ["origin.json"]),
        batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens,
        dtype=evaluation_dtype(settings.dtype),
        cache=str(layout.data / "benchmarks" / "tables") if published else None,
        together=not published,
        inputs=None if published else str(_inputs(layout, job.folder)),
    )


def _inputs(layout: Layout, folder: str) -> Path:
    """Where the models of a folder share their inputs while they are evaluated."""
    return layout.models / ".evaluations" / folder / ".inputs"


def evaluate_one(params: Params, job: Job, data: dict[str, Questions], processes: int = 1) -> None:
    """Evaluate every seed of a model and write its scores and outcomes."""
    place = Place(
        results=Layout(params).results.parent,
        scale=params.scale,
        command=f"python -m replication.stages.evaluate {job.folder}",
        params=params.subset(*PARAMETERS, f"evaluate.benchmarks.{job.folder}"),
    )
    requests = {seed: _request(params, job, seed, data) for seed in job.paths}
    evaluate_job(job, requests, place, processes=processes)


def evaluate_folder(params: Params, folder: str) -> None:
    """Evaluate the models of a folder, and remove what earlier parameters left of it.

    Raises:
        InputError: For an unknown folder, or models or questions that are missing.
    """
    layout = Layout(params)
    jobs = jobs_of(params, folder)
    for job in jobs:
        for path in job.paths.values():
            check_model_directory(path)
    data = questions_of(params, params.evaluate.benchmarks[folder], folder)
    if params.scale == FULL_SCALE:
        for job in jobs:
            evaluate_one(params, job, data, count_processes(params.evaluate.processes))
    else:
        shared = _inputs(layout, folder)
        shutil.rmtree(shared, ignore_errors=True)  # an interrupted evaluation left it
        run_all(evaluate_one, [(params, job, data) for job in jobs])
        shutil.rmtree(shared, ignore_errors=True)
    known = {job.name for job in jobs}
    for kind in (layout.scores(folder), layout.outcomes(folder)):
        for path in kind.iterdir():
            if path.stem not in known:
                path.unlink()
