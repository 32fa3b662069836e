"""One model class for every family: its answers are the model's own, whatever shares the batch."""

import copy

import numpy as np
import pytest
import torch
from conftest import speaking
from PIL import ExifTags, Image
from tiny_families import family_params, picture, save, tiny_model, tiny_processor

from grace.errors import InputError
from grace.evaluation.shared import SharedInputs
from replication.data.world.scenes import draw_scene, render

lmms_model = pytest.importorskip("grace.evaluation.lmms", reason="lmms-eval is not installed")
from lmms_eval.api.instance import Instance  # noqa: E402

QUESTIONS = (
    "What color is the circle?",
    "Where is it?",
    "Is there a red circle in the image?\nAnswer the question using a single word or phrase.",
    "How many objects are in the image? A. one B. two C. three D. none of these, as there are none",
)


def documents(count):
    documents = []
    for index in range(count):
        rng = np.random.default_rng(index)
        images = [render(draw_scene(rng, "evaluation"), rng)]
        documents.append({"text": QUESTIONS[index % 4], "images": images * (index % 6 != 5)})
    return documents


def wrap(model, processor, docs, **options):
    wrapped = lmms_model.ChatModel(model, processor, **{"max_new_tokens": 5, **options})
    wrapped.task_dict = {"task": {"test": docs}}
    return wrapped


def requests(docs, **settings):
    return [
        Instance(
            request_type="generate_until",
            arguments=(doc["text"], settings, lambda d: d["images"], row, "task", "test"),
            idx=row,
            metadata={"task": "task", "doc_id": row, "repeats": 1},
        )
        for row, doc in enumerate(docs)
    ]


def ask(model, processor, docs, **options):
    return wrap(model, processor, docs, **options).generate_until(requests(docs))


