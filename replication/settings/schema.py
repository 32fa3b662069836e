"""``params.yaml`` as validated, typed values: an unknown or missing key is one clear error."""

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grace.errors import InputError
from replication.base.messages import short, unknown
from replication.base.yaml import read_yaml

SCALES = ("smoke", "small", "paper")
FULL_SCALE = "paper"
METHODS = ("sft", "qat", "kd", "grace")
TEACHER_METHODS = ("kd", "grace")
DTYPES = ("float32", "bfloat16", "float16")
ARITHMETIC = ("auto", "bfloat16", "float32")
PRESETS = ("paper", "released")
OPTIMIZERS = ("adamw_torch_fused", "adamw_bnb_8bit")
TEACHER_BITS = (16, 8, 4)
PARAMS_FILE = Path("params.yaml")

LANGUAGE_FAMILY = "qwen2_vl"
"""The family whose decoders are trained on text; other families' models start from its models."""

REDUCED_ONLY = ("standins", "vision", "features", "language")
"""Sections of the small world. Scale paper has ``data`` in their place."""

_AT_LEAST_ONE = frozenset(
    {
        *("accumulation", "batch_size", "bins", "conversations", "devices", "evaluation"),
        *("images", "scenes"),
        *("logging_steps", "max_new_tokens", "max_length", "processes", "questions"),
        *("resamples", "samples", "save_steps", "train", "turns", "vocab_size"),
    }
)
_FRACTIONS = frozenset(
    {
        *("captions", "echoes", "open_answers", "spelled_letters", "warmup_ratio"),
        *("diagrams", "strings", "poor_images", "missing_images", "invalid_records"),
    }
)


@dataclass(frozen=True)
class Standins:
    """The procedural world: sizes, seeds and how hard the drawings are."""

    seed: int
    train: int
    language: int
    evaluation: int
    turns: int
    captions: float
    echoes: float
    open_answers: float
    spelled_letters: float
    diagrams: float
    strings: float
    poor_images: float
    noise: float
    clutter: int
    vocab_size: int


@dataclass(frozen=True)
class Vision:
    """Pretraining of the vision tower."""

    seed: int
    images: int
    steps: int
    batch_size: int
    learning_rate: float
    config: dict[str, Any]


@dataclass(frozen=True)
class Features:
    """Frozen vision features of the training images."""

    batch_size: int


@dataclass(frozen=True)
class Source:
    """A published data set: a repository of the Hugging Face hub and what to take of it."""

    repository: str
    subset: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Training:
    """The training conversations of scale paper; docs/data.md has the formats.

    ``files`` are local paths, or names in the hub's data set ``repository``. ``images`` is the
    folder of image folders, and ``folders`` has those that lie elsewhere. ``samples`` of the
    conversations are drawn by ``seed``; without it, all are taken. The two last are the shares
    that may be left out.
    """

    files: list[str]
    images: str
    repository: str | None = None
    revision: str | None = None
    folders: dict[str, str] = field(default_factory=dict)
    samples: int | None = None
    seed: int = 0
    missing_images: float = 0.0
    invalid_records: float = 0.0


@dataclass(frozen=True)
class Data:
    """The published data of scale paper."""

    training: Training
    benchmarks: dict[str, Source]


@dataclass(frozen=True)
class Language:
    """Training of a decoder on text alone, before it meets images. Its shape is that of the
    model of the same name in the family LANGUAGE_FAMILY."""

    seed: int
    steps: int
    batch_size: int
    learning_rate: float
    warmup_ratio: float = 0.05
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Pretraining:
    """Training of a teacher or baseline: of our own making (``text``), or a published ``source``.

    ``start`` is the model whose decoder it starts from, as ``<folder>/<model>``."""

    seed: int = 0
    steps: int = 0
    batch_size: int = 1
    learning_rate: float = 0.0
    warmup_ratio: float = 0.05
    weight_decay: float = 0.0
    start: str | None = None
    text: dict[str, Any] = field(default_factory=dict)
    source: str | None = None


@dataclass(frozen=True)
class TeacherOutputs:
    """Teacher outputs on the training data, computed once."""

    batch_size: int


