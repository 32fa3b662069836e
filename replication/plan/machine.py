"""What this machine lacks for a scale, before anything is downloaded or trained.

    python -m replication.doctor paper [--devices 16 --rate A100]

Checks packages, devices, memory, disk, checkpoints, licences and data, each with how to mend it,
and prints what every table downloads, trains and asks, and how long that takes. Exit code 1 if
something that is needed is missing; 2 on bad input. `require` makes the cheap checks for a stage.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import socket
import textwrap
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from packaging.requirements import Requirement

from grace.errors import InputError
from replication.base import provenance
from replication.base.command import command
from replication.base.scales import FULL_SCALE
from replication.base.workers import cores
from replication.paper import load_tables
from replication.plan.needs import (
    Plan,
    Resources,
    Table,
    checkpoint_bytes,
    corpus_of,
    load_resources,
    make_plan,
    run_memory,
    shape_of,
    sources,
)
from replication.settings.checks import parse_params
from replication.settings.scales import ROOT, scale_params
from replication.settings.schema import Params

OK, WARNING, FAILED = "ok", "warning", "failed"
HUB = "huggingface.co"
SMALL_RAM = 4e9
FREE_DISK = 1e9  # that any stage should find
ON_CORES = 2e9  # peak bytes of models that are trained without an accelerator


@dataclass(frozen=True)
class Gpu:
    """memory: bytes."""

    name: str
    memory: float
    bf16: bool


@dataclass(frozen=True)
class Machine:
    """What the checks look at. ram, disk: free bytes, the latter where the repository lies. cached:
    whether a repository of the hub (its name, 'model' or 'dataset') lies in the cache."""

    gpus: tuple[Gpu, ...]
    ram: float
    cores: int
    disk: float
    hub: bool
    versions: Mapping[str, str | None]
    cached: Callable[[str, str], bool]


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at and how large it is, how it ended, what was seen, the mend."""

    check: str
    status: str
    text: str
    mend: str = ""
    size: str = ""

    @property
    def subject(self) -> str:
        return f"{self.check} ({self.size})" if self.size else self.check


# ------------------------------------------------------------------------------------------- probes


def probe(root: Path = ROOT) -> Machine:
    """This machine."""
    return Machine(
        gpus=_gpus(),
        ram=float(psutil.virtual_memory().available),
        cores=cores(),
        disk=shutil.disk_usage(root).free,
        hub=hub_reachable(),
        versions={name: _version(name) for name in pins(root)},
        cached=in_cache,
    )


def _gpus() -> tuple[Gpu, ...]:
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bf16 = properties.major >= 8 or bool(getattr(torch.version, "hip", None))
        found.append(Gpu(properties.name, properties.total_memory, bf16))
    return tuple(found)


def hub_reachable(host: str | None = None, seconds: float = 3.0) -> bool:
    """Whether the hub, or the mirror that HF_ENDPOINT names, takes a connection."""
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    address = host or os.environ.get("HF_ENDPOINT", f"https://{HUB}")
    host, _, port = address.removeprefix("https://").removeprefix("http://").partition(":")
    default = 80 if address.startswith("http://") else 443
    try:
        with socket.create_connection((host.strip("/"), int(port or default)), timeout=seconds):
            return True
    except (OSError, ValueError):
        return False


def in_cache(repository: str, kind: str) -> bool:
    """Whether a snapshot of a repository lies in the hub's cache."""
    from huggingface_hub import constants

    folder = f"{kind}s--{repository.replace('/', '--')}"
    snapshots = Path(constants.HF_HUB_CACHE) / folder / "snapshots"
    return snapshots.is_dir() and any(snapshots.iterdir())


def pins(root: Path = ROOT) -> dict[str, str]:
    """The packages that the scales need, and their versions in the lock file for this Python."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["replication"], *extras["no-deps"]]
    locked = {}
    for line in (root / provenance.LOCK).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate():
                (version,) = requirement.specifier
                locked[requirement.name] = version.version
    names = [Requirement(line).name for line in needed]
    return {name: locked[name] for name in names if name in locked}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


# ------------------------------------------------------------------------------------------- checks


def check_packages(machine: Machine, wanted: Mapping[str, str | None]) -> Finding:
    """Installed versions against the pins; a build's suffix such as +cpu does not count."""
    missing = [name for name in wanted if machine.versions.get(name) is None]
    other = [
        f"{name} {installed} for {version}"
        for name, version in wanted.items()
        if version
        and (installed := machine.versions.get(name))
        and installed.partition("+")[0] != version
    ]
    if missing:
        return Finding("packages", FAILED, f"missing: {', '.join(missing)}", "run make setup")
    if other:
        return Finding(
            "packages", WARNING, f"another version: {', '.join(other)}", "run make setup"
        )
    return Finding("packages", OK, f"{len(wanted)} as pinned")


