"""Teacher and baseline: trained here at reduced scale, taken as published at full scale."""

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from grace.arithmetic import arithmetic_name
from grace.data import ConversationDataset
from grace.errors import InputError
from grace.models import check_model_directory, family_of, load_model, load_processor
from grace.training import GraceTrainer, MethodConfig, prepare_student
from replication.base import hub
from replication.base.code import code_hash
from replication.base.files import write_json_atomic
from replication.base.messages import unknown
from replication.base.workers import run_all
from replication.data.world.conversations import LESSONS
from replication.data.world.corpus import lesson_rows
from replication.data.world.looks import LOOKS
from replication.data.world.models import build_model, take_tower
from replication.data.world.projector import align_projector
from replication.data.world.warmstart import warm_start
from replication.settings.checks import check_architectures
from replication.settings.paths import Layout, needed, reading
from replication.settings.schema import (
    ALIGNMENT,
    KINDS,
    LANGUAGE_FAMILY,
    REGIMES,
    Lesson,
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


def train_decoders(params: Params) -> None:
    """Write ``language``: models whose decoders were trained on text alone, side by side.

    Args:
        params: The parameters of a reduced scale.

    Raises:
        InputError: For data or a processor that is missing.
    """
    layout = Layout(params, LANGUAGE_FAMILY)
    needed(layout.texts, "standins")
    needed(layout.processor(LANGUAGE_FAMILY), "vision")
    check_architectures(params)
    run_all(_train_decoder, [(params, name) for name in KINDS])


def _train_decoder(params: Params, name: str) -> None:
    layout = Layout(params, LANGUAGE_FAMILY)
    settings: Lesson = getattr(section(params.language, "language"), name)
    vision = section(params.vision, "vision")[LANGUAGE_FAMILY]
    shape = params.settings_of(LANGUAGE_FAMILY, name).text
    processor = load_processor(layout.processor(LANGUAGE_FAMILY))
    model = build_model(LANGUAGE_FAMILY, processor, shape, vision.config, settings.seed)
    data = ConversationDataset(layout.texts, processor, model.config, supervise_prompts=True)
    _finetune(params, settings, model, data, folder="language", name=name, part="text")


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


def _check_inputs(params: Params, starts: list[tuple[str, str]]) -> None:
    """What the models in folders read is there, each with the model that it starts from."""
    check_architectures(params)
    for folder, start in starts:
        layout, vision = Layout(params, folder), str(params.pair(folder).vision)
        needed(layout.conversations, "standins")
        needed(layout.features(vision), "features")
        needed(layout.processor(vision), "vision")
        check_model_directory(layout.models / start)


def _train_all(params: Params, models: list[tuple[str, str, str]]) -> None:
    """Train models, the longest first so that the last ones fill the cores."""
    _check_inputs(params, [(folder, start) for folder, _, start in models])

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
    settings, pair = params.settings_of(folder, name), params.pair(folder)
    model, processor = _started(params, folder, settings.text, settings.seed, start)
    portion = Portion(settings.records, settings.labels)
    data = load_training_data(
        Layout(params, folder), str(pair.vision), portion, processor, model.config
    )
    _finetune(params, settings, model, data, folder=folder, name=name)


def train_aligned(params: Params, pair: str) -> None:
    """Write ``alignment/<pair>``: decoders of both shapes that have learned to see with the pair's
    tower, side by side.

    Raises:
        InputError: When something that is read is missing, or the pair has no tower of its own.
    """
    known = section(params.alignment, ALIGNMENT).pairs
    if pair not in known:
        raise InputError(unknown(f"alignment.pairs {pair!r}", pair, known))
    _check_inputs(params, [(pair, f"language/{name}") for name in KINDS])
    run_all(_train_aligned, [(params, pair, name) for name in KINDS])


def _train_aligned(params: Params, pair: str, name: str) -> None:
    alignment, world = section(params.alignment, ALIGNMENT), section(params.standins, "standins")
    first: Lesson = getattr(alignment, name)
    second = dataclasses.replace(first, steps=alignment.where_steps)
    text = params.settings_of(pair, name).text
    model, processor = _started(params, pair, text, first.seed, f"language/{name}")
    layout, folder = Layout(params, pair), f"{ALIGNMENT}/{pair}"
    for lesson, settings in zip(LESSONS, (first, second), strict=True):
        portion = Portion(lesson_rows(world, lesson))
        data = load_training_data(layout, pair, portion, processor, model.config)
        last = settings is second
        _finetune(params, settings, model, data, folder=folder, name=name, part=lesson, last=last)


def _started(
    params: Params, folder: str, text: dict[str, Any], seed: int, start: str
) -> tuple[Any, Any]:
    """A model and its processor, before it is trained: the tower is that of the folder's pair, the
    decoder another model's. So is the projector if it was trained with the same tower."""
    layout, pair = Layout(params, folder), params.pair(folder)
    tower, other = str(pair.vision), layout.models / start
    processor = load_processor(layout.processor(tower))
    config = section(params.vision, "vision")[tower].config
    model = build_model(pair.family, processor, text, config, seed)
    with reading(layout.vision(tower), "vision"):
        take_tower(model, pair.family, layout.vision(tower))
    source = load_model(other)
    warm_start(model, processor.tokenizer, source, load_processor(other).tokenizer)
    if start.startswith(f"{ALIGNMENT}/"):
        for name in family_of(pair.family).projectors:
            values = source.get_submodule(name).state_dict()
            model.get_submodule(name).load_state_dict(values)
    else:
        _align(params, tower, model, processor, seed)
    return model, processor


def _align(params: Params, tower: str, model: Any, processor: Any, seed: int) -> None:
    """The projector's first lesson, on the images that the tower was pretrained on."""
    layout = Layout(params, tower)
    settings = section(params.alignment, ALIGNMENT).projector
    count = section(params.vision, "vision")[tower].images
    with reading(layout.conversations, "standins"):
        column = pq.read_table(layout.conversations, columns=["contents"])["contents"]
        contents = torch.tensor(column.slice(0, count).to_pylist())
    with reading(layout.features(tower), "features"):
        features = np.load(layout.features(tower), mmap_mode="r")[: len(contents)]
    generator = torch.Generator().manual_seed(seed)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            rows = torch.randint(len(contents), (settings.batch_size,), generator=generator)
            yield torch.from_numpy(features[rows.numpy()]).float(), contents[rows]

    align_projector(
        family_of(params.pair(tower).family),
        model,
        processor.tokenizer,
        LOOKS[params.pair(tower).world],
        batches(),
        steps=settings.steps,
        learning_rate=settings.learning_rate,
    )


def _finetune(
    params: Params,
    settings: Any,
    model: Any,
    data: ConversationDataset,
    *,
    folder: str,
    name: str,
    part: str = "instruction",
    last: bool = True,
) -> None:
    """Plain supervised fine-tuning of every weight but the tower's, with a log of this part of the
    model's training; after the last part the model's directory is written."""
    layout, method = Layout(params), MethodConfig("sft")
    prepare_student(model, method)
    values = dataclasses.asdict(settings) | {"arithmetic": arithmetic_name(params.arithmetic)}
    code = code_hash("replication.train.start")
    origin = origin_of(model, data, method, values, None, code=code)
    target = layout.model(folder, name)
    log = layout.training_log(folder, name, part)
    if log.is_file() and read_origin(target) == origin:
        return

    def finish(_: GraceTrainer) -> None:
        save_trained(model, data.processor, target, method, origin)

    with nullcontext() if part == "text" else family_of(model.config).take_vision_features(model):
        fit(
            model,
            data,
            method,
            values,
            teacher=None,
            origin=origin,
            scratch=layout.checkpoints(folder, f"{name}-{part}"),
            log=log,
            about={"pair": folder},
            finish=finish if last else None,
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
