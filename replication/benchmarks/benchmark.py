"""What a benchmark is here: an official lmms-eval task and what is needed to read its outcome."""

import hashlib
import importlib.metadata
import importlib.util
import inspect
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grace.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

Question = Mapping[str, Any]
Aggregate = Callable[..., float]


def official_root() -> pathlib.Path:
    spec = importlib.util.find_spec("lmms_eval")
    if spec is None or spec.origin is None:
        raise InputError("lmms-eval is not installed: run `make setup`")
    return pathlib.Path(spec.origin).parent / "tasks"


def official_version() -> str:
    return importlib.metadata.version("lmms_eval")


# -- the credit of one question, from what the official scorer says of it


def aggregate_of_one(aggregate: Aggregate, value: Any) -> float:
    """The official aggregation of a single question."""
    return float(aggregate([value]))


def recorded_score(aggregate: Aggregate, value: Any) -> float:
    """The score that the official ``process_results`` left with the question."""
    return float(value["score"])


def mmmu_credit(aggregate: Aggregate, value: Any) -> float:
    """The official evaluation of one question, without the table by subject around it."""
    evaluate = inspect.unwrap(aggregate).__globals__["evaluate_mmmu"]
    return float(evaluate([value])[1]["acc"])


class _OneRow:
    """As much of a DataFrame as MMBench's ``eval_sub_data`` reads, without building one."""

    def __init__(self, row: Question):
        self.iloc = (row,)

    def __len__(self) -> int:
        return 1


def mmbench_credit(aggregate: Aggregate, value: Any) -> float:
    """The official evaluator's own hit: what its aggregation calls for each question."""
    evaluator = inspect.unwrap(aggregate).__globals__["mmbench_evaluator"]
    answers = {value["index"]: value["answer"]}
    return float(evaluator.eval_sub_data(_OneRow(value), answers, static_only=True))


# -- the official score, in percent or points, recomputed from the outcomes


def mean(outcomes: "pd.DataFrame") -> float:
    return 100.0 * float(outcomes["credit"].mean())


def per_thousand(outcomes: "pd.DataFrame") -> float:
    """OCRBench divides the number of right answers by the 1,000 questions of the official set."""
    return 100.0 * float(outcomes["credit"].sum()) / 1000


def mean_of_skills(outcomes: "pd.DataFrame") -> float:
    """MMStar averages its categories, whatever their sizes."""
    return 100.0 * float(outcomes.groupby("skill")["credit"].mean().mean())


def mme_points(outcomes: "pd.DataFrame") -> float:
    """MME: per category accuracy plus the share of images with both answers right, in percent."""
    return float(_points_of_images(outcomes).mean().sum())


def mme_standard_error(outcomes: "pd.DataFrame") -> float:
    """Over images, in points."""
    images = _points_of_images(outcomes)
    return math.sqrt((images.var(ddof=0) / images.size()).sum())


def _points_of_images(outcomes: "pd.DataFrame") -> Any:
    """What each image earns, 0 to 200, grouped by category."""
    image = outcomes["question_id"].str.rsplit(" ", n=1).str[0]
    pairs = outcomes.groupby([outcomes["skill"], image])["credit"]
    return (100.0 * (pairs.mean() + (pairs.min() == 1.0))).groupby(level=0)


def standard_error(outcomes: "pd.DataFrame") -> float:
    """Of the mean of the credits."""
    return 100.0 * float(outcomes["credit"].std(ddof=0)) / math.sqrt(len(outcomes))


def best_constants(outcomes: "pd.DataFrame") -> float:
    """The share of each skill's most frequent answer: what one gets without looking."""
    top = outcomes.groupby("skill")["target"].agg(lambda answers: answers.value_counts().iloc[0])
    return 100.0 * float(top.sum()) / len(outcomes)


def mme_chance(outcomes: "pd.DataFrame") -> float:
    """Guessing gets half of the answers and a quarter of the pairs: 75 points a category."""
    return 75.0 * outcomes["skill"].nunique()


# -- the skill of a question, and the answers that it allows


def in_column(name: str, texts: Mapping[Any, str] | None = None) -> Callable[[Question], str]:
    """What a column says; `texts` has the words for its codes."""
    words = texts or {}
    return lambda question: words.get(question[name], str(question[name]))


