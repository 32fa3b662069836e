"""The one path from a model to a score: lmms-eval's evaluator, official tasks, official scorers.

    evaluation = evaluate_model("runs/student", ["mmbench", "seedbench"], Path("data/standins"))
    evaluation.scores["mmbench"]["score"]        # percent
    evaluation.write_outcomes("results/outcomes.parquet")   # one row per question

The data are files of stand-ins in a directory, or the published data of the official tasks
(:func:`replication.benchmarks.published.prepare`).

Nothing is scored here. The credit of an answer, from 0 to 1, is what the official scorer says of
it, and the official score has to follow from the credits, or the run fails: it is their mean but
for MME and MMStar. An exception in a scorer is an exception, never a wrong answer. Everything is
read before the model runs, so that bad input costs no model time. Nothing touches the network and
nothing is left on the disk.
"""

import contextlib
import functools
import io
import math
import os
import pathlib
import random
import sys
import tempfile
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from grace.arithmetic import chosen_dtype
from grace.errors import InputError
from replication import benchmarks as tasks
from replication.base.files import atomic_path
from replication.benchmarks import Benchmark, Published
from replication.benchmarks.benchmark import best_constants
from replication.settings.schema import DTYPES

if TYPE_CHECKING:
    import pandas as pd

    from replication.evaluate.chat_model import ChatModel, Share

# Read by huggingface_hub and datasets when they are imported, which happens further down.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", os.environ["HF_HUB_OFFLINE"])

OUTCOME_COLUMNS = ("benchmark", "question_id", "skill", "prediction", "target", "credit")


def evaluation_dtype(choice: str) -> str:
    """The weights' type of an evaluation; "auto" is what this machine multiplies natively."""
    if choice != "auto":
        return choice
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return str(chosen_dtype("auto", device)).removeprefix("torch.")


_DTYPES = {name: getattr(torch, name) for name in DTYPES}
_TOLERANCE = 1e-9
_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
"""By these lmms-eval would share the questions out itself; here the model wrapper does."""


class ScoringError(RuntimeError):
    """The official scorer failed, or contradicts itself. Never turned into a wrong answer."""


@dataclass(frozen=True)
class Evaluation:
    """Scores by benchmark (percent; MME points), an outcome per question, the run's settings."""

    scores: dict[str, dict[str, Any]]
    outcomes: "pd.DataFrame"
    settings: dict[str, Any]
    entropies: dict[str, list[float]]

    def write_outcomes(self, path: str | os.PathLike) -> None:
        """Write the outcomes as parquet: all of them, or nothing."""
        with atomic_path(pathlib.Path(path)) as temporary:
            self.outcomes.to_parquet(temporary, index=False)


def evaluate_model(
    model: str | os.PathLike | torch.nn.Module,
    benchmarks: list[str],
    data_dir: str | os.PathLike | Mapping[str, Published],
    *,
    processor: Any = None,
    batch_size: int = 64,
    max_new_tokens: int = 8,
    dtype: str = "float32",
    device: str = "auto",
    limit: int | None = None,
    cache: str | os.PathLike | None = None,
    share: "Share | None" = None,
) -> Evaluation:
    """Score a model on the benchmarks whose questions are ``<data_dir>/<benchmark>.parquet``.

    Args:
        model: a Hugging Face model directory, or a model in memory (then give ``processor``).
        data_dir: the directory of stand-ins, or the published data of every benchmark.
        max_new_tokens: bounds the official limit of each task; the answers here are short.
        dtype: the weights' type. In float32 the batch size does not change an answer; a model in
            memory has to be in this type already, and is never converted behind its owner's back.
        device: where a model directory is loaded; a model in memory stays where it is.
        limit: only the first so many questions of each benchmark.
        cache: where `datasets` keeps the tables that it makes of the data; by default nowhere.
        share: which of several processes this one is; all of them call this function alike, and
            each gets the whole result.

    Raises:
        InputError: the model, the data or a setting is wrong; raised before the model runs.
        ScoringError: the official scorer failed on a question, which the message names.
    """
    for name, value in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise InputError(f"{name} is {value}; it has to be at least 1")
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; give at least 1, or None for all questions")
    if dtype not in _DTYPES:
        raise InputError(f"dtype is {dtype!r}; choose one of {', '.join(_DTYPES)}")
    if not benchmarks or len(set(benchmarks)) != len(benchmarks):
        raise InputError(f"benchmarks are {benchmarks}; name each once, and at least one")
    chosen = [tasks.get(name) for name in benchmarks]
    _check_model(model, processor, dtype)
    data: dict[str, pathlib.Path | Published] = {}
    for benchmark in chosen:
        if not isinstance(data_dir, Mapping):
            data[benchmark.name] = _check_data(benchmark, pathlib.Path(data_dir), limit)
        elif benchmark.name in data_dir:
            data[benchmark.name] = data_dir[benchmark.name]
        else:
            raise InputError(f"no published data of {benchmark.name} are given")

    from replication.evaluate.chat_model import ChatModel

    options: dict[str, Any] = {
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "stream": sys.stderr,
        "share": share,
    }
    with tempfile.TemporaryDirectory(prefix="lmms-eval-") as scratch, _quiet():
        kept = pathlib.Path(cache) if cache else pathlib.Path(scratch) / "cache"
        loaded = _load_tasks(chosen, data, pathlib.Path(scratch), kept, limit)
        if isinstance(model, torch.nn.Module):
            chat = ChatModel(model, processor, **options)
        else:
            if device == "auto":
                device = "cuda" if torch.cuda.is_available() else "cpu"
            chat = ChatModel.from_directory(
                pathlib.Path(model), dtype=_DTYPES[dtype], device=device, **options
            )
        return _evaluate(chat, chosen, loaded, pathlib.Path(scratch), limit)


