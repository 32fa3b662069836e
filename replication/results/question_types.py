"""Answers by question type: which answers change from one run to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from grace.errors import InputError
from replication.results.scores import ResultSet
from replication.stats.bootstrap import Answers
from replication.stats.factorial import seed_pairs

RIGHT = 0.5
"""The credit from which an answer counts as right."""


@dataclass(frozen=True)
class Flips:
    """Answers that change from a first run to a second, counted per seed and averaged over seeds.

    Attributes:
        questions: how many both answered.
        lost: right, then wrong.
        gained: wrong, then right.
    """

    questions: int
    lost: float
    gained: float


def question_skills(results: ResultSet, family: str, run: str) -> dict[str, np.ndarray]:
    """For each benchmark the questions' skills, in the order of the run's answers.

    Raises:
        InputError: if the outcomes cannot be read.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    path = results.outcomes_file(family, run)
    try:
        columns = ["seed", "benchmark", "question_id", "skill"]
        table = pq.read_table(path, columns=columns, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read as parquet ({error})") from error
    first = table.filter(pc.equal(table["seed"], pc.min(table["seed"])))
    return {
        name: np.array(
            first.filter(pc.equal(first["benchmark"], name))
            .sort_by("question_id")["skill"]
            .to_pylist()
        )
        for name in sorted(pc.unique(first["benchmark"]).to_pylist())
    }


def answers_by_skill(
    results: ResultSet, family: str, runs: Sequence[str], benchmarks: Sequence[str]
) -> list[Answers] | None:
    """The runs' answers with skills in the place of benchmarks.

    All of the benchmarks' questions of one skill are together, in alphabetical order of the skills;
    a skill of fewer than two questions is left out. Errors are those of `ResultSet.answers`.

    Returns:
        None if a run was not evaluated on all benchmarks.
    """
    by_benchmark = results.answers(family, runs, benchmarks)
    if by_benchmark is None:
        return None
    skills = question_skills(results, family, runs[0])
    every = np.concatenate([skills[name] for name in benchmarks])
    grouped = []
    for answers in by_benchmark:
        values = np.concatenate([answers.values[name] for name in benchmarks], axis=1)
        groups = {
            str(skill): values[:, every == skill]
            for skill in np.unique(every)
            if np.count_nonzero(every == skill) > 1
        }
        grouped.append(replace(answers, values=groups))
    return grouped


def flips(first: Answers, second: Answers, skill: str) -> Flips:
    """What changes from the first run's answers to the second's. Seeds: see `seed_pairs`."""
    before, after = first.values[skill] >= RIGHT, second.values[skill] >= RIGHT
    pairs = seed_pairs(first, second)
    lost = [np.count_nonzero(before[i] & ~after[j]) for i, j in pairs]
    gained = [np.count_nonzero(~before[i] & after[j]) for i, j in pairs]
    return Flips(before.shape[1], float(np.mean(lost)), float(np.mean(gained)))
