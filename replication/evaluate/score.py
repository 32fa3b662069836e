"""The one path from a model to a score: lmms-eval's evaluator, official tasks, official scorers.

    evaluation = evaluate_model("runs/student", ["mmbench", "seedbench"], "data/standins")
    evaluation.scores["mmbench"]["score"]        # percent
    evaluation.write_outcomes("results/outcomes.parquet")   # one row per question

The questions are files of stand-ins in a directory, or the published data of the official tasks
(:func:`replication.benchmarks.published.prepare`).

Nothing is scored here. The credit of an answer, from 0 to 1, is what the official scorer says of
it, and the official score has to follow from the credits, or the run fails: it is their mean but
for MME and MMStar. An exception in a scorer is an exception, never a wrong answer. Nothing touches
the network and nothing is left on the disk.
"""

import math
import os
import random
import sys
import tempfile
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from grace.arithmetic import arithmetic_name, chosen_device
from grace.errors import InputError
from grace.evaluation.shared import SharedInputs
from grace.models import load_model, load_processor
from replication.base.files import atomic_path
from replication.benchmarks import Benchmark, Questions, Standins, get, official_version
from replication.benchmarks.benchmark import best_constants
from replication.evaluate.official import ScoringError, naming, official_tasks
from replication.results.scores import OUTCOME_COLUMNS
from replication.settings import schema

if TYPE_CHECKING:
    import pandas as pd

    from grace.evaluation.lmms import ChatModel, Share

DTYPES = {name: getattr(torch, name) for name in schema.DTYPES}
"""The types of the weights that an evaluation can run in, by the names of the parameters."""

COLUMNS = tuple(name for name in OUTCOME_COLUMNS if name != "seed")
"""The columns of an evaluation's outcomes: those of a result file but the seed."""

_TOLERANCE = 1e-9
_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
"""By these lmms-eval would share the questions out itself; here the model wrapper does."""


@dataclass(frozen=True)
class Evaluation:
    """What a model's answers to a list of benchmarks gave.

    Attributes:
        scores: By benchmark: score (percent; MME: points), n, standard error, chance, and what
            decides the score.
        outcomes: One row per question, of the columns :data:`COLUMNS`.
        settings: How the model was asked.
        entropies: By benchmark: entropy in nats of the first token of every answer, by row.
        confidences: By benchmark: probability of that token, by row.
    """

    scores: dict[str, dict[str, Any]]
    outcomes: "pd.DataFrame"
    settings: dict[str, Any]
    entropies: dict[str, list[float]]
    confidences: dict[str, list[float]]

    def write_outcomes(self, path: str | os.PathLike) -> None:
        """Write the outcomes as parquet: all of them, or nothing."""
        with atomic_path(Path(path)) as temporary:
            self.outcomes.to_parquet(temporary, index=False)


def evaluation_dtype(choice: str) -> str:
    """The weights' type of an evaluation; "auto" is what this machine multiplies natively."""
    if choice != "auto":
        return choice
    return arithmetic_name()


def evaluate_model(
    model: str | os.PathLike | torch.nn.Module,
    benchmarks: list[str],
    data: str | os.PathLike | Mapping[str, Questions],
    *,
    processor: Any = None,
    batch_size: int = 64,
    max_new_tokens: int = 8,
    dtype: str = "float32",
    device: str = "auto",
    limit: int | None = None,
    cache: str | os.PathLike | None = None,
    share: "Share | None" = None,
    inputs: str | os.PathLike | None = None,
) -> Evaluation:
    """Score a model on benchmarks.

    Args:
        model: A Hugging Face model directory, or a model in memory (then give ``processor``).
        benchmarks: Names of :data:`replication.benchmarks.BENCHMARKS`.
        data: A directory of stand-ins, ``<data>/<benchmark>.parquet``, or the source of every
            benchmark's questions.
        processor: Of a model in memory.
        batch_size: Questions that are answered at once.
        max_new_tokens: Bounds the official limit of each task; the answers here are short.
        dtype: The weights' type. In float32 the batch size does not change an answer; a model in
            memory has to be in this type already, and is never converted behind its owner's back.
        device: Where a model directory is loaded; a model in memory stays where it is.
        limit: Only the first so many questions of each benchmark.
        cache: Where `datasets` keeps the tables that it makes of the data; by default nowhere.
        share: Which of several processes this one is; all of them call this function alike, and
            each gets the whole result.
        inputs: A folder of these questions' own, through which models of one processor and vision
            tower share their inputs; see :class:`grace.evaluation.shared.SharedInputs`.

    Raises:
        InputError: The model, the data or a setting is wrong; raised before the model runs.
        ScoringError: The official scorer failed on a question, which the message names.
    """
    for name, value in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise InputError(f"{name} is {value}; it has to be at least 1")
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; choose one of {', '.join(DTYPES)}")
    if not benchmarks or len(set(benchmarks)) != len(benchmarks):
        raise InputError(f"benchmarks are {benchmarks}; name each once, and at least one")
    chosen = [get(name) for name in benchmarks]
    _check_limit(limit, chosen)
    _check_model(model, processor, dtype)
    if not isinstance(data, Mapping):
        folder = Path(data).absolute()
        data = {name: Standins(str(folder / f"{name}.parquet")) for name in benchmarks}
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "stream": sys.stderr,
        "share": share,
    }
    with official_tasks(chosen, data, cache) as tasks:
        chat = _chat_model(model, processor, DTYPES[dtype], device, options)
        if inputs is not None:
            chat.shared = SharedInputs(inputs, chat.model, chat.processor)
        return _evaluate(chat, chosen, tasks, limit)


