"""Everything is checked before the first step, in parallel, and what was found is kept."""

import copy
import json
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from annotated import draw, mixed, talk
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.utils.data import DataLoader

from grace.data import IGNORE_INDEX, ConversationDataset, index
from grace.data.samples import kept_tokens
from grace.errors import InputError
from grace.training import SupervisedForward

BOUNDS = {"shortest_edge": 32 * 32, "longest_edge": 96 * 96}


class Scene:
    """A family whose processor resizes images within bounds, and records of every kind."""

    def __init__(self, small, folder):
        self.small = small
        self.processor = copy.deepcopy(small.processor)
        if small.name != "llava":
            self.processor.image_processor.size = BOUNDS
        self.folder = folder
        self.records = mixed(folder)
        self.config = small.model().config

    def data(self, records=None, **options):
        path = self.folder / "records.jsonl"
        lines = map(json.dumps, self.records if records is None else records)
        path.write_text("\n".join(lines))
        options = {"image_folder": self.folder / "images", **options}
        return ConversationDataset(path, self.processor, self.config, **options)


@pytest.fixture
def scene(small, tmp_path):
    return Scene(small, tmp_path)


@pytest.fixture
def qwen(family, tmp_path):
    return Scene(family("qwen2_vl"), tmp_path)


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """Indices are kept in a cache of the test's own, however few the records are."""
    monkeypatch.setattr(index, "_ALONE", 2)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "grace"


# -- sizes -----------------------------------------------------------------------------------------


def test_one_batch_mixes_all_sizes(scene):
    """The model reads what it would read of each sample alone."""
    data, model = scene.data(), scene.small.model().eval()
    batch = scene.small.collator()([data[place] for place in range(len(data))])
    shown = [1, 0, 3, 1, 2, 1, 0]
    assert [len(data[place]["image_spans"]) for place in range(7)] == shown
    assert data.pictured.tolist() == [0, 2, 3, 4, 5]
    marked = batch["input_ids"] == scene.processor.image_token_id
    assert sum(stop - start for _, start, stop in batch["image_spans"]) == marked.sum()
    assert len(batch["targets"]) == sum(data.supervised)
    assert data.lengths == [len(data[place]["input_ids"]) for place in range(7)]
    forward = SupervisedForward(model, data.family, relational=False)
    with torch.no_grad():
        together = forward(model, batch)[0]
        for place in range(len(data)):
            alone = forward(model, scene.small.collator()([data[place]]))[0]
            assert torch.allclose(together[batch["token_rows"] == place], alone, atol=1e-4)


def test_an_upright_photo_has_an_upright_size(qwen):
    from PIL import Image

    photo = Image.open(qwen.folder / "images/coco/train2017/1.png")  # 100×40
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(qwen.folder / "images/photo.jpg", exif=exif)
    data = qwen.data([{"image": "photo.jpg", "conversations": talk(1, 1)}])
    assert data.images(0)[0].size == (40, 100)
    (grid,) = data[0]["image_grid_thw"].tolist()
    assert grid[1] > grid[2]
    ((start, stop),) = data[0]["image_spans"]
    assert stop - start == grid[1] * grid[2] // 4


# -- bad records -----------------------------------------------------------------------------------


def broken(qwen):
    """A record of every kind that only training found before."""
    images = qwen.folder / "images"
    content = (images / "coco/train2017/0.png").read_bytes()
    from PIL import Image

    Image.open(images / "coco/train2017/0.png").save(images / "whole.jpg")
    (images / "torn.jpg").write_bytes((images / "whole.jpg").read_bytes()[:-30])
    (images / "torn.png").write_bytes(content[:2000])
    (images / "empty.png").write_bytes(b"")
    (images / "page.png").write_text("<!DOCTYPE html><html>404</html>")
    draw(images / "thin.png", 300, 1)
    names = ["torn.jpg", "torn.png", "empty.png", "page.png", "thin.png", "missing.png", "../x.png"]
    rows = [{"id": name, "image": name, "conversations": talk(1, 1)} for name in names]
    rows.append({"id": "marker", "conversations": talk(1)})
    rows[-1]["conversations"][0]["value"] = "what is <|image_pad|> ?"
    rows.append({"id": "blank", "conversations": talk(1)})
    rows[-1]["conversations"][1]["value"] = "  "
    rows.append({"id": "video", "video": "a.mp4", "conversations": talk(1)})
    rows.append({"id": "long", "conversations": talk(1, length=2000)})
    return rows