@dataclass(frozen=True)
class Launch:
    """How ``accelerate launch`` starts training: its configuration file, the processes of all
    machines together, and what a process holds.

    ``config`` is a path from the directory of ``params.yaml``. ``teacher_bits`` 8 and 4 hold the
    teacher through bitsandbytes; ``teacher_sharded`` shards it as FSDP2 does the student.
    ``workers`` are the processes that prepare a process's batches."""

    config: str
    processes: int
    teacher_bits: int = 16
    teacher_sharded: bool = False
    optimizer: str = "adamw_torch_fused"
    workers: int = 0


@dataclass(frozen=True)
class Train:
    """What every named run shares. Its length is ``steps``, or ``epochs`` at scale paper, where an
    optimizer step takes batch_size * accumulation * devices samples.

    ``preset`` names the set of hyperparameters that the values below start from
    (``replication/settings/values/presets``); ``replication.settings.scales`` fills them in."""

    batch_size: int
    learning_rate: float
    steps: int = 0
    epochs: float | None = None
    devices: int = 1
    launch: Launch | None = None
    preset: str | None = None
    max_length: int | None = None
    accumulation: int = 1
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    logging_steps: int = 50
    save_steps: int = 500
    gradient_checkpointing: bool = False
    group_size: int | str = 128
    init: str = "mse"
    gradient_factor: bool = False
    scale_lr_multiplier: float = 10.0
    distillation: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One named run: a method at a bit width, over seeds. What is given here comes before Train's.

    ``shuffled_teacher`` is a control: the teacher's outputs are those on other samples."""

    method: str
    bits: int
    seeds: list[int]
    learning_rate: float | None = None
    group_size: int | str | None = None
    distillation: dict[str, Any] = field(default_factory=dict)
    shuffled_teacher: bool = False


@dataclass(frozen=True)
class Group:
    """Runs of one family that are trained, and evaluated, in one stage."""

    family: str
    models: dict[str, Run]


@dataclass(frozen=True)
class Calibration:
    """How many training conversations a quantizer may look at, and the seed of their draw."""

    samples: int
    seed: int


@dataclass(frozen=True)
class PtqModel:
    """A baseline of post-training quantization."""

    method: str
    bits: int


@dataclass(frozen=True)
class PtqGroup:
    """Quantizations of one family's model ``baseline``, made and evaluated in one stage."""

    family: str
    models: dict[str, PtqModel]


@dataclass(frozen=True)
class Ptq:
    """Post-training quantization; ``group_size`` is that of the methods on the integer grid."""

    calibration: Calibration
    groups: dict[str, PtqGroup]
    group_size: int | str = 128

    def group(self, name: str) -> PtqGroup:
        """A group of quantized models.

        Raises:
            InputError: for a name that is not in ``groups``.
        """
        if name not in self.groups:
            raise InputError(unknown(f"ptq group {name!r}", name, self.groups))
        return self.groups[name]


@dataclass(frozen=True)
class Evaluate:
    """How models are evaluated, and each group of them on what.

    processes: over how many the questions are shared; "all" is one per accelerator. Scale paper
    alone has more than one, and the answers do not depend on it."""

    batch_size: int
    max_new_tokens: int
    dtype: str
    benchmarks: dict[str, list[str]]
    processes: int | str = 1


@dataclass(frozen=True)
class EntropyError:
    """The teacher's entropy against its error: seed of the resampling, and bins of equal count."""

    seed: int
    bins: int


@dataclass(frozen=True)
class GateCovariance:
    """The gate against the loss: seed of draw and resampling, and training samples to look at."""

    seed: int
    samples: int


@dataclass(frozen=True)
class Internals:
    """What is looked at inside trained models: whose, on how many questions (of which the first
    ``scenes`` are shown), at how many training conversations, in how many bins."""

    families: list[str]
    seed: int
    scenes: int
    samples: int
    conversations: int
    bins: int


@dataclass(frozen=True)
class Examples:
    """How many changed answers of each kind and benchmark are shown."""

    each: int


