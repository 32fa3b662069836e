"""Every family, end to end on a tiny random instance: batches, a step of training, resume, bake."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_families import (
    CHATS,
    FAMILIES,
    family_params,
    picture,
    tiny_config,
    tiny_model,
    tiny_processor,
)
from transformers import TrainerCallback, TrainingArguments

from grace.data import IGNORE_INDEX, Collator, ConversationDataset
from grace.distillation import DistillationConfig, rcka_loss, visual_token_count
from grace.errors import InputError
from grace.models import family_of, load_model, load_processor
from grace.models.questions import question
from grace.quantization import QuantSpec, fake_quant_layers
from grace.training import (
    GraceTrainer,
    Identity,
    LiveTeacher,
    MethodConfig,
    SupervisedForward,
    check_teacher,
    prepare_student,
    save_student,
)

SIZES = [[(40, 40)], [], [(64, 32), (24, 56)], [(17, 61)]]
"""Width and height of the images of four samples."""


@pytest.fixture(scope="module", params=family_params())
def name(request):
    return request.param


def written(name, images, question):
    """The library's own inputs for a question about some images."""
    processor = tiny_processor(name)
    text = f"{processor.image_token}\n" * len(images) + question
    if not images and name == "paligemma":  # its processor wants an image
        tokens = torch.tensor([processor.tokenizer.encode(text)])
        return {"input_ids": tokens, "token_type_ids": torch.zeros_like(tokens)}
    inputs = processor(text=[text], images=[images] if images else None, return_tensors="pt")
    return {key: value for key, value in inputs.items() if key != "labels"}


def answered(name, index):
    """Sample `index`: the library's prompt and a random answer; and the library's inputs."""
    images = [picture(10 * index + k, *size) for k, size in enumerate(SIZES[index])]
    inputs = written(name, images, "What is it?" + " It is red." * index)
    prompt = inputs["input_ids"][0].numpy()
    answer = np.random.default_rng(index).integers(20, 200, 5)
    labels = np.concatenate([np.full_like(prompt, IGNORE_INDEX), answer])
    sample = {"index": index, "labels": labels, "image_spans": spans(name, prompt, images)}
    sample["input_ids"] = np.concatenate([prompt, answer])
    family = family_of(tiny_config(name))
    sample |= family.read_images(tiny_processor(name), images) if images else {}
    return sample, inputs | {"input_ids": torch.from_numpy(sample["input_ids"])[None]}


def spans(name, tokens, images):
    """First visual token of each image and one past its last, by as many as it has alone."""
    token = family_of(tiny_config(name)).image_token_id(tiny_config(name))
    places = np.flatnonzero(tokens == token)
    each = len(places) // max(len(images), 1)  # LLaVA-OneVision: several images have as many
    found = []
    for image in images:
        alone = written(name, [image], "")["input_ids"]
        count = each if name == "llava_onevision" else int((alone == token).sum())
        found.append((int(places[0]), int(places[count - 1]) + 1))
        places = places[count:]
    assert not len(places)
    return found


def collator(name):
    config = tiny_config(name)
    family = family_of(config)
    pad = tiny_processor(name).tokenizer.pad_token_id
    return Collator(family, family.image_token_id(config), pad)


def types(inputs, name):
    """The library's types of tokens, with those of the answer."""
    later = {"paligemma": 1}.get(name, 0)
    longer = {}
    for key in ("mm_token_type_ids", "token_type_ids"):
        if key in inputs:
            answer = torch.full((1, 5), later, dtype=inputs[key].dtype)
            longer[key] = torch.cat([inputs[key], answer], dim=1)
    return longer


@pytest.mark.slow
def test_a_sample_has_the_same_logits_alone_in_a_batch_and_by_the_library(name):
    """None, one or several images of different sizes in one padded batch."""
    model = tiny_model(name)
    family = family_of(model.config)
    forward = SupervisedForward(model, family, relational=True)
    samples, inputs = zip(*(answered(name, index) for index in range(len(SIZES))), strict=True)
    collate = collator(name)
    with torch.no_grad():
        batch = collate(samples)
        logits, hidden = forward(model, batch)
        for row, (sample, given) in enumerate(zip(samples, inputs, strict=True)):
            length = len(sample["input_ids"])
            told = {k: v for k, v in given.items() if k != "attention_mask"} | types(given, name)
            plain = model(**told, output_hidden_states=True)
            rows = batch["token_rows"] == row
            expected = plain.logits[0, batch["token_columns"][rows]]
            torch.testing.assert_close(logits[rows], expected, rtol=1e-4, atol=1e-4)
            alone, inner = forward(model, collate([sample]))
            torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(hidden[row, :length], inner[0], rtol=1e-4, atol=1e-4)
            if name != "qwen3_vl":  # whose deepstack features enter after the listed state
                torch.testing.assert_close(inner, plain.hidden_states[-2], rtol=1e-5, atol=1e-5)


