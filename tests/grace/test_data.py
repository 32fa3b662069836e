"""Conversations to tokens: what is supervised, what is refused."""

import copy
import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoProcessor,
    CLIPImageProcessor,
    LlamaTokenizer,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from grace.data import IGNORE_INDEX, ConversationDataset, Encoder
from grace.errors import InputError
from grace.training import SupervisedForward
from replication.data.world.chat import CHATS

TALK = [
    {"from": "human", "value": "<image>\nWhat color is the circle?"},
    {"from": "gpt", "value": "red"},
    {"from": "human", "value": "Where is it?"},
    {"from": "gpt", "value": "top left"},
]


MESSAGES = [
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "What color is the circle?"}],
    },
    {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
    {"role": "user", "content": [{"type": "text", "text": "Where is it?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "top left"}]},
]
QWEN_TEXT = (
    "<|im_start|>user\n<|vision_start|>IMAGE<|vision_end|>What color is the circle?<|im_end|>\n"
    "<|im_start|>assistant\nred<|im_end|>\n<|im_start|>user\nWhere is it?<|im_end|>\n"
    "<|im_start|>assistant\ntop left<|im_end|>\n"
)
WRITTEN = {
    "llava": "<s>USER: IMAGE\nWhat color is the circle? ASSISTANT: red</s>"
    "USER: Where is it? ASSISTANT: top left</s>",
    "qwen2_vl": QWEN_TEXT,
    "qwen3_vl": QWEN_TEXT,
}
SPOKEN = {
    "llava": " red</s> top left</s>",
    "qwen2_vl": "red<|im_end|>top left<|im_end|>",
    "qwen3_vl": "red<|im_end|>top left<|im_end|>",
}


def generation_prompt(processor, image):
    """What generation sees, by the library alone: up to the first answer."""
    prompt = processor.apply_chat_template(MESSAGES[:1], tokenize=False, add_generation_prompt=True)
    return processor(text=[prompt], images=[image], return_tensors="pt")["input_ids"][0].tolist()


def supervised(ids, labels):
    assert all(label in (IGNORE_INDEX, token) for token, label in zip(ids, labels, strict=True))
    return [label for label in labels if label != IGNORE_INDEX]


def test_tokens_are_those_of_the_whole_text(small):
    ids, _, _ = Encoder(small.processor)(TALK, [16])
    text = WRITTEN[small.name].replace("IMAGE", small.processor.image_token * 16)
    assert ids == small.processor.tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl"])
def test_tokens_are_those_of_the_chat_template(family, name):
    processor = family(name).processor
    ids, _, _ = Encoder(processor)(TALK, [16])
    text = processor.apply_chat_template(MESSAGES, tokenize=False)
    text = text.replace("<|image_pad|>", "<|image_pad|>" * 16)
    assert ids == processor.tokenizer.encode(text, add_special_tokens=False)


def test_only_answers_and_their_end_are_supervised(small):
    spoken = supervised(*Encoder(small.processor)(TALK, [16])[:2])
    assert small.processor.tokenizer.decode(spoken) == SPOKEN[small.name]
    assert small.processor.image_token_id not in spoken


def test_the_prompt_is_what_generation_sees(small, conversations):
    """Up to the first answer the tokens are the processor's own."""
    ids, labels, _ = Encoder(small.processor)(TALK[:2], [16])
    first = next(i for i, label in enumerate(labels) if label != IGNORE_INDEX)
    image = ConversationDataset(conversations, small.processor, small.model().config).images(0)[0]
    assert ids[:first] == generation_prompt(small.processor, image)


def llama_tokenizer(texts, kind):
    """A tokenizer of Llama's kind: SentencePiece's spaces, and a token to begin with. Its words
    carry the space before them, at the start of a text as well."""
    special = ["<unk>", "<s>", "</s>", "<image>", "<pad>"]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    trained.train_from_iterator([*texts, *["USER: top left ASSISTANT: red"] * 9], trainer)
    learned = json.loads(trained.to_str())["model"]
    vocabulary, merges = learned["vocab"], [tuple(pair) for pair in learned["merges"]]
    marks = {"pad_token": "<pad>", "extra_special_tokens": {"image_token": "<image>"}}
    if kind != "normalizer":
        return LlamaTokenizer(
            vocab=vocabulary, merges=merges, legacy=kind == "legacy", add_bos_token=True, **marks
        )
    # as tokenizer.json files of converted checkpoints have it: always one space more
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        add_bos_token=True,
        **marks,
    )


def llava_processor(tokenizer):
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}
        ),
        tokenizer=tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHATS["llava"].template,
    )


