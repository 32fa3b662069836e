"""Launched training: checks before long work, runs that are killed and go on, and a real launch."""

import dataclasses
import functools
import json
import os
import subprocess
import time
from pathlib import Path

import launched
import pytest
import yaml
from accelerate.commands import launch as launcher
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DeepSpeedPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env
from launched import ranks

from grace.distillation import DistillationConfig
from grace.errors import InputError
from grace.models import load_model
from grace.training import check_deepspeed
from replication.base.files import ROOT
from replication.settings.checks import parse_params
from replication.settings.scales import merge, scale_params
from replication.settings.schema import PRESETS, Launch
from replication.train.launch import command, read_launch_config
from replication.train.launch.run import check
from replication.train.runs import method_config

GROUP, RUN, SEED = "qwen2_vl_runs", "grace_int4", 0
LAUNCH = ROOT / "replication" / "train" / "launch"


def changed(**train):
    """The parameters of scale paper at a tiny size."""
    launch = {"config": "replication/train/launch/single.yaml", "processes": 1, "workers": 0}
    tiny = {
        "epochs": None,
        "max_length": None,
        "steps": 8,
        "batch_size": 2,
        "accumulation": 2,
        "devices": 1,
        "learning_rate": 1e-3,
        "save_steps": 2,
        "logging_steps": 1,
        "launch": launch,
    }
    return merge(scale_params("paper"), {"train": merge(tiny, train)})


def two(config: str, **train):
    launch = {"config": f"replication/train/launch/{config}.yaml", "processes": 2}
    return changed(devices=2, launch=launch, accumulation=1, **train)


@pytest.fixture(scope="module")
def models(family, conversations, tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch")
    small = family("qwen2_vl")
    for name, seed, layers in (("baseline", 1, 2), ("teacher", 9, 3)):
        path = folder / "models" / "paper" / "qwen2_vl" / name
        small.model(seed, num_hidden_layers=layers).save_pretrained(path)
        small.processor.save_pretrained(path)
    data = folder / "data" / "paper" / "conversations"
    data.mkdir(parents=True)
    (data / "train.parquet").symlink_to(conversations)
    return folder


@pytest.fixture(scope="module")
def make(models, tmp_path_factory):
    """A workspace with the models and the data, and its own parameters and results."""

    def workspace(params) -> Path:
        folder = tmp_path_factory.mktemp("workspace")
        (folder / "replication").symlink_to(ROOT / "replication")
        (folder / "data").symlink_to(models / "data")
        (folder / "models" / "paper").mkdir(parents=True)
        (folder / "models" / "paper" / "qwen2_vl").symlink_to(models / "models/paper/qwen2_vl")
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
        return folder

    return workspace


@pytest.fixture(scope="module")
def whole(make):
    """The workspace of a run that nothing interrupts, each made once: of one process by hand, of
    two under a wrapper by accelerate."""

    @functools.cache
    def run(wrapper: str) -> Path:
        if wrapper == "single":
            workspace = make(changed())
            finish(workspace, ranks=1)
        else:
            params = two(wrapper, steps=4)
            workspace = make(params)
            launch(workspace, params)
        return workspace

    return run


def launch(workspace, params):
    """The real command, on CPUs."""
    words = command(parse_params(params), GROUP, RUN, SEED)
    words[words.index("replication.train.launch")] = "launched"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "replication")])
    ended = subprocess.run(
        words,
        cwd=workspace,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]


def start(workspace, kill=None, **options):
    return ranks.start(launched.train, workspace, GROUP, RUN, SEED, kill, **options)


def finish(workspace, **options):
    ranks.run(launched.train, workspace, GROUP, RUN, SEED, **options)


def killed(workspace, *kill, rank=0, **options):
    """Run until one process kills itself; the others go as a launcher makes them go."""
    processes = start(workspace, (*kill, rank), **options)
    try:
        processes[rank].join(60)
        assert processes[rank].exitcode == -9, kill
    finally:
        for process in processes:
            process.kill()
            process.join()


def written(workspace) -> dict[str, bytes]:
    target = workspace / "models" / "paper" / GROUP / RUN / f"seed{SEED}"
    return {path.name: path.read_bytes() for path in sorted(target.iterdir())}


def history(workspace):
    path = workspace / "results" / "paper" / "training" / GROUP / RUN / f"seed{SEED}.json"
    return json.loads(path.read_text())["history"]


def checkpoints(workspace) -> list[str]:
    scratch = workspace / "models/paper/.checkpoints" / GROUP / f"{RUN}-seed{SEED}"
    return sorted(path.name for path in scratch.glob("checkpoint-*"))


