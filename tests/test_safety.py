"""Nothing read from a file is run, nothing leads out of a folder, and nothing asks the network."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from annotated import build, mixed

from grace.data import ConversationDataset, ShardedConversations, Shards
from grace.data.shards import locate_image
from grace.errors import InputError
from replication.base import yaml as base_yaml
from replication.settings.scales import merge, scale_params

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*(ROOT / "grace").rglob("*.py"), *(ROOT / "replication").rglob("*.py")])
OFFLINE = ROOT / "tests" / "offline"

NEVER = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads"),
    *(
        "shelve.open",
        "joblib.load",
        "dill.load",
        "dill.loads",
        "yaml.unsafe_load",
        "yaml.full_load",
    ),
    *("tarfile.open", "shutil.unpack_archive"),
}
NEVER_METHODS = {"extractall", "extract"}


def dotted(node: ast.expr) -> str:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join(reversed([*parts, node.id])) if isinstance(node, ast.Name) else ""


def faults(text: str) -> list[str]:
    """Calls that run what they read, or may; by line."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "marshal", "shelve"):
            found.append(f"{node.lineno}: from {node.module} import")
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name in NEVER or (
            isinstance(node.func, ast.Attribute) and node.func.attr in NEVER_METHODS
        ):
            found.append(f"{node.lineno}: {name}")
        elif name == "torch.load" and given.get("weights_only") != "True":
            found.append(f"{node.lineno}: torch.load without weights_only=True")
        elif name in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False":
            found.append(f"{node.lineno}: {name} with pickles")
        elif name == "yaml.load" and given.get("Loader") != "_UniqueKeys":
            found.append(f"{node.lineno}: yaml.load with another loader")
        if given.get("trust_remote_code", "False") != "False":
            found.append(f"{node.lineno}: trust_remote_code")
        if given.get("shell", "False") != "False":
            found.append(f"{node.lineno}: a shell")
    return found


def test_no_file_is_run():
    assert len(SOURCES) > 100
    for path in SOURCES:
        assert not faults(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize(
    "text",
    [
        *("eval(x)", "exec(x)", "os.system(x)", "pickle.load(f)", "from pickle import load"),
        *("torch.load(p)", "torch.load(p, weights_only=False)", "np.load(p, allow_pickle=True)"),
        *("yaml.load(t)", "yaml.load(t, Loader=yaml.Loader)", "archive.extractall(p)"),
        *("f(p, trust_remote_code=True)", "f(p, trust_remote_code=given)", "run(x, shell=True)"),
    ],
)
def test_the_scan_finds_each(text):
    assert faults(text)


def test_the_one_loader_of_yaml_is_a_safe_one():
    assert issubclass(
        base_yaml._UniqueKeys, yaml.SafeLoader | getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    )
    with pytest.raises(yaml.YAMLError):
        yaml.load("!!python/object/apply:os.getcwd []", Loader=base_yaml._UniqueKeys)


def test_code_beside_a_configuration_is_not_run(tmp_path, make_model):
    """A directory that names code of its own for transformers to import."""
    from grace.models import load_model, load_processor

    make_model().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    code = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
    (tmp_path / "evil.py").write_text(code + "class Evil: pass\n")
    names = ("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor")
    told = {name: "evil.Evil" for name in names}
    path.write_text(json.dumps({**config, "auto_map": told, "model_type": "evil"}))
    with pytest.raises(InputError):
        load_model(tmp_path)
    with pytest.raises(InputError):
        load_processor(tmp_path)
    path.write_text(json.dumps({**config, "auto_map": told}))
    load_model(tmp_path)
    assert not (tmp_path / "ran").exists()


# --- paths ----------------------------------------------------------------------------------------

OUTSIDE = ("../secret.png", "a/../../secret.png", "/etc/passwd", "", "a/", "..", "a\\..\\b.png")


@pytest.mark.parametrize("path", OUTSIDE)
def test_an_image_path_that_leads_out_is_refused(path):
    with pytest.raises(InputError, match="leads out"):
        locate_image(path, "images", {"a": "elsewhere"})


def test_shards_with_a_path_that_leads_out_open_no_image(tmp_path, family):
    from grace.data.shards import INDEX_FILE, write_shard
    from replication.base.hub import file_sha256

    small = family("llava")
    directory = build(tmp_path, mixed(tmp_path)[:1])
    records = [Shards(directory)[0]]
    (tmp_path / "secret.png").write_bytes((tmp_path / "images/coco/train2017/0.png").read_bytes())
    records[0]["images"][0]["path"] = "../secret.png"
    index = json.loads((directory / INDEX_FILE).read_text())
    path = directory / index["shards"][0]["file"]
    write_shard(records, path)
    index["shards"][0] |= {"records": 1, "sha256": file_sha256(path)}
    (directory / INDEX_FILE).write_text(json.dumps(index))
    data = ShardedConversations(directory, small.processor, small.model().config)
    with pytest.raises(InputError, match=r"record 'one'.*leads out"):
        data[0]


@pytest.mark.parametrize("name", ["../part-00000.arrow", "/etc/passwd", "a/b.arrow"])
def test_an_index_names_files_of_its_own_directory(tmp_path, name):
    directory = build(tmp_path, mixed(tmp_path))
    path = directory / "index.json"
    index = json.loads(path.read_text())
    index["shards"][0]["file"] = name
    path.write_text(json.dumps(index))
    with pytest.raises(InputError, match="no file of the directory"):
        Shards(directory)


def test_a_changed_byte_of_a_shard_is_seen(tmp_path):
    directory = build(tmp_path, mixed(tmp_path))
    (path,) = directory.glob("*.arrow")
    content = path.read_bytes()
    place = content.index(b"triangle") if b"triangle" in content else content.index(b"what is")
    path.write_bytes(content[:place] + b"T" + content[place + 1 :])
    with pytest.raises(InputError, match=r"not what index\.json says"):
        Shards(directory)[0]


def test_the_path_beside_an_images_bytes_is_not_opened(tmp_path, conversations, family):
    small = family("qwen2_vl")
    table = pq.read_table(conversations).select(["id", "image", "conversations"])
    rows = table.slice(0, 1).to_pylist()
    secret = tmp_path / "secret.png"
    secret.write_bytes(rows[0]["image"]["bytes"])
    rows[0]["image"] = {"bytes": None, "path": str(secret)}
    path = tmp_path / "train.parquet"
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), path)
    with pytest.raises(InputError, match="cannot be decoded"):
        ConversationDataset(path, small.processor, small.model().config)