@pytest.mark.parametrize("kind", ["legacy", "metaspace", "normalizer"])
def test_a_sentencepiece_tokenizer_sees_no_space_of_its_own(texts, conversations, family, kind):
    processor = llava_processor(llama_tokenizer(texts, kind))
    ids, labels, _ = Encoder(processor)(TALK, [16])
    first = next(i for i, label in enumerate(labels) if label != IGNORE_INDEX)
    small = family("llava")
    image = ConversationDataset(conversations, small.processor, small.model().config).images(0)[0]
    assert ids[:first] == generation_prompt(processor, image)
    assert ids[0] == processor.tokenizer.bos_token_id
    assert ids.count(processor.tokenizer.bos_token_id) == 1
    spoken = processor.tokenizer.convert_ids_to_tokens(supervised(ids, labels))
    assert spoken == ["▁red", "</s>", "▁top", "▁left", "</s>"]
    # and nothing else stands between prompt and answer when it is all tokenized at once
    text = WRITTEN["llava"].replace("IMAGE", "<image>" * 16).split("</s>")[0] + "</s>"
    whole = processor.tokenizer.encode(text.removeprefix("<s>"))
    assert ids[: len(whole)] == whole


SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


def with_template(processor, template):
    changed = copy.copy(processor)
    changed.chat_template = template
    return changed


def test_a_system_prompt_is_not_supervised(processor):
    """Qwen2-VL's published template begins with one, and it ends with the end token too."""
    published = with_template(processor, SYSTEM + processor.chat_template)
    ids, labels, _ = Encoder(published)(TALK, [16])
    text = SYSTEM + QWEN_TEXT.replace("IMAGE", processor.image_token * 16)
    assert ids == processor.tokenizer.encode(text)
    assert processor.tokenizer.decode(supervised(ids, labels)) == SPOKEN["qwen2_vl"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{% if add_generation_prompt %}", "{% if false %}", "no generation prompt"),
        ("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}", "does both alike"),
        ("{% for message in messages %}", "{% for message in messages[-1:] %}", "drops or rep"),
    ],
)
def test_templates_unfit_for_training_are_refused(processor, old, new, message):
    assert old in processor.chat_template
    changed = with_template(processor, processor.chat_template.replace(old, new))
    with pytest.raises(InputError, match=message):
        Encoder(changed)(TALK, [16])


def test_a_tokenizer_without_an_end_token_is_refused(processor):
    endless = copy.copy(processor)
    endless.tokenizer = copy.deepcopy(processor.tokenizer)
    endless.tokenizer.eos_token = None
    with pytest.raises(InputError, match="no end token"):
        Encoder(endless)(TALK, [16])


@pytest.mark.parametrize(
    ("turns", "images", "message"),
    [
        ([*TALK[:1]], [16], "must end with an answer"),
        ([{"from": "robot", "value": "x"}], [], "robot"),
        ([TALK[1], TALK[0]], [16], "alternate"),
        (TALK, [], "more <image> marks than images"),
        (TALK, [16, 16], "mark each image once"),
        ([{"from": "human"}], [], "'value'"),
    ],
)
def test_bad_conversations_are_refused(processor, turns, images, message):
    with pytest.raises(InputError, match=message):
        Encoder(processor)(turns, images)


@pytest.fixture
def dataset(small, conversations):
    return ConversationDataset(conversations, small.processor, small.model().config)


def test_batches_say_where_things_are(small, dataset):
    batch = small.collator()([dataset[i] for i in range(5)])
    image = batch["input_ids"] == small.processor.image_token_id
    for row, start, stop in batch["image_spans"]:
        assert stop - start == 16
        assert image[row, start:stop].all()
    assert len(batch["image_spans"]) == 5
    assert image.sum() == 5 * 16
    counted = (batch["labels"] != IGNORE_INDEX).sum()
    assert len(batch["targets"]) == counted == sum(dataset.supervised[:5])
    following = batch["labels"][batch["token_rows"], batch["token_columns"] + 1]
    assert torch.equal(following, batch["targets"])
    if small.name == "llava":
        assert not {"mm_token_type_ids", "image_grid_thw"} & batch.keys()
    else:
        assert torch.equal(batch["mm_token_type_ids"] == 1, image)
    assert set(small.adapter.model_inputs) - {"position_ids"} <= batch.keys()