def check_devices(
    params: Params, machine: Machine, memory: Mapping[str, Mapping[str, float]]
) -> list[Finding]:
    """Accelerators against what training at full scale needs; none is needed at the others."""
    if params.scale != FULL_SCALE:
        text = f"{len(machine.gpus)} accelerators, {machine.cores} cores; cores are enough"
        return [Finding("devices", OK, text)]
    if not machine.gpus and all(parts["peak"] <= ON_CORES for parts in memory.values()):
        text = "no accelerator; models as small as these are trained on cores"
        return [Finding("devices", WARNING, text)]
    if not machine.gpus:
        return [
            Finding(
                "devices",
                FAILED,
                "torch sees no accelerator, and the published models are not trained without",
                "run on a machine with GPUs and a CUDA build of torch, or choose SCALE=small",
            )
        ]
    found: list[Finding] = []
    least = min(machine.gpus, key=lambda gpu: gpu.memory)
    seen = f"{len(machine.gpus)} x {least.name}, {size(least.memory)} each"
    if not all(gpu.bf16 for gpu in machine.gpus):
        found.append(
            Finding(
                "devices",
                FAILED,
                f"{seen}, without bfloat16",
                "use devices of compute capability 8.0 or later",
            )
        )
    elif len(machine.gpus) != params.train.devices:
        batch = params.train.batch_size * params.train.accumulation * params.train.devices
        found.append(
            Finding(
                "devices",
                WARNING,
                f"{seen}; the parameters say {params.train.devices}",
                f"set train.devices to {len(machine.gpus)} and train.accumulation so that an "
                f"optimizer step takes {batch} samples still",
            )
        )
    else:
        found.append(Finding("devices", OK, f"{seen}, bfloat16"))
    found += [check_device_memory(family, parts, least) for family, parts in memory.items()]
    return found


def check_device_memory(family: str, parts: Mapping[str, float], gpu: Gpu) -> Finding:
    """A rank's peak against a device's memory; 8 % are left for fragments and libraries."""
    largest = sorted((p for p in parts if p != "peak"), key=lambda p: -parts[p])[:3]
    text = (
        f"a rank needs {size(parts['peak'])} of {size(gpu.memory)} "
        f"({', '.join(f'{part} {size(parts[part])}' for part in largest)})"
    )
    if parts["peak"] <= 0.92 * gpu.memory:
        return Finding(f"memory, {family}", OK, text)
    return Finding(
        f"memory, {family}",
        FAILED,
        text,
        "halve train.batch_size and double train.accumulation, use more devices under fsdp2, "
        "keep the teacher in 4 bits, or use adamw_bnb_8bit (not with fsdp2)",
    )


def check_ram(params: Params, machine: Machine) -> Finding:
    """Main memory: of the small world, or of one process that loads a student in float32 or a
    teacher in bfloat16."""
    need = SMALL_RAM
    if params.scale == FULL_SCALE:
        students = [shape_of(one.source or "") for one in params.baseline.values()]
        teachers = [shape_of(one.source or "") for one in params.teacher.values()]
        held = [4 * one.parameters for one in students]
        need = max(held + [2 * one.parameters for one in teachers])
    text = f"{size(machine.ram)} free, {size(need)} needed"
    if machine.ram >= need:
        return Finding("main memory", OK, text)
    if params.scale == FULL_SCALE:
        return Finding("main memory", FAILED, text, "use a machine with more memory")
    return Finding("main memory", WARNING, text, "close other programs, or run fewer at once")


def check_disk(machine: Machine, need: float) -> Finding:
    """Free disk against the plan's need."""
    text = f"{size(machine.disk)} free, {size(need)} needed"
    if machine.disk >= need:
        return Finding("disk", OK, text)
    return Finding(
        "disk",
        FAILED,
        text,
        "free some, or put the repository on a larger disk",
    )


