"""The one way from a request to scores: benchmark by benchmark, resumable, over processes.

    accelerate launch --num_processes 8 -m replication.evaluate.parts request.json

A :class:`Request` names a model, the questions and a directory for the *parts*: what each benchmark
gave, as ``<benchmark>.json`` (score, settings, origin) and ``<benchmark>.parquet`` (an outcome per
question). A part is written when its benchmark is finished, whole or not at all, and counts while
its origin is that of the request; so an interrupted evaluation goes on with the benchmarks that are
not finished.

Every process holds the whole model and answers its share of the questions; only answers travel
between processes. With one process :func:`evaluate` does all of it in the caller's.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grace.errors import InputError
from replication.base import provenance
from replication.base.code import code_hash
from replication.base.command import command
from replication.base.files import read_json, write_json_atomic
from replication.benchmarks import BENCHMARKS, Published, Questions, Standins
from replication.evaluate.score import DTYPES, Evaluation, evaluate_model, load_directory

if TYPE_CHECKING:
    import pandas as pd

    from grace.evaluation.lmms import Share

FOREVER = timedelta(days=7)
"""How long a process waits for the others' answers: theirs may take hours longer."""

Origin = dict[str, str]
"""What a result follows from; the number of processes is no part of it."""


@cache
def _code(released: bool) -> str:
    """Hash of the code that results follow from; with what decides a released model's weights."""
    more = ("grace.export", "grace.quantization") if released else ()
    return code_hash("replication.evaluate.parts", *more)


class EvaluationError(RuntimeError):
    """The processes of an evaluation ended without a result."""


@dataclass(frozen=True)
class Request:
    """One model, the benchmarks to evaluate it on, and how.

    Attributes:
        model: Its directory.
        data: The source of the questions, by benchmark.
        parts: The directory of what is finished.
        weights: Hash of the model's files.
        batch_size: Questions that are answered at once.
        max_new_tokens: Upper bound of an answer's length.
        dtype: The weights' type, of :data:`replication.evaluate.score.DTYPES`.
        cache: Where `datasets` keeps its tables; None for nowhere.
        processor: The directory of the processor, where it is another.
        released: None for a directory as save_pretrained writes it, or the arguments of
            `grace.export.load_released`.
        device: "auto" is the accelerator if there is one.
        limit: Only the first so many questions of each benchmark.
        together: Whether all benchmarks are asked in one go, with fuller batches, instead of one
            after the other, so that more is kept after an interruption.
        inputs: The folder through which models of one tower share their inputs; None for none.
    """

    model: str
    data: dict[str, Questions]
    parts: str
    weights: str
    batch_size: int
    max_new_tokens: int
    dtype: str
    cache: str | None = None
    processor: str | None = None
    released: dict[str, Any] | None = None
    device: str = "auto"
    limit: int | None = None
    together: bool = False
    inputs: str | None = None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Request":
        data = {
            name: Published.from_dict(source) if "folder" in source else Standins(**source)
            for name, source in content["data"].items()
        }
        return cls(**{**content, "data": data})

    def origin(self, benchmark: str) -> Origin:
        """What the result on a benchmark follows from."""
        return {
            **self.shared_origin,
            "questions": self.data[benchmark].digest,
            "official_task": BENCHMARKS[benchmark].sha256(),
        }

    @cached_property
    def shared_origin(self) -> Origin:
        """What the results on all benchmarks follow from."""
        settings = (self.batch_size, self.max_new_tokens, self.dtype, self.limit)
        return {
            "weights": self.weights,
            "released": json.dumps(self.released, sort_keys=True),
            "settings": json.dumps(settings),
            "versions": json.dumps(provenance.library_versions(), sort_keys=True),
            "code": _code(self.released is not None),
        }


@dataclass(frozen=True)
class Part:
    """What one benchmark gave.

    Attributes:
        score: Its entry of a score file.
        settings: How the model was asked.
        data: Repository and commit of published questions; None for stand-ins.
        origin: What the part follows from.
        outcomes: One row per question.
    """

    score: dict[str, Any]
    settings: dict[str, Any]
    data: dict[str, Any] | None
    origin: Origin
    outcomes: "pd.DataFrame"


def _read(file: Path) -> Part | None:
    """A part from its record; None where it is not whole."""
    import pandas as pd

    try:
        record, outcomes = read_json(file), file.with_suffix(".parquet")
        if hashlib.sha256(outcomes.read_bytes()).hexdigest() != record.pop("outcomes"):
            return None
        return Part(**record, outcomes=pd.read_parquet(outcomes))
    except (InputError, OSError, KeyError, TypeError, AttributeError):
        return None


def read_part(request: Request, benchmark: str) -> Part | None:
    """A finished benchmark, or None if there is none of the request's origin."""
    part = _read(Path(request.parts) / f"{benchmark}.json")
    return part if part is not None and part.origin == request.origin(benchmark) else None


def earlier_parts(request: Request) -> dict[str, Part]:
    """Finished benchmarks of the request's model, settings and code, those it does not ask for
    included."""

    parts = {file.stem: _read(file) for file in sorted(Path(request.parts).glob("*.json"))}
    shared = request.shared_origin.items()
    return {name: part for name, part in parts.items() if part and shared <= part.origin.items()}


