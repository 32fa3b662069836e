"""What a run of the pipeline takes, stage by stage: from its log, or before it from the parameters.

    python -m replication.plan.times small       # every table's minutes, in markdown

The log, ``.scales/<scale>.log.jsonl``, has a line of JSON for every start and end of a run
(``starts``, ``ends``), every stage that begins (``begins``) and the jobs in it (``jobs``,
``done``), which `replication.base.warm.tell` writes. A stage lasts until the next begins: DVC's own
work, on what a stage has written, counts to it.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grace.errors import InputError
from replication.base.command import command
from replication.base.files import ROOT
from replication.base.workers import cores
from replication.paper import load_tables
from replication.plan.targets import stages_of
from replication.settings.checks import parse_params
from replication.settings.scales import scale_params
from replication.settings.schema import ALIGNMENT, KINDS, REGIMES, Group, Params, section
from replication.settings.workspace import workspace

_SAMPLES = 180.0
"""Conversations that a core trains a small model on in a second, where nothing was measured."""
_TEXTS = 450.0
"""Conversations without an image, likewise."""
_VARIANT = 150.0
"""Seconds of a published architecture in one format, likewise."""
_IMAGES = 1000.0
"""Images that are drawn, or seen by a tower, in a second, likewise."""
_OTHER = 12.0
"""Seconds of any other stage, or of a model's evaluation, likewise."""


def log_of(scale: str, root: Path = ROOT) -> Path:
    """The log of the runs of a scale."""
    return root / ".scales" / f"{scale}.log.jsonl"


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; none where there is no log."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def stage_seconds(lines: Iterable[dict[str, Any]]) -> dict[str, float]:
    """How long every stage took when it was last finished, as DVC addresses it."""
    found: dict[str, float] = {}
    stage, since = None, 0.0
    for line in lines:
        if stage is not None and ("begins" in line or line.get("ends") == 0):
            found[stage] = line["at"] - since
        if "begins" in line:
            stage, since = line["stage"], line["at"]
        elif "ends" in line or "starts" in line:
            stage = None
    return found


def kept_stages(lines: Iterable[dict[str, Any]], graph: Iterable[str]) -> list[str]:
    """The stages that no run began although one of the whole pipeline ended well: DVC found their
    results there, such as those that git holds."""
    began, whole, ended = set(), False, False
    for line in lines:
        if "begins" in line:
            began.add(line["stage"])
        elif "starts" in line:
            whole = line["starts"][1:] == ["repro"]
        elif line.get("ends") == 0:
            ended = ended or whole
    return [stage for stage in graph if stage not in began] if ended else []


def graph_of(folder: Path) -> dict[str, list[str]]:
    """The stages of a workspace, as DVC addresses them, and those that each reads from."""
    from dvc.repo import Repo

    with Repo(str(folder)) as repo:
        graph = repo.index.graph
        return {stage.name: [one.name for one in graph[stage]] for stage in graph}


def stages_behind(graph: Mapping[str, Sequence[str]], targets: Iterable[str] = ()) -> list[str]:
    """Some stages, by default all, and those that they follow from, in the order of DVC."""
    order: dict[str, None] = {}

    def visit(stage: str) -> None:
        if stage not in order:
            for before in graph[stage]:
                visit(before)
            order[stage] = None

    for target in targets or graph:
        visit(target)
    return list(order)


def table_seconds(
    params: Params, graph: Mapping[str, Sequence[str]], known: Mapping[str, float]
) -> dict[str, float | None]:
    """How long every table takes, from nothing.

    Args:
        params: of the scale.
        graph: see `graph_of`.
        known: see `stage_seconds`.

    Returns:
        By table: the seconds of the stages behind it; None where one of them is not known. "all" is
        every stage. A table that the scale has nothing of is left out.
    """
    found: dict[str, list[str]] = {}
    for table in load_tables().short_names():
        with suppress(InputError):
            found[table] = stages_behind(graph, stages_of(params, table))
    found["all"] = list(graph)
    return {
        table: sum(known[stage] for stage in stages) if known.keys() >= set(stages) else None
        for table, stages in found.items()
    }


