"""Record results on another machine, without DVC, and bring them in.

    python -m replication.record --scale small --seeds 5              # there: everything
    python -m replication.record --scale small --only training        # there: without lmms-eval
    python -m replication.record --evaluate FOLDER                    # here: the rest
    python -m replication.record --import FOLDER                      # here: into recorded/

A recording has a folder of its own, with its own parameters, data, models and results; nothing
committed is touched. Its stages are those of ``dvc.yaml`` that train, evaluate and measure; what
only reads results (world, tables, claims, examples) runs where the results are brought to.

A stage that is finished says so in ``.record/<stage>.json``: what it followed from, what it wrote,
and where. It is not run again while that still holds, so an interrupted recording goes on.
"""

import argparse
import fnmatch
import functools
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from grace.errors import InputError
from replication.base import provenance
from replication.base.command import command
from replication.base.files import read_json, write_json_atomic
from replication.base.scales import COMMITTED, FULL_SCALE
from replication.base.yaml import read_yaml
from replication.results.elsewhere import RECORDED, TRAINED_ON, slug_of
from replication.results.scores import (
    ResultSet,
    outcomes_path,
    validate_scores,
    write_scores,
)
from replication.settings.checks import parse_params
from replication.settings.pipeline import (
    PIPELINE_FILE,
    Stage,
    ancestors,
    lookup,
    read_pipeline,
)
from replication.settings.scales import ROOT, link, scale_params
from replication.settings.schema import LANGUAGE_FAMILY, PARAMS_FILE

HEADLINE = "_runs"
"""How the names of the groups end whose seeds a recording replaces."""

NEEDS = {
    "ptq": ("bitsandbytes", "llmcompressor"),
    "evaluate": ("lmms_eval",),
    "entropy_error": ("lmms_eval",),
    "export": ("compressed_tensors", "lmms_eval"),
    "internals": ("lmms_eval",),
}
"""Packages that a stage needs beyond those that train."""

TRAINING = ("language", "teacher", "baseline", "train")
"""Stages that train on the accelerator; their device is the recording's."""

ACCELERATED = (*TRAINING, "ptq", "evaluate", "entropy_error")
"""Stages that use an accelerator where there is one. The others compute on the processor."""

_GENERATED = ("data", "models", "results")
_DONE = Path(".record")
_WHERE = ("commit", "dirty", "device", "python", "versions")
_EVALUATED = (*_WHERE, "params_hash", "seeds", "command")


# --- what is run ----------------------------------------------------------------------------------


def recorded_params(
    scale: str, seeds: int, families: Sequence[str] | None = None, root: Path = ROOT
) -> dict[str, Any]:
    """The parameters of a recording: those of the scale, with seeds 0 to ``seeds`` - 1 for every
    run of the headline groups, and only ``families`` (default: all).

    Raises:
        InputError: for an unknown scale or family, one that starts from a family left out, the
            scale that the pipeline does not train at, or fewer than one seed.
    """
    params = scale_params(scale, root)
    if scale == FULL_SCALE:
        raise InputError(f"scale {FULL_SCALE} is not run by this version; record another")
    if seeds < 1:
        raise InputError(f"--seeds is {seeds}; give at least 1")
    known = list(params["teacher"])
    chosen = known if families is None else list(families)
    for family in chosen:
        if family not in known:
            raise InputError(f"family {family!r} is unknown (known: {', '.join(known)})")
        for kind in ("teacher", "baseline"):
            first = params[kind][family]["start"].partition("/")[0]
            first = LANGUAGE_FAMILY if first == "language" else first
            if first not in chosen:
                raise InputError(f"the {kind} of {family} starts from {first}; name it, too")
    of_families = [(params, name) for name in ("vision", "teacher", "baseline")]
    for section, name in (*of_families, (params["world"], "teacher_gap")):
        section[name] = {family: section[name][family] for family in known if family in chosen}
    looked = params["internals"]["families"]
    params["internals"]["families"] = [family for family in looked if family in chosen]
    groups = {"runs": params["runs"], "ptq": params["ptq"]["groups"]}
    for section in groups.values():
        for name in [name for name, group in section.items() if group["family"] not in chosen]:
            del section[name]
    folders = {*chosen, *groups["runs"], *groups["ptq"]}
    evaluated = params["evaluate"]["benchmarks"]
    params["evaluate"]["benchmarks"] = {k: v for k, v in evaluated.items() if k in folders}
    for name, group in params["runs"].items():
        if name.endswith(HEADLINE):
            for run in group["models"].values():
                run["seeds"] = list(range(seeds))
    parse_params(params, f"parameters of a recording at scale {scale}")
    return params


