"""Stage ``features``: the frozen tower's output for every training image, computed once."""

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoProcessor

from grace.data import ConversationDataset
from grace.models import family_of
from replication.layout import Layout
from replication.params import Params
from replication.stages import stage
from replication.standins.models import load_tower


@stage
def main(params: Params) -> None:
    layout = Layout(params)
    processor = AutoProcessor.from_pretrained(layout.processor)
    model = load_tower(params.family, processor, params.vision.config, layout.vision)
    family = family_of(params.family)
    data = ConversationDataset(layout.conversations, processor, model.config)
    layout.features.parent.mkdir(parents=True, exist_ok=True)
    temporary = layout.features.with_suffix(".tmp")
    written = None
    for start in tqdm(range(0, len(data), params.features.batch_size), desc="vision features"):
        picked = range(start, min(start + params.features.batch_size, len(data)))
        made = data.pixels(picked)
        features = family.vision_features(model, made["pixel_values"], made["image_grid_thw"])
        features = features.unflatten(0, (len(picked), -1)).to(torch.float16).numpy()
        if written is None:
            shape = (len(data), *features.shape[1:])
            written = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
        written[picked.start : picked.stop] = features
    assert written is not None
    written.flush()
    temporary.replace(layout.features)


if __name__ == "__main__":
    main()
