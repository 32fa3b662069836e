"""The files that measured results lie in: scores (JSON) and per-question outcomes (parquet).

    <results>/<scale>/scores/<folder>/<run>.json       one run's scores, per seed and benchmark
    <results>/<scale>/outcomes/<folder>/<run>.parquet  one row per seed, benchmark and question

A folder is that of a pair of teacher and baseline, or of a group of runs. The runs of a pair have
different names, whatever folder they lie in. A family's first pair has the family's name, and the
family's name stands for all of its pairs in the first world: answers to the same questions are
pooled over them. A group of the map, whose runs are called as in its other groups, is a pair of its
own here, with the folder's name.

Scores are in the benchmark's own unit: percent for accuracies (0 to 100), points for MME. What is
written is validated first, and written whole or not at all; what is read is validated again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired

import numpy as np
from pydantic import ConfigDict, Field, Strict
from typing_extensions import TypedDict

from grace.errors import InputError
from replication.base.files import atomic_path, read_json, write_json_atomic
from replication.base.scales import Scale, check_scale
from replication.base.validation import Flag, Number, Positive, Text, record, validate
from replication.stats.bootstrap import Answers, pool

if TYPE_CHECKING:
    import pyarrow as pa

Evidence = Literal["measured", "recorded"]
"""Measured here, or measured earlier on another device."""

NOT_IN_AVERAGE = frozenset({"MME"})
"""Benchmarks whose score is not an accuracy in percent: they enter no average."""

OUTCOME_COLUMNS = (
    "seed",
    "benchmark",
    "question_id",
    "skill",
    "prediction",
    "target",
    "credit",
)

_AGREEMENT = 1e-6
"""How far a score file and its outcome file may lie apart: float arithmetic."""


def scores_path(results: str | Path, scale: str, folder: str, run: str) -> Path:
    """Where the scores of a folder's run lie under the folder `results`."""
    return Path(results) / check_scale(scale) / "scores" / folder / f"{run}.json"


def outcomes_path(results: str | Path, scale: str, folder: str, run: str) -> Path:
    """Where the per-question outcomes of a folder's run lie under the folder `results`."""
    return Path(results) / check_scale(scale) / "outcomes" / folder / f"{run}.parquet"


# --- scores ---------------------------------------------------------------------------------------

_Amount = Annotated[Number, Field(ge=0)]
_Percent = Annotated[Number, Field(ge=0, le=100)]


class BenchmarkScore(TypedDict):
    """One benchmark's entry of a score file; further entries are kept.

    Attributes:
        score: the official scorer's value, in percent (MME: points).
        n: questions.
        standard_error: of the mean credit, in percent.
        chance: the score of guessing, in the score's unit.
        accuracy: 100 × the mean of the credits, where the score is not that mean.
    """

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    score: _Amount
    n: Positive
    standard_error: _Amount
    chance: _Amount
    accuracy: NotRequired[_Percent]


def benchmark_score(
    score: float, credits: Sequence[float] | np.ndarray, chance: float, **extra: Any
) -> dict[str, Any]:
    """One benchmark's entry of a score file.

    Args:
        score: the official scorer's value, in percent (MME: points).
        credits: what each answer got, 0 to 1.
        chance: the score of guessing, in the score's unit.
        extra: kept; give `accuracy` where the score is not 100 × the mean of the credits.

    Raises:
        InputError: if there is no answer.
    """
    values = np.asarray(credits, dtype=np.float64)
    if not values.size:
        raise InputError("a benchmark without answers has no score")
    return {
        **extra,
        "score": float(score),
        "n": int(values.size),
        "standard_error": float(100.0 * values.std() / math.sqrt(values.size)),
        "chance": float(chance),
    }


def average_score(benchmarks: Mapping[str, Mapping[str, Any]]) -> float:
    """Mean of the accuracy benchmarks' scores.

    Raises:
        InputError: if there are none.
    """
    scores = [entry["score"] for name, entry in benchmarks.items() if name not in NOT_IN_AVERAGE]
    if not scores:
        raise InputError("no accuracy benchmark to average over")
    return float(np.mean(scores))