REASONS = {
    "torn.jpg": "truncated",
    "torn.png": "cannot be read",
    "empty.png": "0 bytes",
    "page.png": "cannot identify",
    "thin.png": "the processor refuses an image of 300×1 pixels",
    "missing.png": "No such file",
    "../x.png": "leads out of the image folder",
    "marker": "own token of an image",
    "blank": "an answer is empty",
    "video": "only texts and images",
    "long": "no answer begins within the",
}


def test_bad_records_are_found_before_the_first_step(qwen):
    with pytest.raises(InputError) as caught:
        qwen.data([*qwen.records, *broken(qwen)], max_length=1000)
    lines = str(caught.value).splitlines()
    assert "11 of 18 records cannot be used" in lines[0]
    assert "on_bad_record='skip'" in lines[0]
    assert len(lines) == 12 and lines[-1] == "  and 1 more"
    for line, (name, reason) in zip(lines[1:-1], REASONS.items(), strict=False):
        assert line.startswith(f"  record {name!r}") and reason in line


def test_bad_records_are_left_out_up_to_a_share(qwen):
    rows, options = [*qwen.records, *broken(qwen)], {"on_bad_record": "skip", "max_length": 1000}
    with pytest.warns(UserWarning, match="11 of 18 records are left out"):
        data = qwen.data(rows, **options, max_bad_share=0.62)
    assert data.ids == [str(record["id"]) for record in qwen.records]
    assert [identity for identity, _ in data.bad_records] == list(REASONS)
    assert all(REASONS[identity] in reason for identity, reason in data.bad_records)
    alone = qwen.data(max_length=1000)
    assert data.sha256 == alone.sha256
    assert data[6]["input_ids"].tolist() == alone[6]["input_ids"].tolist()
    with pytest.raises(InputError, match=r"more than the share of 0\.61 that may be"):
        qwen.data(rows, **options, max_bad_share=0.61)
    with pytest.raises(InputError, match="1 of 1"):
        qwen.data(rows[-1:], **options, max_bad_share=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, "max_length is 0"),
        ({"on_bad_record": "ignore"}, "'error' or 'skip'"),
        ({"limit": 5, "split": "train", "max_bad_share": 0.1, "max_length": -1}, "at least 1"),
    ],
)
def test_bad_options_are_refused(qwen, options, message):
    with pytest.raises(InputError, match=message):
        qwen.data(**options)


def test_a_processor_without_a_chat_template_is_one_line(qwen):
    qwen.processor.chat_template = None
    with pytest.raises(InputError, match=r"Qwen2VLProcessor\) has no chat template"):
        qwen.data()


def test_a_template_that_takes_only_strings_is_served(qwen):
    expected = qwen.data(qwen.records[:2])
    template = qwen.processor.chat_template
    parts = template[template.index("{% if message['content'] is string") :]
    parts = parts[: parts.index("<|im_end|>")]
    image = "{{ message['content'] | replace('<|image_pad|>\n', pad) }}"
    pad = "{% set pad = '<|vision_start|><|image_pad|><|vision_end|>' %}"
    qwen.processor.chat_template = pad + template.replace(parts, image)
    data = qwen.data(qwen.records[:2])
    for place in range(2):
        assert data[place]["input_ids"].tolist() == expected[place]["input_ids"].tolist()


# -- cutting ---------------------------------------------------------------------------------------

LABELS = arrays(
    np.int64, st.integers(1, 40), elements=st.sampled_from([IGNORE_INDEX, IGNORE_INDEX, 5])
)


@given(LABELS, st.integers(1, 45) | st.none())
def test_a_cut_keeps_the_last_answer_that_fits(labels, max_length):
    kept = kept_tokens(labels, max_length)
    if max_length is None or len(labels) <= max_length:
        assert kept == len(labels)
        return
    assert kept <= max_length
    if kept:
        assert labels[kept - 1] != IGNORE_INDEX
        assert (labels[1:kept] != IGNORE_INDEX).any()
    assert (labels[max(kept, 1) : max_length] == IGNORE_INDEX).all()


