"""lmms-eval's official tasks over local questions.

The official task definitions and scorers are used unchanged; only where the questions come from is
replaced. Loaded tasks carry ``question_ids`` (list of str, one per row), and an exception in their
scorer names the question.
"""

import contextlib
import functools
import io
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grace.errors import InputError
from replication.benchmarks import Benchmark, Published, Questions, Standins, write_task_file

# Read by huggingface_hub and datasets when they are imported, which happens further down.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", os.environ["HF_HUB_OFFLINE"])


class ScoringError(RuntimeError):
    """The official scorer failed, or contradicts itself. Never turned into a wrong answer."""


@contextlib.contextmanager
def official_tasks(
    benchmarks: Sequence[Benchmark],
    questions: Mapping[str, Questions],
    cache: str | os.PathLike | None = None,
) -> Iterator[dict[str, Any]]:
    """The official tasks over local questions; in the block the libraries print nothing.

    Args:
        benchmarks: The benchmarks to load.
        questions: The source of every benchmark's questions, by the benchmark's name.
        cache: Where `datasets` keeps the tables that it builds; by default nowhere.

    Yields:
        lmms-eval's tasks by the benchmark's name.

    Raises:
        InputError: For questions that are missing, cannot be read, or lack what the task reads.
    """
    for benchmark in benchmarks:
        source = questions[benchmark.name]
        if isinstance(source, Standins):
            _check_file(benchmark, Path(source.file))
    with tempfile.TemporaryDirectory(prefix="lmms-eval-") as scratch, _quiet():
        folder = Path(scratch) / "tasks"
        folder.mkdir()
        tables = Path(cache) if cache else Path(scratch) / "tables"
        yield _load(benchmarks, questions, folder, tables)


def _check_file(benchmark: Benchmark, file: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    if not file.is_file():
        raise InputError(f"{file} does not exist; build the questions of {benchmark.name} first")
    try:
        columns = parquet.read_schema(file).names
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{file} cannot be read as parquet ({error}); build it again") from error
    _check_columns(benchmark, columns, str(file))


def _check_columns(benchmark: Benchmark, columns: Collection[str], where: str) -> None:
    if missing := [column for column in benchmark.columns if column not in columns]:
        raise InputError(f"{where} lacks {', '.join(missing)}, which the official task reads")


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


def _load(
    benchmarks: Sequence[Benchmark], questions: Mapping[str, Questions], folder: Path, tables: Path
) -> dict[str, Any]:
    """Load the tasks through files in `folder`; nothing else of lmms-eval is indexed."""
    from lmms_eval.tasks import TaskManager, get_task_dict

    for benchmark in benchmarks:
        write_task_file(benchmark, questions[benchmark.name], folder, tables)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    loaded = {}
    for benchmark in benchmarks:
        source = questions[benchmark.name]
        name = benchmark.official_name if isinstance(source, Published) else benchmark.name
        try:
            task: Any = get_task_dict([name], manager)[name]
        except Exception as error:  # `datasets` fails with many types
            retried = getattr(error, "last_attempt", None)
            raise InputError(
                f"{benchmark.name}: {source.place} does not load as the official task expects it: "
                f"{retried.exception() if retried else error}"
            ) from error
        if benchmark.target is not None:  # only reported: these tasks score without it
            task.config.doc_to_target = benchmark.target
        _prepare_columns(benchmark, task, source, tables)
        task.question_ids = _question_ids(benchmark, task)
        _name_failures(benchmark, task)
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


def _prepare_columns(benchmark: Benchmark, task: Any, source: Questions, tables: Path) -> None:
    """Join images that lie in a subset of their own, and check the columns.

    Raises:
        InputError: For a column that the official task reads and the data lack, an image column
            of another type, or an image that is not there.
    """
    import datasets

    split = source.split if isinstance(source, Published) else benchmark.split
    features = dict(task.dataset[split].features)
    if isinstance(source, Published) and source.images is not None:
        subset = source.images.subset or "default"
        images = datasets.load_dataset(
            source.images.folder, subset, split=split, cache_dir=str(tables)
        )
        joined = _WithImages(
            task.dataset[split], images, benchmark.image_key, benchmark.image_column
        )
        keys = task.dataset[split][benchmark.image_key]
        if lost := next((name for name in keys if name not in joined.rows), None):
            raise InputError(
                f"{benchmark.name}: image {lost!r} is not in {source.repository}, subset {subset}; "
                "fetch it again"
            )
        features[benchmark.image_column] = images.features[benchmark.image_column]
        task.dataset[split] = joined
    where = f"{benchmark.name}: {source.name}, split {split}"
    _check_columns(benchmark, features, where)
    image = features[benchmark.image_column]
    if not isinstance(getattr(image, "feature", image), datasets.Image):
        raise InputError(f"{where}: column {benchmark.image_column} holds no images")


def _question_ids(benchmark: Benchmark, task: Any) -> list[str]:
    """The ids of the rows; the later rows of an id that occurs twice get a number."""
    ids, counts = [], Counter[str]()
    for row, question in enumerate(task.eval_docs_no_media):
        question_id = benchmark.question_id(question, row)
        counts[question_id] += 1
        number = counts[question_id]
        ids.append(question_id if number == 1 else f"{question_id}#{number}")
    return ids


def _name_failures(benchmark: Benchmark, task: Any) -> None:
    """Let an exception in the official scorer say which question it met, at once.

    lmms-eval retries a failing scorer five times, two seconds apart; a scorer that is a function
    of the answer fails the same way each time, so the retry is taken off.
    """
    process = getattr(type(task).process_results, "__wrapped__", type(task).process_results)

    @functools.wraps(process)
    def process_results(question: Any, results: Any, full_docs: Any = None) -> Any:
        # MMMU draws an option at random where it finds none: the same one in every run
        random.seed(f"{benchmark.name} {benchmark.question_id(question, 0)}")
        with naming(benchmark, lambda: _id_of(benchmark, task, question)):
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
            for question_id, value in zip(task.question_ids, values, strict=False):
                with naming(benchmark, functools.partial(str, question_id)):
                    benchmark.credit(official, value)
            raise ScoringError(
                f"{benchmark.name}: the official aggregation failed: {error!r}"
            ) from error

    task._aggregation_list[benchmark.metric] = aggregate


def _id_of(benchmark: Benchmark, task: Any, question: Any) -> str:
    if benchmark.id_columns:
        return benchmark.question_id(question, 0)
    rows = (row for row, known in enumerate(task.eval_docs_no_media) if known == question)
    return str(next(rows, "?"))


@contextlib.contextmanager
def naming(benchmark: Benchmark, question_id: Callable[[], str]) -> Iterator[None]:
    """Turn any exception in the block into a :class:`ScoringError` that names the question."""
    try:
        yield
    except ScoringError:
        raise
    except Exception as error:
        raise ScoringError(
            f"{benchmark.name}, question {question_id()}: the official scorer failed: {error!r}"
        ) from error
