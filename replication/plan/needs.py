"""What each table needs at a scale: downloads, trainings, questions; and what that costs.

    plan = make_plan(params, load_tables(), load_resources())
    for table in plan.tables: ...

Sizes and times are estimates from `replication.plan.costs` and `resources.yaml`, except at a
reduced
scale, where the seconds are those of the committed training logs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grace.errors import InputError
from grace.training import TEACHER_METHODS
from replication.base.files import read_json
from replication.base.scales import FULL_SCALE
from replication.base.yaml import read_yaml
from replication.benchmarks import PRINTED
from replication.paper.bands import load_facts
from replication.paper.tables import Reported
from replication.plan.architectures import architectures
from replication.plan.costs import (
    Device,
    Load,
    Precision,
    Shape,
    answering_seconds,
    rank_memory,
    training_seconds,
)
from replication.settings.schema import Params, Run

PATH = Path(__file__).with_name("resources.yaml")
PUBLISHED = ("teacher", "baseline")
REDUCED_DISK = 3.0e9  # data and models of scale small


@dataclass(frozen=True)
class Resources:
    """All of resources.yaml; the entries of checkpoints, corpora and benchmarks are mappings."""

    devices: Mapping[str, Device]
    corpora: Mapping[str, Mapping[str, Any]]
    checkpoints: Mapping[str, Mapping[str, Any]]
    benchmarks: Mapping[str, Mapping[str, Any]]
    question_tokens: int
    question_pixels: int
    environment_bytes: float
    checkpoint_copies: int

    def device(self, name: str) -> Device:
        """A device by a name that contains its own, as 'NVIDIA A100-SXM4-80GB' does.

        Raises InputError, naming those there are, for another.
        """
        if name in self.devices:
            return self.devices[name]
        fitting = [one for one in self.devices if one.split("-", maxsplit=1)[0] in name]
        if not fitting:
            raise InputError(
                f"no rate is known of device {name!r}; choose of {', '.join(self.devices)}, or "
                f"add it to {PATH.name}"
            )
        return self.devices[fitting[-1] if "40GB" in name else fitting[0]]


@functools.cache
def load_resources(path: Path = PATH) -> Resources:
    """resources.yaml. Raises InputError for a file without the sections."""
    content = read_yaml(path)
    _check_numbers(content, path.name)
    try:
        return Resources(
            devices={
                name: Device(
                    name, entry["flops"], entry["bandwidth"], entry["memory"], entry["utilisation"]
                )
                for name, entry in content["devices"].items()
            },
            corpora=content["corpus"],
            checkpoints=content["checkpoints"],
            benchmarks=content["benchmarks"],
            question_tokens=content["question_tokens"],
            question_pixels=content["question_pixels"],
            environment_bytes=content["environment_bytes"],
            checkpoint_copies=content["checkpoint_copies"],
        )
    except KeyError as error:
        raise InputError(f"{path.name} lacks {error}; add it") from error


_NUMBERS = frozenset(
    {
        *("flops", "bandwidth", "memory", "utilisation", "samples", "text_tokens", "supervised"),
        *("visual_pixels", "bytes", "bytes_per_weight", "questions", "answer_tokens"),
    }
)


def _check_numbers(value: Any, where: str) -> None:
    """YAML reads 1.0e9 as text; only 1.0e+9 is a number."""
    for key, entry in value.items() if isinstance(value, dict) else ():
        if key in _NUMBERS and (isinstance(entry, str) or not entry > 0):
            raise InputError(f"{where}: {key} is {entry!r}; give a number above 0, as in 1.0e+9")
        _check_numbers(entry, f"{where}: {key}")


@functools.cache
def shape_of(source: str) -> Shape:
    """The shape of a published checkpoint, or of a local directory with its config.json.

    Raises InputError for a source that is neither.
    """
    for one in architectures().values():
        if one.repository == source:
            return Shape.of(one.meta_model, one.name)
    if (Path(source) / "config.json").is_file():
        import torch
        from transformers import AutoConfig, AutoModelForImageTextToText

        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(source))
        return Shape.of(model, Path(source).name)
    known = ", ".join(one.repository for one in architectures().values())
    raise InputError(
        f"no architecture is known of checkpoint {source!r}; use a local directory, or one of "
        f"{known}"
    )


@dataclass(frozen=True)
class Model:
    """A model that a table shows: `run` None is a published checkpoint."""

    family: str
    folder: str
    name: str
    seeds: tuple[int, ...]
    run: Run | None = None
    trained: bool = False

    @property
    def copies(self) -> int:
        return max(1, len(self.seeds))


@dataclass
class Table:
    """What a table needs. seconds: device-seconds of training and of evaluation; None where
    nothing says how long."""

    name: str
    models: list[Model] = field(default_factory=list)
    train_seconds: float | None = 0.0
    evaluate_seconds: float | None = 0.0
    download_bytes: float = 0.0


@dataclass(frozen=True)
class Plan:
    """tables: by short name, and what all of them together need, nothing twice, as `total`."""

    tables: Mapping[str, Table]
    total: Table
    disk_bytes: float
    memory: Mapping[str, Mapping[str, float]]


def find_model(params: Params, family: str, name: str) -> Model:
    """The model behind a run's name. Raises InputError where no section has it."""
    if name in PUBLISHED:
        return Model(family, family, name, ())
    for folder, group in params.ptq.groups.items():
        if group.family == family and name in group.models:
            return Model(family, folder, name, ())
    folder, run = params.find_run(family, name)
    return Model(family, folder, name, tuple(run.seeds), run, True)


