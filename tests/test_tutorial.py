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
    done = subprocess.run(
        [sys.executable, str(TUTORIAL), *map(str, words)],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def table(text):
    """{name: (right, questions, changed, KiB on disk)}"""
    rows = {}
    for name in NAMES:
        row = re.search(rf"(?m)^{name} +(\d+)/(\d+) +(\d+) +(\d+|-)$", text)
        assert row, (name, text)
        rows[name] = int(row[1]), int(row[2]), int(row[3]), row[4]
    return rows


def test_it_runs_from_end_to_end(tmp_path):
    out, again = tmp_path / "out", tmp_path / "again"
    printed = run("--out", out, folder=tmp_path)
    rows = table(printed)
    right = {name: row[0] for name, row in rows.items()}
    assert {row[1] for row in rows.values()} == {64}
    assert right["teacher"] >= 0.9 * 64  # six colors: a guess is right in one of six
    assert right["trained to INT4"] >= max(0.5 * 64, right["student before"] - 0.1 * 64)
    assert rows["packed"][2] <= 1 and rows["exported"][2] <= 1
    # float32 against 4 bits, and embeddings of 16
    assert float(rows["packed"][3]) < 0.3 * float(rows["student before"][3])
    steps = re.findall(r"(?m)^step (\d+): ce .*gdkd .*beta ", printed)
    assert int(steps[-1]) == 40
    assert "14 linears in INT4, group size 128" in printed

    own = ("--student", out / "before", "--teacher", out / "teacher")
    own = (*own, "--data", out / "conversations.parquet", "--steps", 2, "--held-out", 8)
    assert {row[1] for row in table(run(*own, "--out", again, folder=tmp_path)).values()} == {8}
    assert not (again / "teacher").exists()
    first, second = (load_file(p / "student" / "quantized.safetensors") for p in (out, again))
    assert first.keys() == second.keys()
    assert any(not first[key].equal(second[key]) for key in first)