@record
class SeedScores:
    """The scores of one seed.

    Attributes:
        benchmarks: by name.
        average: of the accuracy benchmarks.
    """

    benchmarks: Annotated[dict[Text, BenchmarkScore], Field(min_length=1)]
    average: _Percent

    def __post_init__(self) -> None:
        for name, entry in self.benchmarks.items():
            for key in ("score", "chance"):
                if name not in NOT_IN_AVERAGE and entry[key] > 100:  # type: ignore[literal-required]
                    value = entry[key]  # type: ignore[literal-required]
                    raise InputError(f"benchmarks.{name}.{key} is {value}; it must be at most 100")
        recomputed = average_score(self.benchmarks)
        if abs(self.average - recomputed) > _AGREEMENT:
            raise InputError(f"average is {self.average}, but its benchmarks average {recomputed}")


@record
class RunScores:
    """One score file.

    Attributes:
        family: the model's.
        run: the model's name.
        method: what trained or quantized it.
        bits: of its weights.
        scale: at which it was made.
        standin: whether the benchmarks are stand-ins.
        by_seed: the scores; every seed has the same benchmarks, with as many questions.
        provenance: where the numbers come from.
        origin: what they follow from.
        evidence: measured here, or recorded on another device.
        pair: the model's; None for the family's first.
        world: that the questions are of.
    """

    family: Text
    run: Text
    method: Text
    bits: Annotated[int, Strict()]
    scale: Scale
    standin: Flag
    by_seed: Annotated[
        dict[Annotated[str, Field(pattern=r"^(0|[1-9][0-9]*)$")], SeedScores],
        Field(min_length=1, alias="seeds"),
    ]
    provenance: dict[str, Any] = Field(repr=False)
    origin: dict[str, Any] = Field(default_factory=dict, repr=False)
    evidence: Evidence = "measured"
    pair: Text | None = None
    world: Literal["first", "second"] = "first"

    def __post_init__(self) -> None:
        sizes = [
            {name: entry["n"] for name, entry in scores.benchmarks.items()}
            for scores in self.by_seed.values()
        ]
        for seed, own in zip(self.by_seed, sizes, strict=True):
            if own != sizes[0]:
                raise InputError(
                    f"seeds.{seed}: benchmarks or their n differ from the first seed's"
                )

    @property
    def owner(self) -> str:
        """The name of the pair."""
        return self.family if self.pair is None else self.pair

    @property
    def seeds(self) -> dict[int, dict[str, BenchmarkScore]]:
        """The benchmarks' entries by seed, in the order of the seeds."""
        return {int(seed): self.by_seed[seed].benchmarks for seed in sorted(self.by_seed, key=int)}

    @property
    def benchmarks(self) -> list[str]:
        """The names of the benchmarks."""
        return list(next(iter(self.seeds.values())))

    def score(self, benchmark: str) -> float:
        """Mean over seeds of a benchmark's score."""
        return float(np.mean([entries[benchmark]["score"] for entries in self.seeds.values()]))

    def questions(self, benchmark: str) -> int:
        """How many questions of a benchmark were asked."""
        return next(iter(self.seeds.values()))[benchmark]["n"]


def validate_scores(content: Any, source: str = "scores") -> RunScores:
    """The content of a score file.

    Raises:
        InputError: naming the place, for a missing or ill-typed entry, seeds that do not hold the
            same benchmarks with the same number of questions, or an average that is not the mean
            of the accuracy benchmarks.
    """
    return validate(RunScores, content, source)


def write_scores(results: str | Path, record: Mapping[str, Any], folder: str | None = None) -> Path:
    """Validate a score record and write it.

    Args:
        results: the folder of all scales.
        record: the content of the file; the average of a seed is computed where it is left out.
        folder: in which it is written; default: the family's.

    Returns:
        The file's path.
    """
    seeds = {
        str(seed): {"average": average_score(entry["benchmarks"]), **entry}
        for seed, entry in record["seeds"].items()
    }
    content = {**record, "seeds": seeds}
    scores = validate_scores(content)
    folder = scores.family if folder is None else folder
    return write_json_atomic(scores_path(results, scores.scale, folder, scores.run), content)


