"""The stages of ``dvc.yaml`` without DVC: expanded, in an order in which they can be run.

    pipeline = read_pipeline(Path("dvc.yaml"), params)
    [stage.name for stage in pipeline]       # standins, vision@llava, ..., tables, claims

What is read is what this project writes there: ``foreach`` over a mapping or a list of the
parameters or of the file itself, ``${...}`` with dotted names, parameters of ``params.yaml``, and
outputs with options. Anything else is an error.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grace.errors import InputError
from replication.base.yaml import read_yaml

PIPELINE_FILE = Path("dvc.yaml")
_TEMPLATE = re.compile(r"\$\{([^{}]*)\}")
_STAGE_KEYS = {"cmd", "deps", "params", "outs", "metrics"}
_OUT_OPTIONS = {"cache", "persist"}


@dataclass(frozen=True)
class Stage:
    """One stage; paths are relative to the file's directory.

    Attributes:
        name: as DVC addresses it, ``train@qwen2_vl_runs``.
        params: dotted names of parameters.
        persistent: those of ``outs`` that a new run of the stage finds as they were.
    """

    name: str
    cmd: str
    deps: tuple[str, ...]
    params: tuple[str, ...]
    outs: tuple[str, ...]
    persistent: frozenset[str]

    @property
    def kind(self) -> str:
        """The name of the stage's file."""
        return self.name.partition("@")[0]


def lookup(content: Mapping[str, Any], name: str, where: str) -> Any:
    """The value of a dotted name.

    Raises:
        InputError: where a part of the name is missing.
    """
    value: Any = content
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise InputError(f"{where} names {name!r}, which is not in the parameters")
        value = value[part]
    return value


def read_pipeline(path: Path, params: Mapping[str, Any]) -> list[Stage]:
    """The stages of a pipeline file under ``params``, each after those whose outputs it reads.

    Raises:
        InputError: for a file that cannot be read, a form that is not known here, a name that the
            parameters lack, an output of two stages, or stages that wait for each other.
    """
    stages: list[Stage] = []
    content = read_yaml(path).get("stages")
    if not isinstance(content, dict):
        raise InputError(f"{path} has no mapping of stages")
    for name, body in content.items():
        stages += _expand(name, body, params, f"{path}: stage {name}")
    return in_order(stages)


def _expand(
    name: str, body: Mapping[str, Any], params: Mapping[str, Any], where: str
) -> list[Stage]:
    if "foreach" not in body:
        return [_stage(name, body, params, where)]
    if set(body) != {"foreach", "do"}:
        raise InputError(f"{where} has {', '.join(body)}; with foreach it takes do alone")
    over = _resolve(body["foreach"], params, where)
    if isinstance(over, Mapping):
        contexts = {key: {**params, "key": key, "item": item} for key, item in over.items()}
    elif isinstance(over, list):
        contexts = {str(item): {**params, "item": item} for item in over}
    else:
        raise InputError(f"{where}: foreach is over {over!r}; it takes a mapping or a list")
    return [
        _stage(f"{name}@{key}", body["do"], context, where) for key, context in contexts.items()
    ]


def _stage(name: str, body: Mapping[str, Any], context: Mapping[str, Any], where: str) -> Stage:
    if unknown := set(body) - _STAGE_KEYS:
        raise InputError(f"{where} has {', '.join(sorted(unknown))}, which is not known here")
    body = _resolve(body, context, where)
    outs, persistent = [], set()
    for entry in (*body.get("outs", []), *body.get("metrics", [])):
        options: Mapping[str, Any] = {}
        out = entry
        if isinstance(entry, Mapping):
            ((out, options),) = entry.items()
        if unknown := set(options) - _OUT_OPTIONS:
            raise InputError(f"{where}: {out} has {', '.join(unknown)}, which is not known here")
        outs.append(out)
        if options.get("persist"):
            persistent.add(out)
    files = [entry for entry in body.get("params", []) if isinstance(entry, Mapping)]
    body = {
        **body,
        "deps": [*body.get("deps", []), *(file for entry in files for file in entry)],
        "params": [entry for entry in body.get("params", []) if entry not in files],
    }
    names = (*body["deps"], *body["params"])
    if other := [one for one in names if not isinstance(one, str)]:
        raise InputError(f"{where}: {other[0]!r} is not a plain name, which is all that is known")
    return Stage(
        name,
        body["cmd"],
        tuple(body.get("deps", [])),
        tuple(body.get("params", [])),
        tuple(outs),
        frozenset(persistent),
    )


def _resolve(value: Any, context: Mapping[str, Any], where: str) -> Any:
    if isinstance(value, Mapping):
        return {
            _resolve(key, context, where): _resolve(entry, context, where)
            for key, entry in value.items()
        }
    if isinstance(value, list):
        return [_resolve(entry, context, where) for entry in value]
    if not isinstance(value, str):
        return value
    if whole := _TEMPLATE.fullmatch(value):
        return lookup(context, whole[1].strip(), where)
    return _TEMPLATE.sub(lambda found: str(lookup(context, found[1].strip(), where)), value)


def _overlap(first: str, second: str) -> bool:
    """Whether one path is the other, or lies in it."""
    one, other = Path(first), Path(second)
    return one == other or one in other.parents or other in one.parents


def producers(stage: Stage, stages: Iterable[Stage]) -> list[Stage]:
    """The stages whose outputs a stage reads directly."""
    return [
        other
        for other in stages
        if other is not stage
        and any(_overlap(dep, out) for dep in stage.deps for out in other.outs)
    ]


def ancestors(stage: Stage, stages: Sequence[Stage]) -> list[Stage]:
    """The stages that have to run before a stage, in the order of ``stages``."""
    found: set[str] = set()
    waiting = [stage]
    while waiting:
        for other in producers(waiting.pop(), stages):
            if other.name not in found:
                found.add(other.name)
                waiting.append(other)
    return [other for other in stages if other.name in found]


def in_order(stages: Sequence[Stage]) -> list[Stage]:
    """The stages as they are listed, but each after those whose outputs it reads.

    Raises:
        InputError: for an output of two stages, or stages that wait for each other.
    """
    for index, stage in enumerate(stages):
        for other in stages[:index]:
            for out in stage.outs:
                if any(_overlap(out, one) for one in other.outs):
                    raise InputError(f"stages {other.name} and {stage.name} both write {out}")
    ordered: list[Stage] = []
    open_: list[str] = []

    def visit(stage: Stage) -> None:
        if stage in ordered:
            return
        if stage.name in open_:
            circle = " -> ".join([*open_[open_.index(stage.name) :], stage.name])
            raise InputError(f"stages wait for each other: {circle}")
        open_.append(stage.name)
        for other in producers(stage, stages):
            visit(other)
        open_.pop()
        ordered.append(stage)

    for stage in stages:
        visit(stage)
    return ordered
