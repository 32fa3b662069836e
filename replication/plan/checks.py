"""Checks of a machine against a scale, each with how to mend it, and `require` for one stage."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table as Grid
from rich.text import Text

from grace.errors import InputError
from replication.base import provenance
from replication.base.scales import FULL_SCALE
from replication.base.terminal import table
from replication.plan.machine import HUB, Gpu, Machine, probe
from replication.plan.needs import (
    Plan,
    Table,
    checkpoint_bytes,
    corpus_of,
    run_memory,
    shape_of,
    sources,
)
from replication.plan.resources import Checkpoint, Corpus, Resources, load_resources
from replication.plan.text import size
from replication.settings.schema import Params
from replication.train.launch import wrapper_of as launch_wrapper

OK, WARNING, FAILED = "ok", "warning", "failed"
_STYLES = {OK: "green", WARNING: "yellow", FAILED: "bold red"}
SMALL_RAM = 4e9
FREE_DISK = 1e9  # that any stage should find
ON_CORES = 2e9  # peak bytes of models that are trained without an accelerator


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: what was checked.
        status: OK, WARNING or FAILED.
        text: what was seen.
        mend: what to do about it.
        size: of what is checked, in words.
    """

    check: str
    status: str
    text: str
    mend: str = ""
    size: str = ""

    @property
    def subject(self) -> str:
        """What was checked, with its size."""
        return f"{self.check} ({self.size})" if self.size else self.check


def check_all(
    params: Params,
    machine: Machine,
    plan: Plan,
    resources: Resources,
    pinned: Mapping[str, str],
) -> list[Finding]:
    """Every check of a scale, in the order in which it is to be mended."""
    findings = [check_packages(machine, pinned)]
    findings += check_devices(params, machine, plan.memory)
    findings.append(check_arithmetic(params))
    findings += [check_ram(params, machine), check_disk(machine, plan.disk_bytes)]
    if params.scale == FULL_SCALE:
        families = list(dict.fromkeys(model.family for model in plan.total.models))
        for source in sources(params, families):
            findings += check_checkpoint(source, machine, resources)
        findings += check_data(params, machine, resources, plan.total)
    return findings


def finding_table(findings: Iterable[Finding]) -> Grid:
    """The checks; those of one outcome and one mend together, at the place of the first."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for finding in findings:
        key = (finding.status, finding.text, finding.mend)
        groups.setdefault(key, []).append(finding.subject)
    rows: list[Sequence[str | Text]] = []
    for (status, text, mend), subjects in groups.items():
        words = [subjects[0], text] if len(subjects) == 1 else [text, ", ".join(subjects)]
        rows.append((Text(status, _STYLES[status]), ": ".join(words)))
        if mend and status != OK:
            rows.append(("", f"mend: {mend}"))
    return table((), rows, indent=2)


def require(
    params: Params, stage: str, family: str | None = None, *, machine: Machine | None = None
) -> None:
    """The cheap checks of a stage, before its long work: disk, and at full scale what it reads.

    Args:
        params: all parameters.
        stage: pairs and conversations need their source; train needs devices that hold
            a rank of `family` and disk for a model; evaluate needs its benchmarks. Others need some
            disk.
        family: the stage's family; by default all.
        machine: by default this one.

    Raises:
        InputError: with the first check that failed and its mend.
    """
    for finding in _required(params, stage, family, machine or probe()):
        if finding.status == FAILED:
            raise InputError(
                f"stage {stage} cannot finish here: {finding.check}: {finding.text}; {finding.mend}"
            )


def _required(params: Params, stage: str, family: str | None, machine: Machine) -> list[Finding]:
    if params.scale != FULL_SCALE:
        return [check_disk(machine, FREE_DISK)]
    resources = load_resources()
    families = [family] if family else params.families
    if stage == "pairs":
        models = (params.teacher, params.baseline)
        chosen = [settings[name].source or "" for name in families for settings in models]
        need = sum(checkpoint_bytes(source, resources) for source in chosen)
        checks = [check_checkpoint(source, machine, resources) for source in chosen]
        return [check_disk(machine, need + FREE_DISK), *(one for found in checks for one in found)]
    if stage == "conversations":
        assert params.data is not None
        corpus = corpus_of(params, resources)
        annotations = _annotations(params, corpus, machine)
        if params.data.training.repository is None:  # local files, images in their place
            return [check_disk(machine, FREE_DISK), *annotations]
        return [check_disk(machine, 2 * corpus.bytes + FREE_DISK), *annotations]
    if stage == "train":
        return _training(params, families, machine, resources)
    if stage == "evaluate":
        folders = [folder for folder, of in params.folders.items() if of in families]
        return _benchmarks(params, folders, machine, resources)
    return [check_disk(machine, FREE_DISK)]


def _training(
    params: Params, families: list[str], machine: Machine, resources: Resources
) -> list[Finding]:
    ranks, wrapper = max(1, len(machine.gpus)), wrapper_of(params)
    memory = {
        name: run_memory(params, name, resources, wrapper=wrapper, ranks=ranks) for name in families
    }
    shapes = [shape_of(params.baseline[name].source or "") for name in families]
    state = max(4 * shape.parameters + 8 * shape.trained for shape in shapes)
    models = 4 * max(shape.parameters for shape in shapes)
    disk = check_disk(machine, resources.checkpoint_copies * state + models)
    return [*check_devices(params, machine, memory), disk]


def wrapper_of(params: Params) -> str:
    """What `train.launch` wraps the student in; FSDP2 where it says nothing."""
    return "fsdp2" if params.train.launch is None else launch_wrapper(params.train.launch)


# ------------------------------------------------------------------------------------- the machine


def check_packages(machine: Machine, pinned: Mapping[str, str]) -> Finding:
    """Installed versions against the pinned; a build's suffix such as +cpu does not count."""
    mend = "run make setup"
    missing = [name for name in pinned if machine.versions.get(name) is None]
    if missing:
        return Finding("packages", FAILED, f"missing: {', '.join(missing)}", mend)
    others = [
        f"{name} {installed} for {version}"
        for name, version in pinned.items()
        if (installed := machine.versions[name]) and installed.partition("+")[0] != version
    ]
    if others:
        return Finding("packages", WARNING, f"another version: {', '.join(others)}", mend)
    return Finding("packages", OK, f"{len(pinned)} as pinned")


