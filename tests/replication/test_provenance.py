"""Provenance: complete, deterministic, and honest about an altered tree."""

import subprocess
import sys

import pytest

from grace.errors import InputError
from replication.base import provenance
from replication.base.files import ROOT

HEAVY = ("torch", "transformers", "scipy", "pandas", "pyarrow", "lmms_eval", "matplotlib")


@pytest.fixture
def repository(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True
        )

    git("init", "-q")
    (tmp_path / "code.py").write_text("x = 1\n")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.json").write_text("{}\n")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    return tmp_path


def test_collect_holds_everything_and_no_date(repository):
    record = provenance.collect(
        {"a": 1}, seeds=[0, 1], command=["python", "-m", "x"], repository=repository
    )
    assert set(record) == {
        "commit",
        "dirty",
        "params_hash",
        "versions",
        "lock",
        "python",
        "device",
        "native_arithmetic",
        "seeds",
        "command",
    }
    assert len(record["commit"]) == 40
    assert record["dirty"] is False
    assert set(record["versions"]) == {"torch", "transformers", "accelerate", "lmms_eval", "numpy"}
    assert record["versions"]["numpy"]
    assert record["command"] == "python -m x"
    assert record["device"]
    again = provenance.collect(
        {"a": 1}, seeds=[0, 1], command=["python", "-m", "x"], repository=repository
    )
    assert record == again


def test_the_lock_is_named_by_its_hash(tmp_path):
    assert provenance.lock_hash(tmp_path) is None
    path = tmp_path / provenance.LOCK
    path.parent.mkdir()
    path.write_text("torch==2.13.0\n")
    first = provenance.lock_hash(tmp_path)
    path.write_text("torch==2.13.1\n")
    assert provenance.lock_hash(tmp_path) != first


def test_altered_or_new_code_is_dirty_and_results_are_not(repository):
    (repository / "results" / "a.json").write_text('{"b": 1}\n')
    (repository / "dvc.lock").write_text("x\n")
    assert provenance.git_state(repository)["dirty"] is False
    (repository / "new.py").write_text("y = 2\n")
    assert provenance.git_state(repository)["dirty"] is True
    (repository / "new.py").unlink()
    (repository / "code.py").write_text("x = 2\n")
    assert provenance.git_state(repository)["dirty"] is True


def test_outside_a_repository_the_commit_is_unknown(tmp_path):
    assert provenance.git_state(tmp_path) == {"commit": None, "dirty": None}


def test_params_hash_sees_values_and_not_the_order_of_keys():
    digest = provenance.params_hash({"a": 1, "b": [1, 2]})
    assert digest == provenance.params_hash({"b": [1, 2], "a": 1})
    assert digest != provenance.params_hash({"a": 1, "b": [2, 1]})
    assert len(digest) == 64
    for wrong in ({"a": float("nan")}, {"a": object()}):
        with pytest.raises(InputError, match="params"):
            provenance.params_hash(wrong)


def test_extra_entries_do_not_replace_ours():
    extra = provenance.collect({}, [0], "x", extra={"tasks": "abc"})
    assert extra["tasks"] == "abc"
    with pytest.raises(AssertionError):
        provenance.collect({}, [0], "x", extra={"commit": "abc"})


def test_a_library_that_is_absent_has_no_version():
    assert provenance.library_versions(["no-such-library"]) == {"no-such-library": None}


def test_what_only_reads_results_imports_nothing_heavy():
    modules = ("replication.verify", "replication.report.tables.files", "replication.paper.bands")
    program = f"import sys, {', '.join(modules)}; print(*set(sys.modules) & set({HEAVY}))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.split() == []