@dataclass(frozen=True)
class Candidate:
    """One point of a method's grid; what is not given is Train's."""

    learning_rate: float | None = None
    distillation: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tuning:
    """The grid of every method, and the validation questions that choose from it."""

    seed: int
    questions: int
    bits: int
    benchmarks: list[str]
    candidates: dict[str, list[Candidate]]


@dataclass(frozen=True)
class World:
    """What the small world must fulfil, in points; see the stage of the same name."""

    teacher_gap: dict[str, float]
    above_chance: float
    plateau: float
    asserted: bool


@dataclass(frozen=True)
class Deploy:
    """Which published architectures are built with random weights, and how they are measured.

    models: by name, each with the variants that are measured. layers: build only so many, to show
    that everything runs; such numbers decide nothing.
    """

    models: dict[str, list[str]]
    batches: list[int]
    repeats: int
    decode_repeats: int
    tokens: int
    seed: int
    layers: int | None = None


@dataclass(frozen=True)
class Export:
    """Questions of every benchmark that exported models are asked, and the seed of resampling."""

    questions: int
    seed: int


@dataclass(frozen=True)
class Compare:
    """Resampling behind every interval."""

    resamples: int
    seed: int


@dataclass(frozen=True)
class Params:
    """All of ``params.yaml``; a section has the name of the stage that reads it.

    ``arithmetic`` is what training computes in: "bfloat16", "float32", or "auto" for what the
    machine multiplies natively."""

    scale: str
    teacher: dict[str, Pretraining]
    baseline: dict[str, Pretraining]
    teacher_outputs: TeacherOutputs
    train: Train
    runs: dict[str, Group]
    ptq: Ptq
    evaluate: Evaluate
    tuning: Tuning
    world: World
    entropy_error: EntropyError
    gate_covariance: GateCovariance
    internals: Internals
    export: Export
    deploy: Deploy
    examples: Examples
    compare: Compare
    arithmetic: str = "auto"
    standins: Standins | None = None
    vision: dict[str, Vision] | None = None
    features: Features | None = None
    language: dict[str, Language] | None = None
    data: Data | None = None

    def subset(self, *names: str) -> dict[str, Any]:
        """What a stage reads, for the provenance of its results.

        Example::

            params.subset("compare.resamples", "entropy_error")

        Args:
            names: dotted names, as ``dvc.yaml`` lists them under ``params``.

        Returns:
            The value of every name, of JSON's types; None for a section that this scale lacks.

        Raises:
            KeyError: for a name that is not in the schema.
        """
        found = {}
        for name in names:
            value: Any = dataclasses.asdict(self)
            for key in name.split("."):
                value = None if value is None else value[key]
            found[name] = value
        return found

    @property
    def families(self) -> list[str]:
        """The model families, in order."""
        return list(self.teacher)

    def group(self, name: str) -> Group:
        """A group of runs.

        Raises:
            InputError: for a name that is not in ``runs``.
        """
        if name not in self.runs:
            raise InputError(unknown(f"group of runs {name!r}", name, self.runs))
        return self.runs[name]

    def known_family(self, name: str) -> str:
        """``name``, if it is one of the families.

        Raises:
            InputError: if it is not.
        """
        if name not in self.teacher:
            raise InputError(unknown(f"family {name!r}", name, self.teacher))
        return name

    def find_run(self, family: str, name: str) -> tuple[str, Run]:
        """A family's run and the group it is in.

        Raises:
            InputError: when no group of the family has it.
        """
        for folder, group in self.runs.items():
            if group.family == family and name in group.models:
                return folder, group.models[name]
        raise InputError(
            f"no group of runs of {family} has a run {name!r}; add it to the section runs"
        )

    @property
    def folders(self) -> dict[str, str]:
        """Folders of models and their families: the families' own, and the groups'."""
        found = {family: family for family in self.families}
        found |= {name: group.family for name, group in self.runs.items()}
        return found | {name: group.family for name, group in self.ptq.groups.items()}

    def family_of(self, folder: str) -> str:
        """The family of the models in a folder.

        Raises:
            InputError: for an unknown folder.
        """
        if folder not in self.folders:
            raise InputError(unknown(f"folder {folder!r}", folder, self.folders))
        return self.folders[folder]


