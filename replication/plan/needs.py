"""What each table needs at a scale: downloads, trainings, questions; and what that costs.

    plan = make_plan(params, load_tables(), load_resources())
    for table in plan.tables.values(): ...

Sizes and times are estimates from `replication.plan.costs` and `resources.yaml`, except at a
reduced scale, where the seconds are steps at the rates of the committed training logs.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grace.errors import InputError
from grace.training import TEACHER_METHODS
from replication.base.files import read_json
from replication.base.scales import FULL_SCALE
from replication.benchmarks import PRINTED
from replication.paper.bands import load_facts
from replication.paper.tables import Reported
from replication.plan.architectures import architectures
from replication.plan.costs import (
    Load,
    Precision,
    Shape,
    answering_seconds,
    rank_memory,
    training_seconds,
)
from replication.plan.resources import PATH, Corpus, Device, Resources
from replication.results.tuning import tuned_name
from replication.settings.schema import Params, Run

PUBLISHED = ("teacher", "baseline")
REDUCED_DISK = 3.0e9  # data and models of scale small


@functools.cache
def shape_of(source: str) -> Shape:
    """The shape of a published checkpoint, or of a local directory with its config.json.

    Raises:
        InputError: for a source that is neither.
    """
    for architecture in architectures().values():
        if architecture.repository == source:
            return Shape.of(architecture.meta_model, architecture.name)
    if (Path(source) / "config.json").is_file():
        import torch
        from transformers import AutoConfig, AutoModelForImageTextToText

        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(source))
        return Shape.of(model, Path(source).name)
    known = ", ".join(architecture.repository for architecture in architectures().values())
    raise InputError(
        f"no architecture is known of checkpoint {source!r}; use a local directory, or one of "
        f"{known}"
    )


@dataclass(frozen=True)
class Model:
    """A model that a table shows.

    Attributes:
        family: its family.
        folder: where the model lies under the models' folder.
        name: of the run, or of a published checkpoint.
        seeds: of the run.
        run: None for a published checkpoint.
        trained: whether it is trained, not quantized afterwards or published.
    """

    family: str
    folder: str
    name: str
    seeds: tuple[int, ...]
    run: Run | None = None
    trained: bool = False

    @property
    def copies(self) -> int:
        """Number of models: one for each seed."""
        return max(1, len(self.seeds))


@dataclass
class Table:
    """What a table needs.

    Attributes:
        name: the table's short name.
        models: that it shows.
        train_seconds: device-seconds of training; None where nothing says how long.
        evaluate_seconds: device-seconds of evaluation; None likewise.
        download_bytes: checkpoints, data and benchmarks.
    """

    name: str
    models: list[Model] = field(default_factory=list)
    train_seconds: float | None = None
    evaluate_seconds: float | None = None
    download_bytes: float = 0.0


@dataclass(frozen=True)
class Plan:
    """What all tables need.

    Attributes:
        tables: by short name.
        total: what all of them together need, nothing twice.
        disk_bytes: on disk, for all of it.
        memory: bytes per rank by part, for each family's dearest run.
    """

    tables: Mapping[str, Table]
    total: Table
    disk_bytes: float
    memory: Mapping[str, Mapping[str, float]]


def find_model(params: Params, pair: str, name: str) -> Model:
    """The model behind a run's name.

    Raises:
        InputError: where no section of the parameters has it.
    """
    family = params.pair(pair).family
    if name in PUBLISHED:
        return Model(family, pair, name, ())
    for folder, group in params.ptq.groups.items():
        if group.pair == pair and name in group.models:
            return Model(family, folder, name, ())
    folder, run = params.find_run(pair, name)
    return Model(family, folder, name, tuple(run.seeds), run, True)


def find_models(params: Params, pair: str, name: str) -> list[Model]:
    """The models behind a run's name: of a method's tuned row, all its candidates.

    Raises:
        InputError: as :func:`find_model`.
    """
    tuning = params.tuning
    if tuning is not None and pair in tuning.pairs:
        for method, names in tuning.candidates.items():
            candidates = [find_model(params, pair, one) for one in names]
            if name in (tuned_name(method, one.run.bits) for one in candidates if one.run):
                return candidates
    return [find_model(params, pair, name)]


def needs(params: Params, reported: Reported) -> dict[str, list[Model]]:
    """The models of every table, each once; what this scale does not run is left out."""
    tables: dict[str, list[Model]] = {}
    asked: dict[tuple[str, str], list[str]] = {}
    for table, family, name in reported.named_runs():
        tables.setdefault(table, [])
        asked.setdefault((table, family), []).append(name)
    for (table, family), names in asked.items():
        for pair in params.pairs_of(family) if family in params.families else ():
            models = tables[table]
            models += [one for one in _models_of(params, pair, names) if one not in models]
    return tables


def _models_of(params: Params, pair: str, names: Iterable[str]) -> list[Model]:
    """The models that a pair has of some names; a further pair without a run of them is not shown,
    so that its teacher and baseline are not needed either."""
    found: list[Model] = []
    for name in names:
        try:
            found += find_models(params, pair, name)
        except InputError:
            continue
    further = pair != params.pair(pair).family
    return [] if further and all(one.name in PUBLISHED for one in found) else found


def corpus_of(params: Params, resources: Resources) -> Corpus:
    """The training data; for local files the paper's, whose format they have.

    Raises:
        InputError: for a repository that resources.yaml lacks.
    """
    assert params.data is not None
    name = params.data.training.repository or next(iter(resources.corpus))
    if name not in resources.corpus:
        raise InputError(
            f"no size is known of training data {name!r}; add it to {PATH.name}, section corpus"
        )
    return resources.corpus[name]


def training_load(params: Params, family: str, resources: Resources) -> Load:
    """A micro-batch of the training data for a family's student."""
    corpus, shape = corpus_of(params, resources), shape_of(_source(params, family, "baseline"))
    visual = shape.visual_tokens(corpus.visual_pixels)
    tokens = visual + corpus.text_tokens
    longest = params.train.max_length or tokens
    return Load(
        params.train.batch_size, min(tokens, longest), visual, min(corpus.supervised, longest)
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
    student, teacher = (
        shape_of(_source(params, family, which)) for which in ("baseline", "teacher")
    )
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
    samples = corpus.samples * (train.epochs or 0) * model.run.length
    taught = model.run.method in TEACHER_METHODS
    teacher = "baseline" if model.run.method == "qad" else "teacher"
    return model.copies * training_seconds(
        shape_of(_source(params, model.family, "baseline")),
        training_load(params, model.family, resources),
        samples,
        device,
        batch=train.batch_size * train.accumulation * train.devices,
        teacher=shape_of(_source(params, model.family, teacher)) if taught else None,
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
            resources.benchmarks[name].answer_tokens,
            device,
        )
        for name in benchmarks
    )


