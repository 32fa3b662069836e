"""Scales: what a scale changes, and that running one leaves the committed files alone."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from repository import ROOT, contents, copy_repository, python

from grace.errors import InputError
from replication import scale
from replication.paper import load_tables
from replication.plan.targets import find_table, stages_of
from replication.settings.checks import parse_params
from replication.settings.scales import merge, scale_params
from replication.settings.workspace import alone, workspace

TREES = st.recursive(
    st.integers(0, 3) | st.none(),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(st.sampled_from("abc"), TREES, max_size=3)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return copy_repository(tmp_path_factory.mktemp("repository"))


def test_a_change_replaces_one_key_and_keeps_the_others():
    base = {"a": {"x": 1, "y": {"z": [1, 2]}}, "b": 2}
    assert merge(base, {"a": {"y": {"z": [3]}}}) == {"a": {"x": 1, "y": {"z": [3]}}, "b": 2}
    assert merge(base, {"a": 5, "c": 6}) == {"a": 5, "b": 2, "c": 6}
    assert merge(base, {"a": {"x": None}, "b": None}) == {"a": {"y": {"z": [1, 2]}}}
    assert base == {"a": {"x": 1, "y": {"z": [1, 2]}}, "b": 2}


@given(MAPPINGS, MAPPINGS)
def test_merging_twice_changes_nothing(base, changes):
    once = merge(base, changes)
    assert merge(once, changes) == once
    assert merge(base, {}) == base


@pytest.mark.parametrize("name", ["smoke", "paper"])
def test_every_change_of_a_scale_is_in_its_parameters(repository, name):
    values = repository / "replication" / "settings" / "values"
    changes = yaml.safe_load((values / f"{name}.yaml").read_text())
    params = scale_params(name, repository)

    def compare(changes, params, base):
        for key, value in changes.items():
            if value is None:
                assert key not in params
            elif isinstance(value, dict):
                compare(value, params[key], (base or {}).get(key))
            else:
                assert params[key] == value
        for key in set(base or {}) - set(changes):
            assert params[key] == base[key]

    base = yaml.safe_load((repository / "params.yaml").read_text())
    if preset := changes.get("train", {}).get("preset"):
        base = merge(base, yaml.safe_load((values / "presets" / f"{preset}.yaml").read_text()))
    compare(changes, params, base)


def test_another_preset_is_one_word(repository):
    path = repository / "replication" / "settings" / "values" / "paper.yaml"
    text = path.read_text()
    assert scale_params("paper", repository)["train"]["coefficients"] == "code"
    try:
        path.write_text(text.replace("preset: paper", "preset: released"))
        train = scale_params("paper", repository)["train"]
        assert (train["epochs"], train["coefficients"]) == (1.0, "launcher")
        assert train["launch"]["processes"] == train["devices"] == 16
        path.write_text(text.replace("preset: paper", "preset: papers"))
        with pytest.raises(InputError, match=r"papers.*paper"):
            scale_params("paper", repository)
    finally:
        path.write_text(text)


def test_a_scale_with_a_misspelt_key_is_refused(tmp_path, repository):
    copied = shutil.copytree(repository, tmp_path / "copy")
    path = copied / "replication" / "settings" / "values" / "smoke.yaml"
    path.write_text(path.read_text() + "\ntrian: {steps: 3}\n")
    with pytest.raises(InputError, match="did you mean 'train'"):
        workspace("smoke", copied)
    assert not (copied / ".scales").exists()


@pytest.mark.slow
def test_a_workspace_leaves_what_is_committed_alone(tmp_path, repository):
    copied = shutil.copytree(repository, tmp_path / "copy")
    (copied / "dvc.lock").write_text("schema: '2.0'\n")
    (copied / "results" / "small").mkdir(parents=True, exist_ok=True)
    (copied / "results" / "small" / "scores.json").write_text("{}\n")
    before = contents(copied)
    folder = workspace("smoke", copied)
    assert folder == copied / ".scales" / "smoke"
    assert yaml.safe_load((folder / "params.yaml").read_text()) == scale_params("smoke", copied)

    for name in ("performance", "real_cell", "scaling"):  # of no scale: every page shows them
        file = f"results/{name}/{name}.json"
        assert (folder / file).read_bytes() == (copied / file).read_bytes()

    def others():
        return {k: v for k, v in contents(copied).items() if not k.startswith(".scales/")}

    assert others() == before
    written = {
        k: v for k, v in contents(folder).items() if not k.startswith((".dvc/tmp", ".dvc/cache"))
    }
    (folder / "dvc.lock").write_text("kept\n")
    (folder / "grace").unlink()
    (folder / "grace").symlink_to(tmp_path)  # as after the repository has moved
    assert workspace("smoke", copied) == folder
    again = contents(folder)
    assert again.pop("dvc.lock") == b"kept\n"
    assert {
        k: v for k, v in again.items() if not k.startswith((".dvc/tmp", ".dvc/cache"))
    } == written
    assert others() == before


def test_scale_small_runs_in_the_repository_itself(repository):
    assert workspace("small", repository) == repository


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["smal", "repro"], "scale 'smal' is unknown; did you mean 'small'?"),
        (["", "repro"], "the scale is empty; choose one of smoke, small, paper"),
        (
            ["--table", "tabel4", "small", "repro"],
            "table 'tabel4' is unknown; did you mean",
        ),
        (["--table", "", "small", "repro"], "the table is empty; choose one of table1"),
        (["--table", "table4", "small", "status"], "--table is for repro"),
    ],
)
def test_what_is_unknown_is_one_line_and_exit_code_2(words, message, monkeypatch, capsys):
    for name in ("alone", "workspace", "run"):
        monkeypatch.setattr(scale, name, pytest.fail)
    assert scale.main(words) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {message}") and printed.err.count("\n") == 1
    assert printed.out == ""


TABLE4 = [
    f"evaluate@{pair}{part}"
    for part in ("", "_controls", "_runs")
    for pair in ("qwen2_vl", "qwen2_vl_pair2")
]


def test_a_table_runs_what_it_shows():
    params = parse_params(scale_params("small"))
    assert stages_of(params, find_table("table4")) == TABLE4
    assert find_table("table4_quant_ablation_qwen2vl") == "table4"
    assert stages_of(params, "bits") == [*TABLE4, "evaluate@bit_widths", "evaluate@qwen2_vl_ptq"]
    assert stages_of(params, "deploy")[0] == "deploy@llava-1.5-7b"
    for name in load_tables().short_names():
        assert stages_of(params, name)
    llava = dataclasses.replace(params, families=["llava"])
    with pytest.raises(InputError, match="scale small runs nothing of table table4"):
        stages_of(llava, "table4")


def test_one_table_is_written_and_printed(tmp_path, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(scale, "workspace", lambda name: tmp_path)
    monkeypatch.setattr(scale, "alone", lambda name: nullcontext(7))
    monkeypatch.setattr(scale, "publish", lambda folder, name: None)
    monkeypatch.setattr(scale, "run", lambda params, folder, words, lock: ran.append(words) or 0)
    assert scale.main(["--table", "table4", "smoke", "repro"]) == 0
    assert ran == [["repro", *TABLE4]]
    text = (tmp_path / "results/smoke/tables/table4.md").read_text()
    assert text in capsys.readouterr().out
    monkeypatch.setattr(scale, "run", lambda params, folder, words, lock: 3)
    assert scale.main(["--table", "table3", "smoke", "repro"]) == 3
    assert not (tmp_path / "results/smoke/tables/table3.md").exists()


@pytest.mark.slow
def test_a_second_run_is_refused_in_one_line(tmp_path, repository):
    copied = shutil.copytree(repository, tmp_path / "copy")
    with alone("smoke", copied):
        before = contents(copied)
        done = python("-m", "replication.scale", "smoke", "repro", cwd=copied)
        assert contents(copied) == before
        with pytest.raises(InputError, match="under way"), alone("smoke", copied):
            pass
        with alone("paper", copied):  # of another scale
            pass
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line == (
        f"error: a run of smoke is under way (process {os.getpid()}); wait until it ends, or end "
        "it: the next one goes on where it stopped"
    )
    with alone("smoke", copied):  # the first has ended
        pass


@pytest.mark.slow
def test_a_run_that_was_killed_holds_nothing_but_what_it_started_does(tmp_path):
    script = (
        "import pathlib, subprocess, sys, time\n"
        "from replication.settings.workspace import alone\n"
        "with alone('smoke', pathlib.Path(sys.argv[1])) as lock:\n"
        "    quiet = subprocess.DEVNULL\n"
        "    child = subprocess.Popen(['sleep', '60'], pass_fds=(lock,), stdout=quiet)\n"
        "    print(child.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    words = [sys.executable, "-c", script, str(tmp_path)]
    first = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = int(first.stdout.readline())
    first.kill()
    first.wait()
    with pytest.raises(InputError, match=f"process {first.pid}"), alone("smoke", tmp_path):
        pass
    os.kill(child, signal.SIGKILL)
    for _ in range(100):
        try:
            with alone("smoke", tmp_path):
                return
        except InputError:
            time.sleep(0.1)
    pytest.fail("the lock outlives its holders")
