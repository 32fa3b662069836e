"""Stage ``features``: the frozen tower's output for every training image, computed once."""

import numpy as np
import torch
from tqdm import tqdm

from grace.data import ConversationDataset
from grace.models import family_of, load_processor
from replication.data.world.models import load_tower
from replication.settings.paths import Layout, needed, reading
from replication.settings.schema import Params, section
from replication.stages import stage


@stage
def main(params: Params, name: str) -> None:
    family = family_of(params.known_family(name))
    layout, vision = Layout(params), section(params.vision, "vision")[name]
    settings = section(params.features, "features")
    needed(layout.conversations, "standins")
    processor = load_processor(needed(layout.processor(name), "vision"))
    tower = layout.vision(name)
    with reading(tower, "vision"):
        model = load_tower(name, processor, vision.config, tower)
    data = ConversationDataset(layout.conversations, processor, model.config)
    target = layout.features(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(".tmp")
    written = None
    for start in tqdm(range(0, len(data), settings.batch_size), desc="vision features"):
        picked = range(start, min(start + settings.batch_size, len(data)))
        features = family.vision_features(model, data.pixels(picked))
        features = features.unflatten(0, (len(picked), -1)).to(torch.float16).numpy()
        if written is None:
            shape = (len(data), *features.shape[1:])
            written = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
        written[picked.start : picked.stop] = features
    assert written is not None
    written.flush()
    temporary.replace(target)


if __name__ == "__main__":
    main()