def test_lengths_are_padded_to_a_multiple(small, dataset):
    samples = [dataset[0], dataset[1]]
    plain, padded = (
        dataclasses.replace(small.collator(), multiple=multiple)(samples) for multiple in (1, 64)
    )
    length = plain["input_ids"].shape[1]
    assert length % 64 and padded["input_ids"].shape[1] == (length // 64 + 1) * 64
    assert not padded["attention_mask"][:, length:].any()
    for name, value in plain.items():
        if name in ("input_ids", "labels", "attention_mask"):
            assert torch.equal(padded[name][:, :length], value)
        elif name in ("token_rows", "token_columns", "targets", "pixel_values"):
            assert torch.equal(padded[name], value)
    assert padded["image_spans"] == plain["image_spans"]


def test_pixels_are_the_processors(small, dataset):
    expected = small.processor.image_processor(images=[dataset.images(3)[0]], return_tensors="pt")
    for name in small.adapter.image_inputs:
        assert torch.equal(dataset[3][name], expected[name])


def test_features_replace_pixels(conversations, processor, make_model):
    config = make_model().config
    features = np.arange(48 * 64 * 16, dtype=np.float16).reshape(48, 64, 16)
    data = ConversationDataset(conversations, processor, config, vision_features=features)
    assert np.array_equal(data[7]["pixel_values"].numpy(), features[7])
    some = ConversationDataset(
        conversations, processor, config, records=[5, 2], vision_features=features
    )
    assert np.array_equal(some[1]["pixel_values"].numpy(), features[2])
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
    with pytest.raises(InputError, match=r"48 of 48 records.*\n.*more <image> marks than images"):
        load(tmp_path / "blind.parquet")
    pq.write_table(table.drop_columns(["conversations"]), tmp_path / "silent.parquet")
    with pytest.raises(InputError, match="lacks a column 'messages' or 'conversations'; it has id"):
        load(tmp_path / "silent.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "empty.parquet")
    with pytest.raises(InputError, match="no records"):
        load(tmp_path / "empty.parquet")


def test_a_corrupt_image_names_its_record(tmp_path, conversations, processor, make_model):
    rows = pq.read_table(conversations).slice(0, 2).to_pylist()
    rows[1]["image"]["bytes"] = b"not a picture"
    path = tmp_path / "corrupt.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(conversations)), path)
    with pytest.raises(InputError, match=r"1 of 2.*\n.*scene_0000001.*its image cannot be read"):
        ConversationDataset(path, processor, make_model().config)


def test_prompts_can_be_supervised_too(conversations, processor, make_model):
    data = ConversationDataset(
        conversations, processor, make_model().config, supervise_prompts=True
    )
    sample = data[0]
    image = sample["input_ids"] == processor.image_token_id
    assert (sample["labels"][image] == IGNORE_INDEX).all()
    assert np.array_equal(sample["labels"][~image], sample["input_ids"][~image])


def test_records_of_text_alone_mix_with_others(tmp_path, conversations, small):
    rows = pq.read_table(conversations).slice(0, 3).to_pylist()
    text = [{**turn, "value": turn["value"].replace("<image>\n", "")} for turn in TALK]
    rows[1] |= {"image": None, "conversations": text}
    path = tmp_path / "mixed.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(conversations)), path)
    model, processor = small.model().eval(), small.processor
    data = ConversationDataset(path, processor, model.config)
    assert data[1].keys() == {"index", "input_ids", "labels", "image_spans"}
    assert data[1]["input_ids"].tolist() == Encoder(processor)(text, [])[0]
    collate = small.collator()
    mixed, alone = collate([data[0], data[1], data[2]]), collate([data[1]])
    assert len(mixed["pixel_values"]) == 2 * len(data[0]["pixel_values"])
    assert [row for row, _, _ in mixed["image_spans"]] == [0, 2]
    assert "pixel_values" not in alone
    forward = SupervisedForward(model, data.family, relational=False)
    with torch.no_grad():
        together, apart = forward(model, mixed)[0], forward(model, alone)[0]
    assert torch.allclose(together[mixed["token_rows"] == 1], apart, atol=1e-5)
    rows[1]["conversations"] = TALK  # marks an image that is not there
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(conversations)), path)
    with pytest.raises(InputError, match=r"scene_0000001.*more <image> marks than images"):
        ConversationDataset(path, processor, model.config)


def test_the_processor_survives_a_directory(tmp_path, small, dataset):
    small.processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is type(small.processor)
    assert Encoder(loaded)(TALK, [16]) == Encoder(small.processor)(TALK, [16])
    expected = dataset.pixels(range(2))
    dataset.processor = loaded
    for name, value in dataset.pixels(range(2)).items():
        assert torch.equal(expected[name], value)
