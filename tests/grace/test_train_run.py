"""`grace train` from its command line to its directory: what is written, interrupted, resumed and
refused."""

import errno
import json
import os
import shutil
import signal
from importlib import metadata
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_families
import torch
import yaml
from commands import done, refused, save
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import grace.training.run as run_module
from grace.cli import main
from grace.errors import InputError
from grace.quantization import CODES_FILE, CodesFile
from grace.training import GraceTrainer, check_teacher, read_options, teaching
from grace.training.checks import Source, check_structure
from grace.training.conversations import read_conversations
from grace.training.manifest import MANIFEST_FILE
from grace.training.method import method_of

FAST = ("--steps", 3, "--batch-size", 2, "--learning-rate", 1e-3, "--group-size", 64,
        "--logging_steps", 1, "--device", "cpu")  # fmt: skip


@pytest.fixture(scope="module")
def models(family, tmp_path_factory):
    """A student and a teacher on the disk."""
    folder = tmp_path_factory.mktemp("models")
    small = family("qwen2_vl")
    save(small, folder / "student")
    save(small, folder / "teacher", seed=2, num_hidden_layers=3)
    return folder


@pytest.fixture
def words(models, conversations, tmp_path):
    """A command line that trains without a teacher."""
    return ("train", models / "student", "--data", conversations, "--out", tmp_path / "out",
            "--method", "qat", *FAST)  # fmt: skip


