"""Stages as processes of their own that start at once: forks of one process that has imported all.

    with Server() as server:
        done = server.run(folder, "train small_runs", fault=Fault("kill", at=0))

Run as a program, it reads a job a line and answers with how the job's process ended.
"""

import errno
import importlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import faults

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
IMPORTED_LATE = (
    *(
        "replication.train.fit",
        "grace.evaluation.lmms",
        "lmms_eval.evaluator",
        "lmms_eval.tasks",
    ),
    *("datasets", "matplotlib.figure", "matplotlib.backends.backend_agg", "compressed_tensors"),
)
"""What stages import when they run, and what takes seconds."""
_TEMPORARY = re.compile(r"\.[a-z0-9_]{8}\.tmp")


@dataclass(frozen=True)
class Fault:
    """kind: "full" (no space from there on) or "kill" (SIGKILL; where a file is opened, when it has
    been and nothing is in it). at: the number of the change at which it happens, or the change
    itself as `Done.changes` has it."""

    kind: str
    at: int | str


@dataclass(frozen=True)
class Done:
    """code: the exit code, or minus the signal. changes: what was changed in the folder, in order,
    by paths in it, and temporary names without what is random in them."""

    code: int
    said: str
    changes: list[str] = field(repr=False)


class Server:
    def __enter__(self) -> "Server":
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}", "OMP_NUM_THREADS": "1"},
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def run(self, folder: Path, words: str, fault: Fault | None = None) -> Done:
        job = {"folder": str(folder), "words": words.split(), "fault": fault and asdict(fault)}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return Done(**json.loads(self._process.stdout.readline()))


def _changes(told: Any, fault: dict[str, Any] | None) -> Callable[[str], None]:
    """What is called before every change: it tells of it, and disturbs it if that is its turn."""
    count, full, folder = -1, False, Path.cwd()

    def changes(what: str) -> None:
        nonlocal count, full
        opened = Path(what.removeprefix("open ")) if what.startswith("open ") else None
        what = _TEMPORARY.sub(".*.tmp", what.replace(f"{folder}{os.sep}", ""))
        count += 1
        told.write(what + "\n")
        told.flush()
        if fault is None:
            return
        if fault["at"] in (count, what):
            if fault["kind"] == "kill":
                with faults.unwatched():
                    if opened is not None and not opened.exists():
                        opened.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            full = True
        if full and not what.startswith(("os.remove", "os.rmdir")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return changes


def _made_up(module: str, arguments: dict[str, Any], **_: Any) -> dict[str, Any]:
    """A part of a deployment result, as committed: measuring takes a minute and says otherwise
    each time."""
    model = arguments["model"]["name"]
    found = json.loads((ROOT / "results/small/deploy" / model / "deploy.json").read_text())
    return dict(found["models"][model]["variants"][arguments["name"]])


def _run(job: dict[str, Any], said: Path, told: Path) -> int:
    """A job, in this process: the stage's exit code."""
    from replication.measure import harness

    harness.measure_in_process = _made_up
    os.sched_getaffinity = lambda _: {0}  # one process, this one
    os.chdir(job["folder"])
    sys.argv = list(job["words"])
    with said.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    module = importlib.import_module(f"replication.stages.{sys.argv[0]}")
    with told.open("w") as log, faults.watched(Path.cwd(), _changes(log, job["fault"])):
        try:
            module.main()
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else bool(end.code)
    return 0


def serve() -> None:
    import tempfile
    import traceback

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for path in sorted((ROOT / "replication" / "stages").glob("[a-z]*.py")):
        importlib.import_module(f"replication.stages.{path.stem}")
    for name in IMPORTED_LATE:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        said, told = Path(scratch, "said"), Path(scratch, "told")
        for line in sys.stdin:
            told.write_text("")
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    code = _run(json.loads(line), said, told)
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stderr.flush()
                    os._exit(code)
            _, status = os.waitpid(child, 0)
            text = said.read_text(errors="replace")[-4000:]
            found = Done(os.waitstatus_to_exitcode(status), text, told.read_text().splitlines())
            answers.write(json.dumps(asdict(found)) + "\n")
            answers.flush()


if __name__ == "__main__":
    serve()
