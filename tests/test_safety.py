"""Nothing read from a file is run, nothing leads out of a folder, and nothing asks the network."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from grace.data import ConversationDataset
from grace.data.records import locate_image
from grace.errors import InputError
from grace.files import read_yaml
from grace.models import load_model, load_processor
from replication.settings.scales import merge, scale_params

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*(ROOT / "grace").rglob("*.py"), *(ROOT / "replication").rglob("*.py")])


@pytest.mark.parametrize(
    ("switch", "safe"),
    [("weights_only", "True"), ("allow_pickle", "False"), ("trust_remote_code", "False")],
)
def test_no_library_is_told_to_run_what_it_reads(switch, safe):
    """`make lint` refuses eval, exec, pickle and shells (the rules S of ruff); these are the
    switches by which a library would run code from a file."""
    unsafe = re.compile(rf"\b{switch}\s*=\s*(?!{safe})")
    for path in SOURCES:
        assert not unsafe.search(path.read_text(encoding="utf-8")), path


def test_yaml_makes_no_objects(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("a: !!python/object/apply:os.getcwd []")
    with pytest.raises(InputError):
        read_yaml(path)


def test_code_beside_a_configuration_is_not_run(tmp_path, make_model):
    """A directory that names code of its own for transformers to import."""
    make_model().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    code = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
    (tmp_path / "evil.py").write_text(code + "class Evil: pass\n")
    names = ("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor")
    auto_map = {name: "evil.Evil" for name in names}
    path.write_text(json.dumps({**config, "auto_map": auto_map, "model_type": "evil"}))
    with pytest.raises(InputError):
        load_model(tmp_path)
    with pytest.raises(InputError):
        load_processor(tmp_path)
    path.write_text(json.dumps({**config, "auto_map": auto_map}))
    load_model(tmp_path)
    assert not (tmp_path / "ran").exists()


# --- paths ----------------------------------------------------------------------------------------

OUTSIDE = ("../secret.png", "a/../../secret.png", "/etc/passwd", "", "a/", "..", "a\\..\\b.png")


@pytest.mark.parametrize("path", OUTSIDE)
def test_an_image_path_that_leads_out_is_refused(path):
    for folder in ("images", {"": "images", "a": "elsewhere"}):
        with pytest.raises(InputError, match="leads out"):
            locate_image(path, folder)


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "images/../../secret.png"])
def test_data_with_a_path_that_leads_out_open_no_image(tmp_path, conversations, family, path):
    small = family("qwen2_vl")
    table = pq.read_table(conversations).select(["id", "image", "conversations"])
    rows = table.slice(0, 1).to_pylist()
    (tmp_path / "secret.png").write_bytes(rows[0]["image"]["bytes"])
    rows[0]["image"] = {"bytes": None, "path": path}
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "train.parquet"
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), file)
    with pytest.raises(InputError, match=r"record 'scene_0000000'.*leads out"):
        ConversationDataset(file, small.processor, small.model().config)
    rows[0]["image"] = {"bytes": None, "path": "secret.png"}
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), file)
    data = ConversationDataset(file, small.processor, small.model().config, image_folder=tmp_path)
    assert data.images(0)[0].size == (64, 64)


# --- the network ----------------------------------------------------------------------------------


def offline(script: str, folder: Path) -> list[object]:
    """Runs a script in a process without a network; returns what it asked the network for."""
    log = folder / "network.jsonl"
    path = os.pathsep.join([str(ROOT / "tests" / "offline"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "NETWORK_LOG": str(log)}
    environment.pop("HF_HUB_OFFLINE", None)  # what does not ask does not depend on it
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"ran": [sys.executable, "-c", script]} in lines
    assert not [line for line in lines if "escaped" in line]
    return [line["asked"] for line in lines if "asked" in line]


def test_the_block_blocks_and_leaves_this_machine_alone(tmp_path):
    script = """
import contextlib, socket
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname()).close()
with contextlib.suppress(OSError):
    socket.create_connection(("192.0.2.1", 80), 1)
with contextlib.suppress(OSError):
    socket.getaddrinfo("example.org", 80)
"""
    assert offline(script, tmp_path) == ["192.0.2.1", "example.org"]


def test_a_process_that_leaves_the_block_is_told(tmp_path):
    found = "import ctypes.util; ctypes.util.find_library('c')"
    assert not offline(found, tmp_path)
    left = "import subprocess; subprocess.run(['true'], env={'PATH': '/usr/bin:/bin'})"
    with pytest.raises(AssertionError, match="escaped"):
        offline(left, tmp_path)


@pytest.mark.weekly
@pytest.mark.slow
def test_no_module_and_no_cheap_stage_asks_the_network(tmp_path):
    """Every module is imported; then stand-ins are made, and the claims read, at a tiny size."""
    tiny = {"alignment": {"images": 8}, "language": 8, "evaluation": 4, "turns": 2}
    params = merge(scale_params("smoke"), {"standins": tiny})
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    script = """
import importlib, pkgutil, sys
import grace, replication
if __name__ == "__main__":
    for package in (grace, replication):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    for words in (["replication.stages.standins"], ["replication.verify", "--scale", "smoke"]):
        sys.argv = list(words)
        try:
            importlib.import_module(words[0]).main()
        except SystemExit as end:
            assert not end.code, (words, end.code)
"""
    assert not offline(script, tmp_path)
    assert (tmp_path / "data" / "smoke" / "standins" / "train.parquet").is_file()


@pytest.mark.slow
def test_a_new_workspace_asks_nothing(tmp_path):
    """DVC reports its use over the network unless it is told not to, from a process left behind."""
    script = f"""
from pathlib import Path
from replication.settings.scales import scale_params
from replication.settings.workspace import prepare
prepare(Path("workspace"), scale_params("smoke"), Path({str(ROOT)!r}))
"""
    assert not offline(script, tmp_path)
    assert (tmp_path / "workspace" / ".dvc" / "config").is_file()
