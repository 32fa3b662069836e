"""The same tuning budget for every method: a small grid, chosen on questions of its own.

    python -m replication.tuning qwen2_vl

Trains every candidate of the section ``tuning`` from the family's baseline, once each, and scores
it on the validation split, whose scenes are in neither the training set nor the benchmarks. Writes
``docs/tuning/<family>.md`` and, for programs, the ``.json`` beside it. What is chosen is then put
into ``params.yaml`` by hand. Candidates that are done already are not trained again.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from grace.errors import InputError
from replication.base import provenance
from replication.base.files import write_json_atomic, write_text_atomic
from replication.base.workers import run_all
from replication.evaluate.score import evaluate_model
from replication.settings.paths import Layout, needed
from replication.settings.schema import PARAMS_FILE, Group, Params, Run, load_params, section
from replication.train.runs import train_one

DOCS = Path("docs/tuning")


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
                distillation=candidate.distillation,
            )
    name = f"{family}_tuning"
    runs = {**params.runs, name: Group(family, models)}
    return dataclasses.replace(params, runs=runs), name


def write_questions(params: Params) -> Path:
    """Write the validation questions and return their folder."""
    from replication.data.world.benchmarks import write_benchmark

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
            world={"noise": world.noise, "clutter": world.clutter},
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
        dtype=settings.dtype,
    )
    scores = [entry["score"] for entry in evaluation.scores.values()]
    return sum(scores) / len(scores)


def tune(params: Params, family: str) -> list[dict[str, Any]]:
    """Train and score every candidate; the records, in the order of the grid."""
    layout = Layout(params)
    needed(layout.conversations, "standins")
    needed(layout.model(family, "baseline"), "baseline")
    needed(layout.teacher_outputs(family), "teacher_outputs")
    full, group = with_candidates(params, family)
    seed = params.tuning.seed
    run_all(train_one, [(full, group, name, seed) for name in full.runs[group].models])
    questions = write_questions(params)
    paths = [layout.trained(group, name, seed) for name in full.runs[group].models]
    scores = run_all(score, [(params, path, questions) for path in paths])
    records, found = [], iter(scores)
    for method, candidates in params.tuning.candidates.items():
        for candidate in candidates:
            records.append(
                {
                    "method": method,
                    "learning_rate": candidate.learning_rate or params.train.learning_rate,
                    "distillation": candidate.distillation,
                    "score": next(found),
                }
            )
    return records


def best(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The highest score of every method; of equal ones the first."""
    chosen: dict[str, dict[str, Any]] = {}
    for record in records:
        known = chosen.get(record["method"])
        if known is None or record["score"] > known["score"]:
            chosen[record["method"]] = record
    return chosen


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


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m replication.tuning", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("family")
    parser.add_argument("--params", default=str(PARAMS_FILE), help="parameter file")
    arguments = parser.parse_args()
    try:
        params = load_params(arguments.params)
        family = params.known_family(arguments.family)
        records = tune(params, family)
    except InputError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    page = describe(params, family, records)
    origin = provenance.collect(
        {"params": repr(params)},
        [params.tuning.seed],
        f"python -m replication.tuning {family}",
        device=provenance.device_description(),
    )
    write_json_atomic(
        DOCS / f"{family}.json",
        {"scale": params.scale, "family": family, "candidates": records, "provenance": origin},
    )
    write_text_atomic(DOCS / f"{family}.md", page)
    print(page)


if __name__ == "__main__":
    main()