def recorded_stages(pipeline: Sequence[Stage]) -> list[Stage]:
    """The stages that train, evaluate and measure the models: those that read no results, without
    `deploy`, which needs none of them and is recorded by itself (docs/deployment.md)."""
    reads = [any(Path(dep).parts[0] == "results" for dep in s.deps) for s in pipeline]
    return [s for s, r in zip(pipeline, reads, strict=True) if not r and s.kind != "deploy"]


def training_stages(pipeline: Sequence[Stage]) -> list[Stage]:
    """Of these, those that need neither lmms-eval nor a quantizer's library, nor what does."""
    found = []
    for stage in recorded_stages(pipeline):
        if not any(one.kind in NEEDS for one in (stage, *ancestors(stage, pipeline))):
            found.append(stage)
    return found


def check_packages(stages: Iterable[Stage]) -> None:
    """Check that what the stages need is installed.

    Raises:
        InputError: naming the package and the stage.
    """
    for stage in stages:
        for package in NEEDS.get(stage.kind, ()):
            if importlib.util.find_spec(package) is None:
                raise InputError(
                    f"stage {stage.name} needs {package}, which is not installed here; record with "
                    "--only training, and evaluate the folder where it is"
                )


def check_committed(root: Path = ROOT) -> None:
    """Check that the code is that of a commit.

    Raises:
        InputError: outside a git repository, or with changes that are not committed.
    """
    state = provenance.git_state(root)
    if state["commit"] is None:
        raise InputError(
            f"{str(root)!r} is no git repository with a commit, so the results could not say what "
            "they come from; clone the repository (git bundle carries it where there is no network)"
        )
    if state["dirty"] is not False:
        raise InputError(
            "the working tree has changes that are not committed; commit them, and keep a "
            "recording's folder outside of the repository or under .recordings"
        )


# --- running --------------------------------------------------------------------------------------


@functools.cache
def _file_digest(path: Path, _size: int, _changed: int) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


