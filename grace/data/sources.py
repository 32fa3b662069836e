"""Where records come from: files, folders, data sets of the hub and of the library ``datasets``.

Whatever it is, records are read one by one, by position. JSON files and Arrow files are mapped into
memory, small parquet files are read into it, and large ones are converted once by ``datasets``,
which keeps the result in its cache. Images are never decoded here.
"""

import atexit
import json
import re
import shutil
import tempfile
import warnings
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from grace.data.json_source import JsonFile
from grace.data.records import COLUMNS, OTHER_MEDIA
from grace.errors import InputError, one_line

SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet", ".arrow")
"""Names of data files end with one of these."""
_IN_MEMORY = 256 * 2**20  # bytes of parquet files that are read whole
_ROWS = 64  # of a large parquet file that are converted at once: images of 30 MB fit
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class Part(Protocol):
    """Some of the records, by position; it is pickled without its content."""

    def __len__(self) -> int: ...
    def __getitem__(self, position: int) -> Mapping[str, Any]: ...


class Records:
    """The records of one source or several, as they are stored.

    ::

        records = open_records(["a.jsonl", "b.parquet"])
        records[0]["conversations"]

    Attributes:
        name: The sources, for messages.
        fingerprint: Changes when a file or data set does.
    """

    def __init__(self, name: str, parts: Sequence[tuple[Part, Path | None, Any]]) -> None:
        self.name = name
        self._parts = [part for part, _, _ in parts]
        self._folders = [folder for _, folder, _ in parts]
        self._ends = list(accumulate(len(part) for part in self._parts))
        self.fingerprint = json.dumps([mark for _, _, mark in parts])
        if len(self) == 0:
            raise InputError(f"{name} has no records; build it again, or name another")

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, position: int) -> Mapping[str, Any]:
        part, row = self._find(position)
        return self._parts[part][row]

    def _find(self, position: int) -> tuple[int, int]:
        """The part that holds a record, and the record's row in it."""
        part = bisect_right(self._ends, position)
        return part, position - (self._ends[part - 1] if part else 0)

    def images(self, position: int) -> Mapping[str, Any] | None:
        """The columns of images of a record alone; None where its part cannot tell them apart."""
        part, row = self._find(position)
        rows = self._parts[part]
        return rows.images(row) if isinstance(rows, ArrowRows) else None

    def folder(self, position: int) -> Path | None:
        """The folder of a record's file; None for a data set that the user made."""
        return self._folders[self._find(position)[0]]


def open_records(source: Any, split: str = "train") -> Records:
    """The records of a source.

    Args:
        source: A path, several, a folder, a directory or a hub name of ``datasets``, or a
            ``datasets.Dataset``.
        split: Which one is taken of data that have several.

    Raises:
        InputError: It is missing, unreadable or empty, or holds no conversations.
    """
    several = isinstance(source, list | tuple)
    parts = [part for one in (source if several else [source]) for part in _open(one, split)]
    named = [repr(str(one)) for one in source] if several else [_name(source)]
    return Records(", ".join(named), parts)


def _name(source: Any) -> str:
    return repr(str(source)) if isinstance(source, str | Path) else f"the {type(source).__name__}"


def _open(source: Any, split: str) -> list[tuple[Part, Path | None, Any]]:
    if not isinstance(source, str | Path):
        data = _split(source, split, _name(source))
        return [(DatasetRows(data, _name(source)), None, source_mark(data))]
    path = Path(source)
    if path.is_dir():
        if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return [_saved(path, split)]
        files = _files(path, split)
    elif path.is_file():
        files = [path]
    elif _HUB_NAME.fullmatch(str(source)) and not str(source).endswith(SUFFIXES):
        return [_from_hub(str(source), split)]
    else:
        raise InputError(f"data {str(path)!r} does not exist; build it or correct the path")
    large = [file for file in files if file.suffix == ".parquet" and not _is_small(file)]
    parts: list[tuple[Part, Path | None, Any]] = []
    for file in files:
        if file not in large:
            parts.append((_part(file), file.parent, _mark(file)))
    if large:
        parts.append((_converted(large), large[0].parent, [_mark(file) for file in large]))
    return parts


def _files(folder: Path, split: str) -> list[Path]:
    """The data files of a folder, those of the split where names tell."""
    found = [path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES]
    if not found:
        found = [path for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES]
    kinds = {path.suffix for path in found}
    if kinds & {".parquet", ".arrow"}:  # JSON beside them says what they are
        kinds -= {".json", ".jsonl", ".ndjson"}
        found = [path for path in found if path.suffix in kinds]
    splits = re.compile(r"^(train|validation|valid|val|dev|test|eval)(?![a-z])")
    of_split = [path for path in found if path.name.startswith(split)]
    if of_split and all(splits.match(path.name) for path in found):
        found = of_split
    if not found or len(kinds) > 1:
        held = f"files of several kinds ({', '.join(sorted(kinds))})" if found else "no data file"
        raise InputError(
            f"{str(folder)!r} holds {held}; name the files, which end with {', '.join(SUFFIXES)}"
        )
    return found


def _mark(file: Path) -> list[Any]:
    state = file.stat()
    return [str(file.resolve()), state.st_size, state.st_mtime_ns]


def source_mark(data: Any) -> str:
    """What changes when a ``datasets.Dataset`` does."""
    return str(getattr(data, "_fingerprint", id(data)))


