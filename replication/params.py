"""``params.yaml`` as validated, typed values: an unknown or missing key is one clear error."""

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from grace.errors import InputError

SCALES = ("smoke", "small", "paper")
PARAMS_FILE = Path("params.yaml")


@dataclass(frozen=True)
class Standins:
    """The procedural world: sizes, seeds and how hard the drawings are."""

    seed: int
    train: int
    evaluation: int
    turns: int
    captions: float
    echoes: float
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
class Pretraining:
    """Training of a teacher or baseline: from scratch (``text``), or a published ``source``."""

    seed: int = 0
    steps: int = 0
    batch_size: int = 1
    learning_rate: float = 0.0
    warmup_ratio: float = 0.05
    weight_decay: float = 0.0
    text: dict[str, Any] = field(default_factory=dict)
    source: str | None = None


@dataclass(frozen=True)
class TeacherOutputs:
    """Teacher outputs on the training data, computed once."""

    batch_size: int


@dataclass(frozen=True)
class Train:
    """What every named run shares."""

    steps: int
    batch_size: int
    learning_rate: float
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
    standins: Standins
    vision: Vision
    features: Features
    teacher: Pretraining
    baseline: Pretraining
    teacher_outputs: TeacherOutputs
    train: Train
    runs: dict[str, Run]
    evaluate: Evaluate
    world: World
    compare: Compare

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
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{str(path)!r} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{str(path)!r} holds {type(content).__name__}, not a mapping of sections")
    return content


def parse_params(content: dict[str, Any], source: str = "params") -> Params:
    """Check a mapping and make it :class:`Params`."""
    params = _build(Params, content, source)
    if params.scale not in SCALES:
        raise InputError(unknown(f"{source}: scale {params.scale!r}", params.scale, SCALES))
    models = {"teacher", "baseline", *params.runs}
    for name in params.evaluate.models:
        if name not in models:
            raise InputError(
                unknown(f"{source}: evaluate.models names {name!r}, which", name, models)
            )
    for name, run in params.runs.items():
        if not run.seeds:
            raise InputError(f"{source}: runs.{name}.seeds is empty; give at least one seed")
    return params


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
        for option in arguments:
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
        return {key: _build(arguments[1], entry, f"{where}.{key}") for key, entry in value.items()}
    if origin is list:
        if not isinstance(value, list):
            raise InputError(f"{where} is {value!r}; it must be a list")
        return [_build(arguments[0], entry, f"{where}[{i}]") for i, entry in enumerate(value)]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is type(None):
        if value is not None:
            raise InputError(f"{where} is {value!r}; it must be empty")
        return None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"{where} is {value!r}; it must be of type {kind.__name__}")
    return value
