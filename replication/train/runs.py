"""Training of the named runs: a group, every seed of each, from their pair's baseline, or from the
model of another run.

What is there already and follows from the same parameters, data and code is kept: a changed run
is trained again, and the others of its group are not.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from grace.distillation import DistillationConfig
from grace.errors import InputError
from grace.models import check_model_directory, load_model, load_processor
from grace.quantization import QuantSpec
from grace.training import TEACHER_METHODS
from replication.base.code import code_hash
from replication.base.files import read_json
from replication.base.workers import run_all
from replication.settings.paths import Layout, needed, teacher_outputs_of
from replication.settings.schema import Params, Run

if TYPE_CHECKING:
    from grace.training import MethodConfig

# The trainer takes seconds to import. It is needed by the processes that train, not by the one
# that starts them.


def method_config(params: Params, run: Run) -> "MethodConfig":
    """The method of a run: the shared settings, with the run's own on top.

    Raises:
        InputError: for settings that do not go together.
    """
    from grace.training import NAIVE_KD, QAD, MethodConfig

    settings, quantization = params.train, None
    if run.bits != 16:
        quantization = QuantSpec(
            bits=run.bits,
            group_size=settings.group_size if run.group_size is None else run.group_size,
            init=settings.init,
            gradient_factor=settings.gradient_factor,
        )
    distillation = None
    if run.method in TEACHER_METHODS:
        chosen = _coefficients(params, run) | {"kd": NAIVE_KD, "qad": QAD}.get(run.method, {})
        distillation = DistillationConfig.from_dict({**chosen, **run.distillation})
    return MethodConfig(
        run.method,
        bits=run.bits,
        quantization=quantization,
        distillation=distillation,
        scale_lr_multiplier=settings.scale_lr_multiplier,
    )


def _coefficients(params: Params, run: Run) -> dict[str, Any]:
    """A run's coefficients, their warm-ups in its own steps."""
    chosen = params.coefficients[run.coefficients or params.train.coefficients]
    steps, values = round(params.train.steps * run.length), dict(chosen.distillation)
    if chosen.steps is not None and steps > 0:  # full scale counts epochs
        for key in ("distill_warmup_steps", "rcka_warmup_steps"):
            values[key] = round(values.get(key, 0) * steps / chosen.steps)
    return values


def run_settings(params: Params, run: Run, seed: int) -> dict[str, Any]:
    """The settings of :func:`replication.train.fit.fit` for one seed of a run."""
    from grace.arithmetic import arithmetic_name

    settings = dataclasses.asdict(params.train) | {
        "seed": seed,
        "arithmetic": arithmetic_name(params.arithmetic),
    }
    del settings["coefficients"]  # the method has the run's own
    settings["steps"] = round(params.train.steps * run.length)
    if params.train.epochs is not None:
        settings["epochs"] = params.train.epochs * run.length
    if run.learning_rate is not None:
        settings["learning_rate"] = run.learning_rate
    return settings


def start_of(params: Params, group: str, name: str, seed: int) -> Path:
    """Directory of the model that a run starts from."""
    layout, folder = Layout(params), params.group(group)
    start = folder.models[name].start
    if start is None:
        return layout.model(*params.model_of(folder, "baseline"))
    return layout.trained(group, start, seed)


def load_student(start: Path, method: "MethodConfig", seed: int) -> Any:
    """The model that a run starts from, prepared for a method; all random draws follow from the
    seed."""
    from grace.training import prepare_student

    torch.manual_seed(seed)
    model: Any = load_model(start)
    prepare_student(model, method)
    return model


def train_one(params: Params, group: str, name: str, seed: int) -> None:
    """Train one seed of a run and write its model directory, values on the grid, with the integer
    codes and scales beside them. A model that is there already, of the same origin, is kept."""
    from grace.training import CachedTeacher, Identity, check_teacher
    from replication.train.doubt import DOUBT_FILE
    from replication.train.fit import fit, load_training_data, origin_of, read_origin, save_trained
    from replication.train.shuffled_teacher import ShuffledTeacher

    layout, folder = Layout(params, group), params.group(group)
    run = folder.models[name]
    method = method_config(params, run)
    path = start_of(params, group, name, seed)
    processor = load_processor(path)
    model = load_student(path, method, seed)
    portion = params.portion_of(folder)
    tower = str(params.pair(folder.pair).vision)
    data = load_training_data(layout, tower, portion, processor, model.config)
    teacher: Any = None
    about: dict[str, Any] = {"pair": params.owner_of(group)}
    if method.needs_teacher:
        outputs = teacher_outputs_of(params, folder, run)
        teacher = CachedTeacher(outputs, samples=len(data))
        check_teacher(Identity.of(model.config, processor.tokenizer), teacher.identity)
        about["teacher"] = read_json(outputs / DOUBT_FILE)
        if run.shuffled_teacher:
            teacher = ShuffledTeacher(teacher, data.supervised, seed)
    settings = run_settings(params, run, seed)
    code = code_hash("replication.train.runs")
    origin = origin_of(model, data, method, settings, teacher, code=code)
    target, log = layout.trained(group, name, seed), layout.training_log(group, name, f"seed{seed}")
    if log.is_file() and read_origin(target) == origin:
        return
    with data.family.take_vision_features(model):
        fit(
            model,
            data,
            method,
            settings,
            teacher=teacher,
            origin=origin,
            scratch=layout.checkpoints(group, f"{name}-seed{seed}"),
            log=log,
            about=about,
            finish=lambda _: save_trained(model, processor, target, method, origin),
        )


def check_baseline(params: Params, group: str) -> None:
    """Check that a group's baseline is there and of its family.

    Raises:
        InputError: saying which stage to run.
    """
    family, where = params.family_of(group), params.model_of(params.group(group), "baseline")
    baseline = Layout(params).model(*where)
    config = check_model_directory(baseline)
    if config.get("model_type") != family:
        raise InputError(
            f"{str(baseline)!r} is of family {config.get('model_type')!r}, the parameters say "
            f"{family!r}; run the stage pairs again"
        )


def train_group(params: Params, group: str) -> None:
    """Train every run of a group with cached teacher outputs, side by side.

    Raises:
        InputError: When something that the runs read is missing.
    """
    layout, folder = Layout(params, group), params.group(group)
    check_baseline(params, group)
    needed(layout.conversations, "standins")
    needed(layout.features(str(params.pair(folder.pair).vision)), "features")
    for run in folder.models.values():
        if run.method in TEACHER_METHODS:
            needed(teacher_outputs_of(params, folder, run), "teacher_outputs")
    for names in folder.rounds():
        run_all(
            train_one,
            [(params, group, name, seed) for name in names for seed in folder.models[name].seeds],
        )
    remove_others(params, group)


def remove_others(params: Params, group: str) -> None:
    """Remove what earlier parameters left of a group: models, logs and checkpoints."""
    layout = Layout(params)
    known = set()
    for name, run in params.group(group).models.items():
        for seed in run.seeds:
            known.add(layout.trained(group, name, seed))
            known.add(layout.training_log(group, name, f"seed{seed}"))
    for folder in (layout.models / group, layout.training_logs(group)):
        for path in folder.glob("*/*"):
            if path not in known:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in folder.glob("*"):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
    shutil.rmtree(layout.checkpoints(group, ""), ignore_errors=True)
