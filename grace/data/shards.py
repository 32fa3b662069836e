"""The file format of conversations at full scale: Arrow files, mapped into memory.

A directory of shards holds texts, image paths and image sizes, nothing that depends on a model.
Arrow, because texts of any length are then read from the page cache that all processes of a
machine share, without a copy and without a second library.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from grace.errors import InputError

FORMAT = 1
"""Version of the directory's layout, which the index states."""
INDEX_FILE = "index.json"
"""Name of the file that lists the shards, with their records and hashes."""
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        (
            "images",
            pa.list_(
                pa.struct([("path", pa.string()), ("width", pa.int32()), ("height", pa.int32())])
            ),
        ),
        ("conversations", pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))),
    ]
)
"""Columns of a shard. The first turn may be one of ``system``; else turns are as in
``grace.data.ConversationDataset``."""


def is_inside(path: str) -> bool:
    """Whether a path is relative, names a file and cannot lead out of the folder it is put in."""
    parts = PurePosixPath(path).parts
    unsafe = path.startswith("/") or path.endswith("/") or "\\" in path or "\0" in path
    return bool(parts) and not unsafe and ".." not in parts


def locate_image(path: str, root: str | Path, folders: Mapping[str, str]) -> Path:
    """The file of an image.

    Args:
        path: The image's path in a record.
        root: The folder of image folders.
        folders: Folders that are elsewhere, by the first part of the path.

    Raises:
        InputError: The path leads out of its folder.
    """
    if not is_inside(path):
        raise InputError(f"image path {path!r} leads out of the image folder; correct the record")
    first, _, rest = path.partition("/")
    if rest and first in folders:
        return Path(folders[first]) / rest
    return Path(root) / path


def write_shard(records: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Write records (rows of SCHEMA) as one shard; equal records give equal bytes."""
    batch = pa.RecordBatch.from_pylist(list(records), schema=SCHEMA)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_batch(batch)


def _entry(shard: Mapping[str, Any]) -> tuple[str, int, str]:
    """(file, records, sha256) of a shard in the index. Raises ValueError for anything else."""
    file, count, digest = (shard[key] for key in ("file", "records", "sha256"))
    if not isinstance(file, str) or not file.isprintable() or not is_inside(file) or "/" in file:
        raise ValueError(f"{str(file)[:80]!r} is no file of the directory")
    if type(count) is not int or not 0 < count < 2**31:
        raise ValueError(f"{file} has {str(count)[:80]} records")
    if not isinstance(digest, str):
        raise ValueError(f"{file} has no hash")
    return file, count, digest


def _fault(batch: pa.RecordBatch) -> str | None:
    """A value in a batch of SCHEMA that no conversation has; None if all of them are valid.

    An image path that leads out of its folder is refused where it is used.
    """
    waiting = [(name, batch.column(name)) for name in SCHEMA.names]
    while waiting:
        name, column = waiting.pop()
        if column.null_count:
            return f"a {name} that is null"
        if pa.types.is_list(column.type):
            waiting.append((name, column.flatten()))
        elif pa.types.is_struct(column.type):
            fields = (column.type.field(place).name for place in range(column.type.num_fields))
            waiting += [(f"{name}.{part}", column.field(part)) for part in fields]
        elif pa.types.is_integer(column.type) and len(column) and pc.min(column).as_py() < 1:
            return f"an {name} below 1"
    return None


class Shards:
    """The records of a directory, by position.

    ::

        shards = Shards("conversations")
        shards[0]["conversations"]    # [{"from": "human", "value": ...}, ...]

    Attributes:
        directory: As given.
        index: The content of its index file.
        files: Names of the shards.
        sha256: Of all records and their order.

    Raises:
        InputError: The directory is missing, incomplete, or of another format.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        path = self.directory / INDEX_FILE
        try:
            self.index = json.loads(path.read_text(encoding="utf-8"))
            shards = [_entry(shard) for shard in self.index["shards"]]
            version = self.index["format"]
            places = self.index.get("images", {})
            texts = [places.get("root", "."), *places.get("folders", {}).values()]
            if not all(isinstance(text, str) for text in texts):
                raise ValueError("the places of its images are no texts")
        except FileNotFoundError as error:
            raise InputError(
                f"{str(self.directory)!r} holds no conversations (it has no {INDEX_FILE}); build "
                "it or correct the path"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = str(error)[:200]
            raise InputError(f"{str(path)!r} cannot be read ({reason}); build it again") from error
        if version != FORMAT:
            raise InputError(
                f"{str(self.directory)!r} is of format {version!r}, this version reads {FORMAT}; "
                "build it again"
            )
        self.files = [file for file, _, _ in shards]
        self._digests = [digest for _, _, digest in shards]
        self._ends = np.cumsum([records for _, records, _ in shards]).tolist()
        content = json.dumps([list(shard) for shard in shards])
        self.sha256 = hashlib.sha256(content.encode()).hexdigest()
        self._open: dict[int, pa.RecordBatch] = {}
        if len(self) == 0:
            raise InputError(f"{str(self.directory)!r} holds no records; build it again")

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # a mapping belongs to its process

    def range_of(self, shard: int) -> range:
        """The positions of a shard's records."""
        return range(self._ends[shard - 1] if shard else 0, self._ends[shard])

    def batch(self, shard: int) -> pa.RecordBatch:
        """A shard, mapped into memory; its bytes and values are checked when it is opened.

        Raises:
            InputError: It is missing or broken.
        """
        if shard not in self._open:
            path = self.directory / self.files[shard]
            try:
                content = pa.memory_map(str(path)).read_buffer()
                digest = hashlib.sha256(content).hexdigest()
                batch = pa.ipc.open_file(content).get_batch(0)
                batch.validate(full=True)  # offsets that lead out of the file are not followed
            except (OSError, pa.ArrowException, IndexError) as error:
                raise InputError(
                    f"shard {str(path)!r} cannot be read ({error}); build the directory again"
                ) from error
            same = batch.schema == SCHEMA and batch.num_rows == len(self.range_of(shard))
            if not same or digest != self._digests[shard]:
                raise InputError(
                    f"shard {str(path)!r} is not what {INDEX_FILE} says; build the directory again"
                )
            if fault := _fault(batch):
                raise InputError(f"shard {str(path)!r} has {fault}; build the directory again")
            self._open[shard] = batch
        return self._open[shard]

    def __getitem__(self, position: int) -> dict[str, Any]:
        """A record as a row of SCHEMA."""
        shard = bisect_right(self._ends, position)
        batch, row = self.batch(shard), position - self.range_of(shard).start
        return {name: batch.column(name)[row].as_py() for name in SCHEMA.names}

    @property
    def ids(self) -> list[str]:
        """The id of every record, by position."""
        parts = (self.batch(shard).column("id").to_pylist() for shard in range(len(self.files)))
        return [identity for part in parts for identity in part]
