"""`grace train`: recipes and flags, and what is refused before anything is loaded."""

import pytest
import yaml
from commands import refused, save
from transformers import TrainingArguments

from grace.errors import InputError
from grace.quantization import QuantSpec
from grace.training import GraceArguments, MethodConfig, read_options
from grace.training.arguments import options_parser
from grace.training.method import method_of
from grace.training.options import SECTIONS, TrainerOptions

BASE = ("student", "--data", "train.parquet", "--out", "out", "--device", "cpu")


def recipe(tmp_path, content):
    file = tmp_path / "recipe.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(file)


# ------------------------------------------------------------------------------ recipes and flags


def test_a_recipe_and_flags_on_top_of_it(tmp_path):
    file = recipe(
        tmp_path,
        """
        model: some/student
        teacher: some/teacher
        data: [a.parquet, b.jsonl]
        out: result
        learning-rate: 3e-5
        steps: 7
        group_size: 64
        bf16: true
        report_to: [tensorboard, wandb]
        eval_strategy: no
        lr_scheduler_type: cosine_with_min_lr
        lr_scheduler_kwargs: {min_lr_rate: 0.1}
        save_total_limit: null
        distillation: {tau: 0.2, kappa: 2}
        """,
    )
    options = read_options([file, "--max-steps", "9", "--set", "tau=0.5"])
    trainer = options.trainer
    assert (options.model.model, options.model.teacher) == ("some/student", "some/teacher")
    assert options.data.data == ["a.parquet", "b.jsonl"]
    assert (trainer.learning_rate, trainer.max_steps, trainer.bf16) == (3e-5, 9, True)
    assert trainer.report_to == ["tensorboard", "wandb"]
    assert trainer.lr_scheduler_kwargs == {"min_lr_rate": 0.1}
    assert trainer.save_total_limit is None
    assert trainer.output_dir == "result.checkpoints"
    assert options.method.distillation == {"tau": 0.5, "kappa": 2}
    assert read_options(["--config", file]).trainer.max_steps == 7
    assert read_options([file, "--model", "other"]).model.model == "other"


def test_todays_flags_and_dashes():
    options = read_options([*BASE, "--steps", "3", "--batch-size", "2", "--accumulation", "5",
                            "--learning-rate", "1e-4", "--group-size", "row", "--seed", "4",
                            "--gradient-checkpointing", "--overwrite", "--resume"])  # fmt: skip
    trainer = options.trainer
    assert (trainer.max_steps, trainer.per_device_train_batch_size) == (3, 2)
    assert (trainer.gradient_accumulation_steps, trainer.learning_rate) == (5, 1e-4)
    assert (trainer.seed, trainer.data_seed, trainer.gradient_checkpointing) == (4, 4, True)
    assert options.run.overwrite and options.run.resume and trainer.use_cpu
    assert method_of(options.method).quantization == QuantSpec(4, "row")
    assert read_options([*BASE, "--output_dir", "elsewhere"]).run.out == "elsewhere"
    assert read_options(["--epochs", "2.5", *BASE]).trainer.num_train_epochs == 2.5


def test_every_field_of_the_library_is_an_option():
    flags = options_parser()._option_string_actions
    for name in TrainingArguments.__dataclass_fields__:
        assert f"--{name}" in flags, name
        assert f"--{name.replace('_', '-')}" in flags, name
    assert (
        TrainerOptions.__dataclass_fields__.keys() <= TrainingArguments.__dataclass_fields__.keys()
    )
    names = [name for section in SECTIONS for name in section.__dataclass_fields__]
    assert len(names) == len(set(names))