@dataclass(frozen=True)
class Work:
    """What a stage does.

    Attributes:
        runs: trainings.
        seconds: that it is likely to take.
        behind: stages that are over when this one begins.
    """

    runs: int
    seconds: float
    behind: frozenset[str] = frozenset()


def _trainings(group: Group) -> int:
    return sum(len(run.seeds) for run in group.models.values())


def works_of(
    params: Params,
    graph: Mapping[str, Sequence[str]],
    known: Mapping[str, float],
    targets: Sequence[str] = (),
) -> dict[str, Work]:
    """What every stage of a run does, by stage.

    DVC runs a whole pipeline in a fixed order. The stages behind targets come in an order of its
    own, in which only those that a stage follows from are certain to be over when it begins.

    Args:
        params: of the scale.
        graph: see `graph_of`.
        known: see `stage_seconds`.
        targets: stages that are asked for, with those that they follow from; default: all.
    """
    order = stages_behind(graph, targets)
    works = {}
    for place, stage in enumerate(order):
        behind = stages_behind(graph, [stage])[:-1] if targets else order[:place]
        works[stage] = replace(work_of(params, stage, known), behind=frozenset(behind))
    return works


def work_of(params: Params, stage: str, known: Mapping[str, float]) -> Work:
    """What a stage does: its seconds are those of an earlier run of it, or follow from the steps.

    Args:
        params: of the scale.
        stage: as DVC addresses it.
        known: seconds of earlier runs by stage.
    """
    name, _, key = stage.partition("@")
    samples: list[float] = []
    seconds = _OTHER
    if name == "train":
        count = _trainings(params.runs[key])
        samples = [params.train.steps * params.train.batch_size] * count
    elif name in ("pairs", REGIMES):
        models = KINDS if name == "pairs" else section(params.regimes, REGIMES).models
        for model in models:
            settings = params.settings_of(key or REGIMES, model)
            samples.append(settings.steps * settings.batch_size)
    elif name in ("language", ALIGNMENT):
        lessons = section(getattr(params, name), name)
        more = getattr(lessons, "where_steps", 0)
        both = (lessons.teacher, lessons.baseline)
        samples = [(one.steps + more) * one.batch_size for one in both]
    elif name in ("standins", "features"):
        world = section(params.standins, "standins")
        seconds += (world.train + world.alignment.images) / _IMAGES
    elif name == "vision":
        tower = section(params.vision, "vision")[key]
        seconds += tower.steps * tower.batch_size / _IMAGES
    elif name == "deploy" and params.deploy.layers is None:
        seconds = _VARIANT * len(params.deploy.models[key])
    elif name == "evaluate":
        group = params.runs.get(key)
        count = _trainings(group) if group else 2
        seconds = _OTHER * count / min(cores(), count)
    if samples:
        rate = _TEXTS if name == "language" else _SAMPLES
        seconds = sum(samples) / rate / min(cores(), len(samples))
    return Work(len(samples), known.get(stage, seconds))


@command
def main() -> None:
    [scale] = sys.argv[1:] or ["small"]
    params = parse_params(scale_params(scale))
    lines, graph = read_log(log_of(scale)), graph_of(workspace(scale))
    kept = kept_stages(lines, graph)
    known = stage_seconds(lines) | dict.fromkeys(kept, 0.0)
    print("| table | minutes |\n|---|---:|")
    for table, seconds in table_seconds(params, graph, known).items():
        print(f"| {table} | {'not measured' if seconds is None else format(seconds / 60, '.1f')} |")
    if kept:
        print(f"\nNot counted, as their results were there: {', '.join(sorted(kept))}.")


if __name__ == "__main__":
    sys.exit(main())