def _evaluate(
    chat: "ChatModel",
    chosen: list[Benchmark],
    loaded: dict[str, Any],
    scratch: pathlib.Path,
    limit: int | None,
) -> Evaluation:
    """Run loaded tasks through lmms-eval's own ``simple_evaluate`` and read the result."""
    import pandas as pd
    from lmms_eval.evaluator import simple_evaluate

    arguments = types.SimpleNamespace(
        output_path=str(scratch), process_with_media=False, reasoning_tags=None
    )
    scores, frames = {}, []
    state = random.getstate()  # scorers draw from the global generator, or reseed it
    ranks = {name: os.environ.pop(name) for name in _RANKS if name in os.environ}
    try:
        results = simple_evaluate(
            model=chat,
            tasks=[loaded[b.name] for b in chosen],
            task_manager=object(),  # the tasks are loaded: there is nothing to index
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
            cli_args=arguments,
            process_docs_parallel=1,
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
            fewshot_random_seed=None,
        )
        for benchmark in chosen:
            score, frame = _read_result(benchmark, loaded[benchmark.name], results)
            scores[benchmark.name] = score
            frames.append(frame)
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
        "lmms_eval": tasks.official_version(),
    }
    entropies = {
        b.name: [
            value
            for (task, _), value in sorted(chat.entropies.items())
            if task == loaded[b.name].config.task
        ]
        for b in chosen
    }
    return Evaluation(scores, pd.concat(frames, ignore_index=True), settings, entropies)


