"""A recording: results of another machine, in a workspace of their own, and how they come here.

Its parameters are those of a scale with other seeds or fewer families, and its stages those that
train, evaluate and measure the models. :mod:`replication.record` is the command.
"""

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grace.errors import InputError
from grace.files import read_yaml
from replication.base import provenance
from replication.base.files import ROOT, read_json, write_json_atomic
from replication.base.messages import unknown
from replication.base.scales import FULL_SCALE
from replication.results.elsewhere import RECORDED, TRAINED_ON, slug_of
from replication.results.scores import outcomes_path, validate_scores, write_scores
from replication.settings.checks import parse_params
from replication.settings.scales import scale_params
from replication.settings.schema import ALIGNMENT, PARAMS_FILE, REGIMES, Params
from replication.settings.workspace import alone, outdated, prepare, run_dvc

HEADLINE = ("_controls", "_runs")
"""How the names of the groups end whose seeds a recording replaces."""

PACKAGES = ("lmms_eval", "bitsandbytes", "llmcompressor", "compressed_tensors")
"""What evaluating and measuring needs beyond the packages that train."""

TRAINED_BY = Path("recording.json")
"""In a recording's folder: commit, device and versions of every time that training was run."""

_ORIGIN = ("commit", "dirty", "device", "python", "versions", "params_hash", "command")


# --- what is run ----------------------------------------------------------------------------------


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
    _keep_families(params, params["families"] if families is None else list(families))
    for name, group in params["runs"].items():
        if name.endswith(HEADLINE):
            for run in group["models"].values():
                run["seeds"] = list(range(seeds))
    parse_params(params, f"parameters of a recording at scale {scale}")
    return params


def _keep_families(params: dict[str, Any], families: list[str]) -> None:
    known = params["families"]
    for family in families:
        if family not in known:
            raise InputError(unknown(f"family {family!r}", family, known))
    pairs = {name: p for name, p in params["pairs"].items() if p["family"] in families}
    for name, pair in pairs.items():
        start = pair["start"].removeprefix(f"{ALIGNMENT}/")
        if start not in pairs:
            raise InputError(f"the pair {name} starts from {start}; name its family, too")
    params["families"] = [family for family in known if family in families]
    for section in (params["vision"], params["teacher"], params["baseline"], params["methods"]):
        for pair in set(section) - set(pairs):
            del section[pair]
    params["pairs"] = pairs
    for section, key in (
        *(("alignment", "pairs"), ("tuning", "pairs"), ("teacher_outputs", "baselines")),
    ):
        params[section][key] = [name for name in params[section][key] if name in pairs]
    observed = params["internals"]["families"]
    params["internals"]["families"] = [family for family in observed if family in families]
    kept = {*pairs}
    if params.get(REGIMES) is not None and params[REGIMES]["pair"] in pairs:
        kept.add(REGIMES)
    else:
        params.pop(REGIMES, None)
    folders = set(kept)
    for section in (params["runs"], params["ptq"]["groups"]):
        for name in [name for name, group in section.items() if group["pair"] not in kept]:
            del section[name]
        folders |= set(section)
    evaluated = params["evaluate"]["benchmarks"]
    for folder in set(evaluated) - folders:
        del evaluated[folder]


def training_stages(params: Params) -> list[str]:
    """The stages that train, and those that need neither lmms-eval nor a quantizer's library."""
    language = [] if params.language is None else ["language"]
    aligned = [] if params.alignment is None else params.alignment.pairs
    language += [f"alignment@{pair}" for pair in aligned]
    pairs = [f"pairs@{pair}" for pair in params.pairs]
    regimes = [] if params.regimes is None else [REGIMES]
    gates = [f"gate_covariance@{family}" for family in params.families]
    return [*language, *pairs, *regimes, *gates, *(f"train@{group}" for group in params.runs)]


def evaluation_stages(params: Params) -> list[str]:
    """The stages that write the scores."""
    evaluated = [f"evaluate@{folder}" for folder in params.evaluate.benchmarks]
    pairs = () if params.tuning is None else params.tuning.pairs
    return [*evaluated, *(f"tuning@{pair}" for pair in pairs)]


def measuring_stages(params: Params) -> list[str]:
    """The stages that evaluate and measure what was trained."""
    by_family = [f"export@{family}" for family in params.families]
    by_pair = [
        f"{name}@{pair}" for pair in params.pairs for name in ("entropy_error", "calibration")
    ]
    internals = [f"internals@{family}" for family in params.internals.families]
    return [*evaluation_stages(params), *by_family, *by_pair, *internals]


def start(
    folder: Path,
    scale: str,
    *,
    seeds: int,
    families: Sequence[str] | None,
    only: str,
    root: Path = ROOT,
) -> int:
    """Record into ``folder``, or go on with it; returns dvc's exit code.

    Args:
        folder: of the recording.
        scale: whose parameters it starts from.
        seeds: of every headline run.
        families: default: all.
        only: "training", or "all".
        root: the repository.

    Raises:
        InputError: before anything is run, for whatever would make the recording useless.
    """
    content = recorded_params(scale, seeds, families, root)
    params = parse_params(content)
    check_committed(root)
    if folder.resolve() == root or (folder / ".git").exists():
        raise InputError(f"{str(folder)!r} is a repository; give a recording a folder of its own")
    stages = training_stages(params)
    if only != "training":
        check_packages()
        stages += measuring_stages(params)
    origin = provenance.collect(
        content,
        range(seeds),
        "python -m replication.record",
        device=provenance.device_description(),
        repository=root,
    )
    with alone(f"recording-{folder.name}", root) as lock:
        prepare(folder, content, root)
        before = read_json(folder / TRAINED_BY) if (folder / TRAINED_BY).is_file() else []
        if origin not in before:
            write_json_atomic(folder / TRAINED_BY, [*before, origin])
        return _repro(folder, stages, lock)


