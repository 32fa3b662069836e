"""Whatever file a user brings, its loader returns a correct result or raises InputError.

A few inputs here; `make fuzz` gives each loader thousands.
"""

import signal
import struct
import warnings
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from loaders import FILES, LOADERS, Valid
from transformers.utils import logging

from grace.cli.models import open_image
from grace.data import ConversationDataset
from grace.errors import InputError

PATIENCE = 60  # seconds, after which a loader hangs
DEEP = 100_000
ALIASES = b"a0: &a0 [x, x]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 12)
)
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
    "no timestamp": b"a: !!timestamp x",
    "a list for a key": b"? [a, b]\n: c",
    "a merge of nothing": b"<<: 1",
    "itself": b"a: &a [*a]",
    "aliases of aliases": ALIASES + b"scale: *a11\nbootstrap: *a11\n",
    "code": b"!!python/object/apply:os.system ['exit 1']",
    "a header longer than its file": b"\xff" * 8 + b"{}",
    "an empty archive": b"PK\x05\x06" + b"\0" * 18,
}
by_name = {"ids": lambda loader: loader.__name__}


@pytest.fixture
def valid(family, conversations, tmp_path):
    return Valid(family, conversations, tmp_path)


def hangs(*_):
    raise AssertionError(f"hangs: more than {PATIENCE} seconds")


@pytest.mark.slow
@pytest.mark.parametrize("make", LOADERS, **by_name)
def test_a_result_or_an_input_error(make, valid):
    loader = make(valid)
    thorough = settings.get_current_profile_name() == "fuzz"

    @settings(
        max_examples=loader.many if thorough else loader.few,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(loader.inputs)
    def check(content):
        before = signal.signal(signal.SIGALRM, hangs)
        signal.alarm(PATIENCE)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                loader.load(content)
        except InputError as error:
            assert str(error).strip() and len(str(error)) < 20_000
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)

    logging.set_verbosity_error()
    check()


@pytest.mark.parametrize("make", FILES, **by_name)
def test_content_that_is_known_to_break_readers(make, valid):
    loader = make(valid)
    for name, content in NASTY.items():
        try:
            loader.load(content)
        except InputError as error:
            assert len(str(error)) < 20_000, name
        except BaseException as error:
            pytest.fail(f"{name}: {type(error).__name__}: {str(error)[:500]}")


def png(width: int, height: int, broken: int = 0) -> bytes:
    """A PNG of one colour that says it is of this size; its last bytes are broken."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        whole = kind + content
        return struct.pack(">I", len(content)) + whole + struct.pack(">I", zlib.crc32(whole))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rows = b"".join(b"\0" + bytes(min(width, 8)) for _ in range(min(height, 8)))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return data[: len(data) - broken] + b"\x15" * broken


@pytest.mark.parametrize(
    "content",
    [png(60_000, 60_000), png(8, 8, broken=30), png(0, 8), b"\x89PNG\r\n\x1a\n"],
    ids=["larger than memory", "a broken chunk", "of no width", "only a head"],
)
def test_an_image_that_does_not_decode(content, family, conversations, tmp_path):
    """Each fails in the library with an error of its own."""
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