def load_params(path: str | Path = PARAMS_FILE) -> Params:
    """Read and check a parameter file.

    Raises:
        InputError: naming the key, the value and the mend.
    """
    return parse_params(read_yaml(path), str(path))


def parse_params(content: dict[str, Any], source: str = "params") -> Params:
    """Check a mapping and make it :class:`Params`."""
    params = _build(Params, content, source)
    if params.scale not in SCALES:
        raise InputError(unknown(f"{source}: scale {params.scale!r}", params.scale, SCALES))
    if params.arithmetic not in ARITHMETIC:
        raise InputError(
            unknown(f"{source}: arithmetic {params.arithmetic!r}", params.arithmetic, ARITHMETIC)
        )
    _check_sections(params, source)
    _check_data(params, source)
    _check_groups(params, source)
    _check_ptq(params, source)
    _check_evaluate(params, source)
    _check_tuning(params, source)
    _check_internals(params, source)
    return params


T = typing.TypeVar("T")


def section(value: T | None, name: str) -> T:
    """A section that only some scales have.

    Raises:
        InputError: when this scale has none.
    """
    if value is None:
        raise InputError(f"the parameters have no section {name}, which this stage reads")
    return value


def check_architectures(params: Params) -> None:
    """Check every key that describes a model against the library's own configuration classes.

    Apart from :func:`parse_params` because it imports transformers.

    Raises:
        InputError: naming the section and the key.
    """
    from transformers import AutoConfig

    from grace.models import family_of

    parts: list[tuple[str, dict[str, Any], Any]] = []
    for name, vision in section(params.vision, "vision").items():
        config = AutoConfig.for_model(family_of(name).model_type)
        for kind, models in (("teacher", params.teacher), ("baseline", params.baseline)):
            parts.append((f"{kind}.{name}.text", models[name].text, config.get_text_config()))
        parts.append((f"vision.{name}.config", vision.config, config.vision_config))
    for where, given, known in parts:
        names = [entry.name for entry in dataclasses.fields(known)]
        for key in given:
            if key not in names:
                raise InputError(unknown(f"{where}: key {key!r}", key, names))
        try:
            type(known)(**given)
        except Exception as error:  # the library's own validation errors have no common base
            reason = " ".join(str(error).split())
            raise InputError(f"{where} makes no {type(known).__name__}: {reason}") from error


def _check_sections(params: Params, source: str) -> None:
    full = params.scale == FULL_SCALE
    wanted, unwanted = (("data",), REDUCED_ONLY) if full else (REDUCED_ONLY, ("data",))
    for name in wanted:
        if getattr(params, name) is None:
            raise InputError(f"{source}: scale {params.scale} needs the section {name!r}; add it")
    for name in unwanted:
        if getattr(params, name) is not None:
            raise InputError(f"{source}: scale {params.scale} takes no section {name!r}; remove it")
    _check_families(params, source)
    _check_launch(params.train, source)
    train = params.train
    if (train.steps > 0) == (train.epochs is not None):
        raise InputError(
            f"{source}: train.steps is {train.steps} and train.epochs is {train.epochs}; give "
            "exactly one of them"
        )
    if not full:
        for name, value, default in (
            ("epochs", train.epochs, None),
            ("devices", train.devices, 1),
            ("launch", train.launch, None),
            ("preset", train.preset, None),
            ("max_length", train.max_length, None),
        ):
            if value != default:
                raise InputError(
                    f"{source}: train.{name} is {value}; remove it, only scale "
                    f"{FULL_SCALE} takes it"
                )


def _check_data(params: Params, source: str) -> None:
    if params.data is None:
        return
    training, where = params.data.training, f"{source}: data.training"
    if not training.files or len(set(training.files)) != len(training.files):
        raise InputError(
            f"{where}.files is {training.files}; name each annotation file once, and at least one"
        )
    for name in training.folders:
        if not name or "/" in name or name in (".", ".."):
            raise InputError(
                f"{where}.folders: {name!r} is no folder of images; use the first part of the "
                "paths in the annotation files, such as coco"
            )


