"""The files that measured results lie in: scores (JSON) and per-question outcomes (parquet).

    <results>/<scale>/scores/<folder>/<run>.json       one run's scores, per seed and benchmark
    <results>/<scale>/outcomes/<folder>/<run>.parquet  one row per seed, benchmark and question

A folder is that of a family (its teacher and baseline) or of a group of runs. The runs of a family
have different names, whatever folder they lie in.

Scores are in the benchmark's own unit: percent for accuracies (0 to 100), points for MME. What is
written is validated first, and written whole or not at all; what is read is validated again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from grace.errors import InputError
from replication.base.files import atomic_path, is_number, read_json, write_json_atomic
from replication.base.messages import short
from replication.base.scales import check_scale
from replication.stats.bootstrap import Answers

if TYPE_CHECKING:
    import pyarrow as pa

EVIDENCE = ("measured", "recorded")

# Benchmarks whose score is not an accuracy in percent: they enter no average.
NOT_IN_AVERAGE = frozenset({"MME"})

OUTCOME_COLUMNS = (
    "seed",
    "benchmark",
    "question_id",
    "skill",
    "prediction",
    "target",
    "credit",
)

# A score file and its outcome file must tell the same story; the slack is for float arithmetic.
_AGREEMENT = 1e-6

_SCORE_KEYS = {"family", "run", "method", "bits", "scale", "standin", "seeds", "provenance"}


def scores_path(results: str | Path, scale: str, folder: str, run: str) -> Path:
    """Where the scores of a folder's run lie under the folder `results`."""
    return Path(results) / check_scale(scale) / "scores" / folder / f"{run}.json"


def outcomes_path(results: str | Path, scale: str, folder: str, run: str) -> Path:
    """Where the per-question outcomes of a folder's run lie under the folder `results`."""
    return Path(results) / check_scale(scale) / "outcomes" / folder / f"{run}.parquet"


def benchmark_score(
    score: float, credits: Sequence[float] | np.ndarray, chance: float, **extra: Any
) -> dict[str, Any]:
    """One benchmark's entry of a score file.

    score: the official scorer's value, in percent (MME: points). credits: what each answer got, 0
    to 1, for n and the standard error of their mean in percent. chance: the score of guessing, in
    the score's unit. `extra` is kept; give `accuracy`, 100 × the mean of the credits, where the
    score is not that mean.

    Raises InputError if there is no answer.
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
    """Mean of the accuracy benchmarks' scores. Raises InputError if there are none."""
    scores = [entry["score"] for name, entry in benchmarks.items() if name not in NOT_IN_AVERAGE]
    if not scores:
        raise InputError("no accuracy benchmark to average over")
    return float(np.mean(scores))


@dataclass(frozen=True)
class RunScores:
    """One validated score file.

    `seeds` maps each seed to its benchmarks' entries; `evidence` is "measured", or "recorded" for a
    file measured earlier on another device.
    """

    family: str
    run: str
    method: str
    bits: int
    scale: str
    standin: bool
    seeds: dict[int, dict[str, dict[str, Any]]]
    provenance: dict[str, Any] = field(repr=False)
    evidence: str = "measured"

    @property
    def benchmarks(self) -> list[str]:
        return list(next(iter(self.seeds.values())))

    def score(self, benchmark: str) -> float:
        """Mean over seeds of a benchmark's score."""
        return float(np.mean([entries[benchmark]["score"] for entries in self.seeds.values()]))

    def questions(self, benchmark: str) -> int:
        return int(next(iter(self.seeds.values()))[benchmark]["n"])


def _number(value: Any, where: str, low: float, high: float) -> float:
    if not is_number(value):
        raise InputError(f"{where} is {short(value)}: expected a finite number")
    if not low <= value <= high:
        raise InputError(f"{where} is {value}: expected a number from {low:g} to {high:g}")
    return float(value)


def _check_entries(benchmarks: Any, where: str) -> dict[str, dict[str, Any]]:
    if not isinstance(benchmarks, dict) or not benchmarks:
        raise InputError(f"{where}.benchmarks must map benchmark names to scores")
    for name, entry in benchmarks.items():
        place = f"{where}.benchmarks.{name}"
        if not isinstance(entry, dict):
            raise InputError(f"{place} must be a mapping with score, n, standard_error and chance")
        missing = {"score", "n", "standard_error", "chance"} - set(entry)
        if missing:
            raise InputError(f"{place} lacks {', '.join(sorted(missing))}")
        top = math.inf if name in NOT_IN_AVERAGE else 100.0
        _number(entry["score"], f"{place}.score", 0.0, top)
        if "accuracy" in entry:
            _number(entry["accuracy"], f"{place}.accuracy", 0.0, 100.0)
        _number(entry["standard_error"], f"{place}.standard_error", 0.0, math.inf)
        _number(entry["chance"], f"{place}.chance", 0.0, top)
        if isinstance(entry["n"], bool) or not isinstance(entry["n"], int) or entry["n"] < 1:
            raise InputError(f"{place}.n is {short(entry['n'])}: expected a positive whole number")
    return benchmarks


