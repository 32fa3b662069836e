"""The launched program of the tests: `replication.train.launch` on one parquet file.

accelerate launch --module launched <group> <run> <seed>
"""

import importlib
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "grace"))
import ranks

import replication.data.conversations.load
import replication.train.launch.run
from grace.data import ConversationDataset
from replication.settings.checks import load_params


def _load(path, processor, config, *, max_length):
    return ConversationDataset(path / "train.parquet", processor, config)


replication.data.conversations.load.load_conversations = _load


def train(workspace: Path, group: str, name: str, seed: int, kill=None) -> None:
    """`kill` is (dotted function, which call, which rank): there the process kills itself."""
    os.chdir(workspace)
    if kill is not None:
        _arm(*kill)
    replication.train.launch.run.train_launched(load_params("params.yaml"), group, name, seed)


def _arm(dotted: str, call: int, rank: int) -> None:
    if int(os.environ.get("RANK", "0")) != rank:
        return
    place, _, attribute = dotted.rpartition(".")
    try:
        owner = importlib.import_module(place)
    except ModuleNotFoundError:
        module, _, owner_name = place.rpartition(".")
        owner = getattr(importlib.import_module(module), owner_name)
    original, left = getattr(owner, attribute), [call]

    def killing(*arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(owner, attribute, killing)


if __name__ == "__main__":
    from replication.train.launch.__main__ import main

    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        ranks.shard_on_cpus()
    main()