class Recording:
    """A recording's folder and the pipeline under its parameters."""

    def __init__(self, folder: Path, root: Path = ROOT) -> None:
        self.folder, self.root = folder.resolve(), root
        self.content = read_yaml(folder / PARAMS_FILE)
        self.params = parse_params(self.content, str(folder / PARAMS_FILE))
        self.pipeline = read_pipeline(root / PIPELINE_FILE, self.content)
        ignore = root / ".dvcignore"
        self._ignored = ignore.read_text().split() if ignore.is_file() else []

    def _done_file(self, stage: Stage) -> Path:
        return self.folder / _DONE / f"{stage.name}.json"

    def done(self, stage: Stage) -> dict[str, Any] | None:
        """What a finished stage says of itself; None if it was not finished, or not whole."""
        try:
            found = read_json(self._done_file(stage))
        except InputError:
            return None
        keys = {"cmd", "params", "deps", "outs", "provenance", "seconds"}
        return found if isinstance(found, dict) and keys <= set(found) else None

    def digest(self, name: str) -> str | None:
        """Hash of a file or folder below the recording's; None where there is none."""
        path = self.folder / name
        if not path.exists():
            return None
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        whole = hashlib.sha256()
        for file in files:
            inner = file.relative_to(path)
            skipped = any(
                fnmatch.fnmatch(part, one) for part in inner.parts for one in self._ignored
            )
            if skipped or not file.is_file():
                continue
            status = file.stat()
            own = _file_digest(file.resolve(), status.st_size, status.st_mtime_ns)
            whole.update(f"{inner}\0{own}\n".encode())
        return whole.hexdigest()

    def follows_from(self, stage: Stage) -> dict[str, Any]:
        """What decides a stage's outputs: command, parameters and dependencies, as hashes."""
        where = f"stage {stage.name}"
        values = {name: lookup(self.content, name, where) for name in stage.params}
        return {
            "cmd": stage.cmd,
            "params": provenance.params_hash(values),
            "deps": {dep: self.digest(dep) for dep in stage.deps},
        }

    def finished(self, stage: Stage) -> bool:
        """Whether the stage was run on what is there now, and its outputs are those of that run."""
        done = self.done(stage)
        if done is None:
            return False
        given = self.follows_from(stage)
        return all(done[key] == value for key, value in given.items()) and done["outs"] == {
            out: self.digest(out) for out in stage.outs
        }

    def run(self, stages: Sequence[Stage]) -> None:
        """Run the stages, in order, but for those that are finished.

        Raises:
            InputError: for changes that are not committed.
            subprocess.CalledProcessError: when a stage fails.
        """
        for number, stage in enumerate(stages, start=1):
            check_committed(self.root)
            if self.finished(stage):
                print(f"[{number}/{len(stages)}] {stage.name}: finished before", file=sys.stderr)
                continue
            print(f"[{number}/{len(stages)}] {stage.name}", file=sys.stderr)
            self._run(stage)

    def _run(self, stage: Stage) -> None:
        given = self.follows_from(stage)
        if missing := [dep for dep, found in given["deps"].items() if found is None]:
            raise InputError(f"stage {stage.name} reads {missing[0]}, which does not exist")
        self._done_file(stage).unlink(missing_ok=True)
        for out in set(stage.outs) - stage.persistent:  # as DVC does
            path = self.folder / out
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        words = shlex.split(stage.cmd)
        if words[0] != "python":
            raise InputError(f"stage {stage.name} runs {words[0]!r}; only python is known here")
        where = {**provenance.git_state(self.root), **_device(stage)}
        started = time.monotonic()
        subprocess.run(
            [sys.executable, *words[1:]], cwd=self.folder, env=stage_environment(), check=True
        )
        outs = {out: self.digest(out) for out in stage.outs}
        if missing := [out for out, found in outs.items() if found is None]:
            raise InputError(f"stage {stage.name} ended without writing {missing[0]}")
        record = {
            **given,
            "outs": outs,
            "provenance": where,
            "seconds": round(time.monotonic() - started, 1),
        }
        write_json_atomic(self._done_file(stage), record)

    def check_trained(self) -> None:
        """Check that training is finished, and that what is here of it is what was trained.

        Of data and models only what the remaining stages read has to be here.

        Raises:
            InputError: naming the stage and what is wrong with it.
        """
        for stage in training_stages(self.pipeline):
            done = self.done(stage)
            if done is None:
                raise InputError(
                    f"{self.folder}: stage {stage.name} is not finished; go on with the recording "
                    "where it was begun"
                )
            given = self.follows_from(stage)
            for key in ("cmd", "params"):
                if done[key] != given[key]:
                    raise InputError(
                        f"{self.folder}: stage {stage.name} was run with another "
                        f"{'command' if key == 'cmd' else 'set of parameters'}; record it again"
                    )
            present = given["deps"] | {out: self.digest(out) for out in stage.outs}
            before = done["deps"] | done["outs"]
            for path in sorted(present.keys() | before.keys()):
                absent = present.get(path) is None and Path(path).parts[0] in _GENERATED
                if not absent and present.get(path) != before.get(path):
                    raise InputError(
                        f"{self.folder}: {path} is not what stage {stage.name} read or wrote; "
                        "take the commit that the recording was made with, or record again"
                    )