def validate_scores(record: Any, where: str = "scores") -> RunScores:
    """A score record as `RunScores`.

    Raises InputError, naming the place, for a missing or ill-typed entry, seeds that do not hold
    the same benchmarks with the same number of questions, or an average that is not the mean of the
    accuracy benchmarks.
    """
    if not isinstance(record, dict):
        raise InputError(f"{where} is not a mapping")
    missing = _SCORE_KEYS - set(record)
    if missing:
        raise InputError(f"{where} lacks {', '.join(sorted(missing))}")
    for key in ("family", "run", "method"):
        if not isinstance(record[key], str) or not record[key]:
            raise InputError(f"{where}.{key} is {short(record[key])}: expected a name")
    check_scale(record["scale"])
    if isinstance(record["bits"], bool) or not isinstance(record["bits"], int):
        raise InputError(f"{where}.bits is {short(record['bits'])}: expected a whole number")
    if not isinstance(record["standin"], bool):
        raise InputError(f"{where}.standin is {short(record['standin'])}: expected true or false")
    if not isinstance(record["provenance"], dict):
        raise InputError(f"{where}.provenance is not a mapping")
    evidence = record.get("evidence", "measured")
    if evidence not in EVIDENCE:
        raise InputError(
            f"{where}.evidence is {short(evidence)}: choose one of {', '.join(EVIDENCE)}"
        )
    if not isinstance(record["seeds"], dict) or not record["seeds"]:
        raise InputError(f"{where}.seeds must map seeds to scores")
    seeds: dict[int, dict[str, dict[str, Any]]] = {}
    shape: dict[str, int] | None = None
    for key, entry in record["seeds"].items():
        place = f"{where}.seeds.{key}"
        try:
            seed = int(key)
        except ValueError as error:
            raise InputError(f"{place}: {key!r} is not a seed") from error
        if not isinstance(entry, dict):
            raise InputError(f"{place} is not a mapping")
        benchmarks = _check_entries(entry.get("benchmarks"), place)
        average = _number(entry.get("average"), f"{place}.average", 0.0, 100.0)
        recomputed = average_score(benchmarks)
        if abs(average - recomputed) > _AGREEMENT:
            raise InputError(
                f"{place}.average is {average}, but its benchmarks average {recomputed}"
            )
        sizes = {name: item["n"] for name, item in benchmarks.items()}
        if shape is not None and sizes != shape:
            raise InputError(f"{place}: benchmarks or their n differ from the first seed's")
        shape = sizes
        if seed in seeds:
            raise InputError(f"{place}: seed {seed} is there twice")
        seeds[seed] = benchmarks
    return RunScores(
        family=record["family"],
        run=record["run"],
        method=record["method"],
        bits=record["bits"],
        scale=record["scale"],
        standin=record["standin"],
        seeds=dict(sorted(seeds.items())),
        provenance=record["provenance"],
        evidence=evidence,
    )


def write_scores(results: str | Path, record: Mapping[str, Any], folder: str | None = None) -> Path:
    """Validate a score record and write it into a folder (default: the family's); returns the path.

    The record is the content of the file: family, run, method, bits, scale, standin, provenance and
    seeds, {"0": {"benchmarks": {name: benchmark_score(...)}, "average": ...}}; "average" may be
    left out and is then computed. Raises InputError as `validate_scores`.
    """
    record = dict(record)
    if isinstance(record.get("seeds"), Mapping):
        filled = {}
        for seed, given in record["seeds"].items():
            entry = given
            if isinstance(entry, Mapping) and "average" not in entry and "benchmarks" in entry:
                checked = _check_entries(dict(entry["benchmarks"]), f"scores.seeds.{seed}")
                entry = {**entry, "average": average_score(checked)}
            filled[str(seed)] = entry
        record["seeds"] = filled
    scores = validate_scores(record)
    folder = scores.family if folder is None else folder
    return write_json_atomic(scores_path(results, scores.scale, folder, scores.run), record)


