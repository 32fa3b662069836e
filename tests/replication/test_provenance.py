"""Provenance: complete, deterministic, and honest about an altered tree."""

import ast
import subprocess
from pathlib import Path

import pytest

from grace.errors import InputError
from replication.base import provenance

REPLICATION = Path(provenance.__file__).parents[1]
LIGHT = (
    "base/files.py",
    "stats/association.py",
    "judge/cells.py",
    "stats/bootstrap.py",
    "stats/factorial.py",
    "results/measurements.py",
    "judge/quantities.py",
    "results/scores.py",
    "results/question_types.py",
    "results/training_logs.py",
    "judge/claims.py",
    "base/provenance.py",
    "judge/ledger.py",
    "report/tables/scores.py",
    "report/tables/summaries.py",
    "report/tables/files.py",
    "report/tables/text.py",
    "paper/__init__.py",
    "paper/bands.py",
    "paper/consistency.py",
    "paper/ledger.py",
    "paper/reading.py",
    "paper/tables.py",
)


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
    one = provenance.params_hash({"a": 1, "b": [1, 2]})
    assert one == provenance.params_hash({"b": [1, 2], "a": 1})
    assert one != provenance.params_hash({"a": 1, "b": [2, 1]})
    assert len(one) == 64
    for wrong in ({"a": float("nan")}, {"a": object()}):
        with pytest.raises(InputError, match="params"):
            provenance.params_hash(wrong)


def test_extra_entries_do_not_replace_ours():
    extra = provenance.collect({}, [0], "x", extra={"tasks": "abc"})
    assert extra["tasks"] == "abc"
    with pytest.raises(InputError, match="reserved"):
        provenance.collect({}, [0], "x", extra={"commit": "abc"})


def test_a_library_that_is_absent_has_no_version():
    assert provenance.library_versions(["no-such-library"]) == {"no-such-library": None}


@pytest.mark.parametrize("name", LIGHT)
def test_modules_that_only_read_results_import_nothing_heavy(name):
    tree = ast.parse((REPLICATION / name).read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    froms = [str(node.module) for node in top if isinstance(node, ast.ImportFrom)]
    plain = [alias.name for node in top if isinstance(node, ast.Import) for alias in node.names]
    imported = {name.split(".")[0] for name in froms + plain}
    assert not imported & {"torch", "transformers", "scipy", "pandas", "pyarrow", "lmms_eval"}
    assert {name for name in froms if name.startswith("grace")} <= {"grace.errors", "grace.files"}
