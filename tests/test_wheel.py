"""The package without its repository: a wheel that holds `grace` alone, in an environment of its
own, trains and packs a model."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from grace import __version__

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


def run(*words, folder, **environment):
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env={**clean, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    listed = run("git", "ls-files", "-z", folder=ROOT)
    for name in filter(None, listed.split("\0")):
        if name.startswith(("grace", "replication", "pyproject", "README", "LICENSE")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation",
        "--no-cache-dir", "-w", folder, copy, folder=folder)  # fmt: skip
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A new environment with the wheel. Other packages are this one's, which are not its own
    installation of `grace`: what a .pth file names has its .pth files not read."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "-q",
        "--no-deps", "--no-index", "--force-reinstall", wheel, folder=folder)  # fmt: skip
    return folder / "bin"


def test_it_holds_the_package_alone_and_says_what_it_is(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [name for name in names if name.endswith("/METADATA")]
        text = archive.read(metadata).decode()
    top = {name.partition("/")[0] for name in names}
    assert top == {"grace", "grace_torchvision.py", f"grace_vlm-{__version__}.dist-info"}
    assert {"grace/py.typed", "grace/int4/backends/product.cpp"} <= set(names)
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert f"\nVersion: {__version__}\n" in text
    for extra in ("train", "export", "gguf", "eval"):
        assert f"\nProvides-Extra: {extra}\n" in text


def test_it_trains_and_packs_outside_of_the_repository(
    environment, speaker_dir, make_model, processor, conversations, tmp_path
):
    where = run(
        environment / "python", "-c", "import grace; print(grace.__file__)", folder=tmp_path
    )
    assert Path(where.strip()).is_relative_to(environment.parent)
    make_model(1, num_hidden_layers=3).save_pretrained(tmp_path / "larger")
    processor.save_pretrained(tmp_path / "larger")
    pq.write_table(pq.read_table(conversations).slice(0, 8), tmp_path / "train.parquet")
    grace = environment / "grace"
    run(grace, "train", speaker_dir, "--teacher", "larger", "--data", "train.parquet",
        "--out", "student", "--max_steps", "1", "--batch_size", "2", "--group_size", "32",
        "--device", "cpu", folder=tmp_path)  # fmt: skip
    assert json.loads((tmp_path / "student" / "training.json").read_text())
    told = run(
        grace, "pack", "student", "--out", "packed", "--backend", "reference", folder=tmp_path
    )
    assert "no code differs" in told
    assert (tmp_path / "packed" / "packed.safetensors").is_file()
    asked = "import importlib.util as u; print(u.find_spec('replication'))"
    assert run(environment / "python", "-c", asked, folder=tmp_path).strip() == "None"
