"""Teacher and baseline: trained here at reduced scale, taken as published at full scale."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from grace.arithmetic import arithmetic_name
from grace.data import ConversationDataset
from grace.errors import InputError
from grace.models import check_model_directory, family_of, load_model, load_processor
from grace.training import MethodConfig, prepare_student
from replication.base import hub
from replication.base.code import code_hash
from replication.base.files import write_json_atomic
from replication.base.workers import run_all
from replication.data.world.models import build_model, take_tower
from replication.data.world.warmstart import warm_start
from replication.settings.checks import check_architectures
from replication.settings.paths import Layout, needed, reading
from replication.settings.schema import (
    KINDS,
    LANGUAGE_FAMILY,
    REGIMES,
    Params,
    Portion,
    section,
)
from replication.train.fit import (
    fit,
    load_training_data,
    origin_of,
    read_origin,
    save_trained,
)


def train_decoder(params: Params, name: str) -> None:
    """Write ``language/<name>``: a model whose decoder was trained on text alone.

    Args:
        params: The parameters of a reduced scale.
        name: Of the section ``language``: "teacher" or "baseline".

    Raises:
        InputError: For an unknown name, or data or a processor that is missing.
    """
    layout = Layout(params, LANGUAGE_FAMILY)
    languages = section(params.language, "language")
    if name not in languages:
        raise InputError(f"section language has no {name!r}; it has {', '.join(languages)}")
    settings, family = languages[name], LANGUAGE_FAMILY
    vision = section(params.vision, "vision")[family]
    shape = params.settings_of(family, name).text
    needed(layout.texts, "standins")
    processor = load_processor(needed(layout.processor(family), "vision"))
    check_architectures(params)
    model = build_model(family, processor, shape, vision.config, settings.seed)
    data = ConversationDataset(layout.texts, processor, model.config, supervise_prompts=True)
    log = layout.training_log("language", name, "text")
    _finetune(params, settings, model, data, folder="language", name=name, log=log)


def train_pair(params: Params, pair: str) -> None:
    """Write a pair's teacher and baseline, side by side: trained here, or as published.

    Raises:
        InputError: When something that is read is missing, or a checkpoint cannot be had.
    """
    settings = {name: params.settings_of(pair, name) for name in KINDS}
    if all(one.source is not None for one in settings.values()):
        for name in KINDS:
            _publish(params, pair, name)
        return
    start = params.pairs[pair].start
    _train_all(params, [(pair, name, f"{start}/{name}") for name in KINDS])


def train_regimes(params: Params) -> None:
    """Write the map's further teachers and baselines, side by side, and remove what earlier
    parameters left of them.

    Raises:
        InputError: When something that is read is missing.
    """
    layout, regimes = Layout(params), section(params.regimes, REGIMES)
    start = params.pair(REGIMES).start
    models = [(REGIMES, n, f"{start}/{model.like}") for n, model in regimes.models.items()]
    _train_all(params, models)
    for folder in (layout.models / REGIMES, layout.training_logs(REGIMES)):
        for path in folder.iterdir():
            if path.name not in regimes.models:
                shutil.rmtree(path)


def _train_all(params: Params, models: list[tuple[str, str, str]]) -> None:
    """Train models, the longest first so that the last ones fill the cores."""
    check_architectures(params)
    for folder, _, start in models:
        layout, vision = Layout(params, folder), str(params.pair(folder).vision)
        needed(layout.conversations, "standins")
        needed(layout.features(vision), "features")
        needed(layout.processor(vision), "vision")
        check_model_directory(layout.models / start)

    def length(model: tuple[str, str, str]) -> int:
        settings = params.settings_of(*model[:2])
        return settings.steps * settings.batch_size * settings.text.get("num_hidden_layers", 1)

    run_all(train_model, [(params, *model) for model in sorted(models, key=length, reverse=True)])


def train_model(params: Params, folder: str, name: str, start: str) -> None:
    """Write ``<folder>/<name>``, a model whose decoder starts from that of another. One that is
    there already, of the same origin, is kept.

    Args:
        params: The parameters of a reduced scale.
        folder: A pair, or "regimes".
        name: Of the model in it.
        start: The other model, as ``<folder>/<name>``.

    Raises:
        InputError: When something that is read is missing.
    """
    layout, settings = Layout(params), params.settings_of(folder, name)
    pair = params.pair(folder)
    family, tower = pair.family, str(pair.vision)
    vision = section(params.vision, "vision")[tower]
    processor = load_processor(layout.processor(tower))
    model = build_model(family, processor, settings.text, vision.config, settings.seed)
    with reading(layout.vision(tower), "vision"):
        take_tower(model, family, layout.vision(tower))
    other = layout.models / start
    warm_start(model, processor.tokenizer, load_model(other), load_processor(other).tokenizer)
    portion = Portion(settings.records, settings.labels)
    data = load_training_data(layout, tower, portion, processor, model.config)
    log = layout.training_log(folder, name, "instruction")
    with family_of(family).take_vision_features(model):
        _finetune(params, settings, model, data, folder=folder, name=name, log=log)


def _finetune(
    params: Params,
    settings: Any,
    model: Any,
    data: ConversationDataset,
    *,
    folder: str,
    name: str,
    log: Path,
) -> None:
    """Plain supervised fine-tuning of every weight but the tower's, and the model's directory."""
    layout, method = Layout(params), MethodConfig("sft")
    prepare_student(model, method)
    values = dataclasses.asdict(settings) | {"arithmetic": arithmetic_name(params.arithmetic)}
    code = code_hash("replication.train.start")
    origin = origin_of(model, data, method, values, None, code=code)
    target = layout.model(folder, name)
    if log.is_file() and read_origin(target) == origin:
        return
    fit(
        model,
        data,
        method,
        values,
        teacher=None,
        origin=origin,
        scratch=layout.checkpoints(folder, name),
        log=log,
        about={"pair": folder},
        finish=lambda _: save_trained(model, data.processor, target, method, origin),
    )


def _publish(params: Params, pair: str, name: str) -> None:
    """Write ``<pair>/<name>`` as it is published, and the log that says so."""
    layout, source = Layout(params), params.settings_of(pair, name).source
    assert source is not None
    _download(source, layout.model(pair, name), f"{name}.{pair}.source")
    write_json_atomic(layout.training_log(pair, name, "source"), {"source": source})


def _download(source: str, target: Path, setting: str) -> None:
    temporary = target.with_name(target.name + ".tmp")
    if Path(source).is_dir():
        check_model_directory(Path(source))
        shutil.rmtree(temporary, ignore_errors=True)  # perhaps of another source
        shutil.copytree(source, temporary)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        return
    hub.fetch(source, "model", folder=temporary, instead=f"make {setting} a local directory")
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
