"""Models on the Hugging Face hub as local directories."""

from collections.abc import Sequence
from pathlib import Path

from grace.errors import InputError, one_line

TIMEOUT = 10
"""Seconds in which the hub has to answer."""
_SMALL = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
_WEIGHTS = ("*.safetensors",)
_IGNORED = ("consolidated*", "original/*", "onnx/*")  # the same weights in other formats


def model_directory(path: str | Path, *, weights: bool = True, also: Sequence[str] = ()) -> Path:
    """The local directory of a model; a hub name is fetched, or found in the hub's cache.

    Example::

        model_directory("students/mine")                            # the same
        model_directory("Qwen/Qwen2-VL-2B-Instruct", weights=False) # its configuration, tokenizer

    Args:
        path: A directory or, unless it is a ``Path``, a hub name (``owner/name``).
        weights: Whether weights are fetched, too.
        also: Patterns of further files to fetch.

    Raises:
        InputError: Nothing is there, or the hub gives nothing and its cache has nothing.
    """
    directory = Path(path)
    if directory.exists():
        return directory
    if isinstance(path, str) and _is_hub_name(path):
        return _snapshot(path, [*_SMALL, *(_WEIGHTS if weights else ()), *also])
    raise InputError(f"model directory {str(path)!r} does not exist; build it or correct the path")


def _is_hub_name(path: str) -> bool:
    return path.count("/") == 1 and not path.startswith(".") and not Path(path).parent.exists()


def _snapshot(name: str, patterns: list[str]) -> Path:
    """What the hub has of a repository; where it does not answer, what its cache has."""
    from huggingface_hub import HfApi, snapshot_download

    failure: Exception | None = None
    try:  # without this, an unreachable hub is asked for every file anew, for minutes
        HfApi().model_info(name, timeout=TIMEOUT)
    except Exception as error:  # offline, missing, private: each has a type of its own
        failure = error
    try:
        return Path(
            snapshot_download(
                name,
                allow_patterns=patterns,
                ignore_patterns=list(_IGNORED),
                local_files_only=failure is not None,
            )
        )
    except Exception as error:
        raise InputError(f"cannot fetch {name!r}: {_reason(failure or error)}") from error


def _reason(error: Exception) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    if isinstance(error, OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set, and {constants.HF_HUB_CACHE} does not have it"
    if isinstance(error, GatedRepoError):
        return "its licence has to be accepted on the hub first; then log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return (
            "no such directory, and no such model on the hub; correct the name, or log in with "
            "`hf auth login` if it is private"
        )
    text = one_line(error, 200)
    return f"{constants.ENDPOINT} does not answer as it should ({text}); give a directory"
