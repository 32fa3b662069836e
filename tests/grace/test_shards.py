"""Sharded conversations as samples: the same as those of the processor, whatever the images."""

import copy
import hashlib
import pickle
import re
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ranks
import torch
from annotated import build, draw, mixed, talk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from grace.data import IGNORE_INDEX, ConversationDataset, ShardedConversations, token_counts
from grace.data.samples import ImageTokens, kept_tokens
from grace.data.shards import Shards
from grace.errors import InputError
from grace.training import GraceTrainer, MethodConfig, SupervisedForward

BOUNDS = {"shortest_edge": 32 * 32, "longest_edge": 96 * 96}


class Scene:
    """A family whose processor resizes images within bounds, and a directory of shards."""

    def __init__(self, small, folder):
        self.small = small
        self.processor = copy.deepcopy(small.processor)
        if small.name != "llava":
            self.processor.image_processor.size = BOUNDS
        self.folder = folder
        self.records = mixed(folder)
        self.directory = build(folder, self.records, shard_size=3)
        self.config = small.model().config

    def data(self, directory=None, **options):
        return ShardedConversations(
            directory or self.directory, self.processor, self.config, **options
        )

    def built(self, records, name="other"):
        (self.folder / name).mkdir()
        (self.folder / name / "images").symlink_to(self.folder / "images")
        return build(self.folder / name, records)


@pytest.fixture
def scene(small, tmp_path):
    return Scene(small, tmp_path)


@pytest.fixture
def qwen(family, tmp_path):
    return Scene(family("qwen2_vl"), tmp_path)


def expected(scene, record):
    """Ids and supervised ones of a record: the whole text of the chat template, tokenized at once,
    and the places of the answers in it."""
    processor = scene.processor
    paths = record.get("image") or []
    paths = [paths] if isinstance(paths, str) else paths
    images = [Image.open(scene.folder / "images" / path) for path in paths]
    messages, answers = [], []
    for turn in record["conversations"]:
        role = {"human": "user", "gpt": "assistant", "system": "system"}[turn["from"]]
        text = turn["value"].replace("<image>\n", "").replace("\n<image>", "")
        shown = [{"type": "image"}] * turn["value"].count("<image>")
        messages.append({"role": role, "content": [*shown, {"type": "text", "text": text}]})
        answers += [text] if role == "assistant" else []
    text = processor.apply_chat_template(messages, tokenize=False)
    if scene.small.name == "llava":  # the end token that its template lacks
        for answer in answers:
            text = text.replace(f"ASSISTANT: {answer} ", f"ASSISTANT: {answer}</s>")
        spoken = r"(?<=ASSISTANT:) .*?</s>"
    else:
        spoken = r"(?<=<\|im_start\|>assistant\n).*?<\|im_end\|>"
    counts = []
    if images:
        made = processor.image_processor(images=images, return_tensors="pt")
        counts = scene.small.adapter.tokens_per_image(scene.config, made)
    mark = processor.image_token
    pieces = text.split(mark)
    text = pieces[0] + "".join(
        mark * count + piece for count, piece in zip(counts, pieces[1:], strict=True)
    )
    found = processor.tokenizer(text, return_offsets_mapping=True)
    inside = np.zeros(len(text) + 1, bool)
    for span in re.finditer(spoken, text):
        inside[slice(*span.span())] = True
    supervised = [bool(stop > start and inside[start]) for start, stop in found["offset_mapping"]]
    return found["input_ids"], supervised, counts


def test_samples_are_those_of_the_chat_template(scene):
    data = scene.data()
    assert len(data) == len(scene.records)
    assert data.ids == [str(record["id"]) for record in scene.records]
    for index, record in enumerate(scene.records):
        ids, supervised, counts = expected(scene, record)
        sample = data[index]
        assert sample["input_ids"].tolist() == ids
        assert (sample["labels"] != IGNORE_INDEX).tolist() == supervised
        assert (sample["labels"] == np.where(supervised, ids, IGNORE_INDEX)).all()
        assert data.lengths[index] == len(ids)
        assert data.supervised[index] == sum(supervised)
        assert (sample["input_ids"] == scene.processor.image_token_id).sum() == sum(counts)
        assert ("pixel_values" in sample) == bool(counts)


