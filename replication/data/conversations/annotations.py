"""Annotation files: JSON arrays of conversations, found on disk or on the hub, and read as streams.

The published files have more than a gigabyte. Only one record is held at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grace.data.json_source import elements
from grace.errors import InputError
from grace.files import file_sha256


@dataclass(frozen=True)
class AnnotationFile:
    """One annotation file on disk.

    Attributes:
        name: as given in the parameters.
        path: where it lies.
        repository: the hub's data set it was taken from; None for a local file.
        sha256: of its bytes.
    """

    name: str
    path: Path
    repository: str | None
    sha256: str


def find_annotations(
    name: str, repository: str | None = None, revision: str | None = None
) -> AnnotationFile:
    """The file of this name: a local path if there is such a file, else one of the repository.

    Raises:
        InputError: when neither can be had.
    """
    local = Path(name)
    if local.is_file():
        return AnnotationFile(name, local, None, file_sha256(local))
    if repository is None or local.is_absolute():
        raise InputError(
            f"annotation file {name!r} does not exist; correct data.training.files, or name the "
            "hub's data set in data.training.repository"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        path = Path(hf_hub_download(repository, name, repo_type="dataset", revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        at = "" if revision is None else f" at revision {revision!r}"
        raise InputError(
            f"annotation file {name!r} of the data set {repository!r}{at} cannot be downloaded "
            f"({reason}); check the name and the network, or put the path of a local copy into "
            "data.training.files"
        ) from error
    return AnnotationFile(name, path, repository, file_sha256(path))


def read_records(path: Path) -> Iterator[Any]:
    """The elements of a JSON array, one by one.

    Raises:
        InputError: when the file cannot be read or is not a JSON array, naming the record at which
            it ends to be one.
    """
    try:
        for _, _, value in elements(path):
            yield value
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"annotation file {str(path)!r} cannot be read ({error}); download it again"
        ) from error
