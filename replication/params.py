"""``params.yaml`` as validated, typed values: an unknown or missing key is one clear error."""

import dataclasses
import difflib
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from grace.errors import InputError

SCALES = ("smoke", "small", "paper")
FULL_SCALE = "paper"
METHODS = ("sft", "qat", "kd", "grace")
DTYPES = ("float32", "bfloat16", "float16")
PARAMS_FILE = Path("params.yaml")

REDUCED_ONLY = ("standins", "vision", "features")
"""Sections of the small world. Scale paper has ``data`` in their place."""

_AT_LEAST_ONE = frozenset(
    {"accumulation", "batch_size", "devices", "evaluation", "images", "logging_steps"}
    | {"max_new_tokens", "max_length", "resamples", "save_steps", "train", "turns", "vocab_size"}
)
_FRACTIONS = frozenset(
    {
        *("captions", "echoes", "open_answers", "spelled_letters", "warmup_ratio"),
        *("diagrams", "strings", "poor_images"),
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
    file: str | None = None
    subset: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Data:
    """The published data of scale paper."""

    training: Source
    benchmarks: dict[str, Source]


@dataclass(frozen=True)
class Part:
    """One part of a training from scratch."""

    steps: int
    batch_size: int
    learning_rate: float


@dataclass(frozen=True)
class Pretraining:
    """Training of a teacher or baseline: from scratch (``text``), or a published ``source``."""

    seed: int = 0
    steps: int = 0
    batch_size: int = 1
    learning_rate: float = 0.0
    warmup_ratio: float = 0.05
    weight_decay: float = 0.0
    language: Part | None = None
    text: dict[str, Any] = field(default_factory=dict)
    source: str | None = None


@dataclass(frozen=True)
class TeacherOutputs:
    """Teacher outputs on the training data, computed once."""

    batch_size: int


@dataclass(frozen=True)
class Train:
    """What every named run shares. Its length is ``steps``, or ``epochs`` at scale paper, where an
    optimizer step takes batch_size * accumulation * devices samples."""

    batch_size: int
    learning_rate: float
    steps: int = 0
    epochs: float | None = None
    devices: int = 1
    max_length: int | None = None
    bf16: bool = True
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
    """One named run: a method at a bit width, over seeds. ``distillation`` overrides Train's."""

    method: str
    bits: int
    seeds: list[int]
    distillation: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluate:
    """How every model is evaluated."""

    batch_size: int
    max_new_tokens: int
    dtype: str
    models: list[str]
    benchmarks: list[str]


@dataclass(frozen=True)
class World:
    """What the small world must fulfil, in points; see the stage of the same name."""

    teacher_gap: float
    above_chance: float
    plateau: float
    asserted: bool


@dataclass(frozen=True)
class Compare:
    """Resampling behind every interval."""

    resamples: int
    seed: int


@dataclass(frozen=True)
class Params:
    """All of ``params.yaml``; a section has the name of the stage that reads it."""

    scale: str
    family: str
    teacher: Pretraining
    baseline: Pretraining
    teacher_outputs: TeacherOutputs
    train: Train
    runs: dict[str, Run]
    evaluate: Evaluate
    world: World
    compare: Compare
    standins: Standins | None = None
    vision: Vision | None = None
    features: Features | None = None
    data: Data | None = None

    def run(self, name: str) -> Run:
        """A named run.

        Raises:
            InputError: for a name that is not in ``runs``.
        """
        if name not in self.runs:
            raise InputError(unknown(f"run {name!r}", name, self.runs))
        return self.runs[name]


def unknown(what: str, name: str, known: typing.Iterable[str]) -> str:
    """An error text that names the known names, the nearest first."""
    names = list(known)
    near = difflib.get_close_matches(name, names, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{what} is unknown{hint} (known: {', '.join(names)})"


def load_params(path: str | Path = PARAMS_FILE) -> Params:
    """Read and check a parameter file.

    Raises:
        InputError: naming the key, the value and the mend.
    """
    return parse_params(read_yaml(path), str(path))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping from a file.

    Raises:
        InputError: for a missing file, bad YAML, or something other than a mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise InputError(
            f"parameter file {str(path)!r} cannot be read ({error.strerror})"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{str(path)!r} is not valid YAML: {reason}") from error
    if not isinstance(content, dict):
        raise InputError(f"{str(path)!r} holds {type(content).__name__}, not a mapping of sections")
    return content


def parse_params(content: dict[str, Any], source: str = "params") -> Params:
    """Check a mapping and make it :class:`Params`."""
    params = _build(Params, content, source)
    if params.scale not in SCALES:
        raise InputError(unknown(f"{source}: scale {params.scale!r}", params.scale, SCALES))
    _check_sections(params, source)
    _check_runs(params, source)
    _check_evaluate(params, source)
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

    config = AutoConfig.for_model(family_of(params.family).model_type)
    parts: list[tuple[str, dict[str, Any], Any]] = [
        (f"{name}.text", settings.text, config.text_config)
        for name, settings in (("teacher", params.teacher), ("baseline", params.baseline))
    ]
    parts.append(("vision.config", section(params.vision, "vision").config, config.vision_config))
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
    for name in ("teacher", "baseline"):
        settings: Pretraining = getattr(params, name)
        if full and settings.source is None:
            raise InputError(f"{source}: {name} lacks the key 'source', a published checkpoint")
        if settings.source is None and (settings.steps < 1 or not settings.text):
            raise InputError(
                f"{source}: {name} has neither a 'source' nor 'steps' and 'text' to train from "
                "scratch; give one of them"
            )
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
            ("max_length", train.max_length, None),
        ):
            if value != default:
                raise InputError(
                    f"{source}: train.{name} is {value}; remove it, only scale "
                    f"{FULL_SCALE} takes it"
                )


def _check_runs(params: Params, source: str) -> None:
    from grace.distillation import DistillationConfig
    from grace.quantization import QuantSpec

    for name, run in params.runs.items():
        where = f"{source}: runs.{name}"
        if not re.fullmatch(r"[a-z0-9_]+", name) or name in ("teacher", "baseline"):
            raise InputError(
                f"{where}: {name!r} cannot name a run; use a-z, 0-9 and _, and neither 'teacher' "
                "nor 'baseline'"
            )
        if not run.seeds:
            raise InputError(f"{where}.seeds is empty; give at least one seed")
        if len(set(run.seeds)) != len(run.seeds):
            raise InputError(f"{where}.seeds is {run.seeds}; name each seed once")
        if run.method not in METHODS:
            raise InputError(unknown(f"{where}.method {run.method!r}", run.method, METHODS))
        if (run.method == "sft" and run.bits != 16) or (run.method == "qat" and run.bits == 16):
            raise InputError(
                f"{where}: method {run.method!r} at {run.bits} bits; sft is for 16 bits, qat for "
                "fewer"
            )
        if run.distillation and run.method not in ("kd", "grace"):
            raise InputError(f"{where}: method {run.method!r} takes no key 'distillation'")
        train = params.train
        try:
            DistillationConfig.from_dict({**train.distillation, **run.distillation})
        except (InputError, OverflowError) as error:
            raise InputError(f"{where}, distillation: {error}") from error
        if run.bits != 16:
            try:
                QuantSpec(bits=run.bits, group_size=train.group_size, init=train.init)
            except InputError as error:
                raise InputError(f"{where}: {error}") from error


def _check_evaluate(params: Params, source: str) -> None:
    from grace.models import family_of
    from replication.tasks import BENCHMARKS

    try:
        family_of(params.family)
    except InputError as error:
        raise InputError(f"{source}: family: {error}") from error
    chosen = params.evaluate
    for what, names, known in (
        ("models", chosen.models, ["teacher", "baseline", *params.runs]),
        ("benchmarks", chosen.benchmarks, list(BENCHMARKS)),
    ):
        if not names or len(set(names)) != len(names):
            raise InputError(
                f"{source}: evaluate.{what} is {names}; name each once, and at least one"
            )
        for name in names:
            if name not in known:
                raise InputError(
                    unknown(f"{source}: evaluate.{what} names {name!r}, which", name, known)
                )
    if chosen.dtype not in DTYPES:
        raise InputError(
            unknown(f"{source}: evaluate.dtype {chosen.dtype!r}", chosen.dtype, DTYPES)
        )


def _build(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise InputError(f"{where} is {value!r}; it must be a mapping")
        hints = typing.get_type_hints(kind)
        for key in value:
            if key not in hints:
                raise InputError(unknown(f"{where}: key {key!r}", str(key), hints))
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
        raise InputError(f"{where} is {value!r}; it must be {kind}")
    if kind is Any:
        return value
    if origin is dict:
        if not isinstance(value, dict):
            raise InputError(f"{where} is {value!r}; it must be a mapping")
        for key in value:
            if not isinstance(key, str):
                raise InputError(f"{where}: key {key!r} is not text; put it in quotes")
        return {key: _build(arguments[1], entry, f"{where}.{key}") for key, entry in value.items()}
    if origin is list:
        if not isinstance(value, list):
            raise InputError(f"{where} is {value!r}; it must be a list")
        return [_build(arguments[0], entry, f"{where}[{i}]") for i, entry in enumerate(value)]
    if kind in (int, float):
        return _number(kind, value, where)
    if not isinstance(value, kind):
        raise InputError(f"{where} is {value!r}; it must be of type {kind.__name__}")
    return value


def _number(kind: type, value: Any, where: str) -> float:
    wanted = (int, float) if kind is float else (int,)
    if isinstance(value, bool) or not isinstance(value, wanted):
        hint = ""
        if isinstance(value, str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value):
            hint = "; YAML reads a power of ten as text unless it has a point, as in 1.0e-5"
        raise InputError(f"{where} is {value!r}; it must be of type {kind.__name__}{hint}")
    name = re.sub(r"\[\d+\]$", "", where).rpartition(".")[2]
    low, high = (1 if name in _AT_LEAST_ONE else 0), (1 if name in _FRACTIONS else 2**53)
    if not low <= value <= high:  # neither is NaN
        bound = f"from {low} to 1" if high == 1 else f"a finite number of at least {low}"
        raise InputError(f"{where} is {value}; it must be {bound}")
    return kind(value)