def inputs_of(processor, doc):
    content = [*({"type": "image"} for _ in doc["images"]), {"type": "text", "text": doc["text"]}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    images = [doc["images"]] if doc["images"] else None
    start = processor.tokenizer.bos_token
    twice = bool(start) and prompt.startswith(start)  # the template writes it already
    options = {"add_special_tokens": False} if twice else {}
    return processor(text=[prompt], images=images, return_tensors="pt", **options)


def by_the_library(model, processor, doc):
    """One question, no wrapper, no padding."""
    inputs = inputs_of(processor, doc)
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    row = out[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(row, skip_special_tokens=True).strip()


@pytest.mark.slow
def test_answers_do_not_depend_on_the_batch(small):
    model, docs = speaking(small), documents(18)
    alone = [by_the_library(model, small.processor, doc) for doc in docs]
    assert len(set(alone)) > 8, "answers have to differ for this test to see anything"
    for size in (1, 7, 18):
        assert ask(model, small.processor, docs, batch_size=size) == alone


@pytest.mark.slow
@pytest.mark.parametrize("name", family_params())
def test_every_family_answers_alike_in_batches_and_alone(name):
    """Images of several sizes, none, one and two to a question."""
    model, processor = tiny_model(name), tiny_processor(name)
    sizes = [(40, 40), (64, 32), (32, 72), (48, 40)]
    docs = [
        {"text": QUESTIONS[row % 4], "images": [picture(10 * row + k, *sizes[k]) for k in range(n)]}
        for row, n in enumerate([1, 1, 2, 1, 0, 1] if name != "paligemma" else [1, 1, 2, 1])
    ]
    alone = [by_the_library(model, processor, doc) for doc in docs]
    assert len(set(alone)) > 1
    for size in (1, 3):
        assert ask(model, processor, docs, batch_size=size) == alone


@pytest.mark.slow
def test_models_of_one_tower_share_their_inputs(small, tmp_path, monkeypatch):
    """The second reads what the first wrote, and both answer as they would alone."""
    torch.manual_seed(3)
    first, docs = speaking(small), documents(8)
    second = copy.deepcopy(first)
    with torch.no_grad():
        for name in (*small.adapter.projectors, small.adapter.decoder_layers):
            for parameter in second.get_submodule(name).parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    other = copy.deepcopy(first)
    with torch.no_grad():
        for parameter in other.get_submodule(small.adapter.vision_tower).parameters():
            parameter.mul_(1.5)
    alone = {}
    for model in (first, second, other):
        chat = wrap(model, small.processor, docs, batch_size=3)
        alone[model] = chat.generate_until(requests(docs)), chat.entropies
    assert alone[first] != alone[second] != alone[other]
    read, reads = lmms_model.read_prompts, []
    monkeypatch.setattr(
        lmms_model, "read_prompts", lambda *args, **more: reads.append(1) or read(*args, **more)
    )
    for model, batches in ((first, 3), (second, 0), (other, 3)):
        reads.clear()
        shared = SharedInputs(tmp_path, model, small.processor)
        chat = wrap(model, small.processor, docs, batch_size=3, shared=shared)
        assert (chat.generate_until(requests(docs)), chat.entropies) == alone[model]
        assert len(reads) == batches


def test_a_directory_answers_as_the_model_in_memory(tmp_path, small):
    model, docs = speaking(small), documents(6)
    save(model, small.processor, tmp_path)
    loaded = lmms_model.Grace(str(tmp_path), device="cpu", dtype="float32", batch_size="3")
    assert ask(loaded.model, loaded.processor, docs) == ask(model, small.processor, docs)


def test_a_task_s_images_are_opened_as_everywhere(family, tmp_path):
    """Paths as well, upright and on white."""
    small = family("qwen2_vl")
    model, (doc,) = speaking(small), documents(1)
    image = doc["images"][0]
    turned = image.convert("RGBA").transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned.save(tmp_path / "a.png", exif=exif)
    chat = wrap(model, small.processor, [doc, {**doc, "images": [str(tmp_path / "a.png")]}])
    inputs = chat._inputs(requests(chat.task_dict["task"]["test"]))
    first, second = inputs["pixel_values"].chunk(2)
    assert torch.equal(first, second)


def test_the_length_of_an_answer_is_the_task_s_bounded_by_the_user_s(family, monkeypatch):
    small, docs = family("qwen2_vl"), documents(2)
    model, asked = speaking(small), []
    generate = model.generate

    def recorded(**inputs):
        asked.append(inputs["max_new_tokens"])
        return generate(**{**inputs, "max_new_tokens": 2})

    monkeypatch.setattr(model, "generate", recorded)
    for own, task in ((None, 7), (None, None), (5, 7), (5, 3), (5, None)):
        settings = {} if task is None else {"max_new_tokens": task}
        wrap(model, small.processor, docs, max_new_tokens=own).generate_until(
            requests(docs, **settings)
        )
    assert asked == [7, lmms_model.MAX_NEW_TOKENS, 5, 3, 5]


def test_what_a_model_cannot_see_or_say_is_refused(family):
    small = family("qwen2_vl")
    model, docs = small.model(), documents(1)
    docs[0]["images"] = [np.zeros((4, 8, 8, 3))]
    with pytest.raises(InputError, match=r"task task, question 0, image 1 is a ndarray"):
        ask(model, small.processor, docs)
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    with pytest.raises(InputError, match="logits are not finite"):
        ask(model, small.processor, documents(1))


def test_the_space_before_an_answer_is_not_part_of_it(family, monkeypatch):
    """LLaVA is trained to say " red" after "ASSISTANT:"."""
    small = family("llava")
    model, tokenizer = small.model(), small.processor.tokenizer

    def generate(input_ids, logits_processor, **_):
        for processor in logits_processor:
            processor(input_ids, torch.zeros(len(input_ids), len(tokenizer)))
        said = torch.tensor([tokenizer.encode(" red</s>", add_special_tokens=False)])
        return torch.cat([input_ids, said.expand(len(input_ids), -1)], dim=1)

    monkeypatch.setattr(model, "generate", generate)
    assert ask(model, small.processor, documents(2)) == ["red", "red"]


def test_the_entropy_of_the_first_token_is_kept(small):
    """Against the logits of one forward pass without padding."""
    model, docs = speaking(small), documents(7)
    chat = wrap(model, small.processor, docs, batch_size=3)
    chat.generate_until(requests(docs))
    assert set(chat.entropies) == {("task", row) for row in range(7)}
    found = [chat.entropies["task", row] for row in range(7)]
    for entropy, doc in zip(found, docs, strict=True):
        with torch.no_grad():
            last = model(**inputs_of(small.processor, doc)).logits[0, -1].double()
        chances = last.softmax(0)
        assert entropy == pytest.approx(-float((chances * chances.log()).sum()), abs=1e-4)
    assert max(found) - min(found) > 1e-3