def _check_limit(limit: int | None, benchmarks: Sequence[Benchmark]) -> None:
    if limit is None:
        return
    if limit < 1:
        raise InputError(f"limit is {limit}; give at least 1, or None for all questions")
    if limit % 2 and (paired := [b.name for b in benchmarks if b.paired]):
        raise InputError(
            f"limit is {limit}, and {paired[0]} asks its questions in pairs; give an even number"
        )


def _check_model(model: Any, processor: Any, dtype: str) -> None:
    if isinstance(model, torch.nn.Module):
        if processor is None:
            raise InputError("a model in memory needs its processor: pass processor=...")
        dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
        if dtypes != {DTYPES[dtype]}:
            names = ", ".join(sorted(str(d).removeprefix("torch.") for d in dtypes))
            raise InputError(
                f"the model's weights are {names}, the evaluation is to run in {dtype}: "
                "convert the model with model.to(...), or pass the matching dtype"
            )
    elif not (Path(model) / "config.json").is_file():
        fault = "holds no config.json" if Path(model).is_dir() else "does not exist"
        raise InputError(f"model directory {model} {fault}; give one written by save_pretrained")


def _chat_model(
    model: Any, processor: Any, dtype: torch.dtype, device: str, options: dict[str, Any]
) -> "ChatModel":
    from grace.evaluation.lmms import ChatModel

    if not isinstance(model, torch.nn.Module):
        model, processor = load_directory(Path(model), dtype=dtype, device=chosen_device(device))
    return ChatModel(model, processor, **options)


def load_directory(
    path: Path, *, dtype: torch.dtype, device: str, processor_path: Path | None = None
) -> tuple[torch.nn.Module, Any]:
    """A model directory as save_pretrained writes it, and its processor, which may lie elsewhere.

    Raises:
        InputError: One of them does not load, or weights are missing.
    """
    processor = load_processor(processor_path or path)
    model = load_model(path, dtype=dtype)
    # beside 8-bit weights transformers keeps the others as they are stored
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return model.to(torch.device(device)), processor


def _evaluate(
    chat: "ChatModel", benchmarks: list[Benchmark], tasks: dict[str, Any], limit: int | None
) -> Evaluation:
    """Run loaded tasks through lmms-eval's own ``simple_evaluate`` and read the result."""
    import pandas as pd

    scores, frames = {}, []
    state = random.getstate()  # scorers draw from the global generator, or reseed it
    ranks = {name: os.environ.pop(name) for name in _RANKS if name in os.environ}
    try:
        results = _run(chat, [tasks[b.name] for b in benchmarks], limit)
        for benchmark in benchmarks:
            task = tasks[benchmark.name]
            answers = _answers(benchmark, task, results)
            scores[benchmark.name] = _score(benchmark, task, results, answers)
            frames.append(answers.outcomes)
    finally:
        random.setstate(state)
        os.environ |= ranks
    settings = {
        "batch_size": chat.batch_size,
        "max_new_tokens": chat.max_new_tokens,
        "dtype": str(chat.dtype).removeprefix("torch."),
        "device": chat.device.type,
        "limit": limit,
        "decoding": "greedy",
        "lmms_eval": official_version(),
    }
    doubts = [
        {
            b.name: [
                value
                for (task, _), value in sorted(values.items())
                if task == tasks[b.name].config.task
            ]
            for b in benchmarks
        }
        for values in (chat.entropies, chat.confidences)
    ]
    return Evaluation(scores, pd.concat(frames, ignore_index=True), settings, *doubts)


def _run(chat: "ChatModel", tasks: list[Any], limit: int | None) -> dict[str, Any]:
    from lmms_eval.evaluator import simple_evaluate

    with tempfile.TemporaryDirectory(prefix="lmms-eval-") as scratch:
        return simple_evaluate(
            model=chat,
            tasks=tasks,
            task_manager=object(),  # the tasks are loaded: there is nothing to index
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
            cli_args=types.SimpleNamespace(
                output_path=scratch, process_with_media=False, reasoning_tags=None
            ),
            process_docs_parallel=1,
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
            fewshot_random_seed=None,
        )