@pytest.fixture
def no_weights(monkeypatch):
    """Fails where weights are loaded."""

    def load(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(run_module, "load_model", load)
    monkeypatch.setattr(teaching, "load_teacher", load)


def at_step(monkeypatch, step, action):
    """Do something in the middle of a step, counted from 1."""
    original = GraceTrainer.training_step

    def training_step(self, *arguments, **options):
        if self.state.global_step == step - 1:
            action()
        return original(self, *arguments, **options)

    monkeypatch.setattr(GraceTrainer, "training_step", training_step)


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def report(folder):
    return json.loads((Path(folder) / "training.json").read_text())


# --------------------------------------------------------------------------------- what is written


@pytest.mark.slow
def test_what_a_run_leaves(models, conversations, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    out = tmp_path / "out"
    recipe.write_text(
        yaml.safe_dump(
            {
                "model": str(models / "student"),
                "teacher": str(models / "teacher"),
                "data": str(conversations),
                "out": str(out),
                "group_size": 64,
                "max_steps": 3,
                "logging_steps": 1,
                "eval_share": 0.1,
                "eval_steps": 2,
                "distillation": {"tau": 0.2},
            }
        )
    )
    done("train", recipe, "--learning_rate", 1e-3, "--device", "cpu")
    assert not Path(f"{out}.checkpoints").exists()
    found = report(out)
    assert found["method"]["distillation"]["tau"] == 0.2
    assert found["method"]["quantization"]["group_size"] == 64
    assert found["training"]["learning_rate"] == 1e-3
    assert found["training"]["lr_scheduler_type"] == "cosine"
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["data"]["samples"] == 43  # 48 without the tenth that is held out
    assert [entry["step"] for entry in found["history"] if "eval_loss" in entry] == [2, 3]
    assert [entry["step"] for entry in found["history"] if "loss" in entry] == [1, 2, 3]
    card = ModelCard.load(out / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "image-text-to-text"
    assert set(card.data.tags) == {"grace", "int4"}
    assert str(models) not in card.text
    for text in (
        "| teacher | teacher in 16 bits |",
        "tau 0.2",
        "4 bits",
        "grace pack out",
        "vllm serve",
    ):
        assert text in card.text, text


@pytest.mark.slow
def test_two_stages(models, conversations, tmp_path):
    """A 16-bit student under the teacher, then the same in 4 bits from where it ended."""
    shared = ("--teacher", models / "teacher", "--data", conversations, *FAST)
    done("train", models / "student", *shared, "--bits", 16, "--out", tmp_path / "one")
    assert not (tmp_path / "one" / CODES_FILE).exists()
    done("train", tmp_path / "one", *shared, "--out", tmp_path / "two")
    found = report(tmp_path / "two")
    assert found["model"]["trained_from"]["model"]["name"] == str(models / "student")
    assert found["model"]["trained_from"]["method"]["bits"] == 16
    assert CodesFile(tmp_path / "two" / CODES_FILE).bits == 4
    codes = CodesFile(tmp_path / "two" / CODES_FILE)
    name = next(iter(codes.keys()))
    start = load_file(tmp_path / "one" / "model.safetensors")
    first = load_file(models / "student" / "model.safetensors")
    assert any(not torch.equal(start[key], first[key]) for key in start)
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "two").get_submodule(name)


@pytest.mark.slow
def test_self_distillation_needs_no_teacher(models, conversations, tmp_path, capsys):
    words = ("train", models / "student", "--data", conversations, "--method", "qad", *FAST)
    assert "takes no --teacher" in refused(
        capsys, *words, "--out", tmp_path / "out", "--teacher", models / "teacher"
    )
    done(*words, "--out", tmp_path / "out")
    found = report(tmp_path / "out")
    assert found["teacher"]["name"] == str(models / "student")
    assert found["method"]["distillation"]["temperature"] == 1.0
    log = [entry for entry in found["history"] if "loss" in entry]
    assert all(entry["loss"] == pytest.approx(entry["gdkd"], rel=1e-5) for entry in log)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grace", "kd"])
def test_a_cached_teacher_trains_like_the_live_one(
    models, conversations, tmp_path, monkeypatch, capsys, method
):
    """Images in some samples and none in others; the outputs are computed once."""
    records = pq.read_table(conversations).to_pylist()
    for record in records[::3]:
        record["image"] = None
        for turn in record["conversations"]:
            turn["value"] = turn["value"].replace("<image>\n", "").replace("<image>", "")
    schema = pq.read_schema(conversations)
    data = tmp_path / "mixed.parquet"
    pq.write_table(pa.Table.from_pylist(records, schema=schema), data)
    words = ("train", models / "student", "--data", data, "--method", method, *FAST,
             "--teacher", models / "teacher", "--set", "eta=0.5" if method == "grace" else
             "weight=1")  # fmt: skip
    done(*words, "--out", tmp_path / "live")
    cached = (*words, "--teacher_outputs", tmp_path / "outputs", "--eval_share", 0)
    done(*cached, "--out", tmp_path / "first")
    with monkeypatch.context() as patch:
        patch.setattr(teaching, "load_teacher", lambda *_, **__: pytest.fail("it was computed"))
        done(*cached, "--out", tmp_path / "second", "--logging_steps", 3)
    live, first, second = (report(tmp_path / name) for name in ("live", "first", "second"))
    for mine, theirs in zip(first["history"], live["history"], strict=True):
        if "loss" in mine:
            assert mine["ce"] == pytest.approx(theirs["ce"], rel=2e-3)
            assert mine["gdkd"] == pytest.approx(theirs["gdkd"], rel=2e-2)
            assert mine["rcka"] == pytest.approx(theirs["rcka"], rel=1e-2)
    assert first["codes_sha256"] == second["codes_sha256"]
    line = refused(capsys, *cached[:3], conversations, *cached[4:], "--out", tmp_path / "other")
    assert "--teacher_outputs" in line
    if method == "kd":
        line = refused(capsys, *cached, "--out", tmp_path / "other", "--method", "grace", "--set",
                       "tau=1")  # fmt: skip
        assert "relational was False" in line


# ---------------------------------------------------------------------------------------- held out


def read(models, *words):
    given = ("--out", "out", "--method", "qat", "--device", "cpu", *words)
    options = read_options([str(models / "student"), *map(str, given)])
    return read_conversations(options, Source.read(str(models / "student")))


@pytest.mark.slow
def test_a_share_of_the_data_is_held_out(models, conversations):
    found = read(models, "--data", conversations, "--eval_share", 0.25, "--seed", 3)
    train, held = ({sample["index"] for sample in part} for part in (found.train, found.evaluation))
    assert (len(train), len(held), train & held) == (36, 12, set())
    assert train | held == set(range(48))
    again = read(models, "--data", conversations, "--eval_share", 0.25, "--seed", 3)
    assert again.evaluation.indices == found.evaluation.indices
    other = read(models, "--data", conversations, "--eval_share", 0.25, "--seed", 4)
    assert other.evaluation.indices != found.evaluation.indices
    assert found.train.lengths == [found.full.lengths[index] for index in found.train.indices]
    for place in found.train.pictured:
        assert "pixel_values" in found.train[int(place)]
    with pytest.raises(InputError, match="nothing of 48 samples is left"):
        read(models, "--data", conversations, "--eval_share", 0.999)


@pytest.mark.slow
def test_splits_of_one_data_set(models, conversations, tmp_path):
    whole = datasets.load_dataset("parquet", data_files=str(conversations), split="train")
    parts = {"train": whole.select(range(9)), "validation": whole.select(range(9, 13))}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    found = read(models, "--data", tmp_path / "saved", "--eval_data", tmp_path / "saved")
    assert (len(found.train), len(found.evaluation)) == (9, 4)
    assert found.evaluation.ids == whole["id"][9:13]
    with pytest.raises(InputError, match="no split 'dev'"):
        read(models, "--data", tmp_path / "saved", "--split", "dev")


# --------------------------------------------------------------------------- interrupted, resumed


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_resumed_run_is_the_uninterrupted_one(
    words, tmp_path, monkeypatch, capsys, number
):
    done(*words[:5], tmp_path / "whole", *words[6:])
    capsys.readouterr()
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: os.kill(os.getpid(), number))
        assert main([str(word) for word in words]) == 128 + number
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert told == [
        f"error: interrupted: step 2 of 3 is saved in {tmp_path}/out.checkpoints; go on with "
        "--resume"
    ]
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.checkpoints" / "checkpoint-2" / "trainer_state.json").is_file()
    done(*words, "--resume")
    before, after = weights(tmp_path / "whole"), weights(tmp_path / "out")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert signal.getsignal(number) is not None


@pytest.mark.slow
def test_a_signal_during_an_evaluation(words, tmp_path, monkeypatch):
    original, batches = GraceTrainer.prediction_step, []

    def prediction_step(self, *arguments, **options):
        batches.append(self.state.global_step)
        if len(batches) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments, **options)

    monkeypatch.setattr(GraceTrainer, "prediction_step", prediction_step)
    more = ("--eval_share", 0.3, "--eval_steps", 1, "--save_steps", 100)
    assert main([str(word) for word in (*words, *more)]) == 143
    assert batches == [1, 1]  # of 7
    assert (tmp_path / "out.checkpoints" / "checkpoint-1" / "trainer_state.json").is_file()


