"""Where a number comes from: commit, parameters, libraries, device, seeds, command.

There is no date: the same commit, parameters and machine give the same bytes, and the commit
carries the date.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from grace.errors import InputError
from replication.base.files import ROOT
from replication.base.workers import cores

LIBRARIES = ("torch", "transformers", "accelerate", "lmms_eval", "numpy")

LOCK = Path("requirements") / "lock.txt"
"""The version of every installed package, from the repository's root."""

GENERATED = ("results", "recorded", "dvc.lock")
"""What the pipeline writes itself, and what was recorded elsewhere. Without the exception a stage
would find the tree changed by the one before it."""


def params_hash(params: Any) -> str:
    """SHA-256 of parameters as canonical JSON (sorted keys, no spaces).

    Equal content gives an equal hash whatever the order of the keys.

    Raises:
        InputError: for content that JSON cannot hold, NaN and infinities included.
    """
    try:
        text = json.dumps(
            params, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"params cannot be written as JSON: {error}") from error
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def library_versions(names: Sequence[str] = LIBRARIES) -> dict[str, str | None]:
    """The version of each library, read from its metadata; None for one that is not installed."""
    versions: dict[str, str | None] = dict.fromkeys(names)
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def git_state(repository: str | Path | None = None) -> dict[str, Any]:
    """The commit of a repository, and whether its files differ from it.

    Args:
        repository: its folder; default: the one that this file lies in.

    Returns:
        "commit", and "dirty": whether anything but ``GENERATED`` differs, new files included. Both
        are None outside a repository.
    """
    root = Path(repository) if repository is not None else ROOT

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    if not commit:
        return {"commit": None, "dirty": None}
    exclude = [f":(top,exclude){name}" for name in GENERATED]
    changed = git("status", "--porcelain", "--", ":(top)", *exclude)
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


def cpu_description() -> str:
    """The processor's name and the number of cores this process may use, e.g. 'CPU, 2 cores'."""
    from grace.machine import processor_name

    count = cores()
    return f"{processor_name()}, {count} core{'' if count == 1 else 's'}"


def device_description() -> str:
    """The accelerator's name, or the processor's."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_description()


def lock_hash(root: str | Path | None = None) -> str | None:
    """SHA-256 of the lock file; None where the package is installed without the repository.

    Args:
        root: the repository; default: the one that this file lies in.
    """
    base = Path(root) if root is not None else ROOT
    path = base / LOCK
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def native_arithmetic() -> str:
    """What this machine multiplies at full speed, "bfloat16" or "float32"."""
    from grace.arithmetic import arithmetic_name

    return arithmetic_name()


def collect(
    params: Any,
    seeds: Sequence[int],
    command: str | Sequence[str],
    *,
    device: str | None = None,
    repository: str | Path | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The provenance of one result.

    Args:
        params: the parameters that decide the result; only their hash is kept.
        seeds: of the runs behind it.
        command: the command line; a list is joined by spaces.
        device: its description; default: the processor. A caller that used an accelerator names it.
        repository: whose commit; default: the one that this file lies in.
        extra: further entries, such as the hash of a task file.

    Raises:
        InputError: for params that JSON cannot hold.
    """
    record: dict[str, Any] = {
        **git_state(repository),
        "params_hash": params_hash(params),
        "versions": library_versions(),
        "lock": lock_hash(),
        "python": platform.python_version(),
        "device": device if device is not None else cpu_description(),
        "native_arithmetic": native_arithmetic(),
        "seeds": [int(seed) for seed in seeds],
        "command": command if isinstance(command, str) else " ".join(command),
    }
    extra = dict(extra or {})
    assert not set(extra) & set(record), "an extra entry would replace one of the provenance's own"
    return record | extra