def test_samples_are_cut_to_the_models_positions(qwen):
    qwen.config = qwen.small.model(max_position_embeddings=64).config
    with pytest.warns(UserWarning, match="1 of 1 records are cut"):
        data = qwen.data([{"conversations": talk(12)}])
    assert data.max_length == 64
    assert data.lengths[0] <= 64 and data.truncated == 1
    assert data.tokens(0)[1][-1] != IGNORE_INDEX


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* records are")
def test_truncation_never_cuts_an_image(scene):
    """Every length there is, against the definition, image by image."""
    whole_data = scene.data()
    wholes = [whole_data[place] for place in range(len(scene.records))]
    longest = max(len(whole["input_ids"]) for whole in wholes)
    options = {"on_bad_record": "skip", "max_bad_share": 1.0}
    for max_length in range(6, longest + 2, 3):
        try:
            data = scene.data(max_length=max_length, **options)
        except InputError as error:
            assert "no answer begins" in str(error) and max_length < 25
            continue
        assert len(data) + len(data.bad_records) == len(wholes)
        found = dict(zip(data.ids, range(len(data)), strict=True))
        cut = dropped = 0
        for record, whole in zip(scene.records, wholes, strict=True):
            place = found.get(str(record["id"]))
            if place is None:
                assert (whole["labels"][:max_length] == IGNORE_INDEX).all()
                continue
            sample = data[place]
            length = len(sample["input_ids"])
            assert length == data.lengths[place] <= max_length
            assert np.array_equal(sample["input_ids"], whole["input_ids"][:length])
            assert np.array_equal(sample["labels"], whole["labels"][:length])
            assert (sample["labels"][1:] != IGNORE_INDEX).sum() == data.supervised[place] > 0
            spans = whole["image_spans"]
            assert not any(start < length < stop for start, stop in spans)
            shown = [span for span in spans if span[1] <= length]
            assert sample["image_spans"] == shown
            assert ("pixel_values" in sample) == bool(shown)
            cut += length < len(whole["input_ids"])
            dropped += len(spans) - len(shown)
        assert (data.truncated, data.dropped_images) == (cut, dropped)


# -- what is kept ----------------------------------------------------------------------------------


def indices(folder):
    return sorted(folder.glob("*.npz"))


def test_a_call_of_the_tokenizer_changes_no_hash(qwen):
    before = qwen.data().sha256
    qwen.processor.tokenizer(["a", "a a"], padding=True, truncation=True, max_length=3)
    assert qwen.data().sha256 == before
    qwen.processor.tokenizer(["a"], padding=False, truncation=False)


def test_the_index_is_made_once(qwen, kept, monkeypatch):
    first = qwen.data(max_length=90)
    assert len(indices(kept)) == 1
    monkeypatch.setattr(index, "make_index", lambda *_: pytest.fail("made again"))
    path = qwen.folder / "records.jsonl"
    again = ConversationDataset(
        path, qwen.processor, qwen.config, image_folder=qwen.folder / "images", max_length=90
    )
    assert (again.lengths, again.supervised, again.ids) == (
        first.lengths,
        first.supervised,
        first.ids,
    )
    assert (again.sha256, again.truncated) == (first.sha256, first.truncated)
    for place in range(len(first)):
        for name, value in first[place].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(again[place][name])), name