def _check_launch(train: Train, source: str) -> None:
    if train.preset is not None and train.preset not in PRESETS:
        raise InputError(unknown(f"{source}: train.preset {train.preset!r}", train.preset, PRESETS))
    launch, where = train.launch, f"{source}: train.launch"
    if launch is None:
        return
    if launch.processes != train.devices:
        raise InputError(
            f"{where}.processes is {launch.processes} and train.devices is {train.devices}; "
            "an optimizer step counts on one process a device, so make them one number"
        )
    if launch.optimizer not in OPTIMIZERS:
        raise InputError(
            unknown(f"{where}.optimizer {launch.optimizer!r}", launch.optimizer, OPTIMIZERS)
        )
    if launch.teacher_bits not in TEACHER_BITS:
        raise InputError(
            f"{where}.teacher_bits is {launch.teacher_bits}; choose one of "
            f"{', '.join(map(str, TEACHER_BITS))}"
        )
    if launch.teacher_sharded and launch.teacher_bits != 16:
        raise InputError(
            f"{where}: teacher_sharded is for 16 bits, teacher_bits is {launch.teacher_bits}; "
            "choose one of the two"
        )


def _check_families(params: Params, source: str) -> None:
    from grace.models import family_of

    full = params.scale == FULL_SCALE
    sections: dict[str, dict[str, Any]] = {
        "teacher": params.teacher,
        "baseline": params.baseline,
        "world.teacher_gap": params.world.teacher_gap,
    }
    if params.vision is not None:
        sections["vision"] = params.vision
    for name, families in sections.items():
        if list(families) != params.families:
            raise InputError(
                f"{source}: {name} names the families {', '.join(families)}, teacher names "
                f"{', '.join(params.families)}; name the same ones, in the same order"
            )
    for family in params.families:
        try:
            family_of(family)
        except InputError as error:
            raise InputError(f"{source}: teacher.{family}: {error}") from error
    for name in params.language or {}:
        if name not in ("teacher", "baseline"):
            raise InputError(unknown(f"{source}: language.{name}", name, ("teacher", "baseline")))
    models = [f"{folder}/{name}" for folder in params.families for name in ("teacher", "baseline")]
    models += [f"language/{name}" for name in params.language or {}]
    for name, families in (("teacher", params.teacher), ("baseline", params.baseline)):
        for family, settings in families.items():
            where = f"{source}: {name}.{family}"
            if full and settings.source is None:
                raise InputError(f"{where} lacks the key 'source', a published checkpoint")
            if settings.source is not None:
                continue
            if settings.steps < 1 or not settings.text or settings.start is None:
                raise InputError(
                    f"{where} has neither a 'source' nor 'start', 'steps' and 'text' to train it; "
                    "give one of them"
                )
            if settings.start not in models or settings.start == f"{family}/{name}":
                raise InputError(
                    unknown(f"{where}.start {settings.start!r}", settings.start, models)
                )


def _check_groups(params: Params, source: str) -> None:
    """Folders and runs have names of their own: no folder that of a family or another folder, and
    no run that of another of its family."""
    taken = ["language", *params.families]
    owners: dict[tuple[str, str], str] = {}
    sections: dict[str, Mapping[str, Group | PtqGroup]]
    sections = {"runs": params.runs, "ptq.groups": params.ptq.groups}
    for section_name, groups in sections.items():
        for folder, group in groups.items():
            where = f"{source}: {section_name}.{folder}"
            _check_name(f"{source}: {section_name}", folder, taken)
            taken.append(folder)
            if group.family not in params.families:
                raise InputError(
                    unknown(f"{where}.family {group.family!r}", group.family, params.families)
                )
            if not group.models:
                raise InputError(f"{where}.models is empty; name at least one run")
            for name in group.models:
                _check_name(f"{where}.models", name, ("teacher", "baseline"))
                if owner := owners.get((group.family, name)):
                    raise InputError(
                        f"{where}.models.{name}: the family {group.family} has a run of this name "
                        f"in {owner}; name it otherwise"
                    )
                owners[group.family, name] = folder
    for folder, group in params.runs.items():
        for name, run in group.models.items():
            _check_run(params.train, run, f"{source}: runs.{folder}.models.{name}")