def evaluate(folder: Path, root: Path = ROOT) -> int:
    """Run what is left of a recording whose training is finished; returns dvc's exit code.

    Raises:
        InputError: before anything is run, if training is not finished or was of other code.
    """
    check_committed(root)
    check_packages()
    with alone(f"recording-{folder.name}", root) as lock:
        params = _prepared(folder, root)
        run_dvc(folder, "repro", "-q", "code")
        if stages := outdated(folder, training_stages(params)):
            raise InputError(
                f"{folder}: {stages[0]} is not finished, or was run with other code or files; take "
                "the commit that training was started with, or go on with it where it was started"
            )
        return _repro(folder, measuring_stages(params), lock)


def _prepared(folder: Path, root: Path) -> Params:
    """The parameters of a recording that is there; its links lead to this repository again."""
    content = read_yaml(folder / PARAMS_FILE)
    params = parse_params(content, str(folder / PARAMS_FILE))
    prepare(folder, content, root)
    return params


def _repro(folder: Path, stages: Sequence[str], lock: int) -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    environment = {
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"),
        "CUDA_VISIBLE_DEVICES": visible,  # the trainer would spread a batch over all of them
        "NVIDIA_TF32_OVERRIDE": "0",  # float32 is float32
        "TOKENIZERS_PARALLELISM": "false",
    }
    return run_dvc(folder, "repro", *stages, lock=lock, environment=environment)


def check_packages() -> None:
    """Check that what evaluates and measures is installed.

    Raises:
        InputError: naming the package.
    """
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"{package} is not installed here; record with --only training, and evaluate the "
                "folder where it is"
            )


def check_committed(root: Path = ROOT) -> None:
    """Check that the code is that of a commit.

    Raises:
        InputError: outside a git repository, or with changes that are not committed.
    """
    state = provenance.git_state(root)
    if state["commit"] is None:
        raise InputError(
            f"{str(root)!r} is no git repository with a commit that results could name; clone it "
            "(git bundle carries it where there is no network)"
        )
    if state["dirty"] is not False:
        raise InputError("the working tree has changes that are not committed; commit them")


# --- bringing in ----------------------------------------------------------------------------------


def import_recording(folder: Path, root: Path = ROOT) -> Path:
    """Copy a finished recording's scores, outcomes and parameters to ``recorded/<device>/<scale>``.

    Everything is checked first, and all of it is written, or nothing.

    Returns:
        The folder in ``recorded``.

    Raises:
        InputError: for an evaluation that is unfinished or whose files were changed, provenance
            that is missing or of code that was not committed, training on several devices, or a
            recording of this device and scale that is there already.
    """
    params = _prepared(folder, root)
    scale, results = params.scale, folder / "results"
    if stages := outdated(folder, evaluation_stages(params)):
        raise InputError(
            f"{folder}: {stages[0]} is not finished, or its files were changed; go on with the "
            "recording first"
        )
    training = read_json(folder / TRAINED_BY)
    for entry in training:
        check_provenance(entry, str(folder / TRAINED_BY))
    device = trained_on(folder, scale)
    records = []
    for path in sorted((results / scale / "scores").glob("*/*.json")):
        record = read_json(path)
        origin = validate_scores(record, str(path)).provenance
        check_provenance(origin, str(path))
        origin = {**origin, TRAINED_ON: device, "training": training}
        record |= {"evidence": RECORDED, "provenance": origin}
        records.append((path.parent.name, record))
    target = root / RECORDED / slug_of(device) / scale
    if target.exists():
        raise InputError(f"{target} is there already; remove it to import this recording instead")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".import-", dir=root / RECORDED) as scratch:
        for group, record in records:
            write_scores(scratch, record, group)
            place = (scale, group, record["run"])
            copy = outcomes_path(scratch, *place)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(outcomes_path(results, *place), copy)
        shutil.copyfile(folder / PARAMS_FILE, Path(scratch) / scale / PARAMS_FILE.name)
        (Path(scratch) / scale).rename(target)
    return target


def trained_on(folder: Path, scale: str) -> str:
    """The device that every training log of a recording names.

    Raises:
        InputError: for several devices, or none.
    """
    logs = [read_json(path) for path in (folder / "results" / scale / "training").rglob("*.json")]
    devices = {str(log["cost"]["device"]) for log in logs if "cost" in log}
    if len(devices) != 1:
        names = " and ".join(sorted(devices)) or "no device that is known"
        raise InputError(f"{folder}: trained on {names}; record on one device")
    return devices.pop()


def check_provenance(origin: Mapping[str, Any], where: str) -> None:
    """Check that a provenance is complete, and of committed code.

    Raises:
        InputError: naming what is missing.
    """
    if missing := [key for key in _ORIGIN if origin.get(key) is None]:
        raise InputError(f"{where}: the provenance lacks {', '.join(missing)}; record it again")
    if origin["dirty"] is not False:
        raise InputError(f"{where}: from code that is not committed; commit it and record again")