def test_few_records_leave_no_trace(qwen, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    qwen.data()
    assert not (tmp_path / "cache").exists()


def test_other_data_settings_and_images_are_checked_again(qwen, kept):
    seen = {qwen.data().sha256, qwen.data(max_length=90).sha256}
    qwen.processor.image_processor.size = {"shortest_edge": 64**2, "longest_edge": 64**2}
    seen.add(qwen.data().sha256)
    qwen.processor.chat_template = "{# other #}" + qwen.processor.chat_template
    seen.add(qwen.data().sha256)
    qwen.processor.tokenizer.add_tokens(["circle square"])
    seen.add(qwen.data().sha256)
    seen.add(qwen.data(qwen.records[:5]).sha256)
    before = len(indices(kept))
    draw(qwen.folder / "images/coco/train2017/0.png", 300, 20)
    changed = qwen.data(qwen.records[:5])
    seen.add(changed.sha256)
    assert changed.images(0)[0].size == (300, 20)
    assert len(seen) == 7
    assert before == 6


def test_an_image_that_changes_later_names_its_record(qwen):
    data = qwen.data()
    draw(qwen.folder / "images/coco/train2017/0.png", 300, 20)
    with pytest.raises(InputError, match=r"record 'one': its image .*0\.png.* \(300, 20\) pixels"):
        data[0]
    (qwen.folder / "images/coco/train2017/0.png").unlink()
    with pytest.raises(InputError, match=r"record 'one': its image .*0\.png.* restore it"):
        data[0]


def test_a_broken_index_is_made_again(qwen, kept):
    lengths = qwen.data().lengths
    (path,) = indices(kept)
    (qwen.folder / "records.jsonl").touch()  # the data's time is part of the name
    for content in (b"", path.read_bytes()[:100]):
        for one in indices(kept):
            one.write_bytes(content)
        assert qwen.data().lengths == lengths


def test_an_index_that_cannot_be_kept_is_made_by_everyone(qwen, kept):
    expected = qwen.data().sha256
    for path in kept.iterdir():
        path.unlink()
    kept.rmdir()
    kept.touch()
    with pytest.warns(UserWarning, match="cannot be kept"):
        assert qwen.data().sha256 == expected


def test_one_checks_while_the_others_wait(qwen, kept, monkeypatch):
    qwen.data(qwen.records[:2])
    made, real = [], index.make_index
    path = qwen.folder / "all.jsonl"
    path.write_text("\n".join(map(json.dumps, qwen.records)))

    def slow(*given):
        made.append(given)
        time.sleep(0.2)
        return real(*given)

    def open_data():
        folder = qwen.folder / "images"
        return ConversationDataset(path, qwen.processor, qwen.config, image_folder=folder)

    monkeypatch.setattr(index, "make_index", slow)
    with ThreadPoolExecutor(3) as pool:
        opened = [pool.submit(open_data) for _ in range(3)]
        assert len({tuple(future.result().lengths) for future in opened}) == 1
    assert len(made) == 1


@pytest.mark.slow
def test_checking_in_processes_changes_nothing(qwen, kept, monkeypatch):
    rows = [{**record, "id": f"{record['id']} {k}"} for k in range(30) for record in qwen.records]
    options = {"on_bad_record": "skip", "max_bad_share": 0.1, "max_length": 1000}
    rows += broken(qwen)
    monkeypatch.setattr(index, "_cores", lambda: 2)
    with pytest.warns(UserWarning, match="left out"):
        many = qwen.data(rows, **options)
    monkeypatch.setattr(index, "_ALONE", 10_000)
    with pytest.warns(UserWarning, match="left out"):
        alone = qwen.data(rows, **options)
    assert (many.sha256, many.ids, many.bad_records) == (
        alone.sha256,
        alone.ids,
        alone.bad_records,
    )
    assert many.tokens(9)[0].tolist() == alone.tokens(9)[0].tolist()


# -- workers and memory ----------------------------------------------------------------------------


@pytest.mark.slow
def test_workers_load_what_the_process_loads(qwen):
    data = qwen.data()
    collate = qwen.small.collator()
    plain = DataLoader(data, 3, collate_fn=collate)
    for context in ("fork", "spawn"):
        working = DataLoader(
            data, 3, collate_fn=collate, num_workers=1, multiprocessing_context=context
        )
        for batch, other in zip(plain, working, strict=True):
            assert batch.keys() == other.keys()
            for name, value in batch.items():
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(other[name])), name


def test_indices_out_of_range_are_refused(qwen):
    data = qwen.data()
    for place in (-1, len(data)):
        with pytest.raises(IndexError):
            data[place]


@pytest.mark.parametrize("kind", ["jsonl", "arrow", "parquet"])
def test_a_pickled_data_set_leaves_the_records_behind(qwen, kind):
    """It is what a started worker process is sent."""
    rows = [{"id": str(k), "conversations": talk(1, seed=k, length=300)} for k in range(60)]
    rows[3]["conversations"][0]["value"] = "zebra"
    path = qwen.folder / f"records.{kind}"
    table = pa.Table.from_pylist(rows)
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif kind == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    data = ConversationDataset(path, qwen.processor, qwen.config, max_length=4000)
    content = pickle.dumps(data)
    assert b"zebra" not in content
    assert pickle.loads(content)[7]["input_ids"].tolist() == data[7]["input_ids"].tolist()


def resident():
    """Bytes that only this process has in memory; mapped files are not among them."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


@pytest.mark.weekly
@pytest.mark.slow
def test_memory_is_bounded(qwen, kept, tmp_path):
    """1.2 GB of images in 10,000 records: a tenth of what may take 1 GiB may take a tenth of it."""
    draw(tmp_path / "a.png", 64, 64)
    picture = (tmp_path / "a.png").read_bytes()
    path = tmp_path / "big.arrow"
    kind = pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])
    schema = pa.schema(
        [
            ("image", kind),
            ("conversations", pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))),
        ]
    )
    with pa.ipc.new_file(str(path), schema) as writer:
        for start in range(0, 10_000, 500):
            images = [{"bytes": picture + os.urandom(120_000), "path": "a.png"} for _ in range(500)]
            said = [talk(2, 1, seed=start + k, length=60) for k in range(500)]
            rows = [{"image": i, "conversations": t} for i, t in zip(images, said, strict=True)]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    del images, said, rows
    assert path.stat().st_size > 1.2e9
    before = resident()
    data = ConversationDataset(path, qwen.processor, qwen.config)
    for place in range(0, 10_000, 10):
        assert len(data[place]["input_ids"]) == data.lengths[place]
    assert resident() - before < 107e6
