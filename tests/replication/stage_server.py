"""Stages as forks of `replication.base.warm`'s server, with faults put into them.

with Server() as server:
    done = server.run(folder, "train small_runs", fault=Fault("kill", at=0))
"""

import errno
import json
import os
import re
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faults
import torch

from replication.base import warm

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
_TEMPORARY = re.compile(r"\.[a-z0-9_]{8}\.(tmp|old)")


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
        path = f"{ROOT}{os.pathsep}{TESTS}{os.pathsep}{Path(__file__).parent}"
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self._context = warm.server(ROOT, environment)
        self._address = self._context.__enter__()[warm.ADDRESS]
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    def run(self, folder: Path, words: str, fault: Fault | None = None) -> Done:
        with tempfile.TemporaryDirectory() as scratch:
            said, told = Path(scratch, "said"), Path(scratch, "told")
            job = (folder, words.split(), fault, said, told)
            code = warm.Call("stage_server:run", job, self._address).ended()
            text = said.read_text(errors="replace")[-4000:]
            return Done(code, text, told.read_text().splitlines())


def _changes(told: Any, fault: Fault | None) -> Callable[[str], None]:
    """What is called before every change: it tells of it, and disturbs it if that is its turn."""
    count, full, folder = -1, False, Path.cwd()

    def changes(what: str) -> None:
        nonlocal count, full
        opened = Path(what.removeprefix("open ")) if what.startswith("open ") else None
        what = _TEMPORARY.sub(r".*.\1", what.replace(f"{folder}{os.sep}", ""))
        count += 1
        told.write(what + "\n")
        told.flush()
        if fault is None:
            return
        if fault.at in (count, what):
            if fault.kind == "kill":
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


def run(folder: Path, words: list[str], fault: Fault | None, said: Path, told: Path) -> None:
    """A stage, in this process, a fork of the server; it ends with the stage's exit code."""
    from replication.measure import harness

    harness.measure_in_process = _made_up
    os.sched_getaffinity = lambda _: {0}  # one process, this one
    os.chdir(folder)
    with said.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    with told.open("w") as log, faults.watched(folder, _changes(log, fault)):
        warm.run_stage(f"replication.stages.{words[0]}", *words[1:])
