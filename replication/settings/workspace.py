"""Where the pipeline runs: a workspace, with a lock that keeps a second run out of it.

The committed ``params.yaml``, ``dvc.lock`` and results are those of scale small, which runs in the
repository itself. Anything else (another scale, a recording, the rehearsal) has a workspace: links
to the code, parameters of its own, and a lock file and cache of DVC's of its own.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import yaml

from grace.errors import InputError
from replication.base import warm
from replication.base.code import stage_hashes
from replication.base.files import ROOT, atomic_path, write_text_atomic
from replication.base.scales import COMMITTED, FULL_SCALE
from replication.settings.scales import VALUES, scale_params
from replication.settings.schema import PARAMS_FILE

PIPELINE_FILE = Path("dvc.yaml")
CODE_FILE = Path("code.yaml")
_SHARED = (
    *("grace", "replication", "recorded", ".dvcignore"),
    # of no scale: the ledger and the page of every scale show them
    *(f"results/{name}" for name in ("engines", "performance", "real_cell", "scaling")),
)
_CONFIG = """[core]
    no_scm = True
    analytics = false
[cache]
    type = "reflink,hardlink,symlink,copy"
"""


def workspace(scale: str, root: Path = ROOT) -> Path:
    """Create or refresh the workspace of a scale.

    Returns:
        Its folder: ``.scales/<scale>``, or the repository itself for the committed scale.

    Raises:
        InputError: for an unknown scale, or parameters that are not valid; nothing is written then.
    """
    params = scale_params(scale, root)
    if scale == COMMITTED:
        return root
    folder = root / ".scales" / scale
    prepare(folder, params, root)
    return folder


def prepare(folder: Path, params: dict[str, Any], root: Path = ROOT) -> None:
    """Create or refresh a workspace: links to the code, ``params``, and an initialized DVC."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = {name: name for name in _SHARED} | {PIPELINE_FILE.name: pipeline_of(params["scale"])}
    for name, source in sources.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        target = os.path.relpath(root / source, place.parent.resolve())
        if place.is_symlink() and os.readlink(place) != target:
            place.unlink()
        if not place.is_symlink():
            place.symlink_to(target)
    write_text_atomic(folder / PARAMS_FILE, yaml.safe_dump(params, sort_keys=False))
    if not (folder / ".dvc").is_dir():
        run_dvc(folder, "init", "--no-scm", "-q")
    write_text_atomic(folder / ".dvc" / "config", _CONFIG)
    if not (folder / CODE_FILE).exists():  # DVC reads parameters before it runs the stage code
        write_stage_hashes(folder, root)


def write_stage_hashes(folder: Path, root: Path = ROOT) -> None:
    """Write the hash of every stage's code into the directory of a pipeline."""
    write_text_atomic(folder / CODE_FILE, yaml.safe_dump(stage_hashes(root)))


def pipeline_of(scale: str) -> Path:
    """The pipeline file of a scale, from the repository's root."""
    return VALUES / f"{scale}.{PIPELINE_FILE.name}" if scale == FULL_SCALE else PIPELINE_FILE


@contextmanager
def alone(name: str, root: Path = ROOT) -> Iterator[int]:
    """Keep a second run of the pipeline out of a workspace while this block runs.

    Yields:
        The lock's file descriptor, for the processes that hold it as long as they live.

    Raises:
        InputError: where a run is under way.
    """
    path = root / ".scales" / f"{name}.lock"
    path.parent.mkdir(exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise InputError(
                f"a run of {name} is under way (process {file.read().strip()}); wait until it "
                "ends, or end it: the next one goes on where it stopped"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file.fileno()  # the system gives the lock back when its last holder ends


def run_dvc(
    folder: Path,
    *words: str,
    lock: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run dvc in a workspace. Stages that it runs are forks of a process which has imported what
    they need (:mod:`replication.base.warm`); on an accelerator each is a process of its own.

    Args:
        folder: the workspace.
        words: of the command line.
        lock: see :func:`alone`.
        environment: variables of the stages, beside this process's own.

    Returns:
        Its exit code.
    """
    variables = _environment() | dict(environment or {})
    stages = words[:1] == ("repro",) and not {"-n", "--dry"} & set(words)
    served: AbstractContextManager[dict[str, str]] = nullcontext({})
    if stages:
        served = warm.server(folder, variables, forks=_can_fork())
    with served as found:
        return subprocess.call(
            [sys.executable, "-m", "dvc", *words],
            cwd=folder,
            env=variables | found,
            pass_fds=() if lock is None else (lock,),
        )


def _can_fork() -> bool:
    """Whether a process that has imported torch may be forked."""
    import torch

    return sys.platform == "linux" and not torch.cuda.is_available()


def outdated(folder: Path, stages: Sequence[str]) -> list[str]:
    """Those of some stages of a workspace that did not run on what is there now, or whose files
    are not what they wrote."""
    words = [sys.executable, "-m", "dvc", "status", "--json", *stages]
    status = subprocess.run(
        words, cwd=folder, env=_environment(), stdout=subprocess.PIPE, text=True, check=True
    )
    return sorted(json.loads(status.stdout))


def _environment() -> dict[str, str]:
    # this interpreter's dvc, and this interpreter for the stages, whatever the PATH says
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1"}


def publish(folder: Path, scale: str, root: Path = ROOT) -> None:
    """Copy the results in a scale's workspace to those of the repository."""
    results = folder / "results" / scale
    if folder != root and results.is_dir():
        target = root / "results" / scale
        shutil.copytree(results, target, dirs_exist_ok=True, copy_function=_copy)


def _copy(source: str, target: str) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