def check_devices(
    params: Params, machine: Machine, memory: Mapping[str, Mapping[str, float]]
) -> list[Finding]:
    """Accelerators against what training at full scale needs; none is needed at the others.

    Args:
        params: all parameters.
        machine: the machine.
        memory: bytes per rank by part, for every family that is trained.
    """
    if params.scale != FULL_SCALE:
        text = f"{len(machine.gpus)} accelerators, {_cores(machine)}; cores are enough"
        return [Finding("devices", OK, text)]
    if not machine.gpus and all(parts["peak"] <= ON_CORES for parts in memory.values()):
        text = f"no accelerator, {_cores(machine)}; models as small as these are trained on cores"
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
    least = min(machine.gpus, key=lambda gpu: gpu.memory)
    fits = [check_device_memory(family, parts, least) for family, parts in memory.items()]
    return [_check_gpus(params, machine, least), *fits]


def _check_gpus(params: Params, machine: Machine, least: Gpu) -> Finding:
    count, train = len(machine.gpus), params.train
    seen = f"{count} x {least.name}, {size(least.memory)} each"
    if not all(gpu.bf16 for gpu in machine.gpus):
        mend = "use devices of compute capability 8.0 or later"
        return Finding("devices", FAILED, f"{seen}, without bfloat16", mend)
    if count != train.devices:
        batch = train.batch_size * train.accumulation * train.devices
        return Finding(
            "devices",
            WARNING,
            f"{seen}; the parameters say {train.devices}",
            f"set train.devices to {count} and train.accumulation so that an optimizer step takes "
            f"{batch} samples still",
        )
    return Finding("devices", OK, f"{seen}, bfloat16")


def _cores(machine: Machine) -> str:
    return f"{machine.cores} cores with {machine.instruction_set}"


def check_device_memory(family: str, parts: Mapping[str, float], gpu: Gpu) -> Finding:
    """A rank's peak against a device's memory; 8 % are left for fragments and libraries."""
    largest = sorted((part for part in parts if part != "peak"), key=lambda part: -parts[part])[:3]
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


def check_arithmetic(params: Params) -> Finding:
    """What training computes in, and whether the machine multiplies it natively."""
    native = provenance.native_arithmetic()
    chosen = native if params.arithmetic == "auto" else params.arithmetic
    text = f"{chosen} (parameter arithmetic: {params.arithmetic}); native here: {native}"
    if chosen == "bfloat16" != native and params.scale != FULL_SCALE:
        text += ", and bfloat16 is several times slower"
        return Finding("arithmetic", WARNING, text, "set it to auto")
    return Finding("arithmetic", OK, text)


