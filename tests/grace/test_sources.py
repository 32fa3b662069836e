"""The same conversations from every kind of file and data set, as people have them."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from annotated import draw, talk

from grace.data import ConversationDataset, sources
from grace.data.sources import open_records
from grace.errors import InputError

SHAPES = [(64, 64), (64, 128), (100, 40), (30, 90)]


@pytest.fixture
def folder(tmp_path):
    """Photos of different sizes, and records of one, of several, and of none."""
    for place, shape in enumerate(SHAPES):
        draw(tmp_path / "photos" / f"{place}.png", *shape, seed=place)
    return tmp_path


def records():
    return [
        {"id": "one", "image": ["photos/0.png"], "conversations": talk(1, 1, 1)},
        {"id": "wide", "image": ["photos/1.png"], "conversations": talk(2, 1, 2)},
        {"id": "none", "image": None, "conversations": talk(1, 0, 3)},
        {"id": "two", "image": ["photos/2.png", "photos/3.png"], "conversations": talk(1, 2, 4)},
        {"id": "told", "image": ["photos/3.png"], "conversations": talk(1, 1, 5, system="red")},
    ]


def chat(record):
    """The same record in the chat schema."""
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    messages = []
    for turn in record["conversations"]:
        marks = turn["value"].count("<image>")
        text = {"type": "text", "text": turn["value"].replace("<image>\n", "")}
        content = [{"type": "image", "text": None}] * marks + [text]
        messages.append({"role": roles[turn["from"]], "content": content})
    return {"id": record["id"], "images": record["image"], "messages": messages}


def as_json(folder):
    (folder / "a.json").write_text(json.dumps(records(), indent=1))
    return folder / "a.json"


def as_lines(folder):
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, records())) + "\n\n")
    return str(folder / "a.jsonl")


def as_chat_lines(folder):
    lines = [json.dumps(chat(record)) for record in records()]
    (folder / "a.jsonl").write_text("\n".join(lines))
    return folder / "a.jsonl"


def as_mixed_lines(folder):
    """Columns whose type changes from record to record, as in LLaVA's mixture."""
    rows = records()
    rows[0]["image"] = "photos/0.png"
    del rows[2]["image"]
    rows[4] = chat(rows[4])
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "a.jsonl"


def as_parquet(folder):
    pq.write_table(pa.Table.from_pylist(records()), folder / "a.parquet", row_group_size=2)
    return folder / "a.parquet"


def as_chat_parquet(folder):
    pq.write_table(pa.Table.from_pylist([chat(r) for r in records()]), folder / "a.parquet")
    return folder / "a.parquet"