def read_scores(
    results: str | Path, scale: str, family: str, run: str, folder: str | None = None
) -> RunScores:
    """The scores of a run in a folder (default: the family's).

    Raises:
        InputError: if the file is missing, not valid, or of another run than its place says.
    """
    scores = _read_scores(scores_path(results, scale, family if folder is None else folder, run))
    if scores.family != family:
        raise InputError(f"{family}/{run}: the family in its score file is {scores.family!r}")
    return scores


def _read_scores(path: Path) -> RunScores:
    scores = validate_scores(read_json(path), str(path))
    scale, run = path.parts[-4], path.stem
    for name, value, expected in (("run", scores.run, run), ("scale", scores.scale, scale)):
        if value != expected:
            raise InputError(f"{path}: {name} is {value!r}, but the file lies under {expected!r}")
    return scores


# --- outcomes -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcomes:
    """One run's per-question answers, with the questions' identities in the same order."""

    answers: Answers
    question_ids: Mapping[str, tuple[str, ...]]


def _outcome_schema() -> pa.Schema:
    import pyarrow as pa

    types = {"seed": pa.int64(), "credit": pa.float64()}
    return pa.schema([(name, types.get(name, pa.string())) for name in OUTCOME_COLUMNS])


def write_outcomes(
    results: str | Path,
    scale: str,
    family: str,
    run: str,
    columns: Mapping[str, Sequence[Any] | np.ndarray],
    *,
    folder: str | None = None,
) -> Path:
    """Write a run's per-question outcomes; equal content gives an equal file.

    Args:
        results: the folder of all scales.
        scale: the scale.
        family: the run's family.
        run: its name.
        columns: the `OUTCOME_COLUMNS`, of equal length. Rows are sorted by seed, benchmark and
            question.
        folder: in which it is written; default: the family's.

    Returns:
        The file's path.

    Raises:
        InputError: for no rows, a missing value, a question that appears twice, or seeds that did
            not answer the same questions.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    assert set(columns) == set(OUTCOME_COLUMNS)
    path = outcomes_path(results, scale, family if folder is None else folder, run)
    table = pa.table({name: pa.array(columns[name]) for name in OUTCOME_COLUMNS})
    table = table.cast(_outcome_schema())
    table = table.sort_by([(name, "ascending") for name in ("seed", "benchmark", "question_id")])
    _to_outcomes(table, f"outcomes of {family}/{run}")
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return path


def _to_outcomes(table: pa.Table, where: str) -> Outcomes:
    import pyarrow.compute as pc

    if table.num_rows == 0:
        raise InputError(f"{where}: no rows")
    for name in table.column_names:
        if table.column(name).null_count:
            raise InputError(f"{where}: column {name!r} has empty values")
    seeds = sorted(pc.unique(table["seed"]).to_pylist())
    values: dict[str, np.ndarray] = {}
    identities: dict[str, tuple[str, ...]] = {}
    for benchmark in sorted(pc.unique(table["benchmark"]).to_pylist()):
        rows = []
        part = table.filter(pc.equal(table["benchmark"], benchmark))
        for seed in seeds:
            own = part.filter(pc.equal(part["seed"], seed)).sort_by("question_id")
            ids = tuple(own["question_id"].to_pylist())
            if len(set(ids)) != len(ids):
                raise InputError(f"{where}: {benchmark}, seed {seed}: a question appears twice")
            if identities.setdefault(benchmark, ids) != ids:
                raise InputError(
                    f"{where}: {benchmark}: seed {seed} answered other questions than "
                    f"seed {seeds[0]}"
                )
            credits = own["credit"].to_numpy()
            if not ((credits >= 0.0) & (credits <= 1.0)).all():
                raise InputError(f"{where}: {benchmark}, seed {seed}: a credit is not from 0 to 1")
            rows.append(credits)
        values[benchmark] = np.stack(rows)
    return Outcomes(Answers(tuple(seeds), values), identities)


def read_outcomes(
    results: str | Path, scale: str, family: str, run: str, folder: str | None = None
) -> Outcomes:
    """A run's outcomes in a folder (default: the family's), questions sorted by identity.

    Raises:
        InputError: if the file is missing, not parquet, of other columns or types, empty, has a
            question twice, or seeds that answered different questions.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = outcomes_path(results, scale, family if folder is None else folder, run)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        table = pq.read_table(path, partitioning=None)
    except Exception as error:  # a damaged file fails with types of its own
        raise InputError(f"{path}: cannot be read as parquet ({error})") from error
    missing = set(OUTCOME_COLUMNS) - set(table.column_names)
    if missing:
        raise InputError(f"{path}: lacks columns {', '.join(sorted(missing))}")
    try:
        table = table.select(list(OUTCOME_COLUMNS)).cast(_outcome_schema())
        table.validate(full=True)  # the texts are Unicode
    except (pa.ArrowException, KeyError) as error:
        raise InputError(f"{path}: {error}") from error
    return _to_outcomes(table, str(path))