def check_checkpoint(source: str, machine: Machine, resources: Resources) -> list[Finding]:
    """A checkpoint's place and its licence."""
    where = f"checkpoint {source}"
    if Path(source).is_dir():
        if not any(Path(source).glob("*.safetensors")):
            return [Finding(where, FAILED, "it has no *.safetensors", "copy the weights there")]
        return [Finding(where, OK, "local directory")]
    try:
        weight = size(checkpoint_bytes(source, resources))
    except InputError as error:
        return [Finding(where, FAILED, str(error), "correct the name in the parameter file")]
    found = [_at_hand(where, source, "model", weight, machine)]
    known = resources.checkpoints.get(source)
    if known is None:
        found.append(
            Finding(f"licence {source}", WARNING, "not known here", "read it on the hub's page")
        )
    else:
        found.append(_licence(source, known))
    return found


def _at_hand(where: str, repository: str, kind: str, weight: str, machine: Machine) -> Finding:
    if machine.cached(repository, kind):
        return Finding(where, OK, "in the hub's cache")
    if machine.hub:
        return Finding(where, OK, "will be downloaded", size=weight)
    local = "its local directory" if kind == "model" else "a local copy"
    return Finding(
        where,
        FAILED,
        "neither the hub nor a cached copy can be reached",
        "connect, with HF_HUB_OFFLINE unset, set HF_ENDPOINT to a mirror or HF_HOME to a filled "
        f"cache, or put {local} into the parameter file",
        weight,
    )


def _licence(name: str, entry: Mapping[str, Any]) -> Finding:
    if entry["gated"]:
        return Finding(
            f"licence {name}",
            WARNING,
            f"{entry['licence']}, to be accepted first, by its page on the hub",
            f"accept it at https://{HUB}/{name} and log in with `hf auth login`",
        )
    return Finding(
        f"licence {name}", OK, f"{entry['licence']}, no acceptance needed, by its page on the hub"
    )


def _annotations(params: Params, corpus: Mapping[str, Any], machine: Machine) -> list[Finding]:
    """The annotation files of the training data, on the hub or as local files."""
    assert params.data is not None
    training = params.data.training
    if training.repository is not None:
        name, bytes_ = training.repository, size(corpus["bytes"])
        return [_at_hand(f"data {name}", name, "dataset", bytes_, machine)]
    return [
        Finding(f"data {name}", OK, "is a local file")
        if Path(name).is_file()
        else Finding(f"data {name}", FAILED, "does not exist", "correct data.training.files")
        for name in training.files
    ]


def check_data(
    params: Params, machine: Machine, resources: Resources, tables: Iterable[Table]
) -> list[Finding]:
    """Training data and the benchmarks that the tables ask."""
    assert params.data is not None
    corpus = corpus_of(params, resources)
    training = params.data.training.repository
    found = []
    models = [model for table in tables for model in table.models]
    if any(model.trained for model in models):
        found += _annotations(params, corpus, machine)
        if training is not None:
            found.append(_licence(training, corpus))
        images = sum(archive["bytes"] for archive in corpus["images"].values())
        found.append(
            Finding(
                "images of the conversations",
                WARNING,
                f"{size(images)} in {len(corpus['images'])} archives of other sites",
                "docs/data.md says where each is from; some are to be fetched by hand",
            )
        )
    asked = sorted({n for model in models for n in params.evaluate.benchmarks[model.folder]})
    for name in asked:
        repository = params.data.benchmarks[name].repository
        weight = size(resources.benchmarks[name]["bytes"])
        found.append(_at_hand(f"benchmark {name}", repository, "dataset", weight, machine))
    return found


def check_arithmetic(params: Params) -> Finding:
    """What training computes in, and whether the machine multiplies it natively."""
    native = provenance.native_arithmetic()
    chosen = native if params.arithmetic == "auto" else params.arithmetic
    text = f"{chosen} (parameter arithmetic: {params.arithmetic}); native here: {native}"
    if chosen == "bfloat16" != native and params.scale != FULL_SCALE:
        return Finding(
            "arithmetic", WARNING, f"{text}, and bfloat16 is several times slower", "set it to auto"
        )
    return Finding("arithmetic", OK, text)


def check_all(
    params: Params,
    machine: Machine,
    plan: Plan,
    resources: Resources,
    wanted: Mapping[str, str | None],
) -> list[Finding]:
    """Every check of a scale, in the order in which it is to be mended."""
    found = [check_packages(machine, wanted)]
    found += check_devices(params, machine, plan.memory)
    found.append(check_arithmetic(params))
    found += [check_ram(params, machine), check_disk(machine, plan.disk_bytes)]
    if params.scale == FULL_SCALE:
        for source in sources(params, _families(plan)):
            found += check_checkpoint(source, machine, resources)
        found += check_data(params, machine, resources, [plan.total])
    return found


