"""Score and outcome files drawn from an explicit seed, for tests alone.

Runs share each question's difficulty, so that they are paired as real runs are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from replication import paper as reported
from replication.results import scores as files

BENCHMARKS = ("MMBench", "SEED-Bench", "ScienceQA")
CHANCE = {"ScienceQA": 33.0}
SKILLS = ("presence", "counting", "reading")

# Accuracies in the order of the paper's Table 4: every claim of the table holds.
GOOD = {
    "teacher": 0.82,
    "baseline": 0.62,
    "sft_bf16": 0.62,
    "grace_bf16": 0.775,
    "qat_int8": 0.615,
    "kd_int8": 0.69,
    "grace_int8": 0.77,
    "qat_int4": 0.595,
    "kd_int4": 0.67,
    "grace_int4": 0.75,
}


def correct_answers(
    rng: np.random.Generator, accuracy: float, difficulty: np.ndarray, noise: float = 0.1
) -> np.ndarray:
    """Answers to questions of the given difficulties (uniform): right about `accuracy` of them."""
    own = rng.uniform(size=difficulty.size)
    mixed = np.where(rng.uniform(size=difficulty.size) < noise, own, difficulty)
    return mixed < accuracy


def write_run(
    root: str | Path,
    run: str,
    credits: Mapping[int, Mapping[str, np.ndarray]],
    *,
    scale: str,
    family: str,
    standin: bool,
    pair: str | None = None,
) -> None:
    """Both files of a run with these credits, by seed and benchmark; in its pair's folder."""
    columns: dict[str, list] = {name: [] for name in files.OUTCOME_COLUMNS}
    entries: dict[str, dict] = {}
    for seed, by_benchmark in credits.items():
        scores = {}
        for name, values in by_benchmark.items():
            count, chance = len(values), CHANCE.get(name, 25.0)
            scores[name] = files.benchmark_score(100.0 * values.mean(), values, chance)
            columns["seed"] += [seed] * count
            columns["benchmark"] += [name] * count
            columns["question_id"] += [f"{question:06d}" for question in range(count)]
            columns["skill"] += [SKILLS[question % len(SKILLS)] for question in range(count)]
            columns["prediction"] += ["A" if value else "B" for value in values]
            columns["target"] += ["A"] * count
            columns["credit"] += values.astype(float).tolist()
        entries[str(seed)] = {"benchmarks": scores}
    method, _, width = run.partition("_")
    files.write_outcomes(root, scale, family, run, columns, folder=pair)
    files.write_scores(
        root,
        {
            "family": family,
            "run": run,
            "method": method,
            "bits": {"int8": 8, "int4": 4}.get(width, 16),
            "scale": scale,
            "standin": standin,
            "seeds": entries,
            "provenance": {"commit": "0" * 40, "dirty": False},
            **(
                {}
                if pair is None
                else {"pair": pair, "world": "second" if pair.endswith("world2") else "first"}
            ),
        },
        pair,
    )


def write_results(
    root: str | Path,
    accuracies: Mapping[str, float],
    *,
    seed: int,
    scale: str = "small",
    family: str = "qwen2_vl",
    n: int = 1500,
    seeds: Mapping[str, Sequence[int]] | None = None,
    benchmarks: Sequence[str] = BENCHMARKS,
    standin: bool = True,
    pair: str | None = None,
) -> Path:
    """Files of one pair's runs at the given accuracies; returns `root`."""
    world = np.random.default_rng([seed, 0])
    difficulty = {name: world.uniform(size=n) for name in benchmarks}
    for index, (run, accuracy) in enumerate(accuracies.items()):
        rng = np.random.default_rng([seed, 1 + index])
        credits = {
            own: {name: correct_answers(rng, accuracy, difficulty[name]) for name in benchmarks}
            for own in (seeds or {}).get(run, (0,))
        }
        write_run(root, run, credits, scale=scale, family=family, standin=standin, pair=pair)
    return Path(root)


def write_exact(
    root: str | Path,
    scores: Mapping[str, Mapping[str, float]],
    *,
    family: str = "qwen2_vl",
    n: int = 4000,
    scale: str = "paper",
    standin: bool = False,
) -> Path:
    """Files of one family's runs with these scores on each benchmark; returns `root`.

    The first questions are right: two runs answer as alike as their scores allow.
    """
    for run, benchmarks in scores.items():
        credits = {
            name: np.arange(n) < round(n * score / 100) for name, score in benchmarks.items()
        }
        write_run(root, run, {0: credits}, scale=scale, family=family, standin=standin)
    return Path(root)


def strict_ledger():
    """The ledger without what was measured and is explained: a failure of it is not on record."""
    raw = reported.read_yaml(reported.FOLDER / "claims.yaml")
    raw["explanations"] = [one for one in raw["explanations"] if one["of"][0].startswith("C16")]
    return reported.parse_ledger(raw, reported.load_tables())