def _read_result(
    benchmark: Benchmark, task: Any, results: dict[str, Any]
) -> tuple[dict[str, Any], "pd.DataFrame"]:
    import pandas as pd

    aggregate = task.aggregation()[benchmark.metric]
    name, ids = task.config.task, task.question_ids
    rows, unparsed, chances = [], 0, []
    for sample in sorted(results["samples"][name], key=lambda s: s["doc_id"]):
        if benchmark.metric not in sample and not benchmark.counts_all:
            continue
        question, prediction = sample["doc"], sample["filtered_resps"][0].strip()
        question_id = ids[sample["doc_id"]]
        answers = benchmark.options(question)
        chances.append(1 / len(answers) if answers else 0.0)

        def credit_of(metrics: dict[str, Any], question_id: str = question_id) -> float:
            with _naming(benchmark, lambda: question_id):
                credit = benchmark.credit(aggregate, metrics[benchmark.metric])
                if not 0.0 <= credit <= 1.0:
                    raise ValueError(f"the credit of one answer is {credit}, not from 0 to 1")
                return credit

        credit = credit_of(sample)
        # Unparsed: wrong, and it would be wrong whichever option were the answer.
        unparsed += (
            not credit
            and bool(answers)
            and not any(
                credit_of(task.process_results(benchmark.with_answer(question, x), [prediction]))
                for x in answers
            )
        )
        rows.append(
            (
                benchmark.name,
                question_id,
                benchmark.skill(question),
                prediction,
                str(sample["target"]),
                credit,
            )
        )
    frame = pd.DataFrame(rows, columns=list(OUTCOME_COLUMNS))
    frame["credit"] = frame["credit"].astype("float64")
    if not len(frame):
        raise ScoringError(f"{benchmark.name}: no question counts for {benchmark.metric}")
    if benchmark.distinct is not None:
        frame, chances = _distinct(frame, chances, benchmark.distinct)
    chance = 0.0
    for one in chances:
        chance += one
    found = {
        key.partition(",")[0]: float(value)
        for key, value in results["results"][name].items()
        if key.partition(",")[0] in task.aggregation() and not isinstance(value, str)
    }
    official, recomputed = found[benchmark.metric] * benchmark.percent, benchmark.recompute(frame)
    slack = benchmark.percent * (_TOLERANCE + 0.5 * 10.0**-benchmark.decimals)
    if not math.isclose(recomputed, official, rel_tol=_TOLERANCE, abs_tol=slack):
        raise ScoringError(
            f"{benchmark.name}: the credits of the questions give {recomputed:.9f}, but the "
            f"official score is {official:.9f}"
        )
    n, credits = len(frame), frame["credit"].to_numpy()
    score = {
        # where the official score is rounded, or counts 1,000 questions, the mean is what it means
        "score": 100 * float(credits.mean()) if benchmark.score_is_mean else official,
        "n": n,
        "standard_error": benchmark.standard_error(frame),
        "chance": 100 * chance / n if chance else best_constants(frame),
        "metric": benchmark.metric,
        "official_task": benchmark.official_name,
        "task_sha256": benchmark.sha256(),
        "scorer": benchmark.scorer,
        "unparsed": unparsed,
    }
    if benchmark.chance is not None:
        score["chance"] = benchmark.chance(frame)
    if not benchmark.score_is_mean:
        score["accuracy"] = 100 * float(credits.mean())
    if others := {metric: value for metric, value in found.items() if metric != benchmark.metric}:
        score["other_metrics"] = others
    return score, frame


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
    return merged[list(OUTCOME_COLUMNS)], merged["chance"].tolist()


def _load_tasks(
    chosen: list[Benchmark],
    data: Mapping[str, pathlib.Path | Published],
    scratch: pathlib.Path,
    cache: pathlib.Path,
    limit: int | None,
) -> dict[str, Any]:
    """Load the official tasks over the local data; nothing else of lmms-eval is indexed."""
    from lmms_eval.tasks import TaskManager, get_task_dict

    folder = scratch / "tasks"
    folder.mkdir()
    for benchmark in chosen:
        tasks.write_task_file(benchmark, data[benchmark.name], folder, cache)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    loaded = {}
    for benchmark in chosen:
        source = data[benchmark.name]
        published = isinstance(source, Published)
        name = benchmark.official_name if published else benchmark.name
        place = source.folder if isinstance(source, Published) else source
        try:
            task: Any = get_task_dict([name], manager)[name]
        except Exception as error:
            cause = getattr(error, "last_attempt", None)
            raise InputError(
                f"{benchmark.name}: {place} does not load as the official task "
                f"expects it: {cause.exception() if cause else error}"
            ) from error
        if benchmark.target is not None:  # only shown: these tasks score without it
            task.config.doc_to_target = benchmark.target
        if isinstance(source, Published):
            _join_images(benchmark, task, source, cache)
            task.question_ids = _number_questions(benchmark, task)
        else:
            task.question_ids = _check_questions(benchmark, task, limit)
        _name_questions(benchmark, task, task.question_ids)
        loaded[benchmark.name] = task
    return loaded


class _WithImages:
    """Questions whose images lie in another table, joined when they are read."""

    def __init__(self, questions: Any, images: Any, key: str, column: str) -> None:
        self.questions, self.images, self.key, self.column = questions, images, key, column
        self.rows = {name: row for row, name in enumerate(images["id"])}

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, row: int) -> dict[str, Any]:
        question = self.questions[row]
        image = self.images[self.rows[question[self.key]]][self.column]
        return {**question, self.column: image}