def as_bytes(folder):
    rows = records()
    for row in rows:
        row["image"] = [
            {"bytes": (folder / path).read_bytes(), "path": path} for path in row["image"] or []
        ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    return folder / "a.parquet"


def as_null_bytes(folder):
    rows = records()
    for row in rows:
        row["image"] = [{"bytes": None, "path": path} for path in row["image"] or []]
    kind = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    table = pa.Table.from_pylist(rows)
    images = pa.array([row["image"] for row in rows], kind)
    table = table.set_column(table.column_names.index("image"), "image", images)
    pq.write_table(table, folder / "a.parquet")
    return folder / "a.parquet"


def as_arrow(folder):
    table = pa.Table.from_pylist(records())
    with pa.ipc.new_file(str(folder / "a.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return folder / "a.arrow"


def as_arrow_stream(folder):
    table = pa.Table.from_pylist(records())
    with pa.ipc.new_stream(str(folder / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    return folder / "a.arrow"


def as_paths(folder):
    rows = records()
    (folder / "b.json").write_text(json.dumps(rows[:2]))
    pq.write_table(pa.Table.from_pylist(rows[2:]), folder / "c.parquet")
    return [folder / "b.json", folder / "c.parquet"]


def as_folder(folder):
    table = pa.Table.from_pylist(records())
    (folder / "data").mkdir()
    for place in range(3):
        name = f"train-0000{place}-of-00003.parquet"
        pq.write_table(table.slice(2 * place, 2), folder / "data" / name)
    pq.write_table(table, folder / "data" / "test-00000-of-00001.parquet")
    (folder / "data" / "dataset_infos.json").write_text("{}")
    (folder / "data" / "photos").symlink_to(folder / "photos")
    return folder / "data"


def as_dataset(folder):
    rows = records()
    for row in rows:
        row["images"] = [str(folder / path) for path in row.pop("image") or []]
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "images": datasets.List(datasets.Image()),
            "conversations": datasets.List(
                {"from": datasets.Value("string"), "value": datasets.Value("string")}
            ),
        }
    )
    return datasets.Dataset.from_list(rows, features=features)


def as_selection(folder):
    data = as_dataset(folder)
    return datasets.concatenate_datasets([data.select([4]), data]).select(range(1, 6))


def as_splits(folder):
    data = as_dataset(folder)
    return datasets.DatasetDict(train=data, test=data.select([0]))


def as_saved(folder):
    as_dataset(folder).save_to_disk(folder / "saved")
    return folder / "saved"


def as_saved_splits(folder):
    as_splits(folder).save_to_disk(folder / "saved")
    return folder / "saved"


KINDS = {
    "JSON": as_json,
    "JSONL": as_lines,
    "chats in JSONL": as_chat_lines,
    "JSONL of mixed types": as_mixed_lines,
    "parquet": as_parquet,
    "chats in parquet": as_chat_parquet,
    "parquet with bytes": as_bytes,
    "parquet with null bytes": as_null_bytes,
    "Arrow": as_arrow,
    "Arrow stream": as_arrow_stream,
    "several paths": as_paths,
    "a folder of shards": as_folder,
    "a Dataset": as_dataset,
    "a selection": as_selection,
    "a DatasetDict": as_splits,
    "a saved Dataset": as_saved,
    "a saved DatasetDict": as_saved_splits,
}


@pytest.fixture
def opened(processor, make_model):
    config = make_model().config

    def open_data(source, **options):
        return ConversationDataset(source, processor, config, **options)

    return open_data


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_gives_the_same_samples(folder, opened, kind):
    data = opened(KINDS[kind](folder))
    assert data.ids == ["one", "wide", "none", "two", "told"]
    images = [[image.size for image in data.images(index)] for index in range(5)]
    assert images == [[SHAPES[0]], [SHAPES[1]], [], [SHAPES[2], SHAPES[3]], [SHAPES[3]]]
    (folder / "again.jsonl").write_text("\n".join(map(json.dumps, records())))
    assert data.sha256 == opened(folder / "again.jsonl").sha256


def test_images_of_python_are_taken(folder, opened):
    from PIL import Image

    data = datasets.Dataset.from_list(
        [
            {
                "images": [Image.open(folder / "photos/1.png")],
                "messages": chat(records()[1])["messages"],
            }
        ]
    )
    made = opened(data)
    assert made.ids == ["0"]
    assert made.images(0)[0].size == SHAPES[1]


def test_an_image_folder_is_where_paths_begin(folder, opened):
    path = as_lines(folder)
    (folder / "photos").rename(folder / "elsewhere")
    with pytest.raises(InputError, match=r"4 of 5 records.*\n.*'one'.*No such file"):
        opened(path)
    (folder / "place").mkdir()
    (folder / "elsewhere").rename(folder / "place" / "photos")
    there = opened(path, image_folder=folder / "place")
    mapped = opened(path, image_folder={"photos": folder / "place" / "photos"})
    assert there.sha256 == mapped.sha256
    assert there.images(1)[0].size == SHAPES[1]


def test_large_parquet_files_are_converted_once(folder, opened, monkeypatch, tmp_path):
    expected = opened(as_bytes(folder)).sha256
    monkeypatch.setattr(sources, "_IN_MEMORY", 0)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = opened(folder / "a.parquet")
    assert data.sha256 == expected
    assert list((tmp_path / "cache").rglob("*.arrow"))


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(folder, opened, monkeypatch, tmp_path):
    expected = opened(as_bytes(folder)).sha256
    monkeypatch.setattr(sources, "_IN_MEMORY", 0)
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file")
    with pytest.warns(UserWarning, match="set HF_DATASETS_CACHE"):
        assert opened(folder / "a.parquet").sha256 == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "has no records"),
        ("a.json", b"[]", "has no records"),
        ("a.json", b'[{"id": 1}, {"id"', "is not a JSON array: .* at record 1"),
        ("a.parquet", b"PAR1 but not really", "not a readable parquet file"),
        ("a.arrow", b"ARROW1\0\0 no", "not a readable Arrow file"),
        ("a.csv", b"id,image", "is no data file"),
    ],
)
def test_files_that_hold_nothing_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_records(tmp_path / name)


def test_a_line_that_is_no_json_is_a_bad_record(folder, opened):
    path = as_lines(folder)
    with open(path, "a") as file:
        file.write('{"id": "torn", \n[1]\n')
    with pytest.raises(InputError, match=r"2 of 7 .*\n.*number 5.*is no JSON.*\n.*number 6.*\[1\]"):
        opened(path)


def test_what_is_no_source_is_refused(tmp_path, folder):
    with pytest.raises(InputError, match=r"'.*nothing\.jsonl' does not exist"):
        open_records(tmp_path / "nothing.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no data file"):
        open_records(tmp_path / "empty")
    as_arrow(folder), as_parquet(folder)
    with pytest.raises(InputError, match="files of several kinds"):
        open_records(folder)
    with pytest.raises(InputError, match="has no split 'dev'; it has train, test"):
        open_records(as_splits(folder), "dev")
    with pytest.raises(InputError, match="cannot be read by position"):
        open_records(as_dataset(folder).to_iterable_dataset())
    with pytest.raises(InputError, match=r"'nobody/nothing' is no file here.*hub"):
        open_records("nobody/nothing")


@pytest.mark.weekly
@pytest.mark.slow
def test_more_than_two_gigabytes_of_images(tmp_path, opened, monkeypatch):
    """In one row group: Arrow's offsets have 31 bits."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    draw(tmp_path / "a.png", 64, 64)
    picture = (tmp_path / "a.png").read_bytes() + b"\0" * (1 << 20)  # PNG ends before
    size = len(picture)
    count = int(2.05 * 2**30) // size + 1
    images = pa.StructArray.from_arrays(
        [pa.array([picture] * count, pa.large_binary()), pa.array(["a.png"] * count)],
        ["bytes", "path"],
    )
    table = pa.table({"image": images, "conversations": [talk(1, 1)] * count})
    pq.write_table(table, tmp_path / "big.parquet", row_group_size=count, compression="none")
    del table, images
    data = opened(tmp_path / "big.parquet")
    assert len(data) == count
    assert data.images(count - 1)[0].size == (64, 64)
