"""A student's scores on lmms-eval's tasks, with what they were made with."""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from grace import __version__
from grace.errors import InputError
from grace.files import directory_sha256
from grace.models import check_model_directory, model_directory


def evaluate(
    path: str | Path,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    batch_size: int = 1,
    device: str = "auto",
    dtype: str = "auto",
    backend: str = "auto",
    max_new_tokens: int | None = None,
    include_path: str | Path | None = None,
) -> dict[str, Any] | None:
    """Score a model on tasks of lmms-eval, with their official prompts and scorers.

    Example::

        report = evaluate("student-int4", ["mmbench_en_dev", "pope"], batch_size=8)
        report["tasks"]["pope"]["metrics"]["pope_accuracy"]

    Args:
        path: A directory or hub name: trained, packed, exported or published.
        tasks: Names of tasks or groups.
        limit: Only the first so many questions of each task.
        batch_size: Questions that are answered at once.
        device: As in :class:`grace.evaluation.lmms.Grace`, like the next three.
        dtype: Format of weights that are not packed.
        backend: Kernel of packed layers.
        max_new_tokens: Upper bound of an answer's length; None is each task's own.
        include_path: A folder of further task files (YAML).

    Returns:
        The report: ``model``, ``model_sha256``, ``settings``, ``versions`` and, by name, ``tasks``
        with version, number of questions and metrics. None in a process that is not the first.

    Raises:
        InputError: lmms-eval is not installed, a task is unknown, is no task of images and free
            answers, or has no data here, or the model cannot be loaded.
    """
    if importlib.util.find_spec("lmms_eval") is None:
        raise InputError("evaluation needs lmms-eval: pip install 'grace-vlm[eval]'")
    check_model_directory(path)
    with _quiet():
        from lmms_eval.evaluator import simple_evaluate

        from grace.evaluation.lmms import Grace

        loaded = _load_tasks(list(tasks), include_path)
        model = Grace(
            str(path),
            device=device,
            dtype=dtype,
            backend=backend,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
        )
        with TemporaryDirectory(prefix="grace-eval-") as scratch:  # of scorers that write files
            results = simple_evaluate(
                model=model,
                tasks=list(tasks),
                task_manager=_Loaded(loaded),
                limit=limit,
                log_samples=False,
                cli_args=SimpleNamespace(
                    output_path=scratch, process_with_media=False, reasoning_tags=None
                ),
            )
    if results is None:
        return None
    return {
        "model": str(path),
        "model_sha256": directory_sha256(model_directory(path)),
        "settings": {
            "batch_size": batch_size,
            "limit": limit,
            "max_new_tokens": max_new_tokens,
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "decoding": "greedy",
        },
        "versions": {
            "grace": __version__,
            **{name: metadata.version(name) for name in ("lmms-eval", "torch", "transformers")},
        },
        "tasks": {name: _entry(name, results) for name in results["results"]},
    }


def table(report: Mapping[str, Any]) -> str:
    """The scores of a report, one line a metric.

    Example::

        print(table(evaluate("student", ["pope"])))
    """
    rows = [("task", "questions", "metric", "score", "standard error")]
    for name, task in report["tasks"].items():
        for metric, value in task["metrics"].items():
            if not metric.endswith("_stderr"):
                error = task["metrics"].get(f"{metric}_stderr")
                shown = "" if error is None else f"{error:.4f}"
                rows.append((name, str(task["questions"] or ""), metric, f"{value:.4f}", shown))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


class _Loaded:
    """lmms-eval's task manager, after it has loaded the tasks."""

    def __init__(self, tasks: dict[str, Any]) -> None:
        self.tasks = tasks

    def load_task_or_group(self, *_: Any) -> dict[str, Any]:
        return self.tasks


def _load_tasks(names: list[str], include_path: str | Path | None) -> dict[str, Any]:
    from lmms_eval.tasks import get_task_dict

    manager = _task_manager(names, include_path)
    for name in names:
        if name not in manager.all_tasks:
            near = get_close_matches(name, manager.all_tasks, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"task {name!r} is unknown to lmms-eval{hint}")
    try:
        tasks: dict[str, Any] = get_task_dict(names, manager, "simple")
    except Exception as error:  # `datasets` fails with many types, which lmms-eval tries again
        last = getattr(error, "last_attempt", None)
        reason = " ".join(str(last.exception() if last else error).split())[:300]
        raise InputError(f"tasks {', '.join(names)}: their data do not load: {reason}") from error
    for task in _leaves(tasks):
        kind = task.get_config("output_type")
        if kind != "generate_until":
            raise InputError(
                f"task {task.config.task!r} is of type {kind}; only tasks with free answers in one "
                "round are supported (generate_until)"
            )
    return tasks


def _task_manager(names: list[str], include_path: str | Path | None) -> Any:
    from lmms_eval.tasks import TaskManager

    if include_path is not None:
        if not Path(include_path).is_dir():
            raise InputError(f"include_path {str(include_path)!r} is no folder of task files")
        own = TaskManager(include_path=str(include_path), include_defaults=False)
        if all(name in own.all_tasks for name in names):
            return own  # reading all of lmms-eval's own task files takes seconds
    return TaskManager(include_path=None if include_path is None else str(include_path))


def _leaves(tasks: Mapping[Any, Any]) -> Iterator[Any]:
    for task in tasks.values():
        if isinstance(task, Mapping):
            yield from _leaves(task)
        else:
            yield task


def _entry(name: str, results: Mapping[str, Any]) -> dict[str, Any]:
    """A task's or group's part of a report."""
    metrics = {}
    for key, value in results["results"][name].items():
        metric, _, filtered = key.partition(",")
        if isinstance(value, int | float):
            metrics[metric if filtered in ("", "none") else f"{metric} ({filtered})"] = float(value)
    return {
        "version": results["versions"].get(name),
        "questions": results["n-samples"].get(name, {}).get("effective"),
        "metrics": metrics,
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep lmms-eval's log off the terminal."""
    from loguru import logger

    logger.disable("lmms_eval")
    try:
        yield
    finally:
        logger.enable("lmms_eval")