def _check_name(where: str, name: str, taken: typing.Collection[str]) -> None:
    if not re.fullmatch(r"[a-z0-9_]+", name) or name in taken:
        raise InputError(
            f"{where}: {name!r} is no name here; use a-z, 0-9 and _, and none of {', '.join(taken)}"
        )


def _check_run(train: Train, run: Run, where: str) -> None:
    from grace.distillation import DistillationConfig
    from grace.quantization import QuantSpec

    if not run.seeds:
        raise InputError(f"{where}.seeds is empty; give at least one seed")
    if len(set(run.seeds)) != len(run.seeds):
        raise InputError(f"{where}.seeds is {run.seeds}; name each seed once")
    if run.method not in METHODS:
        raise InputError(unknown(f"{where}.method {run.method!r}", run.method, METHODS))
    if (run.method == "sft" and run.bits != 16) or (run.method == "qat" and run.bits == 16):
        raise InputError(
            f"{where}: method {run.method!r} at {run.bits} bits; sft is for 16 bits, qat for fewer"
        )
    for key in ("distillation", "shuffled_teacher"):
        if getattr(run, key) and run.method not in TEACHER_METHODS:
            raise InputError(f"{where}: method {run.method!r} takes no key {key!r}")
    if run.group_size is not None and run.bits == 16:
        raise InputError(f"{where}: 16 bits have no groups; remove the key 'group_size'")
    try:
        DistillationConfig.from_dict({**train.distillation, **run.distillation})
    except (InputError, OverflowError) as error:
        raise InputError(f"{where}, distillation: {error}") from error
    if run.bits != 16:
        size = train.group_size if run.group_size is None else run.group_size
        try:
            QuantSpec(bits=run.bits, group_size=size, init=train.init)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error


def _check_ptq(params: Params, source: str) -> None:
    from replication.settings.ptq_methods import check_method

    for folder, group in params.ptq.groups.items():
        where = f"{source}: ptq.groups.{folder}.models"
        for name, model in group.models.items():
            try:
                check_method(model.method, model.bits, params.ptq.group_size)
            except InputError as error:
                raise InputError(f"{where}.{name}: {error}") from error


def _check_evaluate(params: Params, source: str) -> None:
    from replication.benchmarks import BENCHMARKS

    chosen = params.evaluate
    folders = params.folders
    for folder, names in chosen.benchmarks.items():
        where = f"{source}: evaluate.benchmarks"
        if folder not in folders:
            raise InputError(unknown(f"{where} names {folder!r}, which", folder, folders))
        if not names or len(set(names)) != len(names):
            raise InputError(f"{where}.{folder} is {names}; name each once, and at least one")
        for name in names:
            if name not in BENCHMARKS:
                raise InputError(
                    unknown(f"{where}.{folder} names {name!r}, which", name, BENCHMARKS)
                )
    if missing := [folder for folder in folders if folder not in chosen.benchmarks]:
        raise InputError(
            f"{source}: evaluate.benchmarks lacks {', '.join(missing)}; say on what they are "
            "evaluated"
        )
    count = chosen.processes
    if isinstance(count, str) and count != "all":
        raise InputError(f"{source}: evaluate.processes is {count!r}; give a number, or 'all'")
    if isinstance(count, int) and count < 1:
        raise InputError(f"{source}: evaluate.processes is {count}; it has to be at least 1")
    if count != 1 and params.scale != FULL_SCALE:
        raise InputError(
            f"{source}: evaluate.processes is {count}; remove it, only scale {FULL_SCALE} takes it"
        )
    if chosen.dtype not in (*DTYPES, "auto"):
        raise InputError(
            unknown(f"{source}: evaluate.dtype {chosen.dtype!r}", chosen.dtype, (*DTYPES, "auto"))
        )


