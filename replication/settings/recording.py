"""What a recording is made of: the parameters of a scale with other seeds or fewer families, and
the stages that train, evaluate and measure its models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grace.errors import InputError
from replication.base.files import ROOT
from replication.base.messages import unknown
from replication.base.scales import FULL_SCALE
from replication.settings.checks import parse_params
from replication.settings.scales import scale_params
from replication.settings.schema import LANGUAGE_FAMILY, Params

HEADLINE = "_runs"
"""How the names of the groups end whose seeds a recording replaces."""


def recorded_params(
    scale: str, seeds: int, families: Sequence[str] | None = None, root: Path = ROOT
) -> dict[str, Any]:
    """The parameters of a recording.

    Args:
        scale: whose parameters they start from.
        seeds: every run of the headline groups gets the seeds 0 to ``seeds`` - 1.
        families: the families to keep; default: all.
        root: the repository.

    Raises:
        InputError: for an unknown scale or family, a family that starts from one that is left out,
            scale paper, or fewer than one seed.
    """
    params = scale_params(scale, root)
    if scale == FULL_SCALE:
        raise InputError(f"scale {FULL_SCALE} cannot be recorded by this version; choose another")
    if seeds < 1:
        raise InputError(f"--seeds is {seeds}; give at least 1")
    _keep_families(params, list(params["teacher"]) if families is None else list(families))
    for name, group in params["runs"].items():
        if name.endswith(HEADLINE):
            for run in group["models"].values():
                run["seeds"] = list(range(seeds))
    parse_params(params, f"parameters of a recording at scale {scale}")
    return params


def _keep_families(params: dict[str, Any], families: list[str]) -> None:
    known = list(params["teacher"])
    for family in families:
        if family not in known:
            raise InputError(unknown(f"family {family!r}", family, known))
        for kind in ("teacher", "baseline"):
            start = params[kind][family]["start"].partition("/")[0]
            start = LANGUAGE_FAMILY if start == "language" else start
            if start not in families:
                raise InputError(f"the {kind} of {family} starts from {start}; name it, too")
    by_family = [params[name] for name in ("vision", "teacher", "baseline")]
    for section in (*by_family, params["world"]["teacher_gap"]):
        for family in set(known) - set(families):
            del section[family]
    observed = params["internals"]["families"]
    params["internals"]["families"] = [family for family in observed if family in families]
    folders = set(families)
    for section in (params["runs"], params["ptq"]["groups"]):
        for name in [name for name, group in section.items() if group["family"] not in families]:
            del section[name]
        folders |= set(section)
    evaluated = params["evaluate"]["benchmarks"]
    for folder in set(evaluated) - folders:
        del evaluated[folder]


def training_stages(params: Params) -> list[str]:
    """The stages that train, and those that need neither lmms-eval nor a quantizer's library."""
    language = [f"language@{name}" for name in params.language or ()]
    by_family = ("teacher", "baseline", "gate_covariance")
    models = [f"{stage}@{family}" for stage in by_family for family in params.families]
    return [*language, *models, *(f"train@{group}" for group in params.runs)]


def evaluation_stages(params: Params) -> list[str]:
    """The stages that write the scores."""
    return [f"evaluate@{folder}" for folder in params.evaluate.benchmarks]


def measuring_stages(params: Params) -> list[str]:
    """The stages that evaluate and measure what was trained."""
    by_family = [f"{stage}@{f}" for stage in ("entropy_error", "export") for f in params.families]
    internals = [f"internals@{family}" for family in params.internals.families]
    return [*evaluation_stages(params), *by_family, *internals]
