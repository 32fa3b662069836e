"""Packages can be imported in any order, and what needs no torch imports none."""

import os
import subprocess
import sys

import pytest
from installed import ROOT


def run(code, *folders, cwd):
    path = os.pathsep.join(map(str, folders))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("first", ["from transformers import AutoProcessor", "import torchvision"])
def test_packages_are_imported_in_any_order(first, installed, tmp_path):
    rest = "import grace, torchvision\nfrom transformers import AutoProcessor, Qwen2VLProcessor"
    ended = run(f"{first}\n{rest}", installed, ROOT, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_a_folder_named_grace_does_not_keep_torch_from_being_imported(installed, tmp_path):
    (tmp_path / "grace").mkdir()
    ended = run("import torch", installed, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr


def test_what_needs_no_torch_imports_none():
    modules = "grace, grace.cli, grace.data, grace.errors, grace.files, grace.training, grace.types"
    code = (
        f"import sys, {modules}\nassert not {{'torch', 'transformers', 'numpy'}} & set(sys.modules)"
    )
    ended = run(code, ROOT, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
