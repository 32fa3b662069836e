"""A frozen teacher's outputs on the methods' data, computed once for all runs that ask for them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from grace.data import Collator
from grace.models import family_of, load_model, load_processor
from grace.training import LiveTeacher, write_teacher_outputs
from replication.base.files import write_json_atomic
from replication.base.workers import run_all
from replication.settings.paths import Layout, needed, teacher_outputs_of
from replication.settings.schema import REGIMES, Params, Portion, section
from replication.train.doubt import DOUBT_FILE, doubt_of
from replication.train.fit import load_training_data


def cache_teacher(params: Params, pair: str) -> None:
    """Write the outputs of a pair's teacher on what its methods are trained on, and where its
    baseline teaches itself, those of its baseline.

    Args:
        params: The parameters of a reduced scale.
        pair: The pair.

    Raises:
        InputError: When the data, the features or the teacher is missing or cannot be read.
    """
    layout, portion = Layout(params), section(params.methods, "methods")[pair]
    write_outputs(params, (pair, "teacher"), portion, layout.teacher_outputs(pair))
    if pair in params.teacher_outputs.baselines:
        own = layout.baseline_outputs(pair)
        write_outputs(params, (pair, "baseline"), portion, own, relational=False)


def cache_regimes(params: Params) -> None:
    """Write the outputs that groups of the map ask for and no pair has: each once, side by side."""
    layout = Layout(params)
    asked = {}
    for group in params.runs.values():
        for run in group.models.values() if group.pair == REGIMES else ():
            target = teacher_outputs_of(params, group, run)
            if target.parent == layout.teacher_outputs(REGIMES):
                asked[target] = (params.model_of(group, "teacher"), params.portion_of(group))
    folder = layout.teacher_outputs(REGIMES)
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path not in asked:
            shutil.rmtree(path)
    run_all(write_outputs, [(params, *what, target) for target, what in asked.items()])


def write_outputs(
    params: Params,
    teacher: tuple[str, str],
    portion: Portion,
    target: Path,
    *,
    relational: bool = True,
) -> None:
    """Write a directory that :class:`grace.training.CachedTeacher` reads.

    Args:
        params: The parameters of a reduced scale.
        teacher: Its folder and name.
        portion: Of the training conversations.
        target: The directory.
        relational: Keep what the relational loss compares, too.

    Raises:
        InputError: As :func:`cache_teacher`.
    """
    folder, name = teacher
    stage = REGIMES if folder == REGIMES else "pairs"
    layout, tower = Layout(params, folder), str(params.pair(folder).vision)
    path = needed(layout.model(folder, name), stage)
    model: Any = load_model(path)
    family, processor = family_of(model.config), load_processor(path)
    data = load_training_data(layout, tower, portion, processor, model.config)
    collate = Collator(family, model.config.image_token_id, processor.tokenizer.pad_token_id)
    size = params.teacher_outputs.batch_size
    starts = tqdm(range(0, len(data), size), desc="teacher outputs")
    batches = (
        collate([data[index] for index in range(start, min(start + size, len(data)))])
        for start in starts
    )
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with family.take_vision_features(model):
        write_teacher_outputs(
            LiveTeacher(model, family, relational=relational, tokenizer=processor.tokenizer),
            batches,
            temporary,
            lengths=np.asarray(data.supervised).tolist(),
        )
    write_json_atomic(temporary / DOUBT_FILE, doubt_of(temporary))
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
