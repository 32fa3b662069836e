"""Where every stage reads and writes, relative to the directory that holds ``params.yaml``."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from grace.errors import InputError
from replication.params import Params


def needed(path: Path, stage: str) -> Path:
    """``path``, which the stage ``stage`` writes.

    Raises:
        InputError: when it does not exist.
    """
    if not path.exists():
        raise InputError(f"{str(path)!r} does not exist; run the stage {stage} first")
    return path


@contextlib.contextmanager
def reading(path: Path, stage: str) -> Iterator[None]:
    """Whatever goes wrong with reading ``path`` in this block is one clear error.

    Raises:
        InputError: when ``path`` is missing or cannot be read.
    """
    needed(path, stage)
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # every file format fails with a type of its own
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{str(path)!r} cannot be read ({reason}); run the stage {stage} again"
        ) from error


class Layout:
    """Paths of one scale's data, models and results."""

    def __init__(self, params: Params) -> None:
        self.data = Path("data") / params.scale
        self.models = Path("models") / params.scale / params.family
        self.results = Path("results") / params.scale
        self.family = params.family

    @property
    def conversations(self) -> Path:
        """Training conversations."""
        return self.data / "standins" / "train.parquet"

    @property
    def language(self) -> Path:
        """Text that teacher and baseline learn before they see images."""
        return self.data / "standins" / "language.parquet"

    @property
    def benchmarks(self) -> Path:
        """Directory of the evaluation sets."""
        return self.data / "standins"

    @property
    def processor(self) -> Path:
        """Tokenizer, image processor and chat template."""
        return self.models / "processor"

    @property
    def vision(self) -> Path:
        """Weights of the pretrained vision tower."""
        return self.models / "vision.safetensors"

    @property
    def features(self) -> Path:
        """Frozen vision features of the training images."""
        return self.data / self.family / "features.npy"

    @property
    def teacher_outputs(self) -> Path:
        """Directory of the teacher's outputs on the training data."""
        return self.data / self.family / "teacher_outputs"

    def model(self, name: str) -> Path:
        """Directory of a model: ``teacher``, ``baseline`` or a named run (one folder a seed)."""
        return self.models / name

    def trained(self, run: str, seed: int) -> Path:
        """Directory of one trained model of a named run."""
        return self.model(run) / f"seed{seed}"

    def checkpoints(self, name: str) -> Path:
        """Scratch folder for resumable training state; removed when training completes."""
        return self.models / ".checkpoints" / name

    def training_logs(self, name: str) -> Path:
        """Folder of a model's training logs: one a seed of a run, one a part of a pretraining."""
        return self.results / "training" / self.family / name

    def training_log(self, name: str, part: str) -> Path:
        return self.training_logs(name) / f"{part}.json"

    def scores(self, name: str) -> Path:
        return self.results / "scores" / self.family / f"{name}.json"

    def outcomes(self, name: str) -> Path:
        return self.results / "outcomes" / self.family / f"{name}.parquet"
