"""Where every stage reads and writes, relative to the directory that holds ``params.yaml``."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from grace.errors import InputError
from replication.settings.schema import Params


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
    """Paths of one scale's data, models and results.

    Models lie in folders: a family's own holds its teacher and baseline, and a group of runs has
    one of its own.
    """

    def __init__(self, params: Params) -> None:
        self.data = Path("data") / params.scale
        self.models = Path("models") / params.scale
        self.results = Path("results") / params.scale
        self.recorded = Path("recorded")

    @property
    def conversations(self) -> Path:
        """Training conversations."""
        return self.data / "standins" / "train.parquet"

    @property
    def published(self) -> Path:
        """Directory of the published training conversations, which ``conversations`` wrote."""
        return self.data / "conversations"

    @property
    def texts(self) -> Path:
        """Conversations without images, which decoders learn first."""
        return self.data / "standins" / "language.parquet"

    @property
    def benchmarks(self) -> Path:
        """Directory of the evaluation sets."""
        return self.data / "standins"

    def processor(self, family: str) -> Path:
        """Tokenizer, image processor and chat template of a family."""
        return self.models / family / "processor"

    def vision(self, family: str) -> Path:
        """Weights of a family's pretrained vision tower."""
        return self.models / family / "vision.safetensors"

    def features(self, family: str) -> Path:
        """Frozen vision features of the training images."""
        return self.data / family / "features.npy"

    def teacher_outputs(self, family: str) -> Path:
        """Directory of the teacher's outputs on the training data."""
        return self.data / family / "teacher_outputs"

    def model(self, folder: str, name: str) -> Path:
        """Directory of a model: ``teacher``, ``baseline``, or a run (one directory a seed)."""
        return self.models / folder / name

    def trained(self, group: str, run: str, seed: int) -> Path:
        """Directory of one trained model of a run."""
        return self.model(group, run) / f"seed{seed}"

    def checkpoints(self, folder: str, name: str) -> Path:
        """Scratch directory for resumable training state; removed when the stage completes."""
        return self.models / ".checkpoints" / folder / name

    def training_logs(self, folder: str) -> Path:
        """Training logs of a folder's models."""
        return self.results / "training" / folder

    def training_log(self, folder: str, name: str, part: str) -> Path:
        return self.training_logs(folder) / name / f"{part}.json"

    def deployment(self, model: str) -> Path:
        """Speed and memory of a published architecture."""
        return self.results / "deploy" / model

    def examples(self, family: str, kind: str) -> Path:
        """Answers of a family that change, as "json" or as one picture, "png"."""
        return self.results / "examples" / f"{family}.{kind}"

    @property
    def figures(self) -> Path:
        """Directory of the figures."""
        return self.results / "figures"

    def scores(self, folder: str) -> Path:
        """Scores of a folder's models."""
        return self.results / "scores" / folder

    def outcomes(self, folder: str) -> Path:
        """Outcomes of a folder's models."""
        return self.results / "outcomes" / folder