def check_ram(params: Params, machine: Machine) -> Finding:
    """Main memory: of the small world, or of one process that loads a student in float32 or a
    teacher in bfloat16."""
    need = SMALL_RAM
    if params.scale == FULL_SCALE:
        students = [4 * shape_of(one.source or "").parameters for one in params.baseline.values()]
        teachers = [2 * shape_of(one.source or "").parameters for one in params.teacher.values()]
        need = max(students + teachers)
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
    return Finding("disk", FAILED, text, "free some, or put the repository on a larger disk")


# ---------------------------------------------------------------------------------- what is fetched


def check_checkpoint(source: str, machine: Machine, resources: Resources) -> list[Finding]:
    """A checkpoint's place and its licence."""
    check = f"checkpoint {source}"
    if Path(source).is_dir():
        if not any(Path(source).glob("*.safetensors")):
            return [Finding(check, FAILED, "it has no *.safetensors", "copy the weights there")]
        return [Finding(check, OK, "local directory")]
    try:
        weight = size(checkpoint_bytes(source, resources))
    except InputError as error:
        return [Finding(check, FAILED, str(error), "correct the name in the parameter file")]
    place = _at_hand(check, source, "model", weight, machine)
    known = resources.checkpoints.get(source)
    if known is not None:
        return [place, _licence(source, known)]
    mend = "read it on the hub's page"
    return [place, Finding(f"licence {source}", WARNING, "not known here", mend)]


def _at_hand(check: str, repository: str, kind: str, weight: str, machine: Machine) -> Finding:
    if machine.cached(repository, kind):
        return Finding(check, OK, "in the hub's cache")
    if machine.hub:
        return Finding(check, OK, "will be downloaded", size=weight)
    local = "its local directory" if kind == "model" else "a local copy"
    return Finding(
        check,
        FAILED,
        "neither the hub nor a cached copy can be reached",
        "connect, with HF_HUB_OFFLINE unset, set HF_ENDPOINT to a mirror or HF_HOME to a filled "
        f"cache, or put {local} into the parameter file",
        weight,
    )


def _licence(name: str, repository: Checkpoint | Corpus) -> Finding:
    check, licence = f"licence {name}", repository.licence
    if not repository.gated:
        return Finding(check, OK, f"{licence}, no acceptance needed, by its page on the hub")
    return Finding(
        check,
        WARNING,
        f"{licence}, to be accepted first, by its page on the hub",
        f"accept it at https://{HUB}/{name} and log in with `hf auth login`",
    )


def _annotations(params: Params, corpus: Corpus, machine: Machine) -> list[Finding]:
    """The annotation files of the training data, on the hub or as local files."""
    assert params.data is not None
    training = params.data.training
    if training.repository is not None:
        check = f"data {training.repository}"
        return [_at_hand(check, training.repository, "dataset", size(corpus.bytes), machine)]
    return [
        Finding(f"data {name}", OK, "is a local file")
        if Path(name).is_file()
        else Finding(f"data {name}", FAILED, "does not exist", "correct data.training.files")
        for name in training.files
    ]


def check_data(
    params: Params, machine: Machine, resources: Resources, needed: Table
) -> list[Finding]:
    """Training data and the benchmarks of what is needed."""
    assert params.data is not None
    findings = []
    if any(model.trained for model in needed.models):
        corpus = corpus_of(params, resources)
        findings += _annotations(params, corpus, machine)
        if params.data.training.repository is not None:
            findings.append(_licence(params.data.training.repository, corpus))
        total = sum(archive.bytes for archive in corpus.images.values())
        findings.append(
            Finding(
                "images of the conversations",
                WARNING,
                f"{size(total)} in {len(corpus.images)} archives of other sites",
                "docs/data.md says where each is from; some are to be fetched by hand",
            )
        )
    folders = [model.folder for model in needed.models]
    return [*findings, *_benchmarks(params, folders, machine, resources)]


def _benchmarks(
    params: Params, folders: Iterable[str], machine: Machine, resources: Resources
) -> list[Finding]:
    assert params.data is not None
    names = {name for folder in folders for name in params.evaluate.benchmarks[folder]}
    return [
        _at_hand(
            f"benchmark {name}",
            params.data.benchmarks[name].repository,
            "dataset",
            size(resources.benchmarks[name].bytes),
            machine,
        )
        for name in sorted(names)
    ]