def _join_images(benchmark: Benchmark, task: Any, source: Published, cache: pathlib.Path) -> None:
    """Put the images in, where they lie in a subset of their own, and check the columns.

    Raises InputError for a column that the official task reads and the data lack, an image column
    of another type, or an image that is not there.
    """
    import datasets

    split = source.split
    features = dict(task.dataset[split].features)
    if source.images is not None:
        subset = source.images.subset or "default"
        images = datasets.load_dataset(
            source.images.folder, subset, split=split, cache_dir=str(cache)
        )
        joined = _WithImages(
            task.dataset[split], images, benchmark.image_key, benchmark.image_column
        )
        wanted = task.dataset[split][benchmark.image_key]
        if lost := next((name for name in wanted if name not in joined.rows), None):
            raise InputError(
                f"{benchmark.name}: image {lost!r} is not in {source.repository}, subset {subset}; "
                "fetch it again"
            )
        features[benchmark.image_column] = images.features[benchmark.image_column]
        task.dataset[split] = joined
    where = f"{benchmark.name}: {source.repository}, split {split}"
    if missing := [column for column in benchmark.columns if column not in features]:
        raise InputError(f"{where} lacks {', '.join(missing)}, which the official task reads")
    image = features[benchmark.image_column]
    if not isinstance(getattr(image, "feature", image), datasets.Image):
        raise InputError(f"{where}: column {benchmark.image_column} holds no images")


def _number_questions(benchmark: Benchmark, task: Any) -> list[str]:
    """The ids of published questions. The later ones of an id that occurs twice get a number: the
    data are what they are."""
    ids, seen = [], Counter[str]()
    for row, question in enumerate(task.eval_docs_no_media):
        question_id = benchmark.question_id(question, row)
        seen[question_id] += 1
        count = seen[question_id]
        ids.append(question_id if count == 1 else f"{question_id}#{count}")
    return ids


