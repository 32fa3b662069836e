"""Teacher and baseline: trained from scratch at reduced scale, taken as published at full scale."""

import shutil
from typing import Any

import numpy as np
from transformers import AutoProcessor

from grace.data import ConversationDataset
from grace.errors import InputError
from grace.models import family_of
from grace.training import MethodConfig, prepare_student
from replication.fitting import fit, save_model
from replication.layout import Layout
from replication.params import Params, Pretraining
from replication.standins.models import build_model, take_tower


def load_training_data(layout: Layout, processor: Any, config: Any) -> ConversationDataset:
    """The training conversations with their precomputed vision features.

    Raises:
        InputError: when either is missing or they do not belong together.
    """
    if not layout.features.is_file():
        raise InputError(f"{str(layout.features)!r} does not exist; run the stage features first")
    features = np.load(layout.features, mmap_mode="c")
    return ConversationDataset(layout.conversations, processor, config, vision_features=features)


def pretrain_model(params: Params, name: str, settings: Pretraining, layout: Layout) -> None:
    """Write the model directory ``name``: ``settings.source`` as published, or one trained here."""
    if settings.source is not None:
        _download(settings.source, layout, name)
        return
    processor = AutoProcessor.from_pretrained(layout.processor)
    model = build_model(
        params.family, processor, settings.text, params.vision.config, settings.seed
    )
    take_tower(model, params.family, layout.vision)
    method = MethodConfig("sft")
    prepare_student(model, method)
    tower = model.get_submodule(family_of(params.family).vision_tower)
    forward = tower.forward
    family_of(params.family).take_vision_features(model)
    fit(
        model,
        load_training_data(layout, processor, model.config),
        method,
        {
            "steps": settings.steps,
            "batch_size": settings.batch_size,
            "learning_rate": settings.learning_rate,
            "warmup_ratio": settings.warmup_ratio,
            "weight_decay": settings.weight_decay,
            "seed": settings.seed,
            "bf16": True,
        },
        teacher=None,
        scratch=layout.checkpoints(name),
        log=layout.training_log(name),
    )
    tower.forward = forward
    save_model(model, processor, layout.model(name))


def _download(source: str, layout: Layout, name: str) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    target = layout.model(name)
    temporary = target.with_name(target.name + ".tmp")
    try:
        snapshot_download(source, local_dir=temporary)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{name}: {source!r} cannot be downloaded ({str(error).splitlines()[0]}); check the "
            "network, or put the checkpoint's local directory into the parameter file"
        ) from error
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