def write_part(request: Request, benchmark: str, evaluation: Evaluation, processes: int) -> None:
    """Keep a finished benchmark; the record comes last and names the outcomes by their hash."""
    file = Path(request.parts) / f"{benchmark}.json"
    outcomes = file.with_suffix(".parquet")
    rows = evaluation.outcomes
    own = rows[rows["benchmark"] == benchmark].reset_index(drop=True)
    replace(evaluation, outcomes=own).write_outcomes(outcomes)
    source = request.data[benchmark]
    record = {
        "score": evaluation.scores[benchmark],
        "settings": {**evaluation.settings, "processes": processes},
        "data": {"repository": source.repository, "commit": source.commit}
        if isinstance(source, Published)
        else None,
        "origin": request.origin(benchmark),
        "outcomes": hashlib.sha256(outcomes.read_bytes()).hexdigest(),
    }
    write_json_atomic(file, record)


def open_benchmarks(request: Request) -> list[str]:
    """The benchmarks that are not finished."""
    return [name for name in request.data if read_part(request, name) is None]


def evaluate(request: Request, processes: int = 1) -> dict[str, Part]:
    """Evaluate what is not finished and return all parts, in the order of the request.

    Args:
        request: What to evaluate.
        processes: Of this machine; more than one are started through ``accelerate launch``.

    Raises:
        InputError: For bad input.
        EvaluationError: If a process fails.
    """
    if open_benchmarks(request):
        if processes == 1:
            from grace.evaluation.lmms import Share

            run(request, Share())
        else:
            _launch(request, processes)
    parts = {}
    for name in request.data:
        part = read_part(request, name)
        if part is None:
            raise EvaluationError(f"{request.model}: no result on {name} was written")
        parts[name] = part
    return parts


def count_processes(processes: int | str) -> int:
    """`processes`, or for "all" one per accelerator of this machine and at least one."""
    import torch

    return max(1, torch.cuda.device_count()) if processes == "all" else int(processes)


def _launch(request: Request, processes: int) -> None:
    with tempfile.TemporaryDirectory(prefix="evaluation-") as folder:
        file = write_json_atomic(Path(folder) / "request.json", asdict(request))
        # --multi_gpu is what starts several processes at all, on a machine without GPUs too
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
        options = {
            "num_processes": processes,
            "num_machines": 1,
            "num_cpu_threads_per_process": max(1, (os.cpu_count() or 1) // processes),
            "mixed_precision": "no",
            "dynamo_backend": "no",
            "main_process_port": 0,
        }
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        module = ["-m", "replication.evaluate.parts", str(file), str(processes)]
        code = subprocess.call([*launch, *words, *module])
    if code:
        raise EvaluationError(
            f"{request.model}: a process of the evaluation failed, see above; what was finished is "
            "kept, run it again"
        )


def run(request: Request, share: "Share") -> None:
    """Evaluate, as one of the processes of `share`, what is not finished."""
    # one process says what is left: another may look after a part was written
    names = share.gather(open_benchmarks(request))[0]
    if not names:
        return
    model, processor = load(request)
    for group in [names] if request.together else [[name] for name in names]:
        evaluation = evaluate_model(
            model,
            group,
            request.data,
            processor=processor,
            batch_size=request.batch_size,
            max_new_tokens=request.max_new_tokens,
            dtype=request.dtype,
            limit=request.limit,
            cache=request.cache,
            share=share,
            inputs=request.inputs,
        )
        if share.rank == 0:
            for name in group:
                write_part(request, name, evaluation, share.world)
                value = evaluation.scores[name]["score"]
                if not request.together:  # that is hours in between
                    print(f"{request.model}: {name} {value:.2f}", file=sys.stderr, flush=True)


def load(request: Request) -> tuple[Any, Any]:
    """The request's (model, processor) on this process's device."""
    import torch

    device = request.device
    if device == "auto":
        local = os.environ.get("LOCAL_RANK", "0")
        device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    dtype, elsewhere = DTYPES[request.dtype], Path(request.processor or request.model)
    if request.released is None:
        return load_directory(
            Path(request.model), dtype=dtype, device=device, processor_path=elsewhere
        )
    from grace.export import load_released
    from grace.models import load_processor
    from grace.quantization import bake

    model: Any = load_released(Path(request.model), dtype=dtype, **request.released)
    bake(model)  # the weights as they are, without rounding them again at every step
    return model.to(dtype).to(torch.device(device)), load_processor(elsewhere)


@contextmanager
def _process_group() -> Iterator["Share"]:
    """The share that the launcher's environment gives. Objects travel through gloo: they are few,
    and no process may give up while another is still answering."""
    import torch
    import torch.distributed as dist

    from grace.evaluation.lmms import Share

    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Share()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("gloo", timeout=FOREVER)
    try:
        yield Share(dist.get_rank(), world)
    finally:
        dist.destroy_process_group()


@command
def main() -> None:
    request = Request.from_dict(read_json(sys.argv[1]))
    with _process_group() as share:
        if sys.argv[2:] and share.world != int(sys.argv[2]):
            raise InputError(
                f"the launcher started {share.world} processes instead of {sys.argv[2]}"
            )
        run(request, share)


if __name__ == "__main__":
    sys.exit(main())