def _name_questions(benchmark: Benchmark, task: Any, ids: Sequence[str]) -> None:
    """Let an exception in the official scorer say which question it met, at once.

    lmms-eval retries a failing scorer five times, two seconds apart; a scorer that is a function
    of the answer fails the same way each time, so the retry is taken off.
    """
    process = getattr(type(task).process_results, "__wrapped__", type(task).process_results)

    @functools.wraps(process)
    def process_results(question: Any, results: Any, full_docs: Any = None) -> Any:
        # MMMU draws an option at random where it finds none: the same one in every run
        random.seed(f"{benchmark.name} {benchmark.question_id(question, 0)}")
        with _naming(benchmark, lambda: _id_of(benchmark, task, question)):
            return process(task, question, results, full_docs)

    task.process_results = process_results
    for metric in benchmark.files_only:
        task._aggregation_list.pop(metric, None)
    official = task._aggregation_list[benchmark.metric]

    @functools.wraps(official)
    def aggregate(values: list[Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return official(values, *args, **kwargs)
        except Exception as error:
            for question_id, value in zip(ids, values, strict=False):
                with _naming(benchmark, functools.partial(str, question_id)):
                    benchmark.credit(official, value)
            raise ScoringError(
                f"{benchmark.name}: the official aggregation failed: {error!r}"
            ) from error

    task._aggregation_list[benchmark.metric] = aggregate


def _id_of(benchmark: Benchmark, task: Any, question: Any) -> str:
    if benchmark.id_columns:
        return benchmark.question_id(question, 0)
    rows = (i for i, known in enumerate(task.eval_docs_no_media) if known == question)
    return str(next(rows, "?"))


@contextlib.contextmanager
def _naming(benchmark: Benchmark, question_id: Callable[[], str]) -> Iterator[None]:
    try:
        yield
    except ScoringError:
        raise
    except Exception as error:
        raise ScoringError(
            f"{benchmark.name}, question {question_id()}: the official scorer failed: {error!r}"
        ) from error


def _check_model(model: Any, processor: Any, dtype: str) -> None:
    if isinstance(model, torch.nn.Module):
        if processor is None:
            raise InputError("a model in memory needs its processor: pass processor=...")
        found = {p.dtype for p in model.parameters() if p.is_floating_point()}
        if found != {_DTYPES[dtype]}:
            names = ", ".join(sorted(str(d).removeprefix("torch.") for d in found))
            raise InputError(
                f"the model's weights are {names}, the evaluation is to run in {dtype}: "
                "convert the model with model.to(...), or pass the matching dtype"
            )
    else:
        path = pathlib.Path(model)
        if not (path / "config.json").is_file():
            what = "holds no config.json" if path.is_dir() else "does not exist"
            raise InputError(f"model directory {path} {what}; give one written by save_pretrained")


def _check_data(benchmark: Benchmark, data_dir: pathlib.Path, limit: int | None) -> pathlib.Path:
    """Refuse a parquet file that is missing, unreadable, empty, or holds a broken image."""
    import pyarrow
    from pyarrow import parquet

    path = (data_dir / f"{benchmark.name}.parquet").absolute()
    if not path.is_file():
        raise InputError(f"{path} does not exist; build the data of {benchmark.name} first")
    try:
        with parquet.ParquetFile(path) as file:
            _check_schema(benchmark, path, file.schema_arrow)
            if file.metadata.num_rows == 0:
                raise InputError(f"{path} holds no questions; build it again")
            _check_images(benchmark, path, file, limit)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(
            f"{path} is not a readable parquet file ({error}); build it again"
        ) from error
    return path


def _check_schema(benchmark: Benchmark, path: pathlib.Path, schema: Any) -> None:
    import datasets

    missing = [column for column in benchmark.columns if column not in schema.names]
    if missing:
        raise InputError(
            f"{path} lacks {', '.join(missing)}, which the official task {benchmark.name} reads"
        )
    feature = datasets.Features.from_arrow_schema(schema)[benchmark.image_column]
    if not isinstance(getattr(feature, "feature", feature), datasets.Image):
        raise InputError(
            f"{path}: column {benchmark.image_column} is not declared an image; write the file "
            "through datasets with features=Features(image=Image(), ...)"
        )


def _check_images(benchmark: Benchmark, path: pathlib.Path, file: Any, limit: int | None) -> None:
    from PIL import Image, ImageFile

    columns = [benchmark.image_column, *benchmark.id_columns]
    row = 0
    for batch in file.iter_batches(batch_size=256, columns=columns):
        for record in batch.to_pylist():
            if limit is not None and row >= limit:
                return
            cell = record[benchmark.image_column]
            images = cell if isinstance(cell, list) else [cell]
            where = f"{path}, question {benchmark.question_id(record, row)}"
            if not images or (None in images and not benchmark.image_optional):
                raise InputError(f"{where}: no image; build the file again")
            for image in images:
                if image is None:
                    continue
                source = image["path"] if image["bytes"] is None else io.BytesIO(image["bytes"])
                lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
                try:
                    with Image.open(source) as opened:
                        opened.load()
                except Exception as error:  # Pillow raises a different type for each format
                    raise InputError(
                        f"{where}: the image does not decode ({error}); build the file again"
                    ) from error
                finally:  # lmms-eval sets it for the whole process: half an image is an image
                    ImageFile.LOAD_TRUNCATED_IMAGES = lenient
            row += 1


def _check_questions(benchmark: Benchmark, task: Any, limit: int | None) -> list[str]:
    """Refuse a question that the official task cannot pose or score; return the ids."""
    ids: list[str] = []
    pairs: Counter = Counter()
    for row, question in enumerate(task.eval_docs_no_media):
        if limit is not None and row >= limit:
            break
        question_id = benchmark.question_id(question, row)
        where = f"{benchmark.name}, question {question_id}"
        try:
            task.doc_to_text(question)
            target = task.doc_to_target(question)
            answers = benchmark.options(question)
        except Exception as error:
            raise InputError(f"{where}: the official task cannot read it: {error!r}") from error
        if answers and str(target) not in answers:
            raise InputError(f"{where}: the answer is {target!r}, the options are {answers}")
        if not str(target):
            raise InputError(f"{where}: the answer is empty; build the file again")
        ids.append(question_id)
        if benchmark.paired:
            pairs[question[benchmark.paired]] += 1
    if len(set(ids)) != len(ids):
        twice = next(id_ for id_ in ids if ids.count(id_) > 1)
        raise InputError(f"{benchmark.name}: question id {twice} occurs more than once")
    for value, count in pairs.items():
        if count != 2:
            raise InputError(
                f"{benchmark.name}: {benchmark.paired} {value} has {count} of its two questions; "
                "the official score needs both" + (f" (limit is {limit})" if limit else "")
            )
    return ids


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tables and progress bars of the libraries off the terminal."""
    from loguru import logger

    logger.disable("lmms_eval")
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.enable("lmms_eval")