def _families(plan: Plan) -> list[str]:
    return list(dict.fromkeys(model.family for model in plan.total.models))


def wrapper_of(params: Params) -> str:
    """What `train.launch` wraps the student in; FSDP2 where it says nothing."""
    from replication.train import launch

    return "fsdp2" if params.train.launch is None else launch.wrapper_of(params.train.launch)


def require(
    params: Params, stage: str, family: str | None = None, *, machine: Machine | None = None
) -> None:
    """The cheap checks of a stage, before its long work: disk, and at full scale what it reads.

    stage: teacher, baseline and conversations need their source; train needs devices that hold a
    rank of `family` and disk for a model; evaluate needs its benchmarks. Others need some disk.

    Raises InputError with the first check that failed and its mend.
    """
    machine = machine or probe()
    for finding in _required(params, stage, family, machine):
        if finding.status == FAILED:
            raise InputError(
                f"stage {stage} cannot finish here: {finding.check}: {finding.text}; {finding.mend}"
            )


def _required(params: Params, stage: str, family: str | None, machine: Machine) -> list[Finding]:
    if params.scale != FULL_SCALE:
        return [check_disk(machine, FREE_DISK)]
    resources = load_resources()
    assert params.data is not None
    families = [family] if family else params.families
    if stage in ("teacher", "baseline"):
        which = params.teacher if stage == "teacher" else params.baseline
        chosen = [which[name].source or "" for name in families]
        need = sum(checkpoint_bytes(source, resources) for source in chosen)
        found = [one for source in chosen for one in check_checkpoint(source, machine, resources)]
        return [check_disk(machine, need + FREE_DISK), *found]
    if stage == "conversations":
        corpus = corpus_of(params, resources)
        annotations = _annotations(params, corpus, machine)
        if params.data.training.repository is None:  # files of one's own, images in their place
            return [check_disk(machine, FREE_DISK), *annotations]
        return [check_disk(machine, 2 * corpus["bytes"] + FREE_DISK), *annotations]
    if stage == "train":
        ranks = max(1, len(machine.gpus))
        memory = {
            name: run_memory(params, name, resources, wrapper=wrapper_of(params), ranks=ranks)
            for name in families
        }
        shapes = [shape_of(params.baseline[name].source or "") for name in families]
        state = max(4 * one.parameters + 8 * one.trained for one in shapes)
        need = resources.checkpoint_copies * state + 4 * max(one.parameters for one in shapes)
        return [*check_devices(params, machine, memory), check_disk(machine, need)]
    if stage == "evaluate":
        asked = {
            name
            for folder, of in params.folders.items()
            if of in families
            for name in params.evaluate.benchmarks[folder]
        }
        return [
            _at_hand(
                f"benchmark {name}",
                params.data.benchmarks[name].repository,
                "dataset",
                size(resources.benchmarks[name]["bytes"]),
                machine,
            )
            for name in sorted(asked)
        ]
    return [check_disk(machine, FREE_DISK)]


# --------------------------------------------------------------------------------------------- text


