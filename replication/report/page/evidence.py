"""Which files a number rests on, where these come from, and what measures them again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from replication.paper import Part, Reported
from replication.report.page.sources import Files, Node

_STAGE = re.compile(r"replication\.stages\.(\w+)(?: (\w\S*))?")


@dataclass(frozen=True)
class Origin:
    """Files of one commit, device, parameters and libraries; each has its own seeds.

    Attributes:
        provenance: That of the first file.
        files: The files.
    """

    provenance: Node
    files: list[Node]

    @property
    def commands(self) -> list[Node]:
        """The different commands that wrote the files."""
        commands = (file["provenance"]["command"] for file in self.files)
        return list({node.value: node for node in commands}.values())


class Evidence:
    """The measured files of a scale: score files by family and run, measurements, logs."""

    def __init__(self, files: Files, reported: Reported) -> None:
        self.files, self.reported = files, reported
        self._scores = {
            (_pair_of(node), node["run"].value): node for node in files.matching("scores/*/*.json")
        }

    def pairs(self, family: str) -> list[str]:
        """The pairs that a name stands for: a family's in the first world, or the one so named."""
        own = [
            pair
            for (pair, run), node in self._scores.items()
            if run == "baseline"
            and (node["family"].value, node.value.get("world", "first")) == (family, "first")
        ]
        return own or [family]

    def scores(self, family: str, runs: Iterable[str]) -> list[Node]:
        """The score files of runs, those that there are, in every pair of a family."""
        keys = [(pair, run) for run in runs for pair in self.pairs(family)]
        return [self._scores[key] for key in keys if key in self._scores]

    def all_scores(self) -> list[Node]:
        return list(self._scores.values())

    def logs(self, family: str, runs: Iterable[str]) -> list[Node]:
        """The training logs of runs, one a seed."""
        return [
            log
            for run in dict.fromkeys(runs)
            for log in self.files.matching(f"training/*/{run}/seed*.json")
            if log.value.get("pair", log.value.get("family")) == family
        ]

    def measurement(self, name: str) -> list[Node]:
        return self.files.matching(f"measurements/{name}.json")

    def of_part(self, part: Part) -> list[Node]:
        """The files that decide a part of a claim; none for what the paper prints itself."""
        quantity = part.quantity
        if part.kind in ("measurement", "counted"):
            return self.measurement(quantity["name"])
        if part.kind == "deployment":
            return self.measurement(f"deploy-{quantity['model']}")
        if part.kind in ("internal_consistency", "repeats"):
            return []
        runs = part.runs(self.reported)
        if part.kind in ("controller", "cost_ratio"):
            return self.logs(quantity["family"], runs)
        return self.scores(quantity["family"], runs)

    def command(self, nodes: Sequence[Node], last: str) -> str:
        """What measures these files again and then runs the stage ``last``."""
        stages = list(dict.fromkeys(stage for node in nodes if (stage := stage_of(node))))
        return " ".join(
            ["python -m replication.scale", self.files.scale, "repro", *sorted(stages), last]
        )


def _pair_of(node: Node) -> str:
    """The name that a score file's run goes by; see `replication.results.scores`."""
    return str(node.value.get("pair") or node["family"].value)


def stage_of(node: Node) -> str:
    """The pipeline's stage that wrote a result file, such as ``evaluate@llava``; "" if unknown."""
    parts = node.file.split("/")
    if "training" in parts:
        return f"train@{parts[parts.index('training') + 1]}"
    command = node.value.get("provenance", {}).get("command", "")
    match = _STAGE.search(command)
    return "@".join(filter(None, match.groups())) if match else ""


def origins(nodes: Iterable[Node]) -> list[Origin]:
    """Files by their origin: commit, parameters, libraries and device."""
    groups: dict[str, list[Node]] = {}
    for node in nodes:
        if "provenance" not in node:
            continue
        known = node["provenance"].value
        names = ("commit", "dirty", "params_hash", "device", "python")
        key = repr([known.get(name) for name in names])
        key += repr(sorted(known.get("versions", {}).items()))
        groups.setdefault(key, []).append(node)
    return [Origin(group[0]["provenance"], group) for group in groups.values()]
