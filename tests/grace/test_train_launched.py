"""`grace train` in two processes: the same student as in one, written once; a sharded or quantized
or cached teacher."""

import json
from pathlib import Path

import pytest
import ranks
import torch
from commands import save
from safetensors.torch import load_file

from grace.cli import main
from grace.quantization import CODES_FILE


def train(words: list[str]) -> None:
    """The command, in a process of its own."""
    code = main(words)
    assert code == 0, code


@pytest.fixture(scope="module")
def models(family, tmp_path_factory):
    folder = tmp_path_factory.mktemp("launched")
    small = family("qwen2_vl")
    save(small, folder / "student")
    save(small, folder / "teacher", seed=2, num_hidden_layers=3)
    return folder


@pytest.fixture(scope="module")
def command(models, conversations):
    """A function that gives the words of a run."""

    def words(out, *more):
        shared = ("train", models / "student", "--teacher", models / "teacher", "--data",
                  conversations, "--out", out, "--steps", 3, "--batch-size", 2,
                  "--learning-rate", 1e-3, "--group-size", 64, "--logging_steps", 1,
                  "--lr_scheduler_type", "constant", "--eval_share", 0.1, "--eval_steps", 3,
                  "--device", "cpu", *more)  # fmt: skip
        return [str(word) for word in shared]

    return words


@pytest.fixture(scope="module")
def alone(command, models):
    """One process with as many accumulation steps as two have together."""
    out = models / "alone"
    ranks.run(train, command(out, "--accumulation", 2), ranks=1)
    return out


def history(out: Path) -> list[dict[str, float]]:
    return json.loads((out / "training.json").read_text())["history"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrapper", "more"), [("ddp", ()), ("fsdp2", ("--teacher_sharded",))], ids=["ddp", "fsdp2"]
)
def test_two_processes_write_what_one_does(command, alone, tmp_path, wrapper, more):
    out = tmp_path / wrapper
    ranks.run(train, command(out, *more), wrapper=wrapper)
    found, expected = load_file(out / "model.safetensors"), load_file(alone / "model.safetensors")
    assert found.keys() == expected.keys()
    codes, reference = load_file(out / CODES_FILE), load_file(alone / CODES_FILE)
    for name, value in reference.items():
        if name.endswith("codes"):
            assert (codes[name] != value).float().mean() < 1e-3, name
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-2), name
        assert (found[name] - value).abs().mean() < 1e-4, name
    for mine, theirs in zip(history(out), history(alone), strict=True):
        for name in ("ce", "gdkd", "rcka", "beta", "eval_loss"):
            assert (name in mine) == (name in theirs)
            if name in mine:
                assert mine[name] == pytest.approx(theirs[name], rel=2e-4), name
    report = json.loads((out / "training.json").read_text())
    assert (report["processes"], report["samples_per_step"]) == (2, 4)
    assert not Path(f"{out}.checkpoints").exists()
    leftover = [path.name for path in tmp_path.iterdir() if path != out]
    assert leftover == []


def train_sharded(words: list[str]) -> None:
    """The command in a process whose CPUs count as accelerators, which FSDP asks for."""
    ranks.shard_on_cpus()
    train(words)


@pytest.mark.slow
def test_fsdp_by_the_arguments_alone(command, alone, tmp_path):
    out = tmp_path / "fsdp"
    ranks.run(train_sharded, command(out, "--fsdp", "full_shard"), wrapper="ddp")
    found, expected = load_file(out / "model.safetensors"), load_file(alone / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().mean() < 1e-4, name
