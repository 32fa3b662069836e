"""The script for a GPU: its parts, what it says of failures, and what it needs."""

import json
import os
import subprocess
import sys

import pytest
from repository import ROOT

from grace.errors import InputError
from replication import gpu
from replication.base import provenance
from replication.base.files import read_json, write_json_atomic
from replication.measure.harness import code_of
from replication.results.elsewhere import slug_of

TESTS = """
import pytest

@pytest.fixture
def broken():
    raise RuntimeError("no device\\nat all")

def test_good():
    pass

def test_bad():
    assert 1 == 2, "one is not two"

def test_left_out():
    pytest.skip("needs a CUDA device")

def test_not_set_up(broken):
    pass
"""


def test_every_test_is_counted_and_failures_are_named(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    found = gpu.run_tests(tmp_path)
    assert {name: found[name] for name in ("passed", "skipped", "failed")} == {
        "passed": 1,
        "skipped": 1,
        "failed": 2,
    }
    bad, broken = found["failures"].values()
    assert "one is not two" in bad and "no device" in broken and "\n" not in broken
    assert next(iter(found["failures"])).endswith("test_bad")


def test_tests_that_cannot_start_are_an_error(tmp_path):
    with pytest.raises(InputError, match="ran no test"):
        gpu.run_tests(tmp_path / "nowhere")


@pytest.fixture
def parts(monkeypatch):
    """No part measures anything; one of the bounds is missed."""
    bounds = [{"what": "time", "at_most": 2.0, "median": value, "low": 1, "high": 9}
              for value in (1.9, 2.5)]  # fmt: skip
    monkeypatch.setattr(gpu, "run_tests", lambda: {"passed": 3, "failures": {"a.test": "why"}})
    monkeypatch.setattr(gpu.method, "run", lambda *_, **__: {"parts": {"one": {"bounds": bounds}}})
    monkeypatch.setattr(gpu, "_decoding", lambda *_: decoding())


def decoding(**origin):
    own = {"commit": "c" * 40, "dirty": False, "code": "other", "device": "NVIDIA X"}
    return {
        "name": "deploy",
        "evidence": "recorded",
        "device": "NVIDIA X",
        "models": {"llava-1.5-7b": {"variants": {}}, "qwen2-vl-2b": {"variants": {}}},
        "provenance": {**own, **origin},
    }


def test_tests_and_missed_bounds_fail_but_not_those_of_small_sizes(parts, tmp_path):
    report = gpu.run(tmp_path, 10, rehearse=False)
    assert report["failed"] == ["a.test: why", "losses: time: 2.5, at most 2 stated"]
    assert read_json(tmp_path / "gpu.json") == json.loads(json.dumps(report))
    assert gpu.run(tmp_path, 10, rehearse=True)["failed"] == ["a.test: why"]


def test_a_part_that_fails_does_not_stop_the_others(parts, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise InputError("out of memory")

    monkeypatch.setattr(gpu.method, "run", fails)
    report = gpu.run(tmp_path, 10, rehearse=True)
    assert report["parts"]["losses"]["not_run"] == "out of memory"
    assert "losses: out of memory" in report["failed"]
    assert report["parts"]["decoding"]["models"]


def test_no_part_begins_when_the_time_is_over(parts, tmp_path):
    report = gpu.run(tmp_path, 0.0, rehearse=True)
    reasons = {part.get("not_run") for part in report["parts"].values()}
    assert reasons == {"the 0 minutes were over"}


def test_without_a_gpu_it_says_what_to_do(capsys, monkeypatch):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "--rehearse" in capsys.readouterr().err


def result(folder, part, **changes):
    report = {"name": "gpu", "rehearsal": False, "parts": {"decoding": part}, **changes}
    write_json_atomic(folder / "gpu.json", report)
    return folder / "gpu.json"


def test_the_decoding_goes_where_the_tables_look_for_it(tmp_path):
    files = gpu.bring_in(result(tmp_path, {**decoding(), "seconds": 3.0}), tmp_path / "recorded")
    own = tmp_path / "recorded" / slug_of("NVIDIA X") / "small" / "deploy"
    assert files == [own / name / "deploy.json" for name in ("llava-1.5-7b", "qwen2-vl-2b")]
    kept = read_json(files[1])
    assert list(kept["models"]) == ["qwen2-vl-2b"] and "seconds" not in kept
    assert kept["evidence"] == "recorded"


def test_a_copy_without_history_is_known_by_its_code(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "git_state", lambda: {"commit": "d" * 40, "dirty": False})
    code = code_of(gpu.variant(name).module for name in gpu.VARIANTS)
    part = decoding(commit=None, dirty=None, code=code)
    (file, _) = gpu.bring_in(result(tmp_path, part), tmp_path / "recorded")
    assert read_json(file)["provenance"]["commit"] == "d" * 40


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        (decoding(dirty=True), {}, "not committed"),
        (decoding(commit=None, dirty=None), {}, "not committed"),
        ({"not_run": "out of memory"}, {}, "nothing was decoded: out of memory"),
        (decoding(), {"rehearsal": True}, "no result of a GPU"),
        (decoding(), {"name": "deploy"}, "no result of a GPU"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path, part, changes, message):
    with pytest.raises(InputError, match=message):
        gpu.bring_in(result(tmp_path, part, **changes), tmp_path / "recorded")
    assert not (tmp_path / "recorded").exists()


@pytest.mark.weekly
@pytest.mark.slow
def test_it_runs_with_torch_and_transformers_alone(tmp_path):
    words = [sys.executable, "-m", "replication.gpu", "--rehearse", "--out", str(tmp_path)]
    path = os.pathsep.join([str(ROOT / "tests" / "bare"), str(ROOT)])
    done = subprocess.run(
        words,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    report = read_json(tmp_path / "gpu.json")
    assert report["failed"] == [] and report["rehearsal"]
    assert report["parts"]["tests"]["passed"] > 60
    ran = report["parts"]["decoding"]["models"]["llava-1.5-7b"]["variants"]
    assert all("decode" in ran[name] for name in ("bf16", "int4"))