def test_the_visual_tokens_of_an_image_are_all_its_placeholders(name):
    """All crops of it, in decoder order, without row ends and marks of tiles."""
    samples = [answered(name, index)[0] for index in range(len(SIZES))]
    batch = collator(name)(samples)
    shown = batch["input_ids"] == family_of(tiny_config(name)).image_token_id(tiny_config(name))
    marked = torch.zeros_like(shown)
    for row, *edges in batch["image_spans"]:
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            assert not marked[row, start:stop].any()
            marked[row, start:stop] = True
    assert torch.equal(marked, shown)
    assert [span[0] for span in batch["image_spans"]] == [0, 2, 2, 3]
    counts = [visual_token_count(span) for span in batch["image_spans"]]
    assert sum(counts) == int(shown.sum()) and min(counts) >= 2
    same = torch.randn(*shown.shape, 8)
    assert float(rcka_loss(same, same, batch["image_spans"])) < 1e-6


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """A file of conversations with the images of `SIZES`, the last one in two turns."""
    folder = tmp_path_factory.mktemp("records")
    lines = []
    for index, sizes in enumerate(SIZES):
        paths = [f"{index}-{number}.png" for number in range(len(sizes))]
        for number, (path, size) in enumerate(zip(paths, sizes, strict=True)):
            picture(10 * index + number, *size).save(folder / path)
        turns = [
            {"from": "human", "value": "<image>\n" * len(sizes) + "What is in the picture?"},
            {"from": "gpt", "value": "A red circle." * (index + 1)},
        ]
        if index == len(SIZES) - 1:
            turns += [
                {"from": "human", "value": "How many shapes are there?"},
                {"from": "gpt", "value": "There are three."},
            ]
        lines.append(json.dumps({"id": str(index), "image": paths, "conversations": turns}))
    (folder / "train.jsonl").write_text("\n".join(lines))
    return folder / "train.jsonl"


def test_training_reads_a_question_as_generation_does(name, records):
    """Token by token, types and pixels too; the answer follows, with a token that stops it."""
    processor = tiny_processor(name)
    data = ConversationDataset(records, processor, tiny_config(name))
    stops = {processor.tokenizer.eos_token_id, *stop_tokens(name)}
    for index, sizes in enumerate(SIZES):
        sample = data[index]
        images = data.images(index)
        assert [image.size for image in images] == sizes
        if name == "paligemma" and not images:
            continue  # its processor wants an image
        asked = question(processor, images, "What is in the picture?")
        prompt = asked["input_ids"][0].numpy()
        length = len(prompt)
        assert sample["input_ids"][:length].tolist() == prompt.tolist()
        assert (sample["labels"][:length] == IGNORE_INDEX).all()
        answered = sample["labels"][length:]
        answer = answered[: np.flatnonzero(answered == IGNORE_INDEX)[0]] if index == 3 else answered
        written = answer[answer != IGNORE_INDEX]
        assert stops & {int(token) for token in written}
        text = processor.tokenizer.decode(written, skip_special_tokens=True).strip()
        assert text == "A red circle." * (index + 1)
        for key in data.family.image_inputs:
            if key in asked:
                assert torch.equal(sample[key], asked[key]), key


def stop_tokens(name):
    tokenizer = tiny_processor(name).tokenizer
    return tokenizer.convert_tokens_to_ids(list(CHATS[name].stops))


METHOD = MethodConfig("grace", 4, QuantSpec(4, 32), DistillationConfig())


class Gradients(TrainerCallback):
    """The largest entry of every gradient before the last step."""

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        self.found = {
            name: None if parameter.grad is None else float(parameter.grad.abs().max())
            for name, parameter in model.named_parameters()
        }