def size(count: float) -> str:
    """Bytes as text, in decimal units."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def finding_lines(found: Iterable[Finding]) -> list[str]:
    """The checks as text; those of one outcome and one mend together, at the place of the first."""
    alike: dict[tuple[str, str, str], list[Finding]] = {}
    for one in found:
        alike.setdefault((one.status, one.text, one.mend), []).append(one)
    lines = []
    for (status, text, mend), together in alike.items():
        if len(together) == 1:
            lines.append(f"{status:<8}{together[0].subject}: {text}")
        else:
            lines.append(f"{status:<8}{text}:")
            subjects = ", ".join(one.subject for one in together)
            indent = " " * 12
            lines += textwrap.wrap(
                subjects,
                96,
                initial_indent=indent,
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
        if mend and status != OK:
            lines.append(f"        mend: {mend}")
    return lines


def duration(seconds: float | None) -> str:
    """Seconds as text; a dash where nothing is known."""
    if seconds is None:
        return "-"
    for unit, factor in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= factor:
            return f"{seconds / factor:.1f} {unit}"
    return f"{seconds:.0f} s"


def table_lines(plan: Plan, devices: int, full: bool) -> list[str]:
    """A line a table: models, trainings, and where they are known download, device-hours, duration
    on the devices; and its models by family."""
    timed = full or any(table.train_seconds is not None for table in plan.tables.values())
    head = f"{'table':<14}{'models':>7}{'runs':>6}"
    if full:
        head += f"{'download':>11}{'GPU-hours':>11}{'of training':>12}{'duration':>11}"
    elif timed:
        head += f"{'training':>11}"
    lines = [head]
    for table in (*plan.tables.values(), plan.total):
        runs = sum(model.copies for model in table.models if model.trained)
        line = f"{table.name:<14}{len(table.models):>7}{runs:>6}"
        if full:
            train, asked = table.train_seconds, table.evaluate_seconds
            both = None if train is None or asked is None else train + asked
            hours = "-" if both is None else f"{both / 3600:,.0f}"
            share = "-" if train is None else f"{train / 3600:,.0f}"
            lasts = duration(None if both is None else both / devices)
            line += f"{size(table.download_bytes):>11}{hours:>11}{share:>12}{lasts:>11}"
        elif timed:
            line += f"{duration(table.train_seconds):>11}"
        lines.append(line)
        if table is not plan.total:
            lines += _model_lines(table)
    return lines


def _model_lines(table: Table) -> list[str]:
    """The models of a table by family, how many seeds of each, and how they come about."""
    lines = []
    for family in dict.fromkeys(model.family for model in table.models):
        names = [
            f"{model.name} x {model.copies}" if model.copies > 1 else model.name
            for model in table.models
            if model.family == family
        ]
        text = f"{family}: {', '.join(names)}"
        lines += textwrap.wrap(text, 96, initial_indent="  ", subsequent_indent="    ")
    return lines


def formula(device_name: str, utilisation: float) -> list[str]:
    """How the seconds follow, in words."""
    return [
        "seconds = samples x (operations / (rate x utilisation) + traffic / bandwidth)",
        "operations a sample: 2 x weights a token forward, 4 backward, 2 recomputed, 2 of the",
        "  teacher's, and attention's; traffic: fake quantization, vocabulary (docs/scaling.md)",
        f"rate, bandwidth: data sheet of {device_name}; utilisation {utilisation:.2f}",
    ]


@command
def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("scale", help="smoke, small or paper")
    parser.add_argument("--devices", type=int, help="times for so many devices, found or not")
    parser.add_argument("--rate", help="whose rate: a device of replication/plan/resources.yaml")
    arguments = parser.parse_args(words)
    found = report(arguments.scale, arguments.devices, arguments.rate)
    return int(any(finding.status == FAILED for finding in found))


def report(
    scale: str,
    devices: int | None = None,
    rate: str | None = None,
    *,
    machine: Machine | None = None,
    say: Callable[[str], None] = print,
) -> list[Finding]:
    """Print the plan and every check of a scale, and return the checks.

    Raises InputError for an unknown scale or rate, or a count of devices below 1.
    """
    if devices is not None and devices < 1:
        raise InputError(f"--devices is {devices}; give at least 1")
    params = parse_params(scale_params(scale), f"parameters of scale {scale}")
    resources, machine = load_resources(), machine or probe()
    full = params.scale == FULL_SCALE
    device = None
    if rate:
        device = resources.device(rate)
    elif machine.gpus:
        try:
            device = resources.device(machine.gpus[0].name)
        except InputError as error:
            say(f"no times: {error}")
    count = devices or len(machine.gpus) or params.train.devices
    plan = make_plan(
        params,
        load_tables(),
        resources,
        device,
        logs=ROOT / "results" / scale / "training",
        ranks=max(1, count),
        wrapper=wrapper_of(params),
    )
    say(f"scale {scale}")
    for line in table_lines(plan, count, full):
        say(f"  {line}")
    if full and device:
        say(f"durations on {count} x {device.name}")
        for line in formula(device.name, device.utilisation):
            say(f"  {line}")
    elif full:
        say("hours and durations: name a device, as in make doctor DOCTOR='--rate A100'")
    elif plan.total.train_seconds is not None:
        say(f"training: by the committed logs (results/{scale}/training); nothing else is timed")
    found = check_all(params, machine, plan, resources, pins())
    for line in finding_lines(found):
        say(f"  {line}")
    counts = {
        status: sum(one.status == status for one in found) for status in (OK, WARNING, FAILED)
    }
    say(", ".join(f"{number} {status}" for status, number in counts.items()))
    if counts[FAILED]:
        say(f"scale {scale} cannot be run here as a whole: mend what failed")
    else:
        say(f"scale {scale} can be run here: make repro SCALE={scale}")
    return found
