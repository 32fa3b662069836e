"""A world of a few scenes and models of a few thousand weights, shared by the tests."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import settings

from replication.params import Standins
from replication.standins.corpus import write_training_set
from replication.standins.models import build_model, build_processor

settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("local", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")
torch.set_num_threads(1)

VISION = {
    "depth": 1,
    "embed_dim": 16,
    "num_heads": 2,
    "mlp_ratio": 2,
    "patch_size": 8,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_channels": 3,
}
TEXT = {
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.06,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [8, 12, 12],
    },
}


@pytest.fixture(scope="session")
def world() -> Standins:
    return Standins(
        seed=3,
        train=48,
        language=40,
        evaluation=30,
        turns=2,
        captions=0.5,
        echoes=0.2,
        open_answers=0.3,
        spelled_letters=0.25,
        diagrams=0.15,
        strings=0.15,
        poor_images=0.2,
        noise=6.0,
        clutter=2,
        vocab_size=400,
    )


@pytest.fixture(scope="session")
def conversations(world, tmp_path_factory):
    """A parquet file of training conversations."""
    path = tmp_path_factory.mktemp("world") / "train.parquet"
    write_training_set(path, world, workers=1)
    return path


@pytest.fixture(scope="session")
def processor(conversations):
    import pyarrow.parquet as pq

    turns = pq.read_table(conversations)["conversations"].to_pylist()
    texts = [turn["value"] for record in turns for turn in record]
    return build_processor("qwen2_vl", texts, 400, VISION)


@pytest.fixture(scope="session")
def make_model(processor):
    """A function that builds a small random model; equal seeds give equal weights."""

    def make(seed: int = 0, **text):
        return build_model("qwen2_vl", processor, {**TEXT, **text}, VISION, seed)

    return make
