"""A pair's vision tower at reduced scale: pretrained on the scenes, and its output on them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from tqdm import tqdm

from grace.data import ConversationDataset
from grace.models import family_of, load_processor
from replication.base.files import atomic_path
from replication.base.workers import cores, run_all
from replication.data.world.looks import LOOKS
from replication.data.world.models import build_processor, build_tower, load_tower
from replication.data.world.scenes import GRID
from replication.data.world.vision import aspects_of, pretrain
from replication.settings.checks import check_architectures
from replication.settings.paths import Layout, needed, reading
from replication.settings.schema import Params, Vision, section

TOKENIZER_TEXTS = 4000
"""Conversations that a family's tokenizer is trained on."""

IMAGES_AT_ONCE = 500
"""Images that are decoded at once."""


def train_tower(params: Params, name: str) -> dict[str, float]:
    """Write a pair's processor, and its vision tower after pretraining on the scenes.

    Args:
        params: The parameters of a reduced scale.
        name: A pair that has a tower of its own.

    Returns:
        The accuracies of :func:`replication.data.world.vision.pretrain`.

    Raises:
        InputError: When the training data are missing or cannot be read, or the tower does not
            fit the scenes.
    """
    kind = params.pair(name).family
    family, layout = family_of(kind), Layout(params, name)
    settings = section(params.vision, "vision")[name]
    needed(layout.conversations, "standins")
    check_architectures(params)
    with reading(layout.conversations, "standins"):
        table = pq.read_table(layout.conversations, columns=["conversations", "contents"])
    conversations = table["conversations"].slice(0, TOKENIZER_TEXTS).to_pylist()
    processor = build_processor(
        kind,
        (turn["value"] for turns in conversations for turn in turns),
        section(params.standins, "standins").vocab_size,
        settings.config,
    )
    layout.processor(name).parent.mkdir(parents=True, exist_ok=True)
    processor.save_pretrained(layout.processor(name))

    model = build_tower(kind, processor, settings.config, settings.seed)
    data = ConversationDataset(layout.conversations, processor, model.config, limit=settings.images)
    contents = np.array(table["contents"].slice(0, len(data)).to_pylist())
    accuracies = pretrain(
        family,
        model,
        tower_batches(data, contents, settings),
        aspects=aspects_of(LOOKS[params.pair(name).world]),
        steps=settings.steps,
        learning_rate=settings.learning_rate,
    )
    tower = model.get_submodule(family.vision_tower)
    weights = {name: value.contiguous() for name, value in tower.state_dict().items()}
    with atomic_path(layout.vision(name)) as temporary:
        save_file(weights, temporary)
    return accuracies


def tower_batches(
    data: ConversationDataset, contents: np.ndarray, settings: Vision
) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """Random batches of images with the contents of their cells, without end.

    Args:
        data: The images, all of one size.
        contents: (images, cells), indices into :data:`replication.data.world.vision.contents_of`.
        settings: The batch size and the seed.

    Yields:
        The family's image inputs, and the contents (batch, cells).
    """
    pixels = []
    for start in range(0, len(data), IMAGES_AT_ONCE):
        images = data.pixels(range(start, min(start + IMAGES_AT_ONCE, len(data))))
        pixels.append(images.pop("pixel_values"))
    stacked = torch.cat(pixels).unflatten(0, (len(data), -1))
    targets = torch.from_numpy(contents).long().view(-1, GRID * GRID)
    generator = torch.Generator().manual_seed(settings.seed)
    while True:
        rows = torch.randint(len(data), (settings.batch_size,), generator=generator)
        # all images have one size, so that the other inputs of the first image fit every image
        shared = {name: value[:1].repeat(len(rows), 1) for name, value in images.items()}
        yield {"pixel_values": stacked[rows].flatten(0, 1), **shared}, targets[rows]


def write_features(params: Params, name: str) -> None:
    """Write the frozen tower's output for every training image, float16 (images, tokens, width).

    Args:
        params: The parameters of a reduced scale.
        name: A pair that has a tower of its own.

    Raises:
        InputError: When the data, the processor or the tower is missing or cannot be read.
    """
    layout = Layout(params, name)
    batch_size = section(params.features, "features").batch_size
    needed(layout.conversations, "standins")
    needed(layout.processor(name), "vision")
    with reading(layout.conversations, "standins"):
        count = pq.read_metadata(layout.conversations).num_rows
    target = layout.features(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    starts = range(0, count, batch_size)
    parts = np.array_split(np.array(starts), min(cores(), len(starts)))
    temporaries = [target.with_suffix(f".{part[0]}.tmp") for part in parts]
    jobs = zip(parts, temporaries, strict=True)
    run_all(_write_features, [(params, name, part.tolist(), path) for part, path in jobs])
    written = [np.load(path, mmap_mode="r") for path in temporaries]
    whole = target.with_suffix(".tmp")
    output = np.lib.format.open_memmap(
        whole, "w+", np.float16, (sum(map(len, written)), *written[0].shape[1:])
    )
    np.concatenate(written, out=output)
    output.flush()
    whole.replace(target)
    for path in temporaries:
        path.unlink()


def _write_features(params: Params, name: str, starts: list[int], target: Path) -> None:
    """The features of the batches that start at these images."""
    kind, layout = params.pair(name).family, Layout(params, name)
    batch_size = section(params.features, "features").batch_size
    processor = load_processor(layout.processor(name))
    with reading(layout.vision(name), "vision"):
        config = section(params.vision, "vision")[name].config
        model = load_tower(kind, processor, config, layout.vision(name))
    data = ConversationDataset(layout.conversations, processor, model.config)
    batches = []
    for start in tqdm(starts, desc="vision features"):
        rows = range(start, min(start + batch_size, len(data)))
        features = family_of(kind).vision_features(model, data.pixels(rows))
        batches.append(features.unflatten(0, (len(rows), -1)).to(torch.float16).numpy())
    with target.open("wb") as file:
        np.save(file, np.concatenate(batches))