MOMENTS = [
    # function, call, checkpoints there when the process is dead
    ("torch.save", 1, []),  # the optimizer's state of the first checkpoint
    ("grace.training.GraceTrainer._finish_step", 4, ["checkpoint-2"]),
    ("transformers.trainer_callback.TrainerState.save_to_json", 1, ["checkpoint-2"]),
    ("grace.training.trainer.rotate_checkpoints", 1, ["checkpoint-2", "checkpoint-4"]),
    ("torch.save", 3, ["checkpoint-2", "checkpoint-4"]),  # the random state
    ("grace.training.method.bake", 1, ["checkpoint-8"]),
    ("grace.training.method.write_codes", 1, ["checkpoint-8"]),
    ("grace.files._replace_directory", 1, ["checkpoint-8"]),  # the model is to be renamed
]


@pytest.mark.slow
@pytest.mark.weekly
def test_a_run_killed_again_and_again_ends_as_if_it_were_not(make, whole):
    complete, cut = whole("single"), make(changed())
    for function, call, left in MOMENTS:
        killed(cut, function, call, ranks=1)
        assert checkpoints(cut) == left, function
    finish(cut, ranks=1)
    assert checkpoints(cut) == []
    assert written(cut) == written(complete)
    assert history(cut) == history(complete)
    assert {"beta", "ema"} <= set(history(complete)[-1])
    assert len(history(complete)) == 8
    again = time.monotonic()
    finish(cut, ranks=1)  # what is there already is kept
    assert time.monotonic() - again < 60
    assert written(cut) == written(complete)


@pytest.mark.slow
@pytest.mark.weekly
def test_a_run_killed_from_outside_goes_on(make, whole):
    """Not at a chosen line: whenever the signal comes, the moment a checkpoint is being written
    and a while after included."""
    cut = make(changed())
    scratch = cut / "models/paper/.checkpoints" / GROUP / f"{RUN}-seed{SEED}"
    for name in ("partial", "checkpoint-2"):
        [process] = start(cut, ranks=1)
        until = time.monotonic() + 60
        while process.is_alive() and time.monotonic() < until and not (scratch / name).exists():
            time.sleep(0.001)
        process.kill()
        process.join()
        assert process.exitcode == -9
    finish(cut, ranks=1)
    assert written(cut) == written(whole("single"))
    assert history(cut) == history(whole("single"))


@pytest.mark.slow
@pytest.mark.weekly
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_one_of_two_processes_killed(make, whole, wrapper):
    """Started by hand, and it ends as the run that accelerate launched."""
    cut = make(two(wrapper, steps=4))
    killed(cut, "grace.training.GraceTrainer._finish_step", 3, rank=1, wrapper=wrapper)
    assert checkpoints(cut) == ["checkpoint-2"]
    # its part of the checkpoint, while the first process has written all of its own
    killed(cut, "grace.training.GraceTrainer._save_rng_state", 1, rank=1, wrapper=wrapper)
    assert checkpoints(cut) == ["checkpoint-2"]
    killed(cut, "grace.training.method.write_codes", 1, wrapper=wrapper)
    finish(cut, wrapper=wrapper)
    assert written(cut) == written(whole(wrapper))
    assert history(cut) == history(whole(wrapper))
    model = load_model(cut / "models" / "paper" / GROUP / RUN / f"seed{SEED}")
    assert not any("log_scale" in name for name, _ in model.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", ["ddp", pytest.param("fsdp2", marks=pytest.mark.weekly)])
def test_accelerate_launches_it(whole, wrapper):
    workspace = whole(wrapper)
    assert "quantized.safetensors" in written(workspace)
    assert len(history(workspace)) == 4


@pytest.mark.parametrize("name", ["single", "ddp", "fsdp2", "zero2", "zero3"])
def test_configuration_files_are_accelerates_own(name, monkeypatch):
    path = LAUNCH / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert config.mixed_precision == (None if name.startswith("zero") else "no")
    monkeypatch.chdir(ROOT)
    if name.startswith("zero"):
        file = config.deepspeed_config["deepspeed_config_file"]
        content = json.loads((ROOT / file).read_text())
        assert content["zero_optimization"]["stage"] == int(name[-1])
        assert content["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
        assert not {"bf16", "fp16"} & set(content)
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        with pytest.raises(InputError, match="DeepSpeed, which is not installed"):
            read_launch_config(Launch(str(path), 2))
        return
    read_launch_config(Launch(str(path), 1 if name == "single" else 2))


@pytest.mark.parametrize("stage", [2, 3])
def test_what_accelerate_makes_of_the_deepspeed_configurations(stage, monkeypatch):
    """As far as it goes without the package: the launcher's environment, and the plugin that every
    process makes of it."""
    monkeypatch.chdir(ROOT)
    words = ["--config_file", f"replication/train/launch/zero{stage}.yaml", "--num_processes", "16"]
    words += ["--main_process_port", "0", "--module", "replication.train.launch"]
    given: list = []
    monkeypatch.setattr(launcher, "deepspeed_launcher", given.append)
    launcher.launch_command(launcher.launch_command_parser().parse_args(words))
    _, environment = prepare_deepspeed_cmd_env(*given)
    for name, value in environment.items():
        if name.startswith("ACCELERATE_"):
            monkeypatch.setenv(name, value)
    plugin = DeepSpeedPlugin()
    plugin.set_mixed_precision("no")
    assert plugin.zero_stage == stage
    assert plugin.zero3_init_flag is False
    assert plugin.zero3_save_16bit_model is (stage == 3)
    content = plugin.deepspeed_config
    assert content["bf16"] == content["fp16"] == {"enabled": False}
    assert content["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    params = parse_params(scale_params("paper"))
    check_deepspeed(content, method_config(params, params.runs[GROUP].models[RUN]))


@pytest.mark.parametrize(
    ("content", "processes", "message"),
    [
        ({"distributed_type": "MULTI_TPU"}, 2, "distributed_type 'MULTI_TPU'"),
        ({"distributed_type": "NO"}, 2, "processes is 2"),
        ({"distributed_type": "MULTI_GPU"}, 1, "processes is 1"),
        ({"distributed_type": "MULTI_GPU", "mixed_precision": "bf16"}, 2, "arithmetic decides"),
        ({"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 1}}, 2, "must be 2"),
        ({"distributed_type": "DEEPSPEED", "mixed_precision": "no"}, 2, "remove mixed_precision"),
        (
            {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2}},
            2,
            "is 'adamw_bnb_8bit', and .*use adamw_torch_fused",
        ),
    ],
)
def test_configurations_that_do_not_fit_are_refused(tmp_path, content, processes, message):
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=message):
        read_launch_config(Launch(str(path), processes, optimizer="adamw_bnb_8bit"))


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"launch": {"processes": 3}}, "processes is 3 and train.devices is 1"),
        ({"launch": {"optimizer": "adamw_torch_fuse"}}, "adamw_torch_fused"),
        ({"launch": {"teacher_bits": 5}}, "16, 8 or 4"),
        ({"launch": {"teacher_bits": 8, "teacher_sharded": True}}, "choose one of the two"),
        ({"preset": "papers"}, "paper"),
    ],
)
def test_settings_that_do_not_fit_are_refused(train, message):
    with pytest.raises(InputError, match=message):
        parse_params(changed(**train))


