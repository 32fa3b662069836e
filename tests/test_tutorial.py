"""docs/tutorial.py runs as printed: on what it makes itself, and on checkpoints that are given."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.weekly]

ROOT = Path(__file__).resolve().parents[1]
TUTORIAL = ROOT / "docs" / "tutorial.py"
NAMES = (
    *("teacher", "student before", "rounded to INT4"),
    *("trained to INT4", "packed", "exported"),
)


def run(*words, folder):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, str(TUTORIAL), *map(str, words)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def table(text):
    """{name: (right, changed, KiB on disk)} and the number of questions."""
    found, counts = {}, set()
    for name in NAMES:
        row = re.search(rf"(?m)^{name} +(\d+)/(\d+) +(\d+) +(\d+|-)$", text)
        assert row, (name, text)
        found[name] = int(row[1]), int(row[3]), row[4]
        counts.add(int(row[2]))
    (count,) = counts
    return found, count


def test_it_runs_from_end_to_end(tmp_path):
    out = tmp_path / "out"
    ran = run("--out", out, folder=tmp_path)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found, count = table(ran.stdout)
    assert count == 64
    right = {name: row[0] for name, row in found.items()}
    assert right["teacher"] >= 0.9 * count  # six colors: a guess is right in one of six
    assert right["trained to INT4"] >= right["student before"] - 0.1 * count
    assert right["trained to INT4"] >= 0.5 * count
    assert found["packed"][1] <= 1 and found["exported"][1] <= 1
    before, packed = (float(found[name][2]) for name in ("student before", "packed"))
    assert packed < 0.3 * before  # float32 against 4 bits, and embeddings of 16
    steps = [int(step) for step in re.findall(r"(?m)^step (\d+): ce .*gdkd .*beta ", ran.stdout)]
    assert steps[-1] == 40
    assert "4.250 bits a weight" in ran.stdout or "reference" in ran.stdout
    assert "14 linears in INT4, group size 128" in ran.stdout

    again = tmp_path / "again"
    own = ("--student", out / "before", "--teacher", out / "teacher")
    ran = run(*own, "--data", out / "conversations.parquet", "--steps", 2, "--held-out", 8,
              "--out", again, folder=tmp_path)  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    found, count = table(ran.stdout)
    assert count == 8
    assert not (again / "teacher").exists()
    first, second = (load_file(p / "student" / "quantized.safetensors") for p in (out, again))
    assert first.keys() == second.keys()
    assert any(not first[key].equal(second[key]) for key in first)


def test_half_of_the_checkpoints_are_refused(tmp_path):
    ran = run("--student", tmp_path, folder=tmp_path)
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1].endswith(
        "give all of --student, --teacher and --data, or none of them"
    )
    assert not list(tmp_path.iterdir())
