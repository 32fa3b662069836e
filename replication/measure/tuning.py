"""The best of every method's candidates, on validation questions of their own.

A candidate is a run, trained as every other. The questions are of scenes that are in neither the
training set nor the benchmarks. The best one's results are kept a second time, under the name of
the method's tuned row.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from replication.base import provenance
from replication.base.files import atomic_path, read_json
from replication.base.workers import run_all
from replication.benchmarks import PRINTED
from replication.data.world.benchmarks import write_benchmark
from replication.data.world.corpus import drawing_of
from replication.evaluate.score import evaluate_model, evaluation_dtype
from replication.results.scores import outcomes_path, scores_path, write_scores
from replication.results.tuning import tuned_name, tuning_path, write_tuning
from replication.settings.paths import Layout, needed
from replication.settings.schema import Params, Run, section

SECTIONS = ("standins", "evaluate", "tuning")
"""Sections of the parameters that the choice follows from."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A run to choose from.

    Attributes:
        folder: the group that it is in.
        name: its name.
        run: its settings.
    """

    folder: str
    name: str
    run: Run


def candidates_of(params: Params, pair: str) -> list[Candidate]:
    """A pair's candidates, method by method."""
    found = []
    for names in section(params.tuning, "tuning").candidates.values():
        for name in names:
            folder, run = params.find_run(pair, name)
            found.append(Candidate(folder, name, run))
    return found


def settings_of(params: Params, run: Run) -> str:
    """How a run differs from the shared settings, in words."""
    own = [f"{key} {value:g}" for key, value in run.distillation.items()]
    if run.learning_rate is not None:
        own.append(f"learning rate {run.learning_rate:g}")
    if run.coefficients not in (None, params.train.coefficients):
        own.append(f"coefficients of the {run.coefficients}")
    return ", ".join(own) or "as in the other tables"


def write_questions(params: Params, pair: str, names: list[str]) -> Path:
    """Write the validation questions of benchmarks; returns their folder."""
    world, tuning = section(params.standins, "standins"), section(params.tuning, "tuning")
    folder = Layout(params, pair).data / "validation" / pair
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        write_benchmark(
            name,
            folder / f"{name}.parquet",
            split="validation",
            count=tuning.questions,
            seed=tuning.seed,
            drawing=drawing_of(world),
        )
    return folder


def score(params: Params, path: Path, names: list[str], questions: Path) -> float:
    """Average score of a model directory on the validation questions, in percent."""
    settings = params.evaluate
    evaluation = evaluate_model(
        path,
        names,
        questions,
        batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens,
        dtype=evaluation_dtype(settings.dtype),
    )
    scores = [entry["score"] for entry in evaluation.scores.values()]
    return sum(scores) / len(scores)


def choose(methods: list[str], scores: list[float]) -> list[bool]:
    """Which candidates are their method's best; of equal ones the first."""
    best: dict[str, int] = {}
    for index, method in enumerate(methods):
        if method not in best or scores[index] > scores[best[method]]:
            best[method] = index
    return [index in best.values() for index in range(len(methods))]


def tune(params: Params, pair: str) -> Path:
    """Score a pair's candidates, write what was found, and the results of each method's best.

    Returns:
        The path of the record.

    Raises:
        InputError: where a stage that comes before has not run.
    """
    layout, candidates = Layout(params), candidates_of(params, pair)
    names = params.evaluate.benchmarks[f"{pair}_tuning"]
    paths = [
        needed(layout.trained(one.folder, one.name, one.run.seeds[0]), "train")
        for one in candidates
    ]
    questions = write_questions(params, pair, names)
    scores = run_all(score, [(params, path, names, questions) for path in paths])
    chosen = choose([one.run.method for one in candidates], scores)
    best = [one for one, kept in zip(candidates, chosen, strict=True) if kept]
    _keep_tuned(layout, params.scale, pair, best)
    record = {
        "scale": params.scale,
        "pair": pair,
        "bits": candidates[0].run.bits,
        "benchmarks": [PRINTED[name] for name in names],
        "questions": section(params.tuning, "tuning").questions,
        "candidates": [
            {
                "method": one.run.method,
                "run": one.name,
                "settings": settings_of(params, one.run),
                "score": points,
                "chosen": kept,
            }
            for one, points, kept in zip(candidates, scores, chosen, strict=True)
        ],
        "provenance": provenance.collect(
            params.subset(*SECTIONS),
            [candidates[0].run.seeds[0]],
            f"python -m replication.stages.tuning {pair}",
            device=provenance.device_description(),
        ),
    }
    path = tuning_path(layout.results.parent, params.scale, pair)
    write_tuning(path, record)
    return path


def _keep_tuned(layout: Layout, scale: str, pair: str, chosen: list[Candidate]) -> None:
    """The scores and outcomes of the chosen runs once more, under the names of the tuned rows."""
    results, folder = layout.results.parent, f"{pair}_tuned"
    for stale in (layout.scores(folder), layout.outcomes(folder)):
        shutil.rmtree(stale, ignore_errors=True)
    for one in chosen:
        name = tuned_name(one.run.method, one.run.bits)
        record: dict[str, Any] = read_json(
            needed(scores_path(results, scale, one.folder, one.name), "evaluate")
        )
        write_scores(results, {**record, "run": name}, folder)
        copy = outcomes_path(results, scale, folder, name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(copy) as temporary:
            shutil.copyfile(outcomes_path(results, scale, one.folder, one.name), temporary)