def stage_environment() -> dict[str, str]:
    """The environment of a stage: one accelerator, no network, float32 that is float32."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return {
        "HF_HUB_OFFLINE": "1",
        **os.environ,
        "CUDA_VISIBLE_DEVICES": visible,  # the trainer would spread a batch over all of them
        "NVIDIA_TF32_OVERRIDE": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _device(stage: Stage) -> dict[str, Any]:
    accelerated = stage.kind in ACCELERATED
    describe = provenance.device_description if accelerated else provenance.cpu_description
    collected = provenance.collect({}, [], stage.cmd, device=describe())
    return {name: collected[name] for name in ("device", "python", "versions")}


def start(
    folder: Path,
    scale: str,
    *,
    seeds: int,
    families: Sequence[str] | None,
    only: str,
    root: Path = ROOT,
) -> None:
    """Record into ``folder``, or go on with it.

    Args:
        only: "training", or "all".

    Raises:
        InputError: before anything is run, for whatever would make the recording useless.
    """
    params = recorded_params(scale, seeds, families, root)
    check_committed(root)
    chosen = training_stages if only == "training" else recorded_stages
    stages = chosen(read_pipeline(root / PIPELINE_FILE, params))
    check_packages(stages)
    if folder.resolve() == root or (folder / ".git").exists():
        raise InputError(f"{str(folder)!r} is a repository; give a recording a folder of its own")
    link(folder, params, root)
    Recording(folder, root).run(stages)


def evaluate(folder: Path, root: Path = ROOT) -> None:
    """Run what is left of a recording whose training is finished.

    Raises:
        InputError: before anything is run, if training is not finished or was of other code.
    """
    content = read_yaml(folder / PARAMS_FILE)
    check_committed(root)
    link(folder, content, root)
    recording = Recording(folder, root)
    recording.check_trained()
    trained = {stage.name for stage in training_stages(recording.pipeline)}
    rest = [s for s in recorded_stages(recording.pipeline) if s.name not in trained]
    check_packages(rest)
    recording.run(rest)


# --- bringing in ----------------------------------------------------------------------------------


def import_recording(folder: Path, root: Path = ROOT) -> Path:
    """Copy a finished recording's scores, outcomes and parameters to ``recorded/<device>/<scale>``;
    returns it.

    Everything is checked first, and all of it is written, or nothing.

    Raises:
        InputError: for an unfinished evaluation, files that are not valid or not those that the
            evaluation wrote, provenance that is missing or of code that was not committed,
            training on several devices, or a recording of this device and scale that is there.
    """
    recording = Recording(folder, root)
    scale, results = recording.params.scale, recording.folder / "results"
    evaluations = [stage for stage in recording.pipeline if stage.kind == "evaluate"]
    training: dict[str, list[dict[str, Any]]] = {}
    devices: set[str] = set()
    for stage in evaluations:
        entries = _origins(recording, stage)
        training[stage.name.partition("@")[2]] = _grouped(entries)
        devices |= {
            entry["device"] for name, entry in entries.items() if name.split("@")[0] in TRAINING
        }
    if len(devices) != 1:
        raise InputError(
            f"{folder}: trained on {' and '.join(sorted(devices))}; record on one device"
        )
    (device,) = devices
    found = ResultSet(results, scale)
    records = []
    for group, grouped in training.items():
        for path in sorted((results / scale / "scores" / group).glob("*.json")):
            records.append((group, _recorded(path, scale, grouped, device)))
    for group, record in records:
        names = found.scores(record["family"], record["run"])
        assert names is not None  # ResultSet has read the same files
        found.answers(record["family"], [record["run"]], names.benchmarks)
        _check_seeds(recording, group, record)
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


def _origins(recording: Recording, stage: Stage) -> dict[str, dict[str, Any]]:
    """Provenance of everything that an evaluation follows from, by stage."""
    found, written = {}, {}
    for one in (*ancestors(stage, recording.pipeline), stage):
        done = recording.done(one)
        if done is None:
            raise InputError(
                f"{recording.folder}: stage {one.name} is not finished; go on with the recording, "
                "or evaluate it, first"
            )
        check_provenance(done["provenance"], _WHERE, f"{recording.folder}: stage {one.name}")
        if one is not stage:
            found[one.name] = {key: done["provenance"][key] for key in _WHERE}
        written = done["outs"]
    for out in stage.outs:
        if recording.digest(out) != written.get(out):
            raise InputError(f"{recording.folder}: {out} is not what stage {stage.name} wrote")
    return found


def check_provenance(given: Any, keys: Sequence[str], where: str) -> None:
    """Check that a provenance is complete, and of committed code.

    Raises:
        InputError: naming what is missing.
    """
    if not isinstance(given, Mapping):
        raise InputError(f"{where} has no provenance; record it again")
    if missing := [key for key in keys if given.get(key) is None]:
        raise InputError(f"{where}: the provenance lacks {', '.join(missing)}; record it again")
    if given["dirty"] is not False:
        raise InputError(
            f"{where}: made with changes to commit {given['commit'][:12]} that are not committed; "
            "commit them and record it again"
        )


def _grouped(entries: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Stages of equal provenance together."""
    found: list[dict[str, Any]] = []
    for name, entry in entries.items():
        for known in found:
            if all(known[key] == value for key, value in entry.items()):
                known["stages"].append(name)
                break
        else:
            found.append({"stages": [name], **entry})
    return found


