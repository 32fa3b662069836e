"""A frozen teacher's outputs on the training data, computed once for all runs of a family."""

import shutil
from typing import Any

import numpy as np
from tqdm import tqdm

from grace.data import Collator
from grace.models import family_of, load_model, load_processor
from grace.training import LiveTeacher, write_teacher_outputs
from replication.settings.paths import Layout, needed
from replication.settings.schema import Params
from replication.train.fit import load_training_data


def cache_teacher(params: Params, name: str) -> None:
    """Write the directory that :class:`grace.training.CachedTeacher` reads.

    Args:
        params: The parameters of a reduced scale.
        name: The family.

    Raises:
        InputError: When the data, the features or the teacher is missing or cannot be read.
    """
    family, layout = family_of(params.known_family(name)), Layout(params)
    needed(layout.conversations, "standins")
    needed(layout.features(name), "features")
    path = needed(layout.model(name, "teacher"), "teacher")
    model: Any = load_model(path)
    processor = load_processor(path)
    data = load_training_data(layout, name, processor, model.config)
    collate = Collator(family, model.config.image_token_id, processor.tokenizer.pad_token_id)
    size = params.teacher_outputs.batch_size
    starts = tqdm(range(0, len(data), size), desc="teacher outputs")
    batches = (
        collate([data[index] for index in range(start, min(start + size, len(data)))])
        for start in starts
    )
    target = layout.teacher_outputs(name)
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with family.take_vision_features(model):
        write_teacher_outputs(
            LiveTeacher(model, family, relational=True, tokenizer=processor.tokenizer),
            batches,
            temporary,
            lengths=np.asarray(data.supervised).tolist(),
        )
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