def _check_tuning(params: Params, source: str) -> None:
    from replication.benchmarks import BENCHMARKS

    tuning, where = params.tuning, f"{source}: tuning"
    for name in tuning.benchmarks:
        if name not in BENCHMARKS:
            raise InputError(unknown(f"{where}.benchmarks names {name!r}, which", name, BENCHMARKS))
    counts = {method: len(candidates) for method, candidates in tuning.candidates.items()}
    if len(set(counts.values())) != 1:
        raise InputError(
            f"{where}.candidates: the methods have {counts} candidates; give each the same number"
        )
    for method, candidates in tuning.candidates.items():
        for index, candidate in enumerate(candidates):
            run = Run(
                method, tuning.bits, [tuning.seed], candidate.learning_rate,
                distillation=candidate.distillation,
            )  # fmt: skip
            _check_run(params.train, run, f"{where}.candidates.{method}[{index}]")


def _check_internals(params: Params, source: str) -> None:
    chosen, where = params.internals, f"{source}: internals"
    if not chosen.families or len(set(chosen.families)) != len(chosen.families):
        raise InputError(f"{where}.families is {chosen.families}; name each once, and at least one")
    for family in chosen.families:
        if family not in params.families:
            raise InputError(
                unknown(f"{where}.families names {family!r}, which", family, params.families)
            )
    if chosen.samples < max(2, chosen.scenes):
        raise InputError(
            f"{where}.samples is {chosen.samples}; an interval needs at least 2, and of them the "
            f"first {chosen.scenes} (scenes) are shown"
        )


def _build(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise InputError(f"{where} is {short(value)}; it must be a mapping")
        hints = typing.get_type_hints(kind)
        for key in value:
            if key not in hints:
                raise InputError(unknown(f"{where}: key {short(key)}", short(key), hints))
        for entry in dataclasses.fields(kind):
            required = (
                entry.default is dataclasses.MISSING
                and entry.default_factory is dataclasses.MISSING
            )
            if required and entry.name not in value:
                raise InputError(f"{where} lacks the key {entry.name!r}; add it")
        made = {key: _build(hints[key], entry, f"{where}.{key}") for key, entry in value.items()}
        return kind(**made)  # type: ignore[operator]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        options = [option for option in arguments if option is not type(None)]
        if len(options) == 1:
            return _build(options[0], value, where)
        for option in options:
            try:
                return _build(option, value, where)
            except InputError:
                continue
        raise InputError(f"{where} is {short(value)}; it must be {kind}")
    if kind is Any:
        return value
    if origin is dict:
        if not isinstance(value, dict):
            raise InputError(f"{where} is {short(value)}; it must be a mapping")
        for key in value:
            if not isinstance(key, str):
                raise InputError(f"{where}: key {short(key)} is not text; put it in quotes")
        return {key: _build(arguments[1], entry, f"{where}.{key}") for key, entry in value.items()}
    if origin is list:
        if not isinstance(value, list):
            raise InputError(f"{where} is {short(value)}; it must be a list")
        return [_build(arguments[0], entry, f"{where}[{i}]") for i, entry in enumerate(value)]
    if kind in (int, float):
        return _number(kind, value, where)
    if not isinstance(value, kind):
        raise InputError(f"{where} is {short(value)}; it must be of type {kind.__name__}")
    return value


def _number(kind: type, value: Any, where: str) -> float:
    wanted = (int, float) if kind is float else (int,)
    if isinstance(value, bool) or not isinstance(value, wanted):
        hint = ""
        if isinstance(value, str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value):
            hint = "; YAML reads a power of ten as text unless it has a point, as in 1.0e-5"
        raise InputError(f"{where} is {short(value)}; it must be of type {kind.__name__}{hint}")
    name = re.sub(r"\[\d+\]$", "", where).rpartition(".")[2]
    low, high = (1 if name in _AT_LEAST_ONE else 0), (1 if name in _FRACTIONS else 2**53)
    if not low <= value <= high:  # neither is NaN
        bound = f"from {low} to 1" if high == 1 else f"a finite number of at least {low}"
        raise InputError(f"{where} is {short(value)}; it must be {bound}")
    return kind(value)