def test_samples_are_those_of_a_parquet_file(scene):
    """What the other data set makes of the same conversations, where it can read them."""
    rows = []
    for record in scene.records[:2] + scene.records[3:4]:
        path = record.get("image")
        content = path and (scene.folder / "images" / path).read_bytes()
        image = path and {"bytes": content, "path": path}
        rows.append(
            {"id": str(record["id"]), "image": image, "conversations": record["conversations"]}
        )
    table, path = pa.Table.from_pylist(rows), scene.folder / "rows.parquet"
    data = scene.data()
    for theirs, ours in enumerate((0, 1, 3)):
        pq.write_table(table.slice(theirs, 1), path)  # one image: that data set takes one size
        other = ConversationDataset(path, scene.processor, scene.config)[0]
        sample = data[ours]
        assert sample.keys() == other.keys()
        for name in sample.keys() - {"index"}:
            assert np.array_equal(sample[name], other[name])


@pytest.mark.slow
@given(width=st.integers(1, 400), height=st.integers(1, 400))
@settings(max_examples=30)
def test_visual_tokens_follow_from_the_size(family, width, height):
    for name in ("llava", "qwen2_vl", "qwen3_vl"):
        small = family(name)
        processor = copy.copy(small.processor)
        processor.image_processor = copy.deepcopy(small.processor.image_processor)
        if name != "llava":
            processor.image_processor.size = BOUNDS
        config = CONFIGS.setdefault(name, small.model().config)
        count = ImageTokens(small.adapter, processor, config)(width, height)
        image = Image.new("RGB", (width, height))
        try:
            made = processor.image_processor(images=[image], return_tensors="pt")
        except ValueError:
            assert count is None
        else:
            assert small.adapter.tokens_per_image(config, made) == [count]


CONFIGS: dict = {}


def test_one_batch_mixes_them_all(scene):
    data, model = scene.data(), scene.small.model().eval()
    batch = scene.small.collator()([data[index] for index in range(len(data))])
    images = [0 if r.get("image") is None else 1 for r in scene.records]
    images[2], images[4] = 3, 2
    assert [row for row, _, _ in batch["image_spans"]] == [
        row for row, count in enumerate(images) for _ in range(count)
    ]
    marked = batch["input_ids"] == scene.processor.image_token_id
    assert sum(stop - start for _, start, stop in batch["image_spans"]) == marked.sum()
    assert len(batch["targets"]) == sum(data.supervised)
    forward = SupervisedForward(model, data.family, relational=False)
    with torch.no_grad():
        together = forward(model, batch)[0]
        for index in range(len(data)):
            alone = forward(model, scene.small.collator()([data[index]]))[0]
            assert torch.allclose(together[batch["token_rows"] == index], alone, atol=1e-4)


