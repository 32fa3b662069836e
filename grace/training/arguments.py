"""The trainer's arguments, and the parser of recipes and flags.

``grace train`` reads what ``HfArgumentParser`` makes of :class:`GraceArguments` (every field of
transformers' ``TrainingArguments``) and of the sections in :mod:`grace.training.options`, from a
YAML file and from flags; flags come first::

    options = read_options(["recipe.yaml", "--learning_rate", "2e-5"])
    options.trainer.learning_rate    # 2e-05
"""

import difflib
import json
import math
import os
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn, get_type_hints

import torch
from transformers import HfArgumentParser, TrainingArguments

from grace.arithmetic import chosen_device, native_dtype
from grace.errors import InputError
from grace.files import read_yaml
from grace.training.distributed import under_deepspeed
from grace.training.options import (
    DataOptions,
    MethodOptions,
    ModelOptions,
    RunOptions,
    TrainerOptions,
)

RECIPES = (".yaml", ".yml", ".json")
"""Endings of a first argument that is a recipe and no model."""
_GREATEST = 2**32 - 1
"""Of counts and seeds: seeds go no further, and no count that is this large can be meant."""

_POSITIVE = (
    "learning_rate",
    "num_train_epochs",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "logging_steps",
    "eval_steps",
    "save_steps",
    "save_total_limit",
    "adam_epsilon",
)
_NOT_NEGATIVE = (
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "adam_beta1",
    "adam_beta2",
    "dataloader_num_workers",
    "eval_delay",
    "seed",
)
_OWN = (ModelOptions, DataOptions, MethodOptions, RunOptions)
_OWN_GROUPS = ("galore", "lomo", "adalomo", "apollo")
_UNUSED = {
    "label_smoothing_factor": (0.0, "the loss is the method's own"),
    "use_liger_kernel": (False, "the forward pass keeps supervised positions alone already"),
    "remove_unused_columns": (False, "the samples have no columns that are unused"),
    "train_sampling_strategy": ("group_by_length", "batches are of samples of similar length"),
    "auto_find_batch_size": (False, "the teacher answers whole optimizer steps"),
}
"""Fields that would change nothing, or break, with the only value that is accepted and why."""


@dataclass
class GraceArguments(TrainerOptions, TrainingArguments):  # type: ignore[misc]
    """transformers' ``TrainingArguments`` with the defaults of the method.

    ::

        GraceArguments("checkpoints", learning_rate=2e-5, report_to=["tensorboard"])

    Arithmetic is bfloat16 where the device multiplies it natively, unless ``bf16`` or ``fp16``
    says otherwise; batches are prepared by processes of their own beside an accelerator.

    Raises:
        InputError: A value that cannot be trained with; the message names field, value and mend.
    """

    _argument_group_name = "training arguments"

    dataloader_pin_memory: bool = True
    remove_unused_columns: bool = False
    train_sampling_strategy: str = "group_by_length"
    logging_nan_inf_filter: bool = False

    def __post_init__(self) -> None:
        self.use_cpu = self.use_cpu or not torch.cuda.is_available()
        if self.bf16 is None:
            device = "cpu" if self.use_cpu else "cuda"
            casts = self.fp16 or under_deepspeed(self)
            self.bf16 = not casts and native_dtype(device) == torch.bfloat16
        if self.eval_strategy is None:
            self.eval_strategy = "no"
        if self.dataloader_num_workers is None:
            self.dataloader_num_workers = 0 if self.use_cpu else _workers()
        if self.data_seed is None:
            self.data_seed = self.seed
        if self.disable_tqdm is None:
            self.disable_tqdm = not sys.stderr.isatty()  # lines in a file, a bar in a terminal
        self._check()
        try:
            super().__post_init__()
        except InputError:
            raise
        except (ValueError, TypeError, ImportError, OSError) as error:
            raise InputError(f"training arguments: {error}") from error

    def _check(self) -> None:
        for name in (*_POSITIVE, *_NOT_NEGATIVE):
            value = getattr(self, name)
            if value is None and name in ("eval_steps", "save_total_limit"):
                continue
            lowest = "positive number" if name in _POSITIVE else "number from 0"
            legal = isinstance(value, int | float) and 0 <= value < math.inf  # false for NaN
            if not legal or (value == 0 and name in _POSITIVE):
                raise InputError(f"{name} is {value!r}; give a {lowest}")
            if value > _GREATEST and name != "learning_rate":  # which shows in the loss
                raise InputError(f"{name} is {value!r}; give a {lowest}, at most {_GREATEST}")
        if self.max_steps != -1 and self.max_steps < 1:
            raise InputError(
                f"max_steps is {self.max_steps!r}; give a positive number, or -1 to go by epochs"
            )
        if str(self.optim).startswith(_OWN_GROUPS):
            raise InputError(
                f"optim is {self.optim}, which makes its own groups of parameters; the scales need "
                "theirs: choose another, such as adamw_torch_fused or adamw_8bit"
            )
        for name, (only, why) in _UNUSED.items():
            if getattr(self, name) != only:
                raise InputError(f"{name} is {getattr(self, name)!r}; leave it out: {why}")