def needs(params: Params, reported: Reported) -> dict[str, list[Model]]:
    """The models of every table, each once; what this scale does not run is left out."""
    found: dict[str, list[Model]] = {}
    for table, family, name in reported.named_runs():
        models = found.setdefault(table, [])
        if family not in params.families:
            continue
        try:
            model = find_model(params, family, name)
        except InputError:
            continue
        if model not in models:
            models.append(model)
    return found


def corpus_of(params: Params, resources: Resources) -> Mapping[str, Any]:
    """The training data's entry; of files of one's own that of the paper's data, which have their
    format. Raises InputError for a repository without one."""
    assert params.data is not None
    name = params.data.training.repository or next(iter(resources.corpora))
    if name not in resources.corpora:
        raise InputError(
            f"no size is known of training data {name!r}; add it to {PATH.name}, section corpus"
        )
    return resources.corpora[name]


def training_load(params: Params, family: str, resources: Resources) -> Load:
    """A micro-batch of the training data for a family's student."""
    corpus, shape = corpus_of(params, resources), shape_of(_source(params, family, "baseline"))
    visual = shape.visual_tokens(corpus["visual_pixels"])
    tokens = visual + corpus["text_tokens"]
    longest = params.train.max_length or tokens
    return Load(
        params.train.batch_size, min(tokens, longest), visual, min(corpus["supervised"], longest)
    )


def _source(params: Params, family: str, which: str) -> str:
    settings = params.teacher[family] if which == "teacher" else params.baseline[family]
    assert settings.source is not None
    return settings.source


def sources(params: Params, families: Iterable[str] | None = None) -> list[str]:
    """The checkpoints that are loaded, teachers first."""
    names = params.families if families is None else list(families)
    return [_source(params, family, which) for which in PUBLISHED for family in names]


def run_memory(
    params: Params,
    family: str,
    resources: Resources,
    *,
    wrapper: str,
    ranks: int,
    precision: Precision | None = None,
    sequences: int | None = None,
) -> dict[str, float]:
    """Bytes per rank of a family's dearest run: GRACE at 4 bits, the teacher on every rank."""
    student, teacher = (shape_of(_source(params, family, one)) for one in ("baseline", "teacher"))
    load = training_load(params, family, resources)
    if sequences is not None:
        load = Load(sequences, load.tokens, load.visual, load.supervised)
    return rank_memory(
        student,
        load,
        quantized=True,
        group_size=params.train.group_size,
        teacher=teacher,
        relational=True,
        checkpointing=params.train.gradient_checkpointing,
        accumulation=params.train.accumulation,
        wrapper=wrapper,
        ranks=ranks,
        precision=precision or _precision(params),
        teacher_sharded=params.train.launch is not None and params.train.launch.teacher_sharded,
    )


def _precision(params: Params) -> Precision:
    launch = params.train.launch
    if launch is None:
        return Precision()
    return Precision(optimizer=launch.optimizer, teacher_bits=launch.teacher_bits)


def _train_seconds(params: Params, model: Model, resources: Resources, device: Device) -> float:
    assert model.run is not None
    corpus = corpus_of(params, resources)
    train = params.train
    samples = corpus["samples"] * (train.epochs or 0)
    taught = model.run.method in TEACHER_METHODS
    return model.copies * training_seconds(
        shape_of(_source(params, model.family, "baseline")),
        training_load(params, model.family, resources),
        samples,
        device,
        batch=train.batch_size * train.accumulation * train.devices,
        teacher=shape_of(_source(params, model.family, "teacher")) if taught else None,
        relational=model.run.method == "grace",
        quantized=model.run.bits < 16,
        checkpointing=train.gradient_checkpointing,
    )