@pytest.mark.slow
def test_the_trainer_takes_them_unchanged(qwen):
    data = qwen.data()
    arguments = TrainingArguments(
        output_dir=str(qwen.folder / "out"),
        max_steps=2,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    trainer = GraceTrainer(
        qwen.small.model(), arguments, data, qwen.small.collator(), method=MethodConfig("sft")
    )
    assert trainer._get_train_sampler().lengths == data.lengths
    assert np.isfinite(trainer.train().training_loss)


# ------------------------------------------------------------------------------------- truncation

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


@pytest.mark.slow
def test_truncation_never_cuts_an_image(scene):
    """Every length there is, against the definition, image by image."""
    wholes = [scene.data()[index] for index in range(len(scene.records))]
    longest = max(len(whole["input_ids"]) for whole in wholes)
    for max_length in range(6, longest + 2, 3):
        try:
            data = scene.data(max_length=max_length)
        except InputError as error:
            assert "raise max_length" in str(error)
            assert max_length < 25
            continue
        assert len(data) + sum(data.rejected.values()) == len(wholes)
        found = dict(zip(data.ids, range(len(data)), strict=True))
        cut = dropped = images_alone = 0
        for record, whole in zip(scene.records, wholes, strict=True):
            spans, image = [], whole["input_ids"] == scene.processor.image_token_id
            edges = np.flatnonzero(np.diff(np.pad(image.astype(int), 1)))
            spans = edges.reshape(-1, 2)
            index = found.get(str(record["id"]))
            if index is None:
                fits = image.sum() < max_length
                images_alone += not fits
                assert not fits or (whole["labels"][:max_length] == IGNORE_INDEX).all()
                continue
            sample = data[index]
            length = len(sample["input_ids"])
            assert length <= max_length
            assert length == data.lengths[index]
            assert np.array_equal(sample["input_ids"], whole["input_ids"][:length])
            assert np.array_equal(sample["labels"], whole["labels"][:length])
            assert (sample["labels"][1:] != IGNORE_INDEX).sum() == data.supervised[index] > 0
            assert not any(start < length < stop for start, stop in spans)
            shown = [span for span in spans if span[1] <= length]
            if shown:
                made = {name: sample[name] for name in scene.small.adapter.image_inputs}
                tokens = scene.small.adapter.tokens_per_image(scene.config, made)
                assert tokens == [stop - start for start, stop in shown]
            else:
                assert "pixel_values" not in sample
            cut += length < len(whole["input_ids"])
            dropped += len(spans) - len(shown)
        assert (data.truncated, data.dropped_images) == (cut, dropped)
        assert data.rejected["images"] == images_alone


def test_what_a_processor_cannot_take_is_counted(qwen):
    draw(qwen.folder / "images/thin.png", 1, 300)
    records = [
        {"id": "thin", "image": "thin.png", "conversations": talk(1, 1)},
        {"id": "marker", "conversations": talk(1)},
        {"id": "good", "conversations": talk(1)},
    ]
    records[1]["conversations"][0]["value"] = "what is <|image_pad|> ?"
    data = qwen.data(qwen.built(records))
    assert data.ids == ["good"]
    assert data.rejected == {"images": 0, "answer": 0, "shape": 1, "marker": 1}
    with pytest.raises(InputError, match=r"none of the 2 .*shape 1, marker 1"):
        qwen.data(qwen.built(records[:2], "none"))


# ------------------------------------------------------------------------------- images on demand


def test_images_are_read_only_when_asked_for(scene):
    (scene.folder / "images").rename(scene.folder / "moved")
    data = scene.data(max_length=200)
    assert len(data.lengths) == len(data)
    assert data.tokens(0)[0].shape == (data.lengths[0],)
    with pytest.raises(InputError, match=r"record 'one': image .*0\.png.* restore it"):
        data[0]
    elsewhere = scene.data(max_length=200, image_root=scene.folder / "moved")
    assert elsewhere.sha256 == data.sha256
    assert "pixel_values" in elsewhere[0]
    (scene.folder / "moved/coco/train2017/0.png").write_text("no image")
    with pytest.raises(InputError, match="cannot be read"):
        elsewhere[0]


def test_an_image_of_another_size_is_refused(qwen):
    data = qwen.data()
    draw(qwen.folder / "images/coco/train2017/0.png", 300, 20)
    with pytest.raises(InputError, match="record 'one': its images make"):
        data[0]


def test_workers_load_what_the_process_loads(qwen):
    data = qwen.data()
    collate = qwen.small.collator()
    for batch, other in zip(
        DataLoader(data, 3, collate_fn=collate),
        DataLoader(data, 3, collate_fn=collate, num_workers=1),
        strict=True,
    ):
        assert batch.keys() == other.keys()
        for name, value in batch.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other[name])), name


# ----------------------------------------------------------------------------------------- counts


def counts_of(directory):
    return sorted(Path(f"{directory}.counts").glob("*.npy"))


def test_tokens_are_counted_once(qwen, monkeypatch):
    first = qwen.data(max_length=60)
    (cache,) = counts_of(qwen.directory)
    before = cache.stat().st_mtime_ns
    monkeypatch.setattr(token_counts, "count_tokens", lambda *_: pytest.fail("counted"))
    again = qwen.data(max_length=60)
    assert (again.lengths, again.supervised) == (first.lengths, first.supervised)
    assert (again.rejected, again.truncated) == (first.rejected, first.truncated)
    assert cache.stat().st_mtime_ns == before


def test_other_settings_are_counted_apart(qwen):
    seen = {qwen.data().sha256, qwen.data(max_length=60).sha256}
    qwen.processor.image_processor.size = {"shortest_edge": 64**2, "longest_edge": 64**2}
    seen.add(qwen.data().sha256)
    qwen.processor.chat_template = "{# other #}" + qwen.processor.chat_template
    seen.add(qwen.data().sha256)
    qwen.processor.tokenizer.add_tokens(["circle square"])
    seen.add(qwen.data().sha256)
    seen.add(qwen.data(qwen.built(qwen.records[:5])).sha256)
    assert len(seen) == 6
    assert len(counts_of(qwen.directory)) == 5


def test_broken_counts_are_made_again(qwen):
    lengths = qwen.data().lengths
    (cache,) = counts_of(qwen.directory)
    for content in (b"", cache.read_bytes()[:100]):
        cache.write_bytes(content)
        assert qwen.data().lengths == lengths
    np.save(cache, np.zeros(3))
    assert qwen.data().lengths == lengths


