"""A world of a few scenes and models of a few thousand weights, shared by the tests."""

import dataclasses
import functools
import os
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tests compare bits, and MKL's products may depend on where in memory their factors are.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from installed import install
from shapes import TEXTS, VISIONS

from grace.data import Collator
from grace.models import FAMILIES, family_of
from replication.data.world.corpus import write_training_set
from replication.data.world.models import build_model, build_processor
from replication.settings.schema import AlignmentData, Standins

settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("local", deadline=None)
settings.register_profile("fuzz", deadline=None, print_blob=True)
# A mutant is killed by the first example that fails: nothing is made of it, nothing is kept of it.
settings.register_profile(
    "mutation",
    derandomize=True,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("ci" if os.environ.get("CI") else "local")
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Slow tests first: no process is left with a long file at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@dataclasses.dataclass
class Small:
    """One family at the size of the tests."""

    name: str
    processor: Any

    @property
    def adapter(self):
        return family_of(self.name)

    def model(self, seed: int = 0, *, vision=None, **text):
        """A small random model; equal seeds give equal weights."""
        config = {**VISIONS[self.name], **(vision or {})}
        return build_model(self.name, self.processor, {**TEXTS[self.name], **text}, config, seed)

    def collator(self):
        processor = self.processor
        return Collator(self.adapter, processor.image_token_id, processor.tokenizer.pad_token_id)


@pytest.fixture(scope="session")
def world() -> Standins:
    return Standins(
        seed=3,
        train=40,  # and eight rows of alignment
        alignment=AlignmentData(images=4, turns=2, captions=0.5, open_answers=0.5),
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
def texts(conversations):
    """What is said in the training conversations."""
    turns = pq.read_table(conversations)["conversations"].to_pylist()
    return [turn["value"] for record in turns for turn in record]


@pytest.fixture(scope="session")
def family(texts):
    """A function that gives a family by its name."""

    @functools.cache
    def make(name: str) -> Small:
        return Small(name, build_processor(name, texts, 400, VISIONS[name]))

    return make


@pytest.fixture(params=sorted(FAMILIES))
def small(request, family) -> Small:
    """Every family in turn."""
    return family(request.param)


@pytest.fixture(scope="session")
def processor(family):
    return family("qwen2_vl").processor


@pytest.fixture(scope="session")
def make_model(family):
    """A function that builds a small random model; equal seeds give equal weights."""
    return family("qwen2_vl").model


def speaking(small: Small, seed: int = 2):
    """A random model whose answers differ between questions."""
    model = small.model(seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed_tokens" not in name:
                scale = 1.5 / parameter[0].numel() ** 0.5
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="session")
def speaker(family):
    """A random Qwen2-VL whose answers differ between questions."""
    return speaking(family("qwen2_vl"))


@pytest.fixture(scope="session")
def speaker_dir(speaker, processor, tmp_path_factory):
    """The directory of `speaker`."""
    folder = tmp_path_factory.mktemp("speaker")
    speaker.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """A folder that says which entry points the project has: for the PYTHONPATH of a process."""
    folder = tmp_path_factory.mktemp("site")
    install(folder)
    return folder


@pytest.fixture
def answering(monkeypatch):
    """Replace every model's answers by a function of the task and the row; a list of the tasks
    that were asked."""

    def install(answer):
        from grace.evaluation.lmms import ChatModel

        asked = []

        def generate_until(self, requests):
            asked.extend(dict.fromkeys(request.args[4] for request in requests))
            return [answer(request.args[4], request.args[3]) for request in requests]

        monkeypatch.setattr(ChatModel, "generate_until", generate_until)
        return asked

    return install
