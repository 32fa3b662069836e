"""Stage ``vision``: a family's processor, and its vision tower pretrained on the scenes."""

from collections.abc import Iterator

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from grace.data import ConversationDataset
from grace.models import family_of
from replication.base.files import atomic_path
from replication.data.world.models import build_processor, build_tower
from replication.data.world.scenes import GRID
from replication.data.world.vision import pretrain
from replication.settings.paths import Layout, needed, reading
from replication.settings.schema import Params, Vision, check_architectures, section
from replication.stages import stage


@stage
def main(params: Params, name: str) -> None:
    family = family_of(params.known_family(name))
    layout, settings = Layout(params), section(params.vision, "vision")[name]
    needed(layout.conversations, "standins")
    check_architectures(params)
    with reading(layout.conversations, "standins"):
        table = pq.read_table(layout.conversations, columns=["conversations", "contents"])
    texts = table["conversations"]
    processor = build_processor(
        name,
        (turn["value"] for turns in texts.slice(0, 4000).to_pylist() for turn in turns),
        section(params.standins, "standins").vocab_size,
        settings.config,
    )
    layout.processor(name).parent.mkdir(parents=True, exist_ok=True)
    processor.save_pretrained(layout.processor(name))

    model = build_tower(name, processor, settings.config, settings.seed)
    data = ConversationDataset(layout.conversations, processor, model.config, limit=settings.images)
    contents = table["contents"]
    told = pretrain(
        family,
        model,
        _batches(data, np.array(contents.slice(0, len(data)).to_pylist()), settings),
        steps=settings.steps,
        learning_rate=settings.learning_rate,
    )
    print(", ".join(f"{name} {value:.3f}" for name, value in told.items()))
    tower = model.get_submodule(family.vision_tower)
    weights = {name: value.contiguous() for name, value in tower.state_dict().items()}
    with atomic_path(layout.vision(name)) as temporary:
        save_file(weights, temporary)


def _batches(
    data: ConversationDataset, contents: np.ndarray, settings: Vision
) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    pixels = []
    for start in range(0, len(data), 500):
        images = data.pixels(range(start, min(start + 500, len(data))))
        pixels.append(images.pop("pixel_values"))
    stacked = torch.cat(pixels).unflatten(0, (len(data), -1))
    targets = torch.from_numpy(contents).long().view(-1, GRID * GRID)
    generator = torch.Generator().manual_seed(settings.seed)
    while True:
        picked = torch.randint(len(data), (settings.batch_size,), generator=generator)
        # all images are of one size, so what else is said of one holds for every other
        shared = {name: value[:1].repeat(len(picked), 1) for name, value in images.items()}
        yield {"pixel_values": stacked[picked].flatten(0, 1), **shared}, targets[picked]


if __name__ == "__main__":
    main()
