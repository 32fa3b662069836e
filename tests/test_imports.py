"""Packages can be imported in any order, and what needs no torch imports none."""

import os
import pathlib
import shutil
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that, as an installation does, says which entry points grace has, and has them."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(ROOT / "grace_torchvision.py", folder)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    metadata = folder / "grace_vlm-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: grace-vlm\nVersion: 0\n")
    points = project["entry-points"]["torch.backends"]
    lines = [f"{name} = {value}\n" for name, value in points.items()]
    (metadata / "entry_points.txt").write_text("".join(["[torch.backends]\n", *lines]))
    return folder


def run(code, *folders, cwd):
    path = os.pathsep.join(map(str, folders))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "first",
    [
        "from transformers import AutoProcessor, Qwen2VLProcessor",
        "import torchvision",
        "import grace",
    ],
)
def test_packages_are_imported_in_any_order(first, installed, tmp_path):
    rest = "import grace, torchvision\nfrom transformers import AutoProcessor, Qwen2VLProcessor"
    ended = run(f"{first}\n{rest}", installed, ROOT, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_a_folder_named_grace_does_not_keep_torch_from_being_imported(installed, tmp_path):
    (tmp_path / "grace").mkdir()
    ended = run("import torch", installed, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