def test_what_is_missing_is_said_before_long_work(make, monkeypatch):
    workspace = make(changed())
    monkeypatch.chdir(workspace)
    params = parse_params(changed())
    check(params, GROUP, RUN, SEED)
    with pytest.raises(InputError, match="has the seeds"):
        check(params, GROUP, RUN, 7)
    with pytest.raises(InputError, match="grace_int4"):
        check(params, GROUP, "grace_int", SEED)
    shuffled = dataclasses.replace(params.runs[GROUP].models[RUN], shuffled_teacher=True)
    with monkeypatch.context() as patch, pytest.raises(InputError, match="shuffled teacher"):
        patch.setitem(params.runs[GROUP].models, RUN, shuffled)
        check(params, GROUP, RUN, SEED)
    sharded = parse_params(changed(launch={"teacher_sharded": True}))
    with pytest.raises(InputError, match=r"teacher_sharded.*fsdp2\.yaml"):
        check(sharded, GROUP, RUN, SEED)
    (workspace / "data").unlink()
    with pytest.raises(InputError, match="run the stage conversations first"):
        check(params, GROUP, RUN, SEED)
    (workspace / "models" / "paper" / "qwen2_vl").unlink()
    with pytest.raises(InputError, match="does not exist"):
        check(params, GROUP, RUN, SEED)


def test_presets_differ_in_what_the_launcher_sets_otherwise():
    folder = ROOT / "replication" / "settings" / "values" / "presets"
    assert sorted(path.stem for path in folder.glob("*.yaml")) == sorted(PRESETS)
    paper, released = (yaml.safe_load((folder / f"{n}.yaml").read_text()) for n in PRESETS)
    assert paper["train"].keys() == released["train"].keys()
    differ = {key for key in paper["train"] if paper["train"][key] != released["train"][key]}
    assert differ == {"coefficients", "epochs", "scale_lr_multiplier"}
    sets = scale_params("paper")["coefficients"]
    code, launcher = sets["code"]["distillation"], sets["launcher"]["distillation"]
    assert code.keys() == launcher.keys()
    assert {key: value for key, value in launcher.items() if value != code[key]} == {
        **{"tau": 3.0, "eta": 0.003, "beta_max": 1.0},
        **{"rcka_weight": 3.0, "rcka_warmup_steps": 400},
    }
    assert DistillationConfig.from_dict(code) == DistillationConfig()