# --- the network ----------------------------------------------------------------------------------


def offline(script: str, cwd: Path) -> tuple[subprocess.CompletedProcess[str], list[object]]:
    """Run a script in a process without a network; returns it, and what it asked the network."""
    log = cwd / "network.jsonl"
    paths = os.pathsep.join([str(OFFLINE), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths, "NETWORK_LOG": str(log)}
    environment.pop("HF_HUB_OFFLINE", None)  # what does not ask needs no telling
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    said = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"ran": [sys.executable, "-c", script]} in said
    assert not [line for line in said if "escaped" in line]
    return done, [line["asked"] for line in said if "asked" in line]


def test_the_block_blocks_and_leaves_this_machine_alone(tmp_path):
    script = """
import socket, urllib.request
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname()).close()
ends = socket.socketpair()
for ask in (
    lambda: socket.create_connection(("192.0.2.1", 80), 1),
    lambda: socket.socket().connect(("192.0.2.1", 80)),
    lambda: socket.getaddrinfo("example.org", 80),
    lambda: urllib.request.urlopen("http://example.org"),
):
    try:
        ask()
    except OSError as error:
        assert "blocked" in str(error), error
    else:
        raise SystemExit("not blocked")
"""
    done, asked = offline(script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert asked == ["192.0.2.1", ["192.0.2.1", 80], "example.org", "example.org"]


@pytest.mark.slow
def test_no_module_and_no_cheap_stage_asks_the_network(tmp_path):
    """Every module is imported; then stand-ins are made, and the claims read, at a tiny size."""
    tiny = {"train": 8, "language": 8, "evaluation": 4, "turns": 2}
    params = merge(scale_params("smoke"), {"standins": tiny})
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    script = """
import importlib, pkgutil, runpy, sys
import grace, replication
if __name__ == "__main__":
    for package in (grace, replication):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    for words in (["replication.stages.standins"], ["replication.verify", "--scale", "smoke"]):
        sys.argv = list(words)
        try:
            runpy.run_module(words[0], run_name="__main__")
        except SystemExit as end:
            assert not end.code, (words, end.code)
"""
    done, asked = offline(script, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not asked
    assert (tmp_path / "data" / "smoke" / "standins" / "train.parquet").is_file()


def test_a_new_workspace_asks_nothing(tmp_path):
    """DVC reports its use over the network unless it is told not to, from a process left behind."""
    script = f"""
from pathlib import Path
from replication.settings.scales import (scale_params)
from replication.settings.workspace import (prepare)
prepare(Path("workspace"), scale_params("smoke"), Path({str(ROOT)!r}))
"""
    done, asked = offline(script, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "workspace" / ".dvc" / "config").is_file()
    assert not asked