def test_a_signal_before_training(words, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(
        run_module, "check_structure", lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    )
    assert main([str(word) for word in words]) == 143
    assert "error: interrupted: nothing was trained" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def interrupted(words, monkeypatch):
    """A run that was stopped after its first step."""
    with monkeypatch.context() as patch:
        at_step(patch, 1, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert main([str(word) for word in words]) == 130
    return words


@pytest.mark.slow
def test_a_difference_that_changes_the_result_is_refused(
    interrupted, models, family, tmp_path, no_weights, capsys, conversations, world
):
    other = save(family("qwen2_vl"), tmp_path / "other", seed=5)
    made_with = tmp_path / "out.checkpoints" / MANIFEST_FILE
    before = made_with.read_text()
    for change, told in (
        (("--learning-rate", 1e-4), "learning_rate was 0.001 when the checkpoint was made and is "
                                    "0.0001 now"),
        (("--bits", 8), "bits was 4 when the checkpoint was made and is 8 now"),
        (("--group-size", 32), "quantization.group_size was 64"),
        (("--method", "sft"), "method was 'qat'"),
        (("--method", "grace", "--teacher", models / "teacher"), "teacher"),
        (("--model", other), "model was"),
        (("--steps", 4), "max_steps was 3"),
        (("--batch-size", 4), "samples of an optimizer step was 2"),
        (("--seed", 1), "seed was 0"),
        (("--optim", "sgd"), "optim was 'adamw_torch_fused'"),
        (("--eval_share", 0.2), "samples was 48"),
    ):  # fmt: skip
        line = refused(capsys, *interrupted, "--resume", *change)
        assert told in line and line.startswith("error: --resume: "), (change, line)
    assert made_with.read_text() == before
    assert "holds a checkpoint: go on with --resume" in refused(capsys, *interrupted)


@pytest.mark.slow
def test_other_differences_are_noted(interrupted, capsys):
    capsys.readouterr()
    done(*interrupted, "--resume", "--logging_steps", 2, "--accumulation", 2, "--batch-size", 1)
    told = capsys.readouterr().err
    assert "note: logging_steps was 1.0 and is 2" in told
    assert "note: per_device_train_batch_size was 2 and is 1" in told
    assert "note: learning_rate" not in told


@pytest.mark.slow
def test_a_short_run_that_fails_has_a_checkpoint(words, tmp_path, monkeypatch):
    def fail():
        raise RuntimeError("the power is gone")

    with monkeypatch.context() as patch:
        at_step(patch, 3, fail)
        with pytest.raises(RuntimeError, match="power"):
            main([str(word) for word in words])
    folder = tmp_path / "out.checkpoints"
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-2"]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("failure", ["disk", "log"])
def test_a_finished_model_is_not_lost(words, tmp_path, monkeypatch, capsys, failure):
    done(*words[:5], tmp_path / "whole", *words[6:])
    with monkeypatch.context() as patch:
        if failure == "disk":

            def full(*_, **__):
                raise OSError(errno.ENOSPC, "No space left on device")

            patch.setattr(run_module, "write_report", full)
            line = refused(capsys, *words)
            assert "No space left on device" in line and "--resume" in line
        else:

            def broken(*_, **__):
                raise RuntimeError("the log's server is gone")

            patch.setattr(run_module.StopOnSignal, "on_train_end", broken)
            with pytest.raises(RuntimeError, match="server"):
                main([str(word) for word in words])
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(
        GraceTrainer, "training_step", lambda *_: pytest.fail("it trained once more")
    )
    done(*words, "--resume")
    before, after = weights(tmp_path / "whole"), weights(tmp_path / "out")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert report(tmp_path / "out")["history"]
    assert not (tmp_path / "out.checkpoints").exists()


@pytest.mark.slow
def test_a_log_with_numbers_that_are_none_is_written(words, tmp_path, monkeypatch):
    original = GraceTrainer.log

    def log(self, logs, *arguments):
        original(self, {**logs, "grad_norm": float("nan")}, *arguments)

    monkeypatch.setattr(GraceTrainer, "log", log)
    done(*words)
    assert report(tmp_path / "out")["history"][0]["grad_norm"] is None


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_one_line(words, capsys):
    line = refused(capsys, *words, "--learning-rate", 1e30, "--max_grad_norm", 0)
    assert "the cross-entropy is not finite" in line


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_lost_during_training_is_one_line(
    models, tmp_path, capsys, monkeypatch, workers
):
    """The data were whole when they were checked."""
    file = tmp_path / "data.jsonl"
    Image.new("RGB", (64, 64)).save(tmp_path / "0.png")
    turns = [{"from": "human", "value": "<image>\nhow many"}, {"from": "gpt", "value": "two"}]
    record = {"id": "lost", "image": "0.png", "conversations": turns}
    file.write_text(json.dumps(record) + "\n")
    original = GraceTrainer.train

    def train(self, *arguments, **options):
        (tmp_path / "0.png").unlink()
        return original(self, *arguments, **options)

    monkeypatch.setattr(GraceTrainer, "train", train)
    line = refused(
        capsys, "train", models / "student", "--data", file, "--method", "qat", *FAST,
        "--out", tmp_path / "out", "--dataloader_num_workers", workers,
    )  # fmt: skip
    assert line.startswith("error: record 'lost': its image") and "Traceback" not in line


@pytest.mark.slow
def test_a_disk_that_fills_in_training_leaves_the_last_checkpoint(
    words, tmp_path, monkeypatch, capsys
):
    original = torch.save

    def save(value, path, *arguments, **options):
        if "checkpoint-2" in str(path):
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
        return original(value, path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        line = refused(capsys, *words)
    assert "PytorchStreamWriter failed" in line and "--resume" in line
    folder = tmp_path / "out.checkpoints"
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-1"]
    done(*words, "--resume")


@pytest.mark.slow
def test_an_invalid_generation_config_is_mended(family, words, tmp_path):
    student = Path(save(family("qwen2_vl"), tmp_path / "invalid"))
    invalid = {"do_sample": False, "temperature": 0.9, "top_p": 0.6}
    (student / "generation_config.json").write_text(json.dumps(invalid))
    with pytest.warns(UserWarning, match="generation configuration is invalid: temperature"):
        done("train", student, *words[2:])
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "out").generation_config


# ------------------------------------------------------------------ refused before weights are read


def config_of(folder, name="config.json"):
    return json.loads((folder / name).read_text())


def spoil_tokens(folder, processor):
    processor.tokenizer.add_tokens([f"<new{number}>" for number in range(100)])
    processor.save_pretrained(folder)


def spoil_template(folder, processor):
    processor.chat_template = processor.tokenizer.chat_template = None
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    processor.save_pretrained(folder)


def spoil_template_of_strings(folder, processor):
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)


def spoil_quantization(folder, _):
    config = config_of(folder) | {"quantization_config": {"quant_method": "awq", "bits": 4}}
    (folder / "config.json").write_text(json.dumps(config))


def spoil_family(folder, _):
    config = config_of(folder) | {"model_type": "bert"}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (spoil_tokens, "embedding rows; call model.resize_token_embeddings"),
        (spoil_template, "does not have a chat template"),
        (spoil_template_of_strings, "cannot render a question of image and text"),
        (spoil_quantization, "are quantized already"),
        (spoil_family, "'bert'"),
    ],
)
def test_a_student_that_cannot_be_trained(family, words, tmp_path, capsys, no_weights, spoil, told):
    import copy

    small = family("qwen2_vl")
    student = Path(save(small, tmp_path / "spoilt"))
    spoil(student, copy.deepcopy(small.processor))
    assert told in refused(capsys, "train", student, *words[2:])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_other_refusals_before_weights_are_read(words, models, tmp_path, capsys, no_weights):
    (tmp_path / "file").write_text("")
    teacher = ("--method", "grace", "--teacher", models / "teacher")
    coarse = shutil.copytree(models / "teacher", tmp_path / "coarse")
    config = config_of(coarse)
    config["vision_config"]["patch_size"] = 64
    (coarse / "config.json").write_text(json.dumps(config))
    (coarse / "generation_config.json").unlink(missing_ok=True)
    for more, told in (
        (("--method", "grace", "--teacher", coarse), "patch_size is"),
        (("--fsdp", "full_shard", "--fsdp_config", '{"version": 1}'), "FSDP has version 1"),
        (("--out", tmp_path / "file" / "deep"), "cannot be written"),
        (("--group-size", 256), "256 does not divide"),
        ((*teacher, "--teacher_bits", 5), "5 bits"),
        ((*teacher, "--teacher_sharded"), "shards as FSDP2 does"),
        (("--optim", "adamw_anyprecision"), "training arguments: "),
        (("--lr_scheduler_kwargs", '{"min_lr": "x", "y": 1}'), "training arguments: "),
        (("--report_to", "nowhere"), "nowhere"),
        (("--push_to_hub", "--hub_strategy", "checkpoint"), "hub_strategy is checkpoint"),
        (("--dataloader_drop_last", "--batch-size", 64), "drops all 48 samples"),
        (("--push_to_hub",), "push_to_hub: cannot make 'out'"),
        (("--out", models / "student", "--overwrite"), "is the directory of"),
    ):  # fmt: skip
        assert told in refused(capsys, *words, *more), more
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_end_token_pads_where_there_is_no_pad_token(family, words, tmp_path):
    import copy

    small = family("qwen2_vl")
    student = Path(save(small, tmp_path / "unpadded"))
    processor = copy.deepcopy(small.processor)
    processor.tokenizer.pad_token = None
    processor.save_pretrained(student)
    done("train", student, *words[2:])
    assert CodesFile(tmp_path / "out" / CODES_FILE).bits == 4


