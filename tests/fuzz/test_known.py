"""Input that is known to break readers, for every loader of a file."""

import struct
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loaders import LOADERS, Valid, expected

from grace.cli.models import open_image
from grace.data import ConversationDataset
from grace.errors import InputError

DEEP = 100_000
NASTY = {
    "empty": b"",
    "null": b"null",
    "not Unicode": b"\xff\xfe\x00",
    "half a character": b'{"a": "\\ud800"}',
    "nested lists": b"[" * DEEP,
    "nested mappings": b'{"a":' * DEEP,
    "a number of many digits": b'{"a": ' + b"9" * DEEP + b"}",
    "a number beyond a float": b'{"a": 1e999, "b": ' + b"9" * 400 + b"}",
    "not numbers": b'{"a": NaN, "b": -Infinity}',
    "an empty integer": b"a: !!int ''",
    "an empty float": b"a: !!float ''",
    "no timestamp": b"a: !!timestamp x",
    "no truth": b"a: !!bool x",
    "a list for a key": b"? [a, b]\n: c",
    "a mapping for a key": b"? {a: b}\n: c",
    "a merge of nothing": b"<<: 1",
    "itself": b"a: &a [*a]",
    "aliases of aliases": b"a0: &a0 [x, x]\n"
    + b"".join(
        b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 12)
    ),
    "a scale of aliases": b"a0: &a0 [x, x]\n"
    + b"".join(
        b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 12)
    )
    + b"scale: *a11\nbootstrap: *a11\nclaims: *a11\ntables: *a11\n",
    "code": b"!!python/object/apply:os.system ['exit 1']",
    "a header longer than its file": b"\xff" * 8 + b"{}",
    "an empty archive": b"PK\x05\x06" + b"\0" * 18,
    "an empty array": b"\x93NUMPY\x01\x00",
}
FILES = (
    *("params_text", "ledger_text", "tables_text", "annotations", "image_cache", "shards_index"),
    *("shards", "scores", "outcomes", "measurement", "training_log", "deployment", "crossovers"),
    *("sidecar_bytes", "codes_file", "packed_file", "packed_config", "model_config"),
    *("conversations_bytes",),
)


@pytest.mark.parametrize("name", expected(*FILES))
def test_known_to_break_readers(name, family, conversations, tmp_path, monkeypatch):
    monkeypatch.setenv("GRACE_CACHE", str(tmp_path / "cache"))
    loader = LOADERS[name](Valid(family, conversations, tmp_path))
    for what, content in NASTY.items():
        try:
            loader.load(content)
        except InputError as error:
            assert len(str(error)) < 20_000, what
        except BaseException as error:
            pytest.fail(f"{what}: {type(error).__name__}: {str(error)[:500]}")


def png(width: int, height: int, cut: int = 0) -> bytes:
    """A PNG of one colour that says it is of this size; `cut`: its last bytes are others."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        whole = kind + content
        return struct.pack(">I", len(content)) + whole + struct.pack(">I", zlib.crc32(whole))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rows = b"".join(b"\0" + bytes(min(width, 8)) for _ in range(min(height, 8)))
    found = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return found[: len(found) - cut] + b"\x15" * cut


@pytest.mark.parametrize(
    "content",
    [png(60_000, 60_000), png(8, 8, cut=30), png(0, 8), b"\x89PNG\r\n\x1a\n"],
    ids=["larger than memory", "a broken chunk", "of no width", "only a head"],
)
def test_an_image_that_does_not_decode(content, family, conversations, tmp_path):
    """Each fails in the library with a type of its own."""
    table = pq.read_table(conversations).select(["id", "image", "conversations"])
    rows = table.slice(0, 1).to_pylist()
    rows[0]["image"]["bytes"] = content
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), tmp_path / "train.parquet")
    small = family("qwen2_vl")
    with pytest.raises(InputError, match=f"record '{rows[0]['id']}'.*its image cannot be read"):
        ConversationDataset(tmp_path / "train.parquet", small.processor, small.model().config)
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        open_image(str(tmp_path / "a.png"))