def _recorded(
    path: Path, scale: str, training: list[dict[str, Any]], device: str
) -> dict[str, Any]:
    """The content of a score file as it is brought in."""
    record = read_json(path)
    scores = validate_scores(record, str(path))
    if scores.scale != scale:
        raise InputError(f"{path}: scale is {scores.scale!r}, the recording's is {scale!r}")
    check_provenance(scores.provenance, _EVALUATED, str(path))
    told = {**scores.provenance, TRAINED_ON: device, "training": training}
    return {**record, "evidence": RECORDED, "provenance": told}


def _check_seeds(recording: Recording, group: str, record: Mapping[str, Any]) -> None:
    params, where = recording.params, f"{recording.folder}: {group}/{record['run']}"
    wanted = [0]
    if group in params.runs:
        models = params.runs[group].models
        if record["run"] not in models:
            raise InputError(f"{where} is not among the runs of its parameters")
        wanted = sorted(models[record["run"]].seeds)
    if sorted(map(int, record["seeds"])) != wanted:
        raise InputError(f"{where} has other seeds than its parameters say, {wanted}")


# --- command --------------------------------------------------------------------------------------


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """The command; returns its exit code: 0, 2 for bad input, or that of the stage that failed."""
    parser = argparse.ArgumentParser(
        prog="python -m replication.record",
        description="Record results on another machine, without DVC, and bring them in.",
    )
    parser.add_argument("--scale", default=COMMITTED, help="default: %(default)s")
    parser.add_argument("--folder", type=Path, help="default: .recordings/<scale>")
    parser.add_argument("--seeds", type=int, default=5, help="of the headline runs; default: 5")
    parser.add_argument("--families", nargs="+", help="default: all")
    parser.add_argument("--only", choices=("training", "all"), default="all", help="default: all")
    parser.add_argument("--evaluate", type=Path, metavar="FOLDER", help="what is left of FOLDER")
    parser.add_argument(
        "--import", type=Path, metavar="FOLDER", dest="bring", help="into recorded/"
    )
    given = parser.parse_args(arguments)
    if given.evaluate is not None and given.bring is not None:
        parser.error("--evaluate and --import are two steps; give one of them")
    if given.bring is not None:
        print(f"imported into {import_recording(given.bring)}; run the pipeline for the tables")
    elif given.evaluate is not None:
        evaluate(given.evaluate)
    else:
        folder = given.folder or ROOT / ".recordings" / given.scale
        start(folder, given.scale, seeds=given.seeds, families=given.families, only=given.only)
        print(f"recorded in {folder}")


if __name__ == "__main__":
    sys.exit(main())
