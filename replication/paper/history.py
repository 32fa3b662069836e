"""When a sentence was written: the first commit of a file that has it, by git."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from grace.files import read_yaml
from replication.base.files import ROOT
from replication.paper.tables import FOLDER

LOG = ("log", "--abbrev=7", "--format=%x00%h %cs")
"""A hash and a day for each commit. By itself git shortens hashes by the size of the clone."""


@dataclass(frozen=True)
class Written:
    """A commit, and its day.

    Attributes:
        commit: abbreviated.
        date: as in 2026-11-20.
    """

    commit: str
    date: str


def _git(*arguments: str, root: Path = ROOT) -> str:
    """What git says; "" where there is no git, no repository or no such commit."""
    command = ["git", *arguments]
    try:
        return subprocess.run(
            command, cwd=root, capture_output=True, text=True, check=True, errors="replace"
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


class History:
    """The commits of a file, under all names that it has had; none in a shallow clone.

    Args:
        path: the file.
        root: the folder of the repository.
    """

    def __init__(self, path: Path, root: Path = ROOT) -> None:
        log = ""
        if _git("rev-parse", "--is-shallow-repository", root=root).strip() == "false":
            log = _git(*LOG, "--follow", "-p", "--", str(path), root=root)
        self._added: list[tuple[Written, str]] = []
        for entry in reversed(log.split("\0")[1:]):  # the oldest first
            head, _, diff = entry.partition("\n")
            added = [line[1:] for line in diff.splitlines() if line.startswith("+")]
            self._added.append((Written(*head.split()), "\n".join(added)))

    def first(self, text: str) -> Written | None:
        """The first commit whose version has the text on one line; None where git knows none."""
        quoted = text.replace('"', '\\"')
        return next((written for written, added in self._added if quoted in added), None)


def precedes(written: Written, later: Iterable[str], root: Path = ROOT) -> bool | None:
    """Whether a commit is an ancestor of all of these; None where git cannot tell."""
    known = [ancestors(commit, root) for commit in later]
    if not known or not all(known):
        return None
    return all(any(one.startswith(written.commit) for one in own) for own in known)


@cache
def ancestors(commit: str, root: Path = ROOT) -> frozenset[str]:
    """A commit's own hash and those of its ancestors; none of a commit that git does not know."""
    return frozenset(_git("rev-list", commit, root=root).split())


@cache
def ledger_history(path: Path) -> History:
    """The history of a ledger file, read once."""
    return History(path)


def world_commit(path: Path = FOLDER / "calibration.yaml", root: Path = ROOT) -> Written | None:
    """The commit that fixed the world of the runs, which the calibration names.

    Returns:
        None as long as it names none; a commit that git does not know has no date.
    """
    named = (read_yaml(path) or {}).get("world_commit") if path.exists() else None
    if not named:
        return None
    shown = _git(*LOG, "-s", "-1", str(named), root=root).strip("\0").split()
    return Written(*shown) if shown else Written(str(named), "date not recorded")