def _workers() -> int:
    """Processes that prepare batches: the processors of a training process but one, at most 8."""
    allowed = getattr(os, "sched_getaffinity", None)  # not on macOS
    processors = len(allowed(0)) if allowed else os.cpu_count() or 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(8, max(1, processors // processes - 1))


@dataclass
class Options:
    """Everything that a command line and a recipe say.

    Attributes:
        model: The models.
        data: The conversations.
        method: The method.
        run: Where it runs and what it writes.
        trainer: The trainer's arguments.
    """

    model: ModelOptions
    data: DataOptions
    method: MethodOptions
    run: RunOptions
    trainer: GraceArguments


@dataclass
class _Flags(GraceArguments):
    """What the parser reads of the trainer's arguments: --output_dir is another name of --out,
    and checkpoints have a folder of their own."""

    output_dir: str | None = field(init=False, default=None)


class _Parser(HfArgumentParser):
    """The library's parser, whose errors are ours."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def options_parser() -> HfArgumentParser:
    """The parser of all options, without the recipe's values."""
    kinds: Any = [*_OWN, _Flags]
    parser = _Parser(
        kinds,
        prog="grace train",
        allow_abbrev=False,
    )
    parser.add_argument("first", nargs="?", metavar="MODEL | RECIPE.yaml")
    parser.add_argument("--config", metavar="RECIPE.yaml", help="a recipe")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    return parser


def read_options(words: Sequence[str]) -> Options:
    """The options of a command line, on top of those of its recipe.

    Example::

        options = read_options(["recipe.yaml", "--learning_rate", "2e-5"])
        options.trainer.learning_rate    # 2e-05

    Args:
        words: ``[MODEL or RECIPE.yaml, flags...]``.

    Raises:
        InputError: An unknown key or flag (the message names the nearest known one), a key that
            appears twice, or a value that does not fit.
    """
    parser = options_parser()
    flags, unknown = parser.parse_known_args(list(words))
    if unknown:
        raise InputError(_unknown(unknown[0].partition("=")[0], _names(), "--"))
    recipe = flags.config
    if flags.first is not None and flags.first.endswith(RECIPES):
        recipe = flags.first
    elif flags.first is not None:
        words = [f"--model={flags.first}", *words]
    namespace = Namespace() if recipe is None else _recipe_values(parser, recipe)
    chosen = parser.parse_args(list(words), namespace)
    chosen.distillation = {**_mapping("distillation", chosen.distillation), **_pairs(chosen.set)}
    chosen.quantization = _mapping("quantization", chosen.quantization)
    return _options(chosen)


def _options(chosen: Namespace) -> Options:
    values = vars(chosen)
    own: list[Any] = [
        kind(**{entry.name: values[entry.name] for entry in fields(kind)}) for kind in _OWN
    ]
    models, data, method, run = own
    if not 0 <= data.eval_share < 1:
        raise InputError(f"eval_share is {data.eval_share}; give a number from 0 up to 1")
    if not 0 <= data.max_bad_share <= 1:
        raise InputError(f"max_bad_share is {data.max_bad_share}; give a number from 0 to 1")
    settings = {entry.name: values[entry.name] for entry in fields(_Flags) if entry.init}
    evaluates = bool(data.eval_data) or data.eval_share > 0
    if settings["eval_strategy"] is None and evaluates:
        settings["eval_strategy"] = "steps"
    settings["use_cpu"] |= chosen_device(run.device) == "cpu"
    trainer = GraceArguments(f"{run.out}.checkpoints", **settings)
    if trainer.do_eval and not evaluates:
        raise InputError("evaluation is asked for; give eval_data or eval_share as well")
    return Options(models, data, method, run, trainer)


# -- recipes ----------------------------------------------------------------------------------


def _types() -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for kind in (*_OWN, _Flags):
        hints |= {
            entry.name: get_type_hints(kind)[entry.name] for entry in fields(kind) if entry.init
        }
    return hints


def _aliases() -> dict[str, str]:
    """Further names of options, to the field that they mean."""
    return {
        alias.lstrip("-").replace("-", "_"): entry.name
        for kind in (*_OWN, _Flags)
        for entry in fields(kind)
        for alias in entry.metadata.get("aliases", ())
    }


def _names() -> list[str]:
    return [*_types(), *_aliases(), "config", "set"]


def _recipe_values(parser: HfArgumentParser, recipe: str) -> Namespace:
    """The recipe's values, converted as the same flags would be."""
    types, aliases = _types(), _aliases()
    namespace, words = Namespace(), []
    said: dict[str, str] = {}
    for key, value in read_yaml(recipe).items():
        name = str(key).replace("-", "_")
        name = aliases.get(name, name)
        if name not in types:
            raise InputError(f"{recipe}: {_unknown(str(key), [*types, *aliases], '')}")
        if name in said:
            raise InputError(f"{recipe}: {said[name]} and {key} are one option; remove one")
        said[name] = str(key)
        if value is None:
            if not _takes(types[name], type(None)):
                raise InputError(f"{recipe}: {key} has no value; give one, or remove the line")
            setattr(namespace, name, None)
        elif isinstance(value, dict | list):
            if not _takes(types[name], type(value)):
                kind = "mapping" if isinstance(value, dict) else "list"
                raise InputError(f"{recipe}: {key} is {value!r}; it takes no {kind}")
            values = value if isinstance(value, dict) else [str(item) for item in value]
            setattr(namespace, name, values)
        else:
            truth = _takes(types[name], bool) or not _takes(types[name], str)
            # YAML takes the word "no" for a truth value
            words.append(f"--{name}={'no' if value is False and not truth else value}")
    try:
        parsed = parser.parse_args(words)
    except InputError as error:
        raise InputError(f"{recipe}: {error}") from error
    for name in said:
        if not hasattr(namespace, name):
            setattr(namespace, name, getattr(parsed, name))
    return namespace


def _takes(hint: Any, kind: type) -> bool:
    """Whether a field's type, or a member of its union, is of a kind."""
    members = getattr(hint, "__args__", ()) if "|" in str(hint) or "Union" in str(hint) else (hint,)
    return any(getattr(member, "__origin__", member) is kind for member in members)


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise InputError(f"{name} is {value!r}; give a JSON object ({error})") from error
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InputError(f"{name} is {value!r}; give names and values")
    return dict(value)


def _pairs(pairs: list[str]) -> dict[str, Any]:
    """The values of --set by name. Raises InputError for anything but NAME=VALUE."""
    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            equals = ""
        if not equals:
            raise InputError(f"--set {pair!r}: give NAME=VALUE with a number, true or false")
    return settings


def _unknown(name: str, known: Sequence[str], prefix: str) -> str:
    near = difflib.get_close_matches(name.lstrip("-").replace("-", "_"), known, 1)
    hint = f"; did you mean {prefix}{near[0]}?" if near else "; `grace train --help-all` lists them"
    return f"{name} is no option{hint}"
