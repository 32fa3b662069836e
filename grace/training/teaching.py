"""The teacher of a run: checked before weights are loaded, then alive, sharded or read back."""

import shutil
from pathlib import Path
from typing import Any

from accelerate.utils import send_to_device
from torch.utils.data import DataLoader
from tqdm import tqdm

from grace.data import Collator
from grace.errors import InputError
from grace.files import read_json
from grace.training.arguments import Options
from grace.training.cached_teacher import CachedTeacher, write_teacher_outputs
from grace.training.checks import Source, say
from grace.training.conversations import Conversations
from grace.training.distributed import under_fsdp
from grace.training.manifest import (
    MANIFEST_FILE,
    differences,
    fingerprint,
    write_manifest,
)
from grace.training.method import MethodConfig
from grace.training.teacher import LiveTeacher, Teacher, check_bits, check_teacher, load_teacher


def check_teacher_options(options: Options, method: MethodConfig) -> None:
    """Check that the options of the teacher go together.

    Raises:
        InputError: They do not.
    """
    given, name = options.model, method.method
    if name == "qad" and given.teacher is not None:
        raise InputError("--method qad takes no --teacher: it is the student's own weights")
    if name != "qad" and method.needs_teacher != (given.teacher is not None):
        needs = "needs" if method.needs_teacher else "takes no"
        raise InputError(f"--method {name} {needs} --teacher")
    check_bits(given.teacher_bits)
    sharded = under_fsdp(options.trainer)
    if given.teacher_sharded and not sharded:
        raise InputError("--teacher_sharded shards as FSDP2 does; start the run with FSDP")
    if given.teacher_sharded and given.teacher_outputs is not None:
        raise InputError("--teacher_sharded and --teacher_outputs do not go together")


def read_teacher(options: Options, student: Source) -> Source | None:
    """The teacher's configuration and processor; None without a teacher.

    Raises:
        InputError: It cannot teach this student.
    """
    if options.method.method == "qad":
        return student
    if options.model.teacher is None:
        return None
    say(f"reading the configuration and processor of {options.model.teacher}")
    teacher = Source.read(options.model.teacher, student=False)
    check_teacher(student.identity, teacher.identity)
    return teacher


def teacher_identity(options: Options, teacher: Source | None) -> dict[str, Any] | None:
    """What of a teacher decides the result."""
    if teacher is None:
        return None
    return {"files": fingerprint(teacher.directory), "bits": options.model.teacher_bits}


def outputs_manifest(
    identity: dict[str, Any] | None, data: Conversations, method: MethodConfig
) -> dict[str, Any]:
    """What cached outputs of a teacher follow from."""
    result = {"teacher": identity, "data": data.full.sha256, "relational": method.relational}
    return {"result": result, "noted": {}}


def check_outputs(options: Options, made_with: dict[str, Any]) -> None:
    """Check a directory of outputs that is there already.

    Raises:
        InputError: It holds those of another teacher or of other data.
    """
    folder = options.model.teacher_outputs
    if folder is None or not (Path(folder) / MANIFEST_FILE).is_file():
        return
    before = read_json(Path(folder) / MANIFEST_FILE).get("result", {})
    for name, old, new in differences(before, made_with["result"]):
        if name == "relational" and old:
            continue  # more is there than is read
        raise InputError(
            f"--teacher_outputs {folder}: {name} was {old!r} when they were computed and is "
            f"{new!r} now; name another directory, or remove this one"
        )


def make_teacher(
    options: Options,
    source: Source | None,
    method: MethodConfig,
    data: Conversations,
    collate: Collator,
) -> Teacher | None:
    """The teacher with its weights: on this process's device, sharded over all, or read back.

    Raises:
        InputError: Outputs that are to be kept need more room than there is.
    """
    if source is None:
        return None
    folder = options.model.teacher_outputs
    if folder is None:
        return _live(options, source, method)
    with options.trainer.main_process_first(desc="teacher outputs"):
        if not (Path(folder) / "meta.json").is_file():
            _check_room(Path(folder), source, data)
            _compute(options, _live(options, source, method), data, collate)
            made_with = outputs_manifest(teacher_identity(options, source), data, method)
            write_manifest(Path(folder), made_with)
    say(f"reading the teacher's outputs in {folder}")
    return CachedTeacher(folder, samples=len(data.full))


def _live(options: Options, source: Source, method: MethodConfig) -> LiveTeacher:
    given = options.model
    say(f"loading the teacher {source.name} in {given.teacher_bits} bits")
    return load_teacher(
        source.name,
        source.processor,
        relational=method.relational,
        bits=given.teacher_bits,
        sharded=given.teacher_sharded,
        device=options.trainer.device,
    )


def _check_room(folder: Path, source: Source, data: Conversations) -> None:
    rows = source.config.get_text_config().vocab_size
    needed = 2 * rows * sum(data.full.supervised)
    place = next(path for path in folder.absolute().parents if path.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise InputError(
            f"--teacher_outputs {folder}: the logits need {needed / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB are free; leave it out, so that the teacher answers in "
            "training"
        )


def _compute(
    options: Options, teacher: LiveTeacher, data: Conversations, collate: Collator
) -> None:
    folder, arguments = options.model.teacher_outputs, options.trainer
    assert folder is not None
    loader = DataLoader(
        data.full,
        batch_size=arguments.per_device_eval_batch_size,
        collate_fn=collate,
        num_workers=arguments.dataloader_num_workers or 0,
    )
    say(f"computing the teacher's outputs for {len(data.full)} samples into {folder}")
    progress = tqdm(loader, desc="teacher outputs", disable=arguments.disable_tqdm)
    batches = (send_to_device(batch, arguments.device) for batch in progress)
    write_teacher_outputs(teacher, batches, folder, lengths=data.full.supervised)
