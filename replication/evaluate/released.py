"""Released checkpoints: found, evaluated on published data, and their results written.

Results lie under ``<results>/paper`` in the layout of :mod:`replication.results.scores`, a run for
a checkpoint. What was measured before and follows from the same weights, settings and code stays in
them when other benchmarks are added.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grace.errors import InputError
from replication.base import hub
from replication.base.scales import FULL_SCALE
from replication.benchmarks import BENCHMARKS, Published
from replication.benchmarks.published import prepare
from replication.evaluate.parts import EvaluationError, Request
from replication.evaluate.results import PARAMETERS, Job, Place, evaluate_job
from replication.evaluate.score import evaluation_dtype
from replication.paper.released import Checkpoint, Files, find_files
from replication.settings.schema import Params, section


@dataclass(frozen=True)
class Places:
    """Where things are read from and written to.

    Attributes:
        results: The directory of the results.
        path: A directory of checkpoints, or one checkpoint.
        mirror: A directory laid out as the hub's cache, where checkpoints and data are looked for.
        data: What is made of published data.
        parts: Finished benchmarks.
    """

    results: Path
    path: Path | None = None
    mirror: Path | None = None
    data: Path = Path("data") / FULL_SCALE / "benchmarks"
    parts: Path = Path("models") / ".released"


@dataclass(frozen=True)
class Attempt:
    """What came of one checkpoint.

    Attributes:
        checkpoint: The checkpoint.
        directory: Where it was found; None if it could not be evaluated.
        missing: Why a benchmark was not run, by benchmark, and under "" why none was.
    """

    checkpoint: Checkpoint
    directory: Path | None = None
    missing: dict[str, str] = field(default_factory=dict)


def prepare_data(
    names: Iterable[str], params: Params, places: Places
) -> tuple[dict[str, Published], dict[str, str]]:
    """The published data that can be had, and the reasons for those that cannot."""
    sources = section(params.data, "data").benchmarks
    data, missing = {}, {}
    for name in names:
        try:
            data[name] = prepare(BENCHMARKS[name], sources[name], places.data, places.mirror)
        except InputError as error:
            missing[name] = str(error)
    return data, missing


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    data: Mapping[str, Published],
    params: Params,
    places: Places,
    *,
    processes: int = 1,
    device: str = "auto",
) -> Attempt:
    """Evaluate a checkpoint on data and write its results; a failure is a reason, no exception."""
    import torch

    try:
        files = find_files(checkpoint, places.path, places.mirror)
        if data:
            request = _request(checkpoint, files, data, params, places, device=device)
            command = f"python -m replication.released --models {checkpoint.name}"
            of_checkpoint = {
                "repository": checkpoint.repository,
                "commit": hub.commit_of(files.model),
                "sha256": request.weights,
            }
            evaluate_job(
                _job(checkpoint, files),
                {0: request},
                Place(places.results, FULL_SCALE, command, params.subset(*PARAMETERS)),
                processes=processes,
                add=True,
                extra={"checkpoint": of_checkpoint},
            )
    except (InputError, EvaluationError, MemoryError, torch.OutOfMemoryError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        return Attempt(checkpoint, missing={"": reason})
    return Attempt(checkpoint, files.model)


def _job(checkpoint: Checkpoint, files: Files) -> Job:
    family, name = checkpoint.family, checkpoint.name
    return Job(family, family, family, "first", name, "grace", checkpoint.bits, {0: files.model})


def _request(
    checkpoint: Checkpoint,
    files: Files,
    data: Mapping[str, Published],
    params: Params,
    places: Places,
    *,
    device: str,
) -> Request:
    released: dict[str, Any] | None = None
    if checkpoint.format == "released":
        released = {"bits": checkpoint.bits, "base": str(files.base) if files.base else None}
    return Request(
        model=str(files.model),
        processor=str(files.processor),
        released=released,
        data=dict(data),
        parts=str(places.parts / checkpoint.name),
        cache=str(places.data / "tables"),
        weights=files.sha256(),
        batch_size=params.evaluate.batch_size,
        max_new_tokens=params.evaluate.max_new_tokens,
        dtype=evaluation_dtype(params.evaluate.dtype),
        device=device,
    )