def questions(name: str, resources: Resources) -> int:
    """Rows of a benchmark that are asked: its questions, or more where not all of them count."""
    asked = resources.benchmarks[name].questions
    return load_facts().benchmark(PRINTED[name]).measured.questions if asked is None else asked


def checkpoint_bytes(source: str, resources: Resources) -> float:
    """Bytes of a checkpoint's weights on the hub."""
    known = resources.checkpoints.get(source)
    return shape_of(source).parameters * (known.bytes_per_weight if known else 2)


def _downloads(params: Params, models: Iterable[Model], resources: Resources) -> float:
    models = list(models)
    sizes: dict[str, float] = {}
    for model in models:
        method = None if model.run is None else model.run.method
        trained_under = method in TEACHER_METHODS and method != "qad"  # taught by itself
        for which in PUBLISHED:
            if model.name == which or trained_under or (which == "baseline" and model.run):
                source = _source(params, model.family, which)
                sizes[source] = checkpoint_bytes(source, resources)
        for name in params.evaluate.benchmarks[model.folder]:
            sizes[f"benchmark {name}"] = resources.benchmarks[name].bytes
    if any(model.trained for model in models):
        corpus = corpus_of(params, resources)
        sizes["conversations"] = corpus.bytes
        for name, archive in corpus.images.items():
            sizes[f"images {name}"] = archive.bytes
    return sum(sizes.values())


def _costs(folder: Path) -> list[dict[str, Any]]:
    """What the trainings of a folder's models took, as their logs say."""
    logs = (read_json(path) for path in sorted(folder.rglob("*.json")))
    return [cost for log in logs if (cost := log.get("cost"))]


def _step_seconds(params: Params, logs: Path) -> dict[str, float]:
    """Mean seconds of a step by method, of the trainings that were logged."""
    found: dict[str, list[float]] = {}
    for folder, group in params.runs.items():
        for name, run in group.models.items():
            rates = [cost["seconds"] / cost["steps"] for cost in _costs(logs / folder / name)]
            found.setdefault(run.method, []).extend(rates)
    return {method: sum(rates) / len(rates) for method, rates in found.items() if rates}


def _logged_seconds(params: Params, models: Iterable[Model], logs: Path) -> float | None:
    """Seconds of the training of models: a run's steps at the rate of its method, and what the log
    of a teacher or baseline says. None if nothing was logged; a method without a log counts as the
    slowest."""
    rates, seconds = _step_seconds(params, logs), 0.0
    if not rates:
        return None
    for model in models:
        if model.run is None:
            seconds += sum(cost["seconds"] for cost in _costs(logs / model.folder / model.name))
        else:
            steps = model.copies * params.train.steps * model.run.length
            seconds += steps * rates.get(model.run.method, max(rates.values()))
    return seconds


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

    Args:
        params: all parameters.
        reported: the paper's tables, which name their runs.
        resources: sizes and rates.
        device: whose rate the times are for; None leaves them out.
        logs: training logs whose seconds hold at a reduced scale.
        ranks: number of devices.
        wrapper: of `costs.WRAPPERS`, for the memory.
    """
    tables, everything = {}, Table("all")
    for name, models in needs(params, reported).items():
        table = tables[name] = Table(name, models)
        everything.models += [model for model in models if model not in everything.models]
    full = params.scale == FULL_SCALE
    for table in (*tables.values(), everything):
        if full:
            table.download_bytes = _downloads(params, table.models, resources)
        elif logs is not None:
            table.train_seconds = _logged_seconds(params, table.models, logs)
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
    if not full:
        return Plan(tables, everything, REDUCED_DISK, {})
    memory = {
        family: run_memory(params, family, resources, wrapper=wrapper, ranks=ranks)
        for family in params.families
    }
    return Plan(tables, everything, _disk_bytes(params, everything, resources), memory)


def _disk_bytes(params: Params, everything: Table, resources: Resources) -> float:
    """Downloads, archives unpacked beside themselves, every trained model in float32, and the
    training state of the run that is under way (weights and two moments)."""
    corpus = corpus_of(params, resources)
    unpacked = sum(archive.bytes for archive in corpus.images.values())
    models, state = 0.0, 0.0
    for model in everything.models:
        if not model.trained:
            continue
        shape = shape_of(_source(params, model.family, "baseline"))
        models += model.copies * 4 * shape.parameters
        held = 4 * shape.parameters + 8 * shape.trained
        state = max(state, resources.checkpoint_copies * held)
    return everything.download_bytes + unpacked + models + state + resources.environment_bytes
