"""Mutants that no test can kill, or that only a time limit ends: listed with the reason of each.

A list is a YAML file in `accepted/`, one for each package, of entries

    file: grace/quantization/primitives.py
    function: _workspace           # Class.method for a method
    change: |                      # what the mutant takes out and puts in, as `--show` prints it
      - first = next(_row_blocks(weight), slice(0, 0))
      + first = next(_row_blocks(weight), slice(1, 0))
    kind: equivalent               # or `loops`: the mutant never ends, and a time limit kills it
    reason: no weight without rows gets here

and no line numbers: an entry outlives changes elsewhere in its file. A change that a function holds
twice is listed twice.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

KINDS = ("equivalent", "loops")
REQUIRED = 95.0  # percent of a package's mutants


@dataclass(frozen=True)
class Mutant:
    """One mutant: where it is and what it changes, whatever the lines around it."""

    file: str
    function: str
    change: str

    @classmethod
    def of(cls, file: str, function: str, lines: Iterable[str]) -> "Mutant":
        """From the lines of a diff (or of a list's `change`): spaces do not count."""
        changed = [one for one in lines if re.match(r"[+-](?!\+\+|--)", one)]
        return cls(file, function, "\n".join(f"{one[0]} {one[1:].strip()}" for one in changed))

    def __str__(self) -> str:
        change = "".join(f"\n    {line}" for line in self.change.splitlines())
        return f"{self.file}: {self.function}{change}"


def read(path: Path) -> dict[str, Counter[Mutant]]:
    """The mutants of a list by kind.

    Raises ValueError, naming the entry, for one that lacks a key, has another one, an unknown kind
    or no reason.
    """
    found: dict[str, Counter[Mutant]] = {kind: Counter() for kind in KINDS}
    entries = yaml.safe_load(path.read_text()) if path.exists() else None
    for number, entry in enumerate(entries or [], start=1):
        if set(entry) != {"file", "function", "change", "kind", "reason"}:
            raise ValueError(f"{path}: entry {number} has the keys {sorted(entry)}")
        if entry["kind"] not in KINDS or not str(entry["reason"]).strip():
            raise ValueError(f"{path}: entry {number}: give one of {KINDS} and a reason")
        mutant = Mutant.of(entry["file"], entry["function"], entry["change"].splitlines())
        found[entry["kind"]][mutant] += 1
    return found


@dataclass(frozen=True)
class Outcome:
    """What became of a package's mutants. Each of `lived` and `timed_out` is a mutant."""

    package: str
    total: int
    lived: tuple[Mutant, ...]
    timed_out: tuple[Mutant, ...] = ()

    def score(self, looping: Counter[Mutant]) -> float:
        """Percent killed; one ended by the time limit counts if it is listed as looping."""
        alive = len(self.lived) + (Counter(self.timed_out) - looping).total()
        return 100.0 * (self.total - alive) / self.total

    def complaints(self, listed: dict[str, Counter[Mutant]], *, whole: bool) -> list[str]:
        """What is wrong with the run; nothing if it passes.

        whole: the outcome is of every mutant of the package, so that the score counts and every
        entry of the list must be of one that lives or loops.
        """
        lived, timed_out = Counter(self.lived), Counter(self.timed_out)
        found = [f"lives, unlisted: {one}" for one in (lived - listed["equivalent"]).elements()]
        found += [
            f"ended by the time limit, unlisted: {one}"
            for one in (timed_out - listed["loops"]).elements()
        ]
        if not whole:
            return found
        for kind, there in (("equivalent", lived), ("loops", timed_out)):
            for one in (listed[kind] - there).elements():
                found.append(f"listed as {kind}, but killed or gone: {one}")
        if self.score(listed["loops"]) < REQUIRED:
            found.append(f"score {self.score(listed['loops']):.1f} %: {REQUIRED:g} % is required")
        return found
