"""The same tuning budget for every method: a small grid, chosen on questions of its own.

Every candidate of the section ``tuning`` is trained from the family's baseline, once each, and
scored on the validation split, whose scenes are in neither the training set nor the benchmarks.
"""

import dataclasses
from pathlib import Path
from typing import Any

from replication.base import provenance
from replication.base.files import write_json_atomic, write_text_atomic
from replication.base.workers import run_all
from replication.data.world.benchmarks import write_benchmark
from replication.data.world.corpus import drawing_of
from replication.evaluate.score import evaluate_model, evaluation_dtype
from replication.settings.paths import Layout, needed
from replication.settings.schema import Group, Params, Run, section
from replication.train.runs import train_one

DOCS = Path("docs/tuning")
SECTIONS = ("standins", "train", "evaluate", "tuning")
"""Sections of the parameters that a grid follows from."""


def with_candidates(params: Params, family: str) -> tuple[Params, str]:
    """The parameters with one more group, in which every candidate is a run; and its name."""
    models, tuning = {}, params.tuning
    for method, candidates in tuning.candidates.items():
        for index, candidate in enumerate(candidates):
            models[f"{method}_{index}"] = Run(
                method=method,
                bits=tuning.bits,
                seeds=[tuning.seed],
                learning_rate=candidate.learning_rate,
                coefficients=candidate.coefficients,
                distillation=candidate.distillation,
            )
    name = f"{family}_tuning"
    runs = {**params.runs, name: Group(family, models)}
    return dataclasses.replace(params, runs=runs), name


def write_questions(params: Params) -> Path:
    """Write the validation questions; returns their folder."""
    world, tuning = section(params.standins, "standins"), params.tuning
    folder = Layout(params).data / "validation"
    folder.mkdir(parents=True, exist_ok=True)
    for name in tuning.benchmarks:
        write_benchmark(
            name,
            folder / f"{name}.parquet",
            split="validation",
            count=tuning.questions,
            seed=tuning.seed,
            drawing=drawing_of(world),
        )
    return folder


def score(params: Params, path: Path, questions: Path) -> float:
    """Average score of a model directory on the validation questions, in percent."""
    settings = params.evaluate
    evaluation = evaluate_model(
        path,
        params.tuning.benchmarks,
        questions,
        batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens,
        dtype=evaluation_dtype(settings.dtype),
    )
    scores = [entry["score"] for entry in evaluation.scores.values()]
    return sum(scores) / len(scores)


def tune(params: Params, family: str) -> list[dict[str, Any]]:
    """Train and score every candidate that is not done already.

    Returns:
        For every candidate, in the order of the grid, its "method", "learning_rate",
        "distillation" settings and "score" in percent.

    Raises:
        InputError: where a stage that comes before has not run.
    """
    layout = Layout(params)
    needed(layout.conversations, "standins")
    needed(layout.model(family, "baseline"), "pairs")
    needed(layout.teacher_outputs(family), "teacher_outputs")
    full, group = with_candidates(params, family)
    seed = params.tuning.seed
    run_all(train_one, [(full, group, name, seed) for name in full.runs[group].models])
    questions = write_questions(params)
    paths = [layout.trained(group, name, seed) for name in full.runs[group].models]
    scores = run_all(score, [(params, path, questions) for path in paths])
    grid = [(m, one) for m, candidates in params.tuning.candidates.items() for one in candidates]
    return [
        {
            "method": method,
            "learning_rate": candidate.learning_rate or params.train.learning_rate,
            "distillation": candidate.distillation,
            "score": points,
        }
        for (method, candidate), points in zip(grid, scores, strict=True)
    ]


def best(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The candidate with the highest score of every method; of equal ones the first."""
    methods = dict.fromkeys(record["method"] for record in records)
    return {
        method: max(
            (record for record in records if record["method"] == method),
            key=lambda record: record["score"],
        )
        for method in methods
    }


def describe(params: Params, family: str, records: list[dict[str, Any]]) -> str:
    """The page on a family's grid."""
    tuning, chosen = params.tuning, best(records)
    lines = [
        f"# Tuning of {family}, scale {params.scale}",
        "",
        f"INT{tuning.bits}, {params.train.steps} steps, seed {tuning.seed}; average of "
        f"{', '.join(tuning.benchmarks)} over {tuning.questions} validation questions each. Every "
        "method has the same number of candidates. What is not named is the shared setting of "
        "`train`. The best of each method is marked.",
        "",
        "| method | learning rate | distillation | score | |",
        "|---|---|---|---|---|",
    ]
    for record in records:
        own = ", ".join(f"{k} {v}" for k, v in record["distillation"].items()) or "as published"
        if record["method"] not in ("kd", "grace"):
            own = "none"
        mark = "best" if record is chosen[record["method"]] else ""
        lines.append(
            f"| {record['method']} | {record['learning_rate']:g} | {own} | "
            f"{record['score']:.2f} | {mark} |"
        )
    return "\n".join(lines) + "\n"


def write_grid(params: Params, family: str) -> str:
    """Train and score a family's grid and write its page and records into `DOCS`.

    Args:
        params: all parameters.
        family: the family's name.

    Returns:
        The page's text.

    Raises:
        InputError: where a stage that comes before has not run.
    """
    candidates = tune(params, family)
    page = describe(params, family, candidates)
    origin = provenance.collect(
        params.subset(*SECTIONS),
        [params.tuning.seed],
        f"python -m replication.tuning {family}",
        device=provenance.device_description(),
    )
    content = {
        "scale": params.scale,
        "family": family,
        "candidates": candidates,
        "provenance": origin,
    }
    write_json_atomic(DOCS / f"{family}.json", content)
    write_text_atomic(DOCS / f"{family}.md", page)
    return page
