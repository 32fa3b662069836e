"""Where every stage reads and writes, relative to the directory that holds ``params.yaml``."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from grace.errors import InputError
from replication.settings.schema import REGIMES, Group, Params, Run, section


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


def teacher_outputs_of(params: Params, group: Group, run: Run) -> Path:
    """Directory of the outputs that a run is taught by: those of the pair, or a set of the map's
    own where the teacher or the data are others; of self-distillation, those of the baseline. Runs
    that ask the same share it."""
    layout, portion = Layout(params), params.portion_of(group)
    if run.method == "qad":
        return layout.baseline_outputs(group.pair)
    pair = section(params.regimes, REGIMES).pair if group.pair == REGIMES else group.pair
    teacher = params.model_of(group, "teacher")
    if teacher == (pair, "teacher") and portion == section(params.methods, "methods")[pair]:
        return layout.teacher_outputs(pair)
    rows: list[object] = [*portion.records] if portion.records else ["all"]
    return layout.teacher_outputs(REGIMES) / "-".join(map(str, [*teacher, *rows, portion.labels]))


class Layout:
    """Paths of one scale's data, models and results.

    Models lie in folders: a pair's own holds its teacher and baseline, the folder "regimes" the
    map's further ones, and a group of runs has one of its own.

    Args:
        params: all parameters.
        folder: the pair, or other folder of models, whose world's conversations and questions are
            meant; by default those of the first.
    """

    def __init__(self, params: Params, folder: str | None = None) -> None:
        self._world = "first" if folder is None else params.pair(params.pair_of(folder)).world
        self.data = Path("data") / params.scale
        self.models = Path("models") / params.scale
        self.results = Path("results") / params.scale
        self.recorded = Path("recorded")

    def world(self, name: str) -> Path:
        """Directory of a world: its training conversations and evaluation sets."""
        first = self.data / "standins"
        return first if name == "first" else first / name

    @property
    def benchmarks(self) -> Path:
        """Directory of the evaluation sets."""
        return self.world(self._world)

    @property
    def conversations(self) -> Path:
        """Training conversations."""
        return self.benchmarks / "train.parquet"

    @property
    def published(self) -> Path:
        """Directory of the published training conversations, which ``conversations`` wrote."""
        return self.data / "conversations"

    @property
    def texts(self) -> Path:
        """Conversations without images, which decoders learn first."""
        return self.benchmarks / "language.parquet"

    def processor(self, pair: str) -> Path:
        """Tokenizer, image processor and chat template, by the pair that has them."""
        return self.models / pair / "processor"

    def vision(self, pair: str) -> Path:
        """Weights of a pretrained vision tower, by the pair that has it."""
        return self.models / pair / "vision.safetensors"

    def features(self, pair: str) -> Path:
        """Frozen vision features of the training images, by the pair that has the tower."""
        return self.data / pair / "features.npy"

    def teacher_outputs(self, pair: str) -> Path:
        """Directory of the outputs of a pair's teacher on the methods' data; of the pair "regimes"
        one for each set that a group asks for."""
        return self.data / pair / "teacher_outputs"

    def baseline_outputs(self, pair: str) -> Path:
        """Directory of the outputs of a pair's baseline on the methods' data."""
        return self.teacher_outputs(pair) / "baseline"

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