@dataclass(frozen=True)
class _Answers:
    """The answers to one benchmark.

    Attributes:
        outcomes: One row per question.
        chances: Of guessing each question right; 0 for an open one.
        unparsed: How many answers are wrong, and would be whichever option were the right one.
    """

    outcomes: "pd.DataFrame"
    chances: list[float]
    unparsed: int


def _answers(benchmark: Benchmark, task: Any, results: dict[str, Any]) -> _Answers:
    import pandas as pd

    aggregate = task.aggregation()[benchmark.metric]
    rows, chances, unparsed = [], [], 0

    def credit_of(metrics: dict[str, Any], question_id: str) -> float:
        with naming(benchmark, lambda: question_id):
            credit = benchmark.credit(aggregate, metrics[benchmark.metric])
            if not 0.0 <= credit <= 1.0:
                raise ValueError(f"the credit of one answer is {credit}, not from 0 to 1")
            return credit

    for sample in sorted(results["samples"][task.config.task], key=lambda s: s["doc_id"]):
        if benchmark.metric not in sample and not benchmark.counts_all:
            continue
        question, prediction = sample["doc"], sample["filtered_resps"][0].strip()
        question_id = task.question_ids[sample["doc_id"]]
        answers = benchmark.options(question)
        chances.append(1 / len(answers) if answers else 0.0)
        credit = credit_of(sample, question_id)
        if answers and not credit:
            others = (
                task.process_results(benchmark.with_answer(question, answer), [prediction])
                for answer in answers
            )
            unparsed += not any(credit_of(metrics, question_id) for metrics in others)
        skill, target = benchmark.skill(question), str(sample["target"])
        rows.append((benchmark.name, question_id, skill, prediction, target, credit))
    if not rows:
        raise ScoringError(f"{benchmark.name}: no question counts for {benchmark.metric}")
    frame = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"credit": "float64"})
    if benchmark.distinct is not None:
        frame, chances = _distinct(frame, chances, benchmark.distinct)
    return _Answers(frame, chances, unparsed)


def _distinct(
    frame: "pd.DataFrame", chances: list[float], question_of: Callable[[str], str]
) -> tuple["pd.DataFrame", list[float]]:
    """One row and one chance per distinct question, in the order of their first rows."""
    owner = frame["question_id"].map(question_of)
    if owner.is_unique and (owner == frame["question_id"]).all():
        return frame, chances
    rows = frame.assign(question_id=owner, chance=chances).groupby("question_id", sort=False)
    merged = rows.agg(
        {
            **dict.fromkeys(("benchmark", "skill"), "first"),
            **dict.fromkeys(("prediction", "target"), " | ".join),
            "credit": "min",
            "chance": "prod",
        }
    ).reset_index()
    return merged[list(COLUMNS)], merged["chance"].tolist()


def _score(
    benchmark: Benchmark, task: Any, results: dict[str, Any], answers: _Answers
) -> dict[str, Any]:
    """A benchmark's entry of a score file.

    Raises:
        ScoringError: When the official score does not follow from the credits.
    """
    metrics = {
        key.partition(",")[0]: float(value)
        for key, value in results["results"][task.config.task].items()
        if key.partition(",")[0] in task.aggregation() and not isinstance(value, str)
    }
    official = metrics.pop(benchmark.metric) * benchmark.percent
    frame = answers.outcomes
    recomputed = benchmark.recompute(frame)
    slack = benchmark.percent * (_TOLERANCE + 0.5 * 10.0**-benchmark.decimals)
    if not math.isclose(recomputed, official, rel_tol=_TOLERANCE, abs_tol=slack):
        raise ScoringError(
            f"{benchmark.name}: the credits of the questions give {recomputed:.9f}, but the "
            f"official score is {official:.9f}"
        )
    accuracy = 100 * float(frame["credit"].to_numpy().mean())
    chance = 0.0
    for value in answers.chances:  # in this order: a different sum may differ in its last bit
        chance += value
    score = {
        # where the official score is rounded, or counts 1,000 questions, the mean is what it means
        "score": accuracy if benchmark.score_is_mean else official,
        "n": len(frame),
        "standard_error": benchmark.standard_error(frame),
        "chance": 100 * chance / len(frame) if chance else best_constants(frame),
        "metric": benchmark.metric,
        "official_task": benchmark.official_name,
        "task_sha256": benchmark.sha256(),
        "scorer": benchmark.scorer,
        "unparsed": answers.unparsed,
    }
    if benchmark.chance is not None:
        score["chance"] = benchmark.chance(frame)
    if not benchmark.score_is_mean:
        score["accuracy"] = accuracy
    if metrics:
        score["other_metrics"] = metrics
    return score