# --- both -----------------------------------------------------------------------------------------


class ResultSet:
    """The results of one scale, read once each, with the checks that span files.

    Args:
        results: the folder of all scales.
        scale: which of them.

    Raises:
        InputError: for an unknown scale, or score files that are wrong in themselves.
    """

    def __init__(self, results: str | Path, scale: str) -> None:
        self.results = Path(results)
        self.scale = check_scale(scale)
        self._outcomes: dict[tuple[str, str], Outcomes] = {}
        self._scores: dict[tuple[str, str], RunScores] = {}
        self._folders: dict[tuple[str, str], str] = {}
        for path in sorted((self.results / self.scale / "scores").glob("*/*.json")):
            scores = _read_scores(path)
            key = (scores.owner, scores.run)
            if key in self._folders:
                raise InputError(
                    f"{path}: the run {key[1]} of {key[0]} has scores in the folder "
                    f"{self._folders[key]!r}, too; remove one of the two"
                )
            self._folders[key] = path.parent.name
            self._scores[key] = scores

    def scores(self, pair: str, run: str) -> RunScores | None:
        """A run's scores in one pair, or None if the run has no score file.

        Args:
            pair: its name; a family's name is that of its first pair.
            run: its name; ``<pair>/<run>`` is that of another pair.
        """
        return self._scores.get(_key(pair, run))

    def pairs(self, family: str, runs: Sequence[str] = (), world: str = "first") -> list[str]:
        """The pairs that a name stands for and that have scores of some runs, the first one first;
        the name alone where every run says of which pair it is.

        Args:
            family: a family's name stands for its pairs in the world; any other pair's for itself.
            runs: that the pairs have, each of them.
            world: of the family's pairs.
        """
        if runs and all("/" in run for run in runs):
            return [family] if all(_key(family, run) in self._scores for run in runs) else []
        own = sorted(
            {
                owner
                for (owner, run), scores in self._scores.items()
                if run == "baseline" and (scores.family, scores.world) == (family, world)
            },
            key=lambda owner: (owner != family, owner),
        )
        return [
            pair for pair in own or [family] if all(_key(pair, run) in self._scores for run in runs)
        ]

    def pooled(self, family: str, run: str) -> list[RunScores]:
        """A run's scores in every pair that has it; see `pairs`."""
        return [self._scores[_key(pair, run)] for pair in self.pairs(family, [run])]

    def all(self) -> list[RunScores]:
        """The scores of every run of every family."""
        return list(self._scores.values())

    def outcomes_file(self, pair: str, run: str) -> Path:
        """Where a run's outcomes in one pair lie.

        Raises:
            InputError: for a run without a score file.
        """
        key = _key(pair, run)
        if key not in self._folders:
            raise InputError(f"{'/'.join(key)} has no scores at scale {self.scale}; evaluate it")
        return outcomes_path(self.results, self.scale, self._folders[key], key[1])

    def runs(self, pair: str) -> list[str]:
        """Names of the pair's runs that have a score file, sorted."""
        return sorted(run for owner, run in self._folders if owner == pair)

    def _run_outcomes(self, key: tuple[str, str]) -> Outcomes:
        """Outcomes that agree with the run's score file in seeds, benchmarks, n and score."""
        if key not in self._outcomes:
            family = self._scores[key].family
            outcomes = read_outcomes(self.results, self.scale, family, key[1], self._folders[key])
            where = f"{'/'.join(key)} at scale {self.scale}"
            _check_agreement(self._scores[key], outcomes.answers, where)
            self._outcomes[key] = outcomes
        return self._outcomes[key]

    def answers(
        self,
        family: str,
        runs: Sequence[str],
        benchmarks: Sequence[str],
        *,
        world: str = "first",
    ) -> list[Answers] | None:
        """The runs' answers on the benchmarks, checked to be to the same questions.

        Args:
            family: a family's name pools all its pairs that have all the runs; the name of a pair
                other than a family's first stands for that pair alone.
            runs: names; ``<pair>/<run>`` is that of another pair.
            benchmarks: printed names.
            world: of a family's pairs.

        Returns:
            None if a run has no score file, or its scores lack a benchmark: that comparison was
            not run.

        Raises:
            InputError: if outcomes are missing, disagree with their score file, or the runs
                answered different questions.
        """
        pairs = [
            pair
            for pair in self.pairs(family, runs, world)
            if all(set(benchmarks) <= set(self._scores[_key(pair, run)].benchmarks) for run in runs)
        ]
        if not pairs:
            return None
        outcomes = [[self._run_outcomes(_key(pair, run)) for run in runs] for pair in pairs]
        first = outcomes[0][0].question_ids
        for pair, by_run in zip(pairs, outcomes, strict=True):
            for run, own in zip(runs, by_run, strict=True):
                for name in benchmarks:
                    if own.question_ids[name] != first[name]:
                        raise InputError(
                            f"{pair} at scale {self.scale}: {run} and {runs[0]} of {pairs[0]} "
                            f"answered different questions of {name}; they cannot be compared "
                            "pair by pair"
                        )
        return [
            pool(pairs, [own.answers for own in of_run]) for of_run in zip(*outcomes, strict=True)
        ]


