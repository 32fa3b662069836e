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
from replication.data.world.models import build_model, take_tower
from replication.data.world.warmstart import warm_start
from replication.settings.checks import check_architectures
from replication.settings.paths import Layout, needed, reading
from replication.settings.schema import LANGUAGE_FAMILY, Params, Pretraining, section
from replication.train.fit import fit, load_training_data, origin_of, save_model


def train_decoder(params: Params, name: str) -> None:
    """Write ``language/<name>``: a model whose decoder was trained on text alone.

    Args:
        params: The parameters of a reduced scale.
        name: Of the section ``language``: "teacher" or "baseline".

    Raises:
        InputError: For an unknown name, or data or a processor that is missing.
    """
    layout = Layout(params)
    languages = section(params.language, "language")
    if name not in languages:
        raise InputError(f"section language has no {name!r}; it has {', '.join(languages)}")
    settings, family = languages[name], LANGUAGE_FAMILY
    vision = section(params.vision, "vision")[family]
    shape = getattr(params, name)[family].text
    needed(layout.texts, "standins")
    processor = load_processor(needed(layout.processor(family), "vision"))
    check_architectures(params)
    model = build_model(family, processor, shape, vision.config, settings.seed)
    data = ConversationDataset(layout.texts, processor, model.config, supervise_prompts=True)
    log = layout.training_log("language", name, "text")
    _finetune(params, settings, model, data, folder="language", name=name, log=log)


def train_model(params: Params, family: str, name: str) -> None:
    """Write ``<family>/<name>``: ``source`` as published, or a model trained here, whose decoder
    starts from that of another.

    Args:
        params: The parameters.
        family: The family.
        name: "teacher" or "baseline".

    Raises:
        InputError: When something that is read is missing, or a checkpoint cannot be had.
    """
    layout = Layout(params)
    models: dict[str, Pretraining] = getattr(params, name)
    settings = models[family]
    if settings.source is not None:
        _download(settings.source, layout.model(family, name), f"{name}.{family}.source")
        log = layout.training_log(family, name, "source")
        write_json_atomic(log, {"source": settings.source})
        return
    vision = section(params.vision, "vision")[family]
    needed(layout.conversations, "standins")
    needed(layout.features(family), "features")
    processor = load_processor(needed(layout.processor(family), "vision"))
    check_architectures(params)
    assert settings.start is not None
    start = layout.models / settings.start
    check_model_directory(start)
    model = build_model(family, processor, settings.text, vision.config, settings.seed)
    with reading(layout.vision(family), "vision"):
        take_tower(model, family, layout.vision(family))
    warm_start(model, processor.tokenizer, load_model(start), load_processor(start).tokenizer)
    data = load_training_data(layout, family, processor, model.config)
    log = layout.training_log(family, name, "instruction")
    with family_of(family).take_vision_features(model):
        _finetune(params, settings, model, data, folder=family, name=name, log=log)


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
    fit(
        model,
        data,
        method,
        values,
        teacher=None,
        origin=origin_of(model, data, method, values, None, code=code),
        scratch=layout.checkpoints(folder, name),
        log=log,
    )
    save_model(model, data.processor, layout.model(folder, name))


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