def _part(file: Path) -> Part:
    if file.suffix == ".parquet":
        return ArrowRows(partial(_read_parquet, file), str(file))
    if file.suffix == ".arrow":
        return ArrowRows(partial(_map_arrow, file), str(file))
    if file.suffix in SUFFIXES:
        return JsonFile(file)
    raise InputError(f"{str(file)!r} is no data file; its name has to end with one of {SUFFIXES}")


# -- tables ----------------------------------------------------------------------------------------


class ArrowRows:
    """The rows of an Arrow table that is opened again in every process."""

    def __init__(self, read: Any, name: str) -> None:
        self._read, self._name = read, name
        self._take(read())

    def _take(self, table: Any) -> None:
        self._table = _columns(table, self._name)
        shown = [name for name in ("image", "images") if name in self._table.column_names]
        self._images = self._table.select(shown)

    def __len__(self) -> int:
        return self._table.num_rows

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None, "_images": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._take(self._read())

    def __getitem__(self, position: int) -> Mapping[str, Any]:
        return self._table.slice(position, 1).to_pylist()[0]

    def images(self, position: int) -> Mapping[str, Any]:
        """The columns of images alone: most of a row's time is its texts'."""
        return self._images.slice(position, 1).to_pylist()[0]


class DatasetRows:
    """The rows of a ``datasets.Dataset``, images as bytes and path."""

    def __init__(self, data: Any, name: str) -> None:
        columns = _wanted(data.column_names, name)
        self._data = data.with_format("arrow", columns=columns)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, position: int) -> Mapping[str, Any]:
        return self._data[position : position + 1].to_pylist()[0]


def _wanted(names: Sequence[str], source: str) -> list[str]:
    if not {"messages", "conversations"} & set(names):
        raise InputError(
            f"{source} lacks a column 'messages' or 'conversations'; it has {', '.join(names)}"
        )
    return [name for name in names if name in (*COLUMNS, *OTHER_MEDIA)]


def _columns(table: Any, name: str) -> Any:
    return table.select(_wanted(table.column_names, repr(name)))


def _is_small(file: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, "parquet", error) from error
    groups = range(metadata.num_row_groups)
    return sum(metadata.row_group(group).total_byte_size for group in groups) <= _IN_MEMORY


def _read_parquet(file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file, memory_map=True) as content:
            names = _wanted(content.schema_arrow.names, repr(str(file)))
            table = content.read(columns=names)
        table.validate(full=True)  # the texts are Unicode
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, "parquet", error) from error
    return table


def _map_arrow(file: Path) -> Any:
    import pyarrow as pa

    try:
        content = pa.memory_map(str(file))
        try:
            table = pa.ipc.open_file(content).read_all()
        except pa.ArrowInvalid:  # `datasets` writes streams
            table = pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, "Arrow", error) from error
    return table


def _unreadable(file: Path, kind: str, error: Exception) -> InputError:
    reason = one_line(error)
    return InputError(f"{str(file)!r} is not a readable {kind} file ({reason}); write it again")


# -- the library `datasets` ------------------------------------------------------------------------


def _converted(files: Sequence[Path]) -> Part:
    """Large parquet files, converted by ``datasets`` to Arrow files in its cache."""
    import datasets

    names = [str(file) for file in files]
    load = partial(
        datasets.load_dataset, "parquet", data_files=names, split="train", batch_size=_ROWS
    )
    try:
        data = load()
    except OSError as error:  # no place in the cache, or no right to write there
        folder = tempfile.mkdtemp(prefix="grace-data-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        warnings.warn(
            f"{', '.join(names)} cannot be kept in the cache of datasets ({error}): converted into "
            f"{folder}; set HF_DATASETS_CACHE to a folder with room",
            stacklevel=2,
        )
        data = load(cache_dir=folder)
    except Exception as error:  # the library fails with many types
        raise _unreadable(files[0], "parquet", error) from error
    return DatasetRows(data, ", ".join(names))


def _saved(path: Path, split: str) -> tuple[Part, Path | None, Any]:
    import datasets

    try:
        data = datasets.load_from_disk(str(path))
    except Exception as error:  # the library fails with many types
        raise InputError(
            f"{str(path)!r} is no readable data set ({error}); save it again"
        ) from error
    data = _split(data, split, repr(str(path)))
    return DatasetRows(data, repr(str(path))), path, source_mark(data)


def _from_hub(name: str, split: str) -> tuple[Part, Path | None, Any]:
    import datasets

    try:
        data = datasets.load_dataset(name, split=split)
    except Exception as error:  # the library fails with many types
        reason = one_line(error, 300)
        raise InputError(
            f"data {name!r} is no file here, and cannot be had from the hub with split {split!r} "
            f"({reason}); correct the name or the split, or check the network"
        ) from error
    cache = Path(datasets.config.HF_CACHE_HOME)
    return DatasetRows(data, repr(name)), cache, source_mark(data)


def _split(data: Any, split: str, name: Any) -> Any:
    """A data set of the library, or of those of several splits, the named one."""
    import datasets

    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise InputError(f"{name} has no split {split!r}; it has {', '.join(data)}")
        data = data[split]
    if not isinstance(data, datasets.Dataset):
        raise InputError(
            f"{name} cannot be read by position; give a path, several, a name on the hub, or a "
            "datasets.Dataset"
        )
    return data
