"""The benchmarks as data, and the lmms-eval task files that point the official tasks at local data.

A benchmark here *is* an official lmms-eval task: its prompt, its reading of the answer and its
aggregation come from the installed lmms-eval unchanged. All that is replaced is where the
questions come from: a parquet file in the schema of the official dataset.

To add a benchmark, add a row to :data:`BENCHMARKS`. The defaults fit every task that aggregates
a per-question verdict by its mean; a task whose aggregation is too slow to be asked about one
question at a time gives its own ``hit``.
"""

import hashlib
import importlib.metadata
import importlib.util
import inspect
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from grace.errors import InputError

Question = Mapping[str, Any]
Aggregate = Callable[..., float]


def _aggregate_of_one(aggregate: Aggregate, value: Any, percent: float) -> bool:
    """The verdict of the official aggregation on a single question."""
    score = float(aggregate([value])) * percent
    if score not in (0.0, 100.0):
        raise ValueError(f"the official aggregation of one question gave {score}, not 0 or 100")
    return score == 100.0


class _OneRow:
    """As much of a DataFrame as MMBench's ``eval_sub_data`` reads, without building one."""

    def __init__(self, row: Question):
        self.iloc = (row,)

    def __len__(self) -> int:
        return 1


def _mmbench_hit(aggregate: Aggregate, value: Any, percent: float) -> bool:
    """The official evaluator's own hit: what its aggregation calls for each question."""
    evaluator = inspect.unwrap(aggregate).__globals__["mmbench_evaluator"]
    answers = {value["index"]: value["answer"]}
    return bool(evaluator.eval_sub_data(_OneRow(value), answers, static_only=True))


def _lettered(*columns: str) -> Callable[[Question], list[str]]:
    """The letters of the options that a question really has; "nan" marks an absent one."""

    def options(question: Question) -> list[str]:
        present = [question.get(column) not in (None, "", "nan") for column in columns]
        return [letter for letter, here in zip("ABCDEFGH", present, strict=False) if here]

    return options


def _listed(column: str) -> Callable[[Question], list[str]]:
    def options(question: Question) -> list[str]:
        return [chr(ord("A") + i) for i in range(len(question[column]))]

    return options


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: an official lmms-eval task and what is needed to read its outcome."""

    name: str
    official_yaml: str  # inside lmms_eval/tasks
    sources: tuple[str, ...]  # the other official files that decide prompt and score
    split: str
    metric: str  # the headline metric
    percent: float  # what turns the official score into percent
    columns: tuple[str, ...]  # what the official task reads
    skill_column: str
    options: Callable[[Question], list[str]]
    id_column: str | None = None  # None: the row number, where the official data have no id
    answer_is_index: bool = False  # the answer column counts options from 0, not by letter
    image_column: str = "image"
    image_optional: bool = False
    scorer: str = "official"
    files_only: tuple[str, ...] = ()  # metrics that only write a file for a leaderboard
    hit: Callable[[Aggregate, Any, float], bool] = _aggregate_of_one

    @property
    def official_path(self) -> pathlib.Path:
        return official_root() / self.official_yaml

    def question_id(self, question: Question, row: int) -> str:
        return str(row if self.id_column is None else question[self.id_column])

    def with_answer(self, question: Question, letter: str) -> dict[str, Any]:
        """The same question, were ``letter`` its answer."""
        answer = ord(letter) - ord("A") if self.answer_is_index else letter
        return {**question, "answer": answer}

    def sha256(self) -> str:
        """Hash of the official files that decide the prompt and the score."""
        digest = hashlib.sha256()
        for name in sorted({self.official_yaml, *self.sources}):
            content = (official_root() / name).read_bytes()
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="mmbench",
            official_yaml="mmbench/mmbench_en_dev_static.yaml",
            sources=(
                "mmbench/_default_template_mmbench_en_yaml",
                "mmbench/en_utils.py",
                "mmbench/mmbench.yaml",
                "mmbench/mmbench_evals.py",
                "_task_utils/mcq_extract.py",
            ),
            split="dev",
            metric="gpt_eval_score",
            percent=1.0,
            columns=(
                *("index", "question", "hint", "A", "B", "C", "D", "answer"),
                *("category", "L2-category", "source", "split", "image"),
            ),
            id_column="index",
            skill_column="category",
            options=_lettered("A", "B", "C", "D"),
            scorer="rule-based: the official static variant, no judge model; the benchmark's "
            "headline protocol asks a judge model where the rules find no option",
            files_only=("submission",),
            hit=_mmbench_hit,
        ),
        Benchmark(
            name="seedbench",
            official_yaml="seedbench/seedbench.yaml",
            sources=("seedbench/utils.py",),
            split="test",
            metric="seed_all",
            percent=100.0,
            columns=(
                *("question", "choice_a", "choice_b", "choice_c", "choice_d", "answer"),
                *("data_type", "question_id", "question_type_id", "image"),
            ),
            id_column="question_id",
            skill_column="question_type_id",
            options=_lettered("choice_a", "choice_b", "choice_c", "choice_d"),
        ),
        Benchmark(
            name="scienceqa",
            official_yaml="scienceqa/scienceqa_img.yaml",
            sources=("scienceqa/utils.py",),
            split="test",
            metric="exact_match",
            percent=100.0,
            columns=("image", "question", "choices", "answer", "hint", "skill"),
            skill_column="skill",
            options=_listed("choices"),
            answer_is_index=True,
            image_optional=True,
        ),
    )
}


PRINTED = {"mmbench": "MMBench", "seedbench": "SEED-Bench", "scienceqa": "ScienceQA"}
"""Names that the paper's tables print."""


def get(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise InputError(f"unknown benchmark {name!r}; known: {', '.join(sorted(BENCHMARKS))}")
    return BENCHMARKS[name]


def official_root() -> pathlib.Path:
    spec = importlib.util.find_spec("lmms_eval")
    if spec is None or spec.origin is None:
        raise InputError("lmms-eval is not installed: run `make setup`")
    return pathlib.Path(spec.origin).parent / "tasks"


def official_version() -> str:
    return importlib.metadata.version("lmms_eval")


def write_task_file(
    benchmark: Benchmark, data_file: pathlib.Path, folder: pathlib.Path, cache: pathlib.Path
) -> pathlib.Path:
    """Write the task file: the official one included, its data source replaced, nothing else."""
    config = {
        "include": str(benchmark.official_path),
        "task": benchmark.name,
        "dataset_path": "parquet",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {benchmark.split: str(data_file)},
            "cache_dir": str(cache),
        },
    }
    path = folder / f"{benchmark.name}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path