# --------------------------------------------------------------------------------------------- hub


@pytest.mark.slow
def test_the_result_is_uploaded_with_its_card(words, tmp_path, monkeypatch, capsys):
    from types import SimpleNamespace

    from grace.training import hub

    calls = []

    class Api:
        def __init__(self, token=None):
            self.token = token

        def create_repo(self, name, **options):
            calls.append(("create", name))
            return SimpleNamespace(repo_id=f"me/{name}")

        def upload_folder(self, *, repo_id, folder_path, **options):
            calls.append(("upload", repo_id, sorted(p.name for p in folder_path.iterdir())))

    monkeypatch.setattr(hub, "HfApi", Api)
    done(*words, "--push_to_hub")
    assert calls[0] == ("create", "out")
    assert calls[1][:2] == ("upload", "me/out")
    assert {"README.md", "training.json", "model.safetensors", CODES_FILE} <= set(calls[1][2])
    assert "uploaded me/out" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------- families


@pytest.mark.slow
@pytest.mark.parametrize("name", tiny_families.family_params())
def test_no_family_is_refused_by_the_checks(name, tmp_path):
    """Student and larger teacher of every family, by what is checked without their weights."""
    processor = tiny_families.tiny_processor(name)
    for folder, larger in (("student", False), ("teacher", True)):
        model = tiny_families.tiny_model(name, larger=larger)
        tiny_families.save(model, processor, tmp_path / folder)
    student = Source.read(str(tmp_path / "student"))
    teacher = Source.read(str(tmp_path / "teacher"), student=False)
    method = method_of(read_options(["m", "--out", "o", "--group-size", "32"]).method)
    check_structure(student, method)
    check_teacher(student.identity, teacher.identity)
    assert student.processor.tokenizer.pad_token_id is not None
