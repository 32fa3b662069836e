"""Batches at the edge of what training is given: what happens is defined, and is this."""

import math

import pytest
import torch
from torch.utils.data import Dataset
from transformers import TrainingArguments

from grace.data import IGNORE_INDEX, ConversationDataset, Encoder
from grace.distillation import DistillationConfig
from grace.errors import InputError
from grace.models import family_of
from grace.quantization import QuantSpec
from grace.training import GraceTrainer, LiveTeacher, MethodConfig, prepare_student

METHODS = ("sft", "grace")


class Samples(Dataset):
    """Samples that are given one by one."""

    def __init__(self, data, samples):
        self.family, self.processor, self.samples = data.family, data.processor, samples
        self.lengths = [len(sample["input_ids"]) for sample in samples]
        self.supervised = [int((s["labels"][1:] != IGNORE_INDEX).sum()) for s in samples]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return {**self.samples[index], "index": index}


@pytest.fixture
def data(conversations, processor, make_model):
    return ConversationDataset(conversations, processor, make_model().config)


@pytest.fixture
def teacher(make_model):
    return make_model(9, num_hidden_layers=3)


def train(folder, small, teacher, samples, method="grace", batch_size=2, steps=2):
    """The model, the weights that it began with, and what was logged."""
    model = small.model(1)
    settings = None if method == "sft" else DistillationConfig.from_dict({"tau": 0.2})
    bits = 16 if method == "sft" else 4
    spec = None if method == "sft" else QuantSpec(bits=4, group_size=32)
    chosen = MethodConfig(method, bits=bits, quantization=spec, distillation=settings)
    prepare_student(model, chosen)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    arguments = TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=1e-3,
        weight_decay=0.0,
        logging_steps=1,
        save_steps=1000,
        use_cpu=True,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        optim="sgd",
    )
    live = LiveTeacher(teacher, family_of("qwen2_vl"), relational=True) if settings else None
    trainer = GraceTrainer(model, arguments, samples, small.collator(), method=chosen, teacher=live)
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "ce" in entry]
    assert len(history) == steps
    for entry in history:
        assert all(math.isfinite(v) for v in entry.values() if isinstance(v, int | float)), entry
    return model, before, history


@pytest.fixture
def small(family):
    return family("qwen2_vl")


def moved(model, before):
    return any(not torch.equal(v, before[n]) for n, v in model.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_of_one(tmp_path, small, teacher, data, method):
    model, before, _ = train(tmp_path, small, teacher, data, method, batch_size=1)
    assert moved(model, before)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_no_image_in_any_batch(tmp_path, small, teacher, data, method):
    """The relational term is zero, the others are what they are."""
    turns = [{"from": "human", "value": "red"}, {"from": "gpt", "value": "circle"}]
    ids, labels = (torch.tensor(part).numpy() for part in Encoder(small.processor)(turns, [])[:2])
    samples = Samples(data, [{"input_ids": ids, "labels": labels}] * 4)
    model, before, history = train(tmp_path, small, teacher, samples, method)
    assert moved(model, before)
    if method == "grace":
        assert [entry["rcka"] for entry in history] == [0, 0]
        assert all(entry["gdkd"] > 0 for entry in history)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_images_whose_conversations_have_no_valid_token(tmp_path, small, teacher, data, method):
    """Beside others they teach no token; their images still count in the relational term."""
    silent = {**data[0], "labels": data[0]["labels"] * 0 + IGNORE_INDEX}
    alone = train(tmp_path / "a", small, teacher, Samples(data, [data[1]]), method, 1, 1)[2]
    beside = train(tmp_path / "b", small, teacher, Samples(data, [silent, data[1]]), method, 2, 1)[
        2
    ]
    assert beside[0]["ce"] == pytest.approx(alone[0]["ce"], rel=1e-5)
    if method == "grace":
        assert beside[0]["gdkd"] == pytest.approx(alone[0]["gdkd"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_all_labels_masked(tmp_path, small, teacher, data, method):
    """Nothing to learn from is a loss of zero, not of 0 / 0, and for plain training no step."""
    masked = [{**data[i], "labels": data[i]["labels"] * 0 + IGNORE_INDEX} for i in range(2)]
    model, before, history = train(tmp_path, small, teacher, Samples(data, masked), method)
    assert [entry["ce"] for entry in history] == [0, 0]
    if method == "sft":
        assert not moved(model, before)
    else:
        assert [entry["gdkd"] for entry in history] == [0, 0]


@pytest.mark.slow
def test_answers_of_one_token(tmp_path, small, teacher, data):
    """The answer and the end token are supervised; without an end token to learn, the one is."""
    encode = small.processor.tokenizer.encode
    word = next(one for one in ("yes", "no", "1", "A") if len(encode(one)) == 1)
    turns = [{"from": "human", "value": "red"}, {"from": "gpt", "value": word}]
    ids, labels = (torch.tensor(part).numpy() for part in Encoder(small.processor)(turns, [])[:2])
    spoken = labels[labels != IGNORE_INDEX]
    assert spoken[-1] == small.processor.tokenizer.eos_token_id and len(spoken) == 2
    labels[labels == spoken[-1]] = IGNORE_INDEX
    samples = Samples(data, [{"input_ids": ids, "labels": labels}] * 2)
    model, before, history = train(tmp_path, small, teacher, samples, batch_size=1)
    assert moved(model, before) and all(entry["gdkd"] > 0 for entry in history)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_teacher_in_another_dtype(tmp_path, small, teacher, data, dtype):
    expected = train(tmp_path / "a", small, teacher, data, steps=1)[2][0]
    found = train(tmp_path / "b", small, teacher.to(dtype), data, steps=1)[2][0]
    for name in ("gdkd", "rcka", "gate"):
        assert found[name] == pytest.approx(expected[name], rel=0.1, abs=0.02), name
    assert found["ce"] == pytest.approx(expected["ce"], rel=1e-6)


def test_an_empty_data_set_is_refused(tmp_path, conversations, small):
    import pyarrow.parquet as pq

    path = tmp_path / "none.parquet"
    pq.write_table(pq.read_table(conversations).slice(0, 0), path)
    with pytest.raises(InputError, match="has no records"):
        ConversationDataset(path, small.processor, small.model().config)