def test_counts_that_cannot_be_kept_are_made_by_everyone(qwen):
    lengths = qwen.data().lengths
    for path in Path(f"{qwen.directory}.counts").iterdir():
        path.unlink()
    Path(f"{qwen.directory}.counts").rmdir()
    Path(f"{qwen.directory}.counts").touch()
    with pytest.warns(UserWarning, match="cannot be kept"):
        assert qwen.data().lengths == lengths


def digest(directory, processor, config):
    """A hash of every sample, in another process."""
    torch.set_num_threads(1)
    data = ShardedConversations(directory, processor, config, max_length=150)
    found = hashlib.sha256(repr((data.ids, data.lengths, data.supervised, data.sha256)).encode())
    for index in range(len(data)):
        for name, value in sorted(data[index].items()):
            found.update(name.encode() + np.asarray(value).tobytes())
    return found.hexdigest()


@pytest.mark.slow
def test_two_processes_read_the_same(qwen):
    given = (qwen.directory, qwen.processor, qwen.config)
    with ProcessPoolExecutor(1, mp_context=ranks.CONTEXT) as pool:
        assert pool.submit(digest, *given).result() == digest(*given)
    assert len(counts_of(qwen.directory)) == 1


def test_one_counts_while_the_others_wait(qwen, monkeypatch):
    counted, real = [], token_counts.count_tokens

    def slow(shards, reader):
        counted.append(shards)
        time.sleep(0.3)
        return real(shards, reader)

    monkeypatch.setattr(token_counts, "count_tokens", slow)
    with ThreadPoolExecutor(3) as pool:
        made = [pool.submit(qwen.data) for _ in range(3)]
        assert len({tuple(future.result().lengths) for future in made}) == 1
    assert len(counted) == 1


@pytest.mark.slow
def test_counting_in_processes_changes_nothing(qwen, monkeypatch):
    alone = qwen.data()
    monkeypatch.setattr("grace.data.token_counts._ALONE", 1)
    # processes that have the libraries already
    monkeypatch.setattr("multiprocessing.get_context", lambda _: ranks.CONTEXT)
    many = token_counts.count_tokens(alone.shards, alone._read)
    monkeypatch.undo()
    assert many.tobytes() == token_counts.count_tokens(alone.shards, alone._read).tobytes()


def test_a_pickled_data_set_is_small_and_the_same(qwen):
    data = qwen.data()
    data[0]
    again = pickle.loads(pickle.dumps(data.shards))
    assert again[0] == data.shards[0]
    assert len(pickle.dumps(data.shards)) < 3000


@pytest.mark.parametrize(
    ("options", "told"), [({"max_length": 0}, "max_length is 0"), ({"max_length": 3}, "none of")]
)
def test_bad_bounds_are_refused(qwen, options, told):
    with pytest.raises(InputError, match=told):
        qwen.data(**options)


def test_indices_out_of_range_are_refused(qwen):
    data = qwen.data()
    for index in (-1, len(data)):
        with pytest.raises(IndexError):
            data[index]


def resident():
    """Bytes that only this process has in memory; mapped files are not among them."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


@pytest.mark.slow
def test_memory_is_bounded(tmp_path, family, monkeypatch):
    """Were the tokens of 5,000 conversations of text kept, they would take some 30 MB."""
    texts = [talk(1, seed=k, length=80) for k in range(40)]
    records = []
    for k in range(5_000):
        question, answer = (dict(turn) for turn in texts[k % 40])
        question["value"] += f" {k}"
        answer["value"] += f" {k}"
        records.append({"id": k, "conversations": [question, answer]})
    small = family("llava")
    config = small.model().config
    ShardedConversations(build(tmp_path / "few", records[:750]), small.processor, config)
    directory = build(tmp_path / "all", records, shard_size=250)
    records.clear()
    monkeypatch.setattr("grace.data.token_counts._ALONE", 100_000)  # count in this process
    before = resident()
    data = ShardedConversations(directory, small.processor, config)
    taken = range(0, 5_000, 8)
    assert sum(len(data.tokens(k)[0]) for k in taken) == sum(data.lengths[k] for k in taken)
    assert resident() - before < 12e6


def test_shards_are_read_by_position(qwen):
    shards = Shards(qwen.directory)
    assert [len(shards.range_of(shard)) for shard in range(3)] == [3, 3, 1]
    assert [shards[k]["id"] for k in range(7)] == shards.ids