def _evaluate_seconds(
    params: Params, model: Model, benchmarks: Iterable[str], resources: Resources, device: Device
) -> float:
    which = "teacher" if model.name == "teacher" else "baseline"
    shape = shape_of(_source(params, model.family, which))
    visual = shape.visual_tokens(resources.question_pixels)
    load = Load(params.evaluate.batch_size, visual + resources.question_tokens, visual, 1)
    return model.copies * sum(
        answering_seconds(
            shape,
            load,
            questions(name, resources),
            resources.benchmarks[name]["answer_tokens"],
            device,
        )
        for name in benchmarks
    )


def questions(name: str, resources: Resources) -> int:
    """Rows of a benchmark that are asked: its questions, or more where not all of them count."""
    asked: int | None = resources.benchmarks[name].get("questions")
    return load_facts().benchmark(PRINTED[name]).measured[1] if asked is None else asked


def checkpoint_bytes(source: str, resources: Resources) -> float:
    """Bytes of a checkpoint's weights on the hub."""
    entry = resources.checkpoints.get(source, {"bytes_per_weight": 2})
    return shape_of(source).parameters * entry["bytes_per_weight"]


def _downloads(params: Params, models: Iterable[Model], resources: Resources) -> float:
    models = list(models)
    wanted: dict[str, float] = {}
    for model in models:
        trained_under = model.run is not None and model.run.method in TEACHER_METHODS
        for which in PUBLISHED:
            if model.name == which or trained_under or (which == "baseline" and model.run):
                source = _source(params, model.family, which)
                wanted[source] = checkpoint_bytes(source, resources)
        for name in params.evaluate.benchmarks[model.folder]:
            wanted[f"benchmark {name}"] = resources.benchmarks[name]["bytes"]
    if any(model.trained for model in models):
        corpus = corpus_of(params, resources)
        wanted["conversations"] = corpus["bytes"]
        for name, archive in corpus["images"].items():
            wanted[f"images {name}"] = archive["bytes"]
    return sum(wanted.values())


def _logged_seconds(models: Iterable[Model], logs: Path) -> float | None:
    """Seconds that the committed logs report for the training of models; None if none does."""
    found = []
    for model in models:
        for path in sorted((logs / model.folder / model.name).glob("*.json")):
            cost = read_json(path).get("cost")
            found += [cost["seconds"]] if cost else []
    return sum(found) if found else None


def make_plan(
    params: Params,
    reported: Reported,
    resources: Resources,
    device: Device | None,
    *,
    logs: Path | None = None,
    ranks: int = 1,
    wrapper: str = "fsdp2",
) -> Plan:
    """What every table needs.

    device: whose rate the times are for; None leaves them out. logs: training logs whose seconds
    hold at a reduced scale.
    """
    tables, everything = {}, Table("all")
    for name, models in needs(params, reported).items():
        table = tables[name] = Table(name, models)
        everything.models += [model for model in models if model not in everything.models]
    full = params.scale == FULL_SCALE
    for table in (*tables.values(), everything):
        if full:
            table.download_bytes = _downloads(params, table.models, resources)
        if full and device is not None:
            table.train_seconds = sum(
                _train_seconds(params, model, resources, device)
                for model in table.models
                if model.trained
            )
            table.evaluate_seconds = sum(
                _evaluate_seconds(
                    params, model, params.evaluate.benchmarks[model.folder], resources, device
                )
                for model in table.models
            )
        else:
            table.evaluate_seconds = None
            table.train_seconds = None
            if logs is not None and not full:
                table.train_seconds = _logged_seconds(table.models, logs)
    memory = {}
    if full:
        memory = {
            family: run_memory(params, family, resources, wrapper=wrapper, ranks=ranks)
            for family in params.families
        }
    disk = _disk_bytes(params, everything, resources) if full else REDUCED_DISK
    return Plan(tables, everything, disk, memory)


def _disk_bytes(params: Params, everything: Table, resources: Resources) -> float:
    """Downloads, archives unpacked beside themselves, every trained model in float32, and the
    training state of the run that is under way (weights and two moments)."""
    corpus = corpus_of(params, resources)
    unpacked = sum(archive["bytes"] for archive in corpus["images"].values())
    models, state = 0.0, 0.0
    for model in everything.models:
        if not model.trained:
            continue
        shape = shape_of(_source(params, model.family, "baseline"))
        models += model.copies * 4 * shape.parameters
        held = 4 * shape.parameters + 8 * shape.trained
        state = max(state, resources.checkpoint_copies * held)
    return everything.download_bytes + unpacked + models + state + resources.environment_bytes
