"""What a run's checkpoints were made with, and what may differ when it goes on.

The manifest lies beside the checkpoints. A difference that changes the result is refused in one
line; versions, processes and what is only logged may differ and are noted.
"""

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from grace import __version__
from grace.errors import InputError
from grace.files import atomic_path, read_json, write_json
from grace.training.method import MethodConfig

MANIFEST_FILE = "made_with.json"
_PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "bitsandbytes")
_SAMPLE = 2**20  # bytes of each part of a file that are hashed
_NOT_THE_RESULT = (
    "output_dir",
    "per_device_train_batch_size",  # their product is compared
    "gradient_accumulation_steps",
    "per_device_eval_batch_size",
    "prediction_loss_only",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
    "report_to",
    "run_name",
    "project",
    "disable_tqdm",
    "resume_from_checkpoint",
    "use_cpu",
    "torch_empty_cache_steps",
    "skip_memory_metrics",
    "debug",
    "include_num_input_tokens_seen",
    "include_for_metrics",
    "enable_jit_checkpoint",
    "local_rank",
    "deepspeed",
)
_NOT_THE_RESULT_FROM = (
    "eval_",
    "save_",
    "log_",
    "logging_",
    "hub_",
    "push_",
    "do_",
    "dataloader_",
    "ddp_",
    "fsdp",
    "trackio_",
    "torch_compile",
    "restore_",
    "batch_eval_",
)


def manifest(
    method: MethodConfig,
    arguments: TrainingArguments,
    *,
    model: str | Path,
    teacher: Mapping[str, Any] | None,
    data: Mapping[str, Any],
) -> dict[str, Any]:
    """What a run is made with.

    Args:
        method: Its method.
        arguments: The trainer's arguments.
        model: The student's directory.
        teacher: What identifies the teacher, such as its fingerprint and bits.
        data: What identifies the samples, such as their number and hash.

    Returns:
        ``result``: what decides the result, by name; ``noted``: what may differ.
    """
    settings = arguments.to_dict()
    free = {name: value for name, value in settings.items() if _may_differ(name)}
    result = {
        "model": fingerprint(model),
        "teacher": teacher,
        "data": dict(data),
        "method": asdict(method),
        "samples of an optimizer step": (
            arguments.per_device_train_batch_size
            * arguments.gradient_accumulation_steps
            * arguments.world_size
        ),
        "training": {name: value for name, value in settings.items() if name not in free},
    }
    noted = {"processes": arguments.world_size, "versions": versions(), "training": free}
    return plain({"result": result, "noted": noted})


def _may_differ(name: str) -> bool:
    return name in _NOT_THE_RESULT or name.startswith(_NOT_THE_RESULT_FROM)


def write_manifest(folder: Path, made_with: Mapping[str, Any]) -> None:
    """Write a manifest beside the checkpoints in a folder."""
    with atomic_path(folder / MANIFEST_FILE) as temporary:
        write_json(temporary, made_with)


def check_resume(folder: Path, made_with: Mapping[str, Any]) -> list[str]:
    """Check that checkpoints were made as this run would make them.

    Args:
        folder: Where they are.
        made_with: The run's manifest.

    Returns:
        A line for every difference that does not change the result.

    Raises:
        InputError: A difference that changes it, with both values; or no manifest.
    """
    if not (folder / MANIFEST_FILE).is_file():
        raise InputError(
            f"{folder} does not say what its checkpoints were made with ({MANIFEST_FILE} is "
            "missing); remove it and train anew"
        )
    before = read_json(folder / MANIFEST_FILE)
    for name, old, new in differences(before.get("result", {}), made_with["result"]):
        raise InputError(
            f"--resume: {name} was {old!r} when the checkpoint was made and is {new!r} now; give "
            f"the old value, or remove {folder} and train anew"
        )
    noted = differences(before.get("noted", {}), made_with["noted"])
    return [f"{name} was {old!r} and is {new!r}" for name, old, new in noted]


def differences(old: Any, new: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """The values that differ between two nested mappings: (dotted name, old, new)."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for key in dict.fromkeys((*old, *new)):
            inner = f"{name}.{key}" if name and name not in ("training", "method") else str(key)
            found += differences(old.get(key), new.get(key), inner)
        return found
    return [] if old == new else [(name, old, new)]


def fingerprint(directory: str | Path) -> str:
    """A hash of a model directory: names, sizes and samples of its files (the first, middle and
    last MiB), because whole weights take minutes to read."""
    digest = hashlib.sha256()
    for file in sorted(Path(directory).iterdir()):
        if file.suffix not in (".json", ".safetensors", ".jinja", ".model", ".txt"):
            continue
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as content:
            for start in (0, max(0, (size - _SAMPLE) // 2), max(0, size - _SAMPLE)):
                content.seek(start)
                digest.update(content.read(_SAMPLE))
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """The versions of what a run computes with."""
    found = {"grace": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def plain(value: Any) -> Any:
    """A value as JSON has it: enumerations as their values, numbers that are none as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if value is None or isinstance(value, bool | int | str):
        return value
    inner = getattr(value, "value", None)
    return inner if isinstance(inner, str) else str(value)