def fit(name, records, place, resume=None, under=None):
    """Two steps of the method under a larger teacher, or the second one alone."""
    under = under or name
    student, teacher = tiny_model(name, seed=1), tiny_model(under, seed=2, larger=True)
    prepare_student(student, METHOD)
    arguments = TrainingArguments(
        str(place),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        logging_steps=1,
        save_steps=1,
        seed=3,
        report_to=[],
        remove_unused_columns=False,
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    family, gradients = family_of(teacher.config), Gradients()
    live = LiveTeacher(teacher, family, relational=True, tokenizer=tiny_processor(under))
    trainer = GraceTrainer(
        student,
        arguments,
        ConversationDataset(records, tiny_processor(name), student.config),
        collator(name),
        method=METHOD,
        teacher=live,
        callbacks=[gradients],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, gradients.found


@pytest.fixture(scope="module")
def trained(name, records, tmp_path_factory):
    """A trained student, its gradients before the last step, and its first checkpoint."""
    place = tmp_path_factory.mktemp(name)
    trainer, gradients = fit(name, records, place)
    return trainer, gradients, place / "checkpoint-1"


@pytest.mark.slow
def test_a_step_under_a_larger_teacher(name, trained):
    """Scales and projectors have gradients, the tower has none, and all terms are finite."""
    trainer, gradients, _ = trained
    student, family = trainer.model, family_of(trainer.model.config)
    for record in trainer.state.log_history[:2]:
        assert np.isfinite([record[term] for term in ("ce", "gdkd", "rcka", "beta")]).all()
        assert record["ce"] > 0 and record["gdkd"] > 0 and 0.01 < record["rcka"] < 1
        assert record["degenerate_images"] == record["skipped_steps"] == 0
    linears = family.decoder_linears(tiny_model(name))
    assert [layer for layer, _ in fake_quant_layers(student)] == linears
    frozen = set(family.tower_parameters(student))
    assert frozen and all(gradients[name] is None for name in frozen)
    scales = [name for name in gradients if name.endswith("log_scale")]
    assert len(scales) == len(linears)
    assert all(gradients[name] > 0 for name in scales)
    for projector in family.projectors:
        assert any((gradients[n] or 0) > 0 for n in gradients if n.startswith(f"{projector}."))


@pytest.mark.slow
def test_resume_equals_an_uninterrupted_run(name, records, trained):
    trainer, _, checkpoint = trained
    again, _ = fit(name, records, checkpoint.parent, resume=str(checkpoint))
    assert again.state.global_step == 2
    expected = trainer.model.state_dict()
    for key, value in again.model.state_dict().items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.slow
def test_a_baked_student_is_the_one_that_was_trained(name, trained, tmp_path):
    """In memory, and read back from the directory that is written."""
    student = trained[0].model.eval()
    inputs = {k: v for k, v in answered(name, 2)[1].items() if k != "attention_mask"}
    inputs |= types(inputs, name)
    with torch.no_grad():
        expected = student(**inputs).logits
        save_student(student, tiny_processor(name), tmp_path / "student", METHOD)
        torch.testing.assert_close(student(**inputs).logits, expected, rtol=1e-4, atol=1e-4)
        loaded = load_model(tmp_path / "student")
        torch.testing.assert_close(loaded(**inputs).logits, expected, rtol=1e-4, atol=1e-4)
    assert load_processor(tmp_path / "student").chat_template


@pytest.mark.slow
def test_a_student_learns_from_a_teacher_of_the_next_generation(records, tmp_path):
    trainer, gradients = fit("qwen2_vl", records, tmp_path, under="qwen2_5_vl")
    for record in trainer.state.log_history[:2]:
        assert record["gdkd"] > 0 and 0.01 < record["rcka"] < 1
        assert record["degenerate_images"] == record["skipped_steps"] == 0
    assert all(value > 0 for name, value in gradients.items() if name.endswith("log_scale"))


def identity(name, **changes):
    config = tiny_config(name)
    for key, value in changes.items():
        setattr(config.vision_config, key, value)
    return Identity.of(config, tiny_processor(name))


def test_a_teacher_of_another_generation_may_teach():
    """Qwen2-VL and Qwen2.5-VL have one tokenizer and cut images alike; Qwen3-VL's patches do not
    have the same pixels."""
    check_teacher(identity("qwen2_vl"), identity("qwen2_5_vl"))
    with pytest.raises(InputError, match=r"image_mean is \[0.48.*\] in the student and \[0.5"):
        check_teacher(identity("qwen2_5_vl"), identity("qwen3_vl"))
    with pytest.raises(InputError, match="image_token_id"):
        check_teacher(identity("qwen2_5_vl"), identity("glm4v"))


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("llava", {"patch_size": 16}, "patch_size is 8 in the student and 16 in the teacher"),
        ("qwen2_vl", {"spatial_merge_size": 4}, "spatial_merge_size is 2"),
        ("gemma3", {"image_size": 64}, "image_size is 32"),
    ],
)
def test_a_teacher_that_sees_other_tokens_is_refused(name, changes, told):
    with pytest.raises(InputError, match=told):
        check_teacher(identity(name), identity(name, **changes))


def test_the_documented_families_are_the_tested_ones():
    document = Path(__file__).parents[2] / "docs" / "extending.md"
    text = document.read_text(encoding="utf-8")
    listed = text.partition("others train untested:")[2].partition("An **image**")[0]
    rows = re.findall(r"([A-Z][^(]+) \(`(\w+)`\)", " ".join(listed.split()))
    assert [(model_type, published) for published, model_type in rows] == FAMILIES


COLUMNS = {
    "trained": ("test_a_step_under_a_larger_teacher", "test_resume_equals_an_uninterrupted_run"),
    "packed": ("test_a_packed_model_answers_as_the_fake_quantized_one",),
    "exports": (
        "test_transformers_reads_the_export_with_the_same_codes",
        "test_the_awq_export_is_read_back_with_the_same_codes",
    ),
}
"""The tests, each of every family, behind the columns of the README's table."""


def test_every_column_of_the_readmes_table_is_a_test_of_every_family():
    here = Path(__file__)
    sources = [here.read_text(), here.with_name("test_families_deployed.py").read_text()]
    assert all("params=family_params()" in source for source in sources)
    readme = (here.parents[2] / "README.md").read_text(encoding="utf-8")
    (header,) = re.findall(r"(?m)^\| family \| (.+) \| engines tested \|$", readme)
    assert header.split(" | ") == list(COLUMNS)
    for tests in COLUMNS.values():
        for test in tests:
            assert any(f"def {test}(" in source for source in sources), test
