"""Teacher and baseline: trained from scratch at reduced scale, taken as published at full scale."""

import dataclasses
import shutil
from pathlib import Path

from grace.data import ConversationDataset
from grace.errors import InputError
from grace.models import check_model_directory, family_of, load_processor
from grace.training import MethodConfig, prepare_student
from replication.fitting import fit, load_training_data, save_model
from replication.io import write_json_atomic
from replication.layout import Layout, needed, reading
from replication.params import Params, Part, Pretraining, check_architectures, section
from replication.standins.models import build_model, take_tower


def pretrain_model(params: Params, name: str, settings: Pretraining, layout: Layout) -> None:
    """Write the model directory ``name``: ``settings.source`` as published, or one trained here."""
    if settings.source is not None:
        _download(settings.source, layout, name)
        write_json_atomic(layout.training_log(name, "source"), {"source": settings.source})
        return
    vision = section(params.vision, "vision")
    needed(layout.conversations, "standins")
    needed(layout.features, "features")
    processor = load_processor(needed(layout.processor, "vision"))
    check_architectures(params)
    model = build_model(params.family, processor, settings.text, vision.config, settings.seed)
    with reading(layout.vision, "vision"):
        take_tower(model, params.family, layout.vision)
    method = MethodConfig("sft")
    prepare_student(model, method)
    shared = {
        "warmup_ratio": settings.warmup_ratio,
        "weight_decay": settings.weight_decay,
        "seed": settings.seed,
        "bf16": True,
    }
    # every part's data is read before the first part is trained
    parts = [
        (
            "instruction",
            Part(settings.steps, settings.batch_size, settings.learning_rate),
            load_training_data(layout, processor, model.config),
        )
    ]
    if settings.language is not None:
        needed(layout.language, "standins")
        text = ConversationDataset(layout.language, processor, model.config, supervise_prompts=True)
        parts.insert(0, ("language", settings.language, text))
    with family_of(params.family).take_vision_features(model):
        for title, part, data in parts:
            fit(
                model,
                data,
                method,
                shared | dataclasses.asdict(part),
                teacher=None,
                scratch=layout.checkpoints(f"{name}-{title}"),
                log=layout.training_log(name, title),
                keep=True,
            )
    save_model(model, processor, layout.model(name))
    for title, *_ in parts:
        shutil.rmtree(layout.checkpoints(f"{name}-{title}"), ignore_errors=True)


def _download(source: str, layout: Layout, name: str) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    target = layout.model(name)
    temporary = target.with_name(target.name + ".tmp")
    if Path(source).is_dir():
        check_model_directory(Path(source))
        shutil.copytree(source, temporary, dirs_exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        return
    try:
        snapshot_download(source, local_dir=temporary)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise InputError(
            f"{name}: {source!r} cannot be downloaded ({str(error).splitlines()[0]}); check the "
            "network, or put the checkpoint's local directory into the parameter file"
        ) from error
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
