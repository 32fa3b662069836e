"""Conversations to tokens: what is supervised, what is refused."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoProcessor

from grace.data import IGNORE_INDEX, Collator, ConversationDataset, Encoder
from grace.errors import InputError
from grace.models import family_of
from grace.teacher import SupervisedForward

TALK = [
    {"from": "human", "value": "<image>\nWhat color is the circle?"},
    {"from": "gpt", "value": "red"},
    {"from": "human", "value": "Where is it?"},
    {"from": "gpt", "value": "top left"},
]


def test_tokens_are_those_of_the_chat_template(processor):
    ids, _ = Encoder(processor)(TALK, [16])
    messages = [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": "What color is the circle?"}],
        },
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": [{"type": "text", "text": "Where is it?"}]},
        {"role": "assistant", "content": "top left"},
    ]
    text = processor.apply_chat_template(messages, tokenize=False)
    text = text.replace("<|image_pad|>", "<|image_pad|>" * 16)
    assert ids == processor.tokenizer.encode(text, add_special_tokens=False)


def test_only_answers_and_their_end_are_supervised(processor):
    ids, labels = Encoder(processor)(TALK, [16])
    spoken = [label for label in labels if label != IGNORE_INDEX]
    assert processor.tokenizer.decode(spoken) == "red<|im_end|>top left<|im_end|>"
    assert all(label in (IGNORE_INDEX, token) for token, label in zip(ids, labels, strict=True))
    assert processor.image_token_id not in spoken


def test_the_prompt_is_what_generation_sees(processor):
    """Up to the first answer the tokens equal those of the generation prompt."""
    ids, labels = Encoder(processor)(TALK[:2], [16])
    first = next(i for i, label in enumerate(labels) if label != IGNORE_INDEX)
    messages = [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": "What color is the circle?"}],
        }
    ]
    prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = prompt.replace("<|image_pad|>", "<|image_pad|>" * 16)
    assert ids[:first] == processor.tokenizer.encode(prompt, add_special_tokens=False)


@pytest.mark.parametrize(
    ("turns", "images", "message"),
    [
        ([*TALK[:1]], [16], "must end with an answer"),
        ([{"from": "robot", "value": "x"}], [], "robot"),
        ([TALK[1], TALK[0]], [16], "alternate"),
        (TALK, [], "more images"),
        (TALK, [16, 16], "mark each image once"),
        ([{"from": "human"}], [], "'value'"),
    ],
)
def test_bad_conversations_are_refused(processor, turns, images, message):
    with pytest.raises(InputError, match=message):
        Encoder(processor)(turns, images)


@pytest.fixture
def dataset(conversations, processor, make_model):
    return ConversationDataset(conversations, processor, make_model().config)


def test_batches_say_where_things_are(dataset, processor):
    family = family_of("qwen2_vl")
    collate = Collator(family, processor.image_token_id, processor.tokenizer.pad_token_id)
    batch = collate([dataset[i] for i in range(5)])
    for row, start, stop in batch["image_spans"]:
        assert stop - start == 16
        assert (batch["input_ids"][row, start:stop] == processor.image_token_id).all()
    assert len(batch["image_spans"]) == 5
    counted = (batch["labels"] != IGNORE_INDEX).sum()
    assert len(batch["targets"]) == counted == sum(dataset.supervised[:5])
    following = batch["labels"][batch["token_rows"], batch["token_columns"] + 1]
    assert torch.equal(following, batch["targets"])
    assert torch.equal(
        batch["mm_token_type_ids"] == 1, batch["input_ids"] == processor.image_token_id
    )


def test_pixels_are_the_processors(dataset, processor):
    expected = processor.image_processor(images=[dataset.image(3)], return_tensors="pt")
    assert torch.equal(dataset[3]["pixel_values"], expected["pixel_values"])


def test_features_replace_pixels(conversations, processor, make_model):
    config = make_model().config
    features = np.arange(48 * 64 * 16, dtype=np.float16).reshape(48, 64, 16)
    data = ConversationDataset(conversations, processor, config, vision_features=features)
    assert np.array_equal(data[7]["pixel_values"].numpy(), features[7])
    with pytest.raises(InputError, match="rebuild the features"):
        ConversationDataset(conversations, processor, config, vision_features=features[:40])


def test_bad_files_are_refused(tmp_path, conversations, processor, make_model):
    config = make_model().config

    def load(path):
        return ConversationDataset(path, processor, config)

    with pytest.raises(InputError, match=r"missing\.parquet.*does not exist"):
        load(tmp_path / "missing.parquet")
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(conversations.read_bytes()[:2000])
    with pytest.raises(InputError, match="not a readable parquet"):
        load(torn)
    table = pq.read_table(conversations)
    pq.write_table(table.drop_columns(["image"]), tmp_path / "blind.parquet")
    with pytest.raises(InputError, match=r"lacks column\(s\) image"):
        load(tmp_path / "blind.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "empty.parquet")
    with pytest.raises(InputError, match="no records"):
        load(tmp_path / "empty.parquet")


def test_a_corrupt_image_names_its_record(tmp_path, conversations, processor, make_model):
    rows = pq.read_table(conversations).slice(0, 2).to_pylist()
    rows[1]["image"]["bytes"] = b"not a picture"
    path = tmp_path / "corrupt.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(conversations)), path)
    data = ConversationDataset(path, processor, make_model().config)
    with pytest.raises(InputError, match=r"scene_0000001.*cannot be decoded"):
        data[1]


def test_nothing_supervised_is_refused(tmp_path, conversations, processor, make_model, monkeypatch):
    monkeypatch.setattr(Encoder, "__call__", lambda *_: ([1, 2, 3], [IGNORE_INDEX] * 3))
    with pytest.raises(InputError, match="no token is supervised"):
        ConversationDataset(conversations, processor, make_model().config)


def test_prompts_can_be_supervised_too(conversations, processor, make_model):
    data = ConversationDataset(
        conversations, processor, make_model().config, supervise_prompts=True
    )
    sample = data[0]
    image = sample["input_ids"] == processor.image_token_id
    assert (sample["labels"][image] == IGNORE_INDEX).all()
    assert np.array_equal(sample["labels"][~image], sample["input_ids"][~image])


def test_records_of_text_alone_mix_with_others(tmp_path, conversations, processor, make_model):
    rows = pq.read_table(conversations).slice(0, 3).to_pylist()
    text = [{**turn, "value": turn["value"].replace("<image>\n", "")} for turn in TALK]
    rows[1] |= {"image": None, "conversations": text}
    path = tmp_path / "mixed.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(conversations)), path)
    model = make_model().eval()
    data = ConversationDataset(path, processor, model.config)
    assert data[1].keys() == {"index", "input_ids", "labels"}
    assert data[1]["input_ids"].tolist() == Encoder(processor)(text, [])[0]
    collate = Collator(data.family, processor.image_token_id, processor.tokenizer.pad_token_id)
    mixed, alone = collate([data[0], data[1], data[2]]), collate([data[1]])
    assert len(mixed["image_grid_thw"]) == 2
    assert [row for row, _, _ in mixed["image_spans"]] == [0, 2]
    assert "pixel_values" not in alone
    forward = SupervisedForward(model, data.family, relational=False)
    with torch.no_grad():
        together, apart = forward(model, mixed)[0], forward(model, alone)[0]
    assert torch.allclose(together[mixed["token_rows"] == 1], apart, atol=1e-5)
    rows[1]["conversations"] = TALK  # marks an image that is not there
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(conversations)), path)
    with pytest.raises(InputError, match=r"scene_0000001.*more images than the 0 given"):
        ConversationDataset(path, processor, model.config)


def test_the_processor_survives_a_directory(tmp_path, processor, dataset):
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert Encoder(loaded)(TALK, [16]) == Encoder(processor)(TALK, [16])
