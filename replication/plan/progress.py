"""One line on a run of the pipeline: trainings done, running and to come, and the time left.

    run(params, folder, ["repro"])     # DVC's exit code

On a terminal the line stands below what the stages print, in a row that nothing else reaches;
elsewhere it is printed when a stage begins, and every few minutes. It is read off the run's log
(:mod:`replication.plan.times`), to which the stages write.
"""

import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from replication.base import warm
from replication.base.workers import cores
from replication.plan.times import (
    Work,
    graph_of,
    log_of,
    read_log,
    stage_seconds,
    work_of,
    works_of,
)
from replication.settings.schema import Params
from replication.settings.workspace import run_dvc

_EVERY = 300.0
"""Seconds between two lines where there is no terminal."""

_TICK = 1.0
"""Seconds between two looks at the log."""

_PRIOR = 60.0
"""So many seconds at the expected pace are taken for granted: the first stages are short."""


DRY, SINGLE = {"-n", "--dry"}, {"-s", "--single-item"}


def run(params: Params, folder: Path, words: Sequence[str], lock: int | None = None) -> int:
    """Run dvc in a workspace, see `run_dvc`; where it runs stages, with the line on how far it is.

    Args:
        params: of the scale.
        folder: the workspace.
        words: of dvc's command line.
        lock: see `replication.settings.workspace.alone`.
    """
    if words[0:1] != ["repro"] or DRY & set(words):
        return run_dvc(folder, *words, lock=lock)
    log = log_of(params.scale)

    def works() -> dict[str, Work]:
        known = stage_seconds(read_log(log))
        named = [word for word in words[1:] if not word.startswith("-")]
        if SINGLE & set(words):
            return {stage: work_of(params, stage, known) for stage in named}
        return works_of(params, graph_of(folder), known, named)

    return with_progress(
        lambda variables: run_dvc(folder, *words, lock=lock, environment=variables), log, works
    )


def with_progress(
    start: Callable[[dict[str, str]], int],
    log: Path,
    works: Callable[[], Mapping[str, Work]],
    stream: TextIO | None = None,
) -> int:
    """Show how far a run is until it ends, and keep its log.

    Args:
        start: runs the pipeline, with further variables for its processes; returns an exit code.
        log: to which the run's lines are added.
        works: what every stage does; called in another thread.
        stream: default: standard error.

    Returns:
        The exit code.
    """
    stream = stream or sys.stderr
    log.parent.mkdir(parents=True, exist_ok=True)
    before = len(read_log(log))
    _add(log, starts=sys.argv[1:])
    end = threading.Event()
    shown = _row(stream) if stream.isatty() else _lines(stream)
    thread = threading.Thread(target=_watch, args=(log, before, works, shown, end))
    thread.start()
    code = 1
    try:
        # bars of what runs side by side would write over each other
        code = start({warm.LOG: str(log.resolve()), "TQDM_DISABLE": "1"})
    finally:
        _add(log, ends=code)
        end.set()
        thread.join()
    return code


def _add(log: Path, **what: Any) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"at": time.time(), **what}) + "\n")


def status(works: Mapping[str, Work], lines: Sequence[dict[str, Any]], now: float) -> str:
    """The line on a run.

    Args:
        works: what every stage does.
        lines: of the run's log.
        now: the time, in seconds as the log has it.
    """
    over: set[str] = set()
    stage, since, jobs, done = "", now, 0, 0
    expected = spent = 0.0
    for line in lines:
        if "begins" in line:
            if stage in works:
                expected, spent = expected + works[stage].seconds, spent + line["at"] - since
                over |= {stage, *works[stage].behind}
            stage, since, jobs, done = line["stage"], line["at"], 0, 0
        elif line.get("stage") == stage:
            jobs, done = line.get("jobs", jobs), done + line.get("done", 0)
    here = works.get(stage, Work(0, 0.0))
    over |= here.behind
    pace = (spent + _PRIOR) / (expected + _PRIOR)
    after = [work for name, work in works.items() if name not in {*over, stage}]
    left = pace * sum(work.seconds for work in after)
    finished = sum(works[name].runs for name in over)
    if jobs:
        share = (done + 0.5 * min(cores(), jobs - done)) / jobs
        left += (1 - share) * pace * here.seconds
    else:
        left += max(0.0, pace * here.seconds - (now - since))
    ended = round(here.runs * done / jobs) if jobs else 0
    running = min(cores(), here.runs - ended)
    to_come = here.runs - ended - running + sum(work.runs for work in after)
    text = (
        f"runs: {finished + ended} done, {running} running, {to_come} to come; "
        f"about {duration(left)} left"
    )
    name = stage or "starting"
    steps = f" {done} of {jobs}" if jobs > 1 else ""
    place = len(over) + (stage in works)
    return f"{text}; stage {place} of {len(works)}: {name}{steps}"


def duration(seconds: float) -> str:
    """Minutes, or hours and minutes."""
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def _watch(
    log: Path,
    before: int,
    works: Callable[[], Mapping[str, Work]],
    shown: Generator[None, tuple[str, int], None],
    end: threading.Event,
) -> None:
    known = works()
    next(shown)
    while not end.wait(_TICK):
        lines = read_log(log)[before:]
        with suppress(OSError):  # a terminal that is gone
            shown.send((status(known, lines, time.time()), sum("begins" in one for one in lines)))
    with suppress(OSError):
        shown.close()


def _lines(stream: TextIO) -> Generator[None, tuple[str, int], None]:
    """Print the line whenever a stage begins, and every few minutes."""
    last: tuple[int, float] = (0, time.monotonic())
    while True:
        text, stages = yield
        if stages != last[0] or time.monotonic() - last[1] > _EVERY:
            last = (stages, time.monotonic())
            stream.write(f"{text}\n")
            stream.flush()


def _row(stream: TextIO) -> Generator[None, tuple[str, int], None]:
    """Keep the line in the terminal's last row; the rows above scroll without it."""
    height = 0
    try:
        while True:
            text, _ = yield
            size = shutil.get_terminal_size()
            if size.lines != height:  # a row for it, and the rest to scroll
                height = size.lines
                stream.write(f"\n\x1b7\x1b[1;{height - 1}r\x1b8\x1b[1A")
            text = text[: size.columns - 1]
            stream.write(f"\x1b7\x1b[{height};1H\x1b[2K{text}\x1b8")
            stream.flush()
    finally:
        if height:
            stream.write(f"\x1b7\x1b[r\x1b[{height};1H\x1b[2K\x1b8")
            stream.flush()