def leading_words(question: Question) -> str:
    """The first two words of the question, where the official data name no kind."""
    return " ".join(question["question"].split()[:2])


def lettered(*columns: str) -> Callable[[Question], list[str]]:
    """The letters of the options that a question really has; "nan" marks an absent one."""

    def options(question: Question) -> list[str]:
        present = [question.get(column) not in (None, "", "nan") for column in columns]
        return [letter for letter, here in zip("ABCDEFGH", present, strict=False) if here]

    return options


def letters(count: int) -> list[str]:
    return [chr(ord("A") + place) for place in range(count)]


def one_of(*answers: str) -> Callable[[Question], list[str]]:
    return lambda question: list(answers)


def open_ended(question: Question) -> list[str]:
    return []


def _with_answer(question: Question, answer: str) -> dict[str, Any]:
    return {**question, "answer": answer}


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Its outcomes carry a **credit** per question, from 0 to 1: what the official scorer gives the
    answer. ``recompute`` makes the official score from the outcomes again, and has to meet it.

    Attributes:
        name: Its name here.
        official_yaml: The official task file, inside lmms_eval/tasks.
        sources: The other official files that decide prompt and score.
        split: Of the official data.
        metric: The headline metric.
        columns: The columns that the official task reads.
        skill: The skill that a question probes.
        id_columns: Columns that identify a question; () for the row number, where the official
            data have no id.
        image_column: The column of the image or images.
        images: Subset of the published data that has the images, where they lie apart.
        image_key: The column that names a question's image there.
        percent: The factor that turns the official score into percent or points.
        scorer: The scorer in words, for the score files.
        files_only: Metrics that only write a file for a leaderboard.
        replaced: Lines of the task file that replace more than the data source.
        credit: The credit of one answer, from the official aggregation and the answer's value.
        recompute: The official score from the outcomes, in percent or points.
        score_is_mean: Whether the tables' score is the mean of the credits, in percent.
        decimals: To which the official aggregation rounds.
        standard_error: Of the score, from the outcomes.
        chance: The score of guessing, from the outcomes; None to derive it from the options.
        options: The answers that a question allows; () for an open one.
        target: The answer that is reported; None for the official target.
        with_answer: The same question, were this its answer.
        paired: Column whose every value belongs to exactly two questions.
        counts_all: Whether the headline metric counts every question.
        distinct: The question that a row asks, by the row's id, where several rows ask it in other
            words. It is right if all of them are: its credit is the least of theirs.
    """

    name: str
    official_yaml: str
    sources: tuple[str, ...]
    split: str
    metric: str
    columns: tuple[str, ...]
    skill: Callable[[Question], str]
    id_columns: tuple[str, ...] = ()
    image_column: str = "image"
    images: str | None = None
    image_key: str = ""
    percent: float = 100.0
    scorer: str = "official"
    files_only: tuple[str, ...] = ()
    replaced: str = ""
    credit: Callable[[Aggregate, Any], float] = aggregate_of_one
    recompute: Callable[["pd.DataFrame"], float] = mean
    score_is_mean: bool = True
    decimals: int = 12
    standard_error: Callable[["pd.DataFrame"], float] = standard_error
    chance: Callable[["pd.DataFrame"], float] | None = None
    options: Callable[[Question], Sequence[str]] = open_ended
    target: Callable[[Question], str] | None = None
    with_answer: Callable[[Question, str], dict[str, Any]] = _with_answer
    paired: str | None = None
    counts_all: bool = True
    distinct: Callable[[str], str] | None = None

    @property
    def official_path(self) -> pathlib.Path:
        return official_root() / self.official_yaml

    @property
    def official_name(self) -> str:
        """The task's own name in lmms-eval."""
        return self.official_path.stem

    def question_id(self, question: Question, row: int) -> str:
        return " ".join(str(question[column]) for column in self.id_columns) or str(row)

    def sha256(self) -> str:
        """Hash of the official files that decide the prompt and the score."""
        digest = hashlib.sha256()
        for name in sorted({self.official_yaml, *self.sources}):
            content = (official_root() / name).read_bytes()
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()