def read_scores(
    results: str | Path, scale: str, family: str, run: str, folder: str | None = None
) -> RunScores:
    """The validated scores of a run in a folder (default: the family's).

    Raises InputError if the file is missing, not valid, or of another run than its place says.
    """
    path = scores_path(results, scale, family if folder is None else folder, run)
    scores = validate_scores(read_json(path), str(path))
    for name, found, expected in (
        ("family", scores.family, family),
        ("run", scores.run, run),
        ("scale", scores.scale, scale),
    ):
        if found != expected:
            raise InputError(f"{path}: {name} is {found!r}, but the file lies under {expected!r}")
    return scores


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
    """Write a run's per-question outcomes into a folder (default: the family's); returns the path.

    columns: the seven OUTCOME_COLUMNS, of equal length. Rows are sorted by seed, benchmark and
    question, so that equal content gives an equal file.

    Raises InputError for missing, unknown or ill-typed columns, no rows, a question that appears
    twice, or seeds that did not answer the same questions.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = outcomes_path(results, scale, family if folder is None else folder, run)
    missing, unknown = set(OUTCOME_COLUMNS) - set(columns), set(columns) - set(OUTCOME_COLUMNS)
    if missing or unknown:
        what = f"lack {sorted(missing)}" if missing else f"have unknown {sorted(unknown)}"
        raise InputError(f"outcomes of {family}/{run} {what}: columns are {OUTCOME_COLUMNS}")
    lengths = {name: len(columns[name]) for name in OUTCOME_COLUMNS}
    if len(set(lengths.values())) != 1:
        raise InputError(f"outcomes of {family}/{run}: columns of unequal length {lengths}")
    try:
        table = pa.table(
            {name: pa.array(columns[name]) for name in OUTCOME_COLUMNS},
        ).cast(_outcome_schema())
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise InputError(f"outcomes of {family}/{run}: {error}") from error
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

    Raises InputError if the file is missing, not parquet, of other columns or types, empty, has
    a question twice, or seeds that answered different questions.
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


class ResultSet:
    """The results of one scale, read once each, with the checks that span files."""

    def __init__(self, results: str | Path, scale: str) -> None:
        self.results = Path(results)
        self.scale = check_scale(scale)
        self._outcomes: dict[tuple[str, str], Outcomes] = {}
        self._scores: dict[tuple[str, str], RunScores] = {}
        self._folders: dict[tuple[str, str], str] = {}
        for path in sorted((self.results / self.scale / "scores").glob("*/*.json")):
            family = validate_scores(read_json(path), str(path)).family
            key = (family, path.stem)
            if key in self._folders:
                raise InputError(
                    f"{path}: the run {key[1]} of {key[0]} has scores in the folder "
                    f"{self._folders[key]!r}, too; remove one of the two"
                )
            self._folders[key] = folder = path.parent.name
            self._scores[key] = read_scores(self.results, self.scale, *key, folder)

    def scores(self, family: str, run: str) -> RunScores | None:
        """A run's scores, or None if the run has no score file."""
        return self._scores.get((family, run))

    def all(self) -> list[RunScores]:
        """The scores of every run of every family."""
        return list(self._scores.values())

    def outcomes_file(self, family: str, run: str) -> Path:
        """Where a run's outcomes lie. Raises InputError for a run without a score file."""
        if (family, run) not in self._folders:
            raise InputError(f"{family}/{run} has no scores at scale {self.scale}; evaluate it")
        folder = self._folders[family, run]
        return outcomes_path(self.results, self.scale, folder, run)

    def runs(self, family: str) -> list[str]:
        """Names of the family's runs that have a score file, sorted."""
        return sorted(run for owner, run in self._folders if owner == family)

    def _run_outcomes(self, family: str, run: str) -> Outcomes:
        """Outcomes that agree with the run's score file in seeds, benchmarks, n and score."""
        key = (family, run)
        if key in self._outcomes:
            return self._outcomes[key]
        outcomes = read_outcomes(self.results, self.scale, family, run, self._folders[key])
        scores = self.scores(family, run)
        assert scores is not None  # it was found before its outcomes are asked for
        where = f"{family}/{run} at scale {self.scale}"
        if tuple(scores.seeds) != outcomes.answers.seeds:
            raise InputError(
                f"{where}: scores are of seeds {list(scores.seeds)}, outcomes of "
                f"{list(outcomes.answers.seeds)}"
            )
        for benchmark in scores.benchmarks:
            values = outcomes.answers.values.get(benchmark)
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
        self._outcomes[key] = outcomes
        return outcomes

    def answers(
        self, family: str, runs: Sequence[str], benchmarks: Sequence[str]
    ) -> list[Answers] | None:
        """The runs' answers on the benchmarks, checked to be to the same questions.

        None if a run has no score file, or its scores lack a benchmark: that comparison was not
        run. Raises InputError if outcomes are missing, disagree with their score file, or the runs
        answered different questions.
        """
        found = []
        for run in runs:
            scores = self.scores(family, run)
            if scores is None or not set(benchmarks) <= set(scores.benchmarks):
                return None
            found.append(self._run_outcomes(family, run))
        for run, outcomes in zip(runs, found, strict=True):
            for name in benchmarks:
                if name not in outcomes.question_ids:
                    raise InputError(f"{family}/{run} has no outcomes on {name}")
                if outcomes.question_ids[name] != found[0].question_ids[name]:
                    raise InputError(
                        f"{family} at scale {self.scale}: {run} and {runs[0]} answered different "
                        f"questions of {name}; they cannot be compared pair by pair"
                    )
        return [outcomes.answers for outcomes in found]