def _key(pair: str, run: str) -> tuple[str, str]:
    """Pair and run, where a run of another pair is named ``<pair>/<run>``."""
    other, separator, name = run.rpartition("/")
    return (other, name) if separator else (pair, run)


def _check_agreement(scores: RunScores, answers: Answers, where: str) -> None:
    """Refuse a score file and an outcome file that do not tell the same story."""
    if tuple(scores.seeds) != answers.seeds:
        raise InputError(
            f"{where}: scores are of seeds {list(scores.seeds)}, outcomes of {list(answers.seeds)}"
        )
    for benchmark in scores.benchmarks:
        values = answers.values.get(benchmark)
        if values is None:
            raise InputError(f"{where}: scores hold {benchmark}, outcomes do not")
        for row, (seed, entries) in zip(values, scores.seeds.items(), strict=True):
            entry = entries[benchmark]
            if entry["n"] != len(row):
                raise InputError(
                    f"{where}: {benchmark}, seed {seed}: n is {entry['n']} in the scores and "
                    f"{len(row)} in the outcomes"
                )
            accuracy = entry.get("accuracy", entry["score"])
            if abs(accuracy - 100.0 * row.mean()) > _AGREEMENT:
                raise InputError(
                    f"{where}: {benchmark}, seed {seed}: the score is {accuracy}, but the "
                    f"outcomes' credits average {100.0 * row.mean()} percent: the two files "
                    "are of different evaluations"
                )
