"""Fetching from the hub, as a server of this machine that speaks its interface plays it."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from repository import ROOT

from replication.data.mirror import COMMIT, card

pytestmark = pytest.mark.slow

REPOSITORY = "owner/name"
FILES = {
    "README.md": card([("en", {"dev": "en/dev-*", "test": "en/test-*"})]).encode(),
    "en/dev-00000-of-00002.parquet": b"first",
    "en/dev-00001-of-00002.parquet": b"second",
    "en/test-00000-of-00001.parquet": b"large and not asked for",
}
PROGRAM = """
import dataclasses, json, pathlib, sys
from replication import benchmarks
from replication.settings.schema import Source
from replication.benchmarks.published import prepare
source = Source(sys.argv[1], "en", "dev")
data = prepare(benchmarks.get("mmbench"), source, pathlib.Path("views"), None)
print(json.dumps(dataclasses.asdict(data)))
"""


class Hub(BaseHTTPRequestHandler):
    """One dataset repository: its description, the list of its files, and the files."""

    def log_message(self, *_):
        pass

    def reply(self, code, body=b"", **headers):
        self.send_response(code)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.server.asked.append((self.command, path))
        tree = [
            {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
            for name, body in FILES.items()
        ]
        about = {"id": REPOSITORY, "sha": COMMIT, "siblings": [{"rfilename": n} for n in FILES]}
        api = f"/api/datasets/{REPOSITORY}"
        files = {f"/datasets/{REPOSITORY}/resolve/{COMMIT}/{n}": body for n, body in FILES.items()}
        if path.startswith(f"{api}/tree/"):
            self.reply(200, json.dumps(tree).encode(), Content_Type="application/json")
        elif path == api or path.startswith(f"{api}/revision/"):
            self.reply(200, json.dumps(about).encode(), Content_Type="application/json")
        elif path in files:
            etag = f'"{hashlib.sha256(files[path]).hexdigest()}"'
            self.reply(200, files[path], ETag=etag, X_Repo_Commit=COMMIT)
        else:
            self.reply(404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET  # noqa: N815


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        hub.asked = []
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


@pytest.fixture
def fetch(server, tmp_path):
    """A function that prepares a repository's data in a process that may ask the server."""

    def run(repository=REPOSITORY, offline="0"):
        environment = {
            **os.environ,
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": offline,
            "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": str(ROOT),
        }
        return subprocess.run(
            [sys.executable, "-c", PROGRAM, repository],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def test_only_the_split_is_fetched_and_only_once(server, fetch):
    done = fetch()
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["commit"] == COMMIT
    contents = [file.read_bytes() for file in sorted(Path(data["folder"]).glob("*.parquet"))]
    assert contents == [b"first", b"second"]
    fetched = {path.rpartition("/")[2] for verb, path in server.asked if verb == "GET"}
    assert "dev-00001-of-00002.parquet" in fetched
    assert "test-00000-of-00001.parquet" not in fetched
    server.asked.clear()
    again = fetch(offline="1")
    assert json.loads(again.stdout) == data
    assert json.loads(fetch().stdout) == data
    assert server.asked == []


def test_what_the_hub_does_not_have_is_one_clear_error(server, fetch):
    done = fetch("owner/nothing")
    assert done.returncode != 0
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("grace.errors.InputError: 'owner/nothing' cannot be fetched")
    assert server.asked
    server.asked.clear()
    done = fetch(offline="1")
    assert "'owner/name' is not in the hub's cache" in done.stderr
    assert "HF_HUB_OFFLINE=0" in done.stderr
    assert server.asked == []
