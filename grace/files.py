"""Files and directories: written whole or not at all, read with errors that name the file."""

import hashlib
import json
import os
import re
import reprlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from grace.errors import InputError, one_line


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary name beside a file, renamed to it when the block ends without an exception.

    On any exception the temporary file is removed and whatever was at ``path`` stays as it was.
    The content is on the disk before it gets its name: a full disk or quota is an error here, and
    never a shorter file.

    Args:
        path: The file's final name. Folders that are missing are created.

    Yields:
        The temporary name, of an empty file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _allow(temporary, 0o666)
        _synchronise(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: str | Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary directory, renamed to ``path`` when the block ends without an exception.

    On any exception the temporary directory is removed and whatever was at ``path`` stays as it
    was. Every file is on the disk before the directory gets its name.

    Args:
        path: The final name. Folders above it that are missing are created.
        overwrite: Replace a model directory that is there already.

    Yields:
        The temporary directory, empty, beside ``path``.

    Raises:
        InputError: as :func:`check_target`.
    """
    path = Path(path)
    check_target(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        _allow(temporary, 0o777)
        for file in temporary.rglob("*"):
            _allow(file, 0o666 if file.is_file() else 0o777)  # safetensors writes for the owner
            if file.is_file():
                _synchronise(file)
        _replace_directory(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_target(path: Path, *, overwrite: bool) -> None:
    """Check that :func:`atomic_directory` may write a directory, before long work starts.

    Raises:
        InputError: where something is at ``path`` already; with ``overwrite``, where that is no
            model directory (nothing else is ever replaced).
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise InputError(f"{path} exists: name another directory, or pass overwrite=True")
    if not (path.is_dir() and (path / "config.json").is_file()):
        raise InputError(f"{path} is no model directory: it is not overwritten; name another")


def check_free(path: str | Path, *, overwrite: bool) -> None:
    """:func:`check_target` for a command's option, whose messages name the flag; and whether its
    place can be written.

    Raises:
        InputError: as :func:`check_target`, and where the folder above cannot be written.
    """
    path = Path(path)
    try:
        check_target(path, overwrite=overwrite)
    except InputError as error:
        raise InputError(str(error).replace("pass overwrite=True", "pass --overwrite")) from error
    place = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise InputError(
            f"{path}: {place} cannot be written ({error.strerror}); name another directory"
        ) from error


def _allow(path: Path, mode: int) -> None:
    """Give a temporary name the permissions that the process's umask leaves of ``mode``."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(mode & ~umask)


def _synchronise(file: Path) -> None:
    with file.open("rb") as content:
        os.fsync(content.fileno())


def _replace_directory(temporary: Path, path: Path) -> None:
    if not path.exists():
        temporary.rename(path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
    path.rename(old)  # onto an empty directory
    try:
        temporary.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old)


def write_json(path: Path, value: Any) -> None:
    """Write JSON; whoever calls this writes into a directory that is renamed at the end."""
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: naming the file, if it is missing or holds anything else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); write it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not an object; write it again")
    return content


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        InputError: naming the file, and the line where there is one: a file that cannot be read,
            bad YAML, a key that appears twice, or anything but a mapping at the top.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{str(path)!r} cannot be read ({reason})") from error
    content = parse_yaml(text, repr(str(path)))
    if not isinstance(content, dict):
        raise InputError(f"{str(path)!r} holds {reprlib.repr(content)}, not a mapping")
    return content


def parse_yaml(text: str, where: str) -> Any:
    """The content of a YAML text.

    Args:
        text: One document.
        where: What the text is, for error messages.

    Raises:
        InputError: for bad YAML, or a key that appears twice.
    """
    try:
        return yaml.load(text, Loader=_UniqueKeys)  # noqa: S506  # a safe loader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f", line {mark.line + 1}"
        reason = " ".join((error.problem or str(error)).split())
        raise InputError(f"{where}{line}: not valid YAML ({reason})") from error
    except InputError as error:
        raise InputError(f"{where}, {error}") from error
    except Exception as error:  # the library's constructors fail with types of their own
        reason = one_line(error)
        raise InputError(f"{where}: not valid YAML ({reason})") from error


class _UniqueKeys(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe loading in which a key that appears twice is an error, not a silent replacement."""


def _unique_mapping(loader: Any, node: Any) -> dict[Any, Any]:
    keys = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":  # "<<": its keys may be replaced
            continue
        line = key_node.start_mark.line + 1
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | None):
            named = reprlib.repr(key)
            raise InputError(f"line {line}: the key {named} is no text; put it in quotes")
        if key in keys:
            raise InputError(f"line {line}: the key {reprlib.repr(key)} appears twice; remove one")
        keys.add(key)
    loader.flatten_mapping(node)
    return {
        loader.construct_object(key, deep=True): loader.construct_object(value, deep=True)
        for key, value in node.value
    }


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


@contextmanager
def open_tensors(file: str | Path) -> Iterator[Any]:
    """A safetensors file, opened for reading on the CPU: ``keys()``, ``get_tensor(name)``, ...

    Raises:
        InputError: naming the file, for one that is missing, corrupt or truncated, also where only
            reading a tensor in the block shows it.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt", device="cpu") as content:
            yield content
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{file}: corrupt or truncated ({error}); write or fetch it again"
        ) from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file; a large one in the hub's cache has it for a name."""
    blob = path.resolve()
    if blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return blob.name
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def directory_sha256(directory: Path, leave_out: Sequence[str] = ()) -> str:
    """SHA-256 of the names and contents of a directory's own files."""
    digest = hashlib.sha256()
    for file in sorted(directory.iterdir()):
        if file.is_file() and file.name not in leave_out:
            digest.update(f"{file.name}\0{file_sha256(file)}\n".encode())
    return digest.hexdigest()
