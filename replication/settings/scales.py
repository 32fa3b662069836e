"""Run the pipeline at a scale other than the committed one, without touching what is committed.

The committed ``params.yaml`` and ``dvc.lock`` are those of scale small. Another scale is the same
pipeline under the same parameters with some values replaced
(``replication/settings/values/<scale>.yaml``).
Scale paper has no small world to make, and a pipeline of its own, of the same stage files
(``replication/settings/values/paper.dvc.yaml``). A scale runs in a workspace of its own,
``.scales/<scale>``, with its own lock file and cache, and its results are copied to
``results/<scale>``.
"""

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import yaml

from grace.errors import InputError
from replication.base.command import command
from replication.base.files import ROOT, atomic_path, write_text_atomic
from replication.base.messages import unknown
from replication.base.scales import COMMITTED, FULL_SCALE, SCALES, check_scale
from replication.base.yaml import read_yaml
from replication.settings.checks import parse_params
from replication.settings.pipeline import PIPELINE_FILE
from replication.settings.schema import PARAMS_FILE, PRESETS

_SHARED = (
    *("grace", "replication", "recorded", ".dvcignore"),
    *("results/performance", "results/scaling"),  # of no scale: the page of every scale shows them
)
_CONFIG = """[core]
    no_scm = True
    analytics = false
[cache]
    type = "reflink,hardlink,symlink,copy"
"""


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` on top, section by section; a value of None removes the key."""
    merged = dict(base)
    for key, value in changes.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            known = merged.get(key)
            merged[key] = merge(known if isinstance(known, dict) else {}, value)
        else:
            merged[key] = value
    return merged


def scale_params(scale: str, root: Path = ROOT) -> dict[str, Any]:
    """The parameters of a scale: the committed ones, with the scale's changes. Where these name a
    preset of hyperparameters (``train.preset``), its values come in between.

    Raises:
        InputError: for an unknown scale, or changes that make no valid parameters.
    """
    check_scale(scale)
    params = read_yaml(root / PARAMS_FILE)
    if scale != COMMITTED:
        folder = root / "replication" / "settings" / "values"
        changes = read_yaml(folder / f"{scale}.yaml")
        preset = (changes.get("train") or {}).get("preset")
        if preset is not None:
            if preset not in PRESETS:
                raise InputError(unknown(f"preset {preset!r}", preset, PRESETS))
            params = merge(params, read_yaml(folder / "presets" / f"{preset}.yaml"))
        params = merge(params, changes)
    parse_params(params, f"parameters of scale {scale}")
    return params


def workspace(scale: str, root: Path = ROOT) -> Path:
    """Make or refresh the scale's workspace and return it."""
    params = scale_params(scale, root)
    if scale == COMMITTED:
        return root
    folder = root / ".scales" / scale
    prepare(folder, params, root)
    return folder


def prepare(folder: Path, params: dict[str, Any], root: Path = ROOT) -> None:
    """Make or refresh a workspace of ``params``, with a lock file and cache of its own."""
    link(folder, params, root)
    if not (folder / ".dvc").is_dir():
        run_dvc(folder, "init", "--no-scm", "-q")
    write_text_atomic(folder / ".dvc" / "config", _CONFIG)


def pipeline_of(scale: str) -> Path:
    """The pipeline file of a scale, from the repository's root."""
    own = Path("replication") / "settings" / "values" / f"{scale}.{PIPELINE_FILE.name}"
    return own if scale == FULL_SCALE else PIPELINE_FILE


def link(folder: Path, params: dict[str, Any], root: Path = ROOT) -> None:
    """Make ``folder`` a place to run the pipeline in: links to the code, and ``params``."""
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


@contextmanager
def alone(name: str, root: Path = ROOT) -> Iterator[int]:
    """Keep a second run of the pipeline from a workspace while this block runs; yields the lock,
    for the processes that are to hold it as long as they live.

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


def run_dvc(folder: Path, *words: str, lock: int | None = None) -> int:
    """Run dvc in a workspace; returns its exit code.

    lock: see :func:`alone`.
    """
    # this interpreter's dvc, and this interpreter for the stages, whatever the PATH says
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return subprocess.call(
        [sys.executable, "-m", "dvc", *words],
        cwd=folder,
        env={**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1"},
        pass_fds=() if lock is None else (lock,),
    )


def _copy(source: str, target: str) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


@command
def main() -> int:
    parser = argparse.ArgumentParser(
        description="Run dvc on the pipeline at a scale.",
        epilog="example: python -m replication.scale smoke repro",
    )
    parser.add_argument("scale", help=", ".join(SCALES))
    parser.add_argument("dvc", nargs=argparse.REMAINDER, help="words for dvc, such as: repro")
    arguments = parser.parse_args()
    scale, words = arguments.scale, arguments.dvc
    scale_params(scale)  # before anything is written
    with alone(scale) if words[:1] == ["repro"] else nullcontext() as lock:
        folder = workspace(scale)
        code = run_dvc(folder, *words, lock=lock)
        results, shown = folder / "results" / scale, ROOT / "results" / scale
        if folder != ROOT and results.is_dir():
            shutil.copytree(results, shown, dirs_exist_ok=True, copy_function=_copy)
    return code