def test_our_defaults_and_the_librarys():
    options = read_options(BASE)
    trainer = options.trainer
    assert isinstance(trainer, GraceArguments) and isinstance(trainer, TrainingArguments)
    assert (trainer.learning_rate, trainer.num_train_epochs, trainer.warmup_steps) == (
        1e-5,
        1,
        0.03,
    )
    assert (trainer.lr_scheduler_type, trainer.eval_strategy, trainer.report_to) == (
        "cosine",
        "no",
        [],
    )
    assert (trainer.remove_unused_columns, trainer.save_total_limit) == (False, 1)
    assert trainer.adam_beta2 == TrainingArguments.adam_beta2
    evaluated = read_options([*BASE, "--eval_share", "0.1"]).trainer
    assert (evaluated.eval_strategy, evaluated.eval_steps) == ("steps", 0.1)
    with pytest.raises(InputError, match="give eval_data or eval_share"):
        read_options([*BASE, "--eval_strategy", "epoch"])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("learning_rat: 1e-5", "learning_rat is no option; did you mean learning_rate?"),
        ("tau: 1", "tau is no option"),
        ("seed: 1\nseed: 2", "line 2: the key 'seed' appears twice"),
        ("steps: 1\nmax-steps: 2", "steps and max-steps are one option"),
        ("learning_rate: fast", "learning_rate.*invalid float value: 'fast'"),
        ("learning_rate: [1, 2]", "learning_rate is .* it takes no list"),
        ("learning_rate:", "learning_rate has no value"),
        ("method: graze", "method.*invalid choice: 'graze'"),
        ("- a", "not a mapping"),
        ("optim: adamm", "adamm"),
        ("lr_scheduler_type: cosinus", "cosinus"),
        ("distillation: 3", "give a JSON object|names and values"),
        ("report_to: {a: 1}", "it takes no mapping"),
    ],
)
def test_a_recipe_that_is_refused(tmp_path, content, told):
    with pytest.raises(InputError, match=told):
        read_options([recipe(tmp_path, content), "--out", "x", "--device", "cpu"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--learning_rat", "1"], "--learning_rat is no option; did you mean --learning_rate?"),
        (["--learning-rate", "-1"], "learning_rate is -1.0; give a positive number"),
        (["--learning-rate", "nan"], "learning_rate is nan; give a positive number"),
        (["--seed", "4294967296"], "seed is 4294967296; give a number from 0, at most 4294967295"),
        (["--epochs", "1e30"], "num_train_epochs is 1e.30; give a positive number, at most"),
        (["--batch-size", "99999999999"], "per_device_train_batch_size is 99999999999; give a"),
        (["--epochs", "0"], "num_train_epochs is 0.0"),
        (["--epochs", "-2"], "num_train_epochs is -2.0"),
        (["--steps", "0"], "max_steps is 0"),
        (["--steps", "-3"], "max_steps is -3"),
        (["--batch-size", "0"], "per_device_train_batch_size is 0"),
        (["--accumulation", "0"], "gradient_accumulation_steps is 0"),
        (["--max_grad_norm", "-1"], "max_grad_norm is -1"),
        (["--weight_decay", "inf"], "weight_decay is inf"),
        (["--save_steps", "0"], "save_steps is 0"),
        (["--eval_share", "1"], "eval_share is 1.0"),
        (["--max_bad_share", "2"], "max_bad_share is 2.0"),
        (["--seed", "-1"], "seed is -1"),
        (["--label_smoothing_factor", "0.1"], "label_smoothing_factor is 0.1; leave it out"),
        (["--use_liger_kernel"], "use_liger_kernel is True; leave it out"),
        (["--set", "tau"], "--set 'tau': give NAME=VALUE"),
        (["--distillation", "tau=1"], "give a JSON object"),
        (["--bf16", "--fp16"], "fp16"),
    ],
)
def test_flags_that_are_refused(words, told):
    with pytest.raises(InputError, match=told.replace("?", r"\?")):
        read_options([*BASE, *words])


# ----------------------------------------------------------------------------------------- method


def method(*words):
    return method_of(read_options([*BASE, *words]).method)


def test_what_the_methods_are():
    kd = method("--method", "kd", "--bits", "8").distillation
    assert (kd.decoupled, kd.kappa, kd.adaptive, kd.rcka_weight) == (False, 0.0, False, 0.0)
    assert method("--method", "sft") == MethodConfig("sft")
    assert method("--method", "qat", "--group-size", "row").quantization.group_size == "row"
    grace = method("--set", "beta_dkd=1", "--set", "adaptive=false")
    assert (grace.distillation.beta_dkd, grace.distillation.adaptive) == (1, False)
    assert grace.quantization == QuantSpec(4)
    chosen = method("--quantization", '{"init": "max"}', "--scale_lr_multiplier", "2")
    assert (chosen.quantization.init, chosen.scale_lr_multiplier) == ("max", 2)


# ----------------------------------------------------------------------------- refused by the run


def test_bad_input_is_one_line_and_exit_code_2(family, conversations, tmp_path, capsys):
    small = family("qwen2_vl")
    plain = save(small, tmp_path / "plain")
    other = save(family("llava"), tmp_path / "other")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    out = tmp_path / "out"
    train = ("train", plain, "--data", conversations, "--out", out, "--device", "cpu")
    for words, told in (
        ((*train,), "needs --teacher"),
        ((*train, "--method", "qat", "--teacher", other), "takes no --teacher"),
        ((*train, "--teacher", other), "choose a teacher that agrees"),
        ((*train, "--method", "qat", "--bits", 9), "9"),
        ((*train, "--method", "qat", "--group-size", 100), "100"),
        ((*train, "--method", "qat", "--group-size", 256), "256 does not divide"),
        ((*train, "--method", "qat", "--set", "tau=1"), "does not distil"),
        ((*train, "--teacher", plain, "--set", "tua=1"), "tua"),
        ((*train, "--method", "qat", "--resume"), "holds no checkpoint"),
        (("train", plain, "--method", "qat", "--data", tmp_path / "no.parquet", "--out", out,
          "--device", "cpu"), "no.parquet"),
        (("train", plain, "--method", "qat", "--data", conversations, "--device", "cpu", "--out",
          tmp_path / "taken"), "--overwrite"),
        (("train", plain, "--method", "qat", "--data", conversations, "--overwrite", "--out",
          tmp_path / "taken"), "no model directory"),
        (("train", "--out", out), "give a model"),
        (("train", plain, "--method", "qat", "--out", out), "give --data"),
        (("train", plain, "--method", "qat", "--data", conversations), "give --out"),
    ):  # fmt: skip
        assert told in refused(capsys, *words), words
        assert not out.exists()
    assert (tmp_path / "taken" / "thesis.txt").read_text() == "mine"
