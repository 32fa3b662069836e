"""Repositories of the Hugging Face hub as directories: in a mirror, in the hub's cache, or fetched.

A mirror is a directory laid out as the hub's cache (``models--<owner>--<name>/snapshots/<commit>``,
as ``HF_HOME/hub`` is), or one that holds plain copies as ``<owner>/<name>``. With a mirror the
network is never asked.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grace.errors import InputError, one_line
from replication.base.messages import no_space

KINDS = {"model": "models", "dataset": "datasets"}


def cached(repository: str, kind: str, mirror: Path | None = None) -> Path | None:
    """The directory of a repository, without the network.

    Args:
        repository: ``<owner>/<name>``.
        kind: "model" or "dataset".
        mirror: where to look; default: the hub's own cache, which HF_HUB_CACHE or HF_HOME names.

    Returns:
        The directory, or None if it is not there.

    Raises:
        InputError: for a mirror that does not exist, or several snapshots without a main one.
    """
    from huggingface_hub import constants

    if mirror is None:
        places = [Path(constants.HF_HUB_CACHE)]
    elif not mirror.is_dir():
        raise InputError(f"mirror {str(mirror)!r} does not exist; correct the path")
    else:
        places = [mirror, mirror / "hub"]
        if (mirror / repository).is_dir():
            return mirror / repository
    for place in places:
        folder = place / f"{KINDS[kind]}--{repository.replace('/', '--')}"
        snapshots = sorted((folder / "snapshots").glob("*/"))
        main = folder / "refs" / "main"
        if main.is_file():
            commit = main.read_text().strip()
            snapshots = [snapshot for snapshot in snapshots if snapshot.name == commit]
        if len(snapshots) > 1:
            raise InputError(
                f"{folder} has {len(snapshots)} snapshots and no refs/main that says which is "
                "meant; keep one"
            )
        if snapshots:
            return snapshots[0]
    return None


def is_mirror(folder: Path) -> bool:
    """Whether a directory holds any repository, in either layout."""
    cached = (any(place.glob("*--*--*/snapshots")) for place in (folder, folder / "hub"))
    return any(cached) or any(path.is_dir() for path in folder.glob("[!.]*/*/"))


def online(mirror: Path | None = None) -> bool:
    """Whether the hub may be asked: without a mirror, and unless HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    return mirror is None and not constants.HF_HUB_OFFLINE


def fetch(
    repository: str,
    kind: str,
    patterns: Sequence[str] | None = None,
    folder: Path | None = None,
    instead: str = "give a mirror",
) -> Path:
    """Download a repository; what is there already is not downloaded again.

    Args:
        repository: ``<owner>/<name>``.
        kind: "model" or "dataset".
        patterns: of the files to download; default: all.
        folder: where to; default: the hub's cache.
        instead: for the error message, what helps where there is no network.

    Returns:
        The directory of the files.

    Raises:
        InputError: with the reason, if it cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    allowed = None if patterns is None else list(patterns)
    with asking(repository, instead):
        return Path(
            snapshot_download(repository, repo_type=kind, allow_patterns=allowed, local_dir=folder)
        )


@contextmanager
def asking(repository: str, instead: str = "give a mirror") -> Iterator[None]:
    """Whatever goes wrong in this block with asking the hub for a repository is one clear error.

    Raises:
        InputError: with the reason.
    """
    try:
        yield
    except Exception as error:  # offline, missing, gated: each has a type of its own
        if isinstance(error, OSError) and no_space(error):
            raise
        raise InputError(
            f"{repository!r} cannot be fetched from the hub ({one_line(error, 300)}); check the "
            f"name and the network, or {instead}"
        ) from error


def missing(repository: str, mirror: Path | None) -> str:
    """The error message for a repository that is not there, where the hub may not be asked."""
    from huggingface_hub import constants

    where = f"mirror {str(mirror)!r}" if mirror else f"the hub's cache {constants.HF_HUB_CACHE!r}"
    return (
        f"{repository!r} is not in {where}, and the hub is not asked; put its snapshot there, or "
        "run with HF_HUB_OFFLINE=0 and without a mirror"
    )


def commit_of(directory: Path) -> str | None:
    """The commit of a snapshot in the hub's cache; None for a plain directory."""
    return directory.name if directory.parent.name == "snapshots" else None


def front_matter(readme: str) -> dict[str, Any]:
    """The YAML between the ``---`` lines at the head of a README.md; {} where there is none."""
    import yaml

    block = re.match(r"\s*---\n(.*?)\n---\s*(\n|$)", readme.replace("\r\n", "\n"), re.DOTALL)
    content = yaml.safe_load(block[1]) if block else None
    return content if isinstance(content, dict) else {}
