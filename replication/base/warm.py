"""Stages that start at once: forks of one process that has imported what stages import.

    with server(folder, os.environ) as variables:
        subprocess.call(["dvc", "repro"], env=os.environ | variables)

`python`, as ``variables`` has it on the PATH, is this file: a client that imports nothing heavy. It
asks the server for a fork that runs the stage with the client's folder, environment, streams and
signals, and ends as that ends. Anything but a stage, and a stage whose code has changed since the
server started, it runs as Python would. A stage asks for its workers in the same way.

The server has run no operator: no pool of threads and no accelerator are there to be forked.
"""

import atexit
import gc
import importlib
import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Client, Connection, wait
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from types import FrameType
from typing import Any

ADDRESS = "REPLICATION_SERVER"
"""The environment variable with the path of the server's socket."""

LOG = "REPLICATION_LOG"
"""The environment variable with the path of the log of a run: see `tell`."""

_STAGES, _STAGE = "replication.stages.", "replication.base.warm:run_stage"
_ROOT = Path(__file__).resolve().parents[2]
_LATE = (
    *("replication.train.fit", "replication.train.shuffled_teacher"),
    *("grace.evaluation.lmms", "lmms_eval.evaluator", "lmms_eval.tasks", "datasets"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "compressed_tensors"),
    *("transformers.models.llava.modeling_llava", "transformers.models.clip.modeling_clip"),
    *("transformers.models.llama.modeling_llama", "transformers.models.qwen2.tokenization_qwen2"),
    "transformers.models.qwen2_vl.modeling_qwen2_vl",
    "transformers.models.qwen3_vl.modeling_qwen3_vl",
)
"""What stages import only when they run, and what takes long."""

_server: str | None = None
"""In a fork of the server: the path of its socket."""


def is_fork() -> bool:
    """Whether this process is a fork of a server, which forks again for `Call`."""
    return _server is not None


class Call:
    """A call of a function in a fork of the server.

    Args:
        function: "module:name".
        arguments: of the function; they are pickled.
        address: of the server; default: that of which this process is a fork.

    Attributes:
        accepted: whether the server's code is that of the files now.

    Raises:
        OSError: no server answers there.
    """

    def __init__(self, function: str, arguments: Sequence[Any], address: str | None = None) -> None:
        if (place := address or _server) is None:
            raise ConnectionRefusedError("no server of warm workers was started")
        self._connection = Client(place, "AF_UNIX")
        self._value, sender = Pipe(duplex=False)
        with sender:
            self._connection.send((function, arguments, os.getcwd(), dict(os.environ)))
            for handle in (0, 1, 2, sender.fileno()):
                send_handle(self._connection, handle, 0)
        self.accepted: bool = self._connection.recv()

    def signal(self, number: int) -> None:
        """Send a signal to the fork and to its children; after its end, nothing."""
        with suppress(OSError):
            self._connection.send(int(number))

    def ended(self) -> int:
        """Wait for the end of the fork: its exit code, or minus the signal that ended it."""
        try:
            return self._connection.recv()
        except EOFError:
            return 1

    def value(self) -> Any:
        """Wait for what the function returns, or raise what it raises.

        Raises:
            RuntimeError: the process ended without either.
        """
        try:
            raised, value = self._value.recv()
        except EOFError:
            code = self.ended()
            raise RuntimeError(f"a process ended without a result (exit code {code})") from None
        finally:
            self._value.close()
        self.ended()
        if raised:
            raise value
        return value


def tell(**what: Any) -> None:
    """Add what happens in a stage to the log of a run, a line of JSON; without one, nothing."""
    if path := os.environ.get(LOG):
        line = json.dumps({"at": time.time(), "stage": os.environ.get("DVC_STAGE"), **what})
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{line}\n")


# --- the client -----------------------------------------------------------------------------------


def _run_client(words: list[str]) -> None:
    """What `python` with these words does."""
    address = os.environ.pop(ADDRESS, None)
    if words[:1] == ["-m"] and words[1:2] and words[1].startswith(_STAGES):
        tell(begins=" ".join(words[1:]).removeprefix(_STAGES))
        with suppress(OSError, EOFError):
            call = Call(_STAGE, words[1:], address)
            if call.accepted:
                _end_as(call)
    os.execv(sys.executable, [sys.executable, *words])


def _end_as(call: Call) -> None:
    def forward(number: int, _: FrameType | None) -> None:
        call.signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    code = call.ended()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


# --- the server -----------------------------------------------------------------------------------


@contextmanager
def server(
    folder: Path, environment: Mapping[str, str], *, forks: bool = True
) -> Iterator[dict[str, str]]:
    """A server, while this block runs; a fork that runs then goes on to its end.

    Args:
        folder: where it imports from.
        environment: of the server.
        forks: whether there is one; if not, the client runs stages as Python would.

    Yields:
        The variables with which a process finds it: its address and the PATH.
    """
    with tempfile.TemporaryDirectory(prefix="replication-") as scratch:
        client = Path(scratch, "bin", "python")
        client.parent.mkdir()
        words = shlex.join([sys.executable, "-P", str(Path(__file__).resolve())])
        client.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        client.chmod(0o755)
        path = os.pathsep.join([str(client.parent), environment.get("PATH", os.defpath)])
        address = Path(scratch, "socket")
        with _served(folder, environment, address) if forks else nullcontext():
            yield {"PATH": path} | ({ADDRESS: str(address)} if forks else {})


@contextmanager
def _served(folder: Path, environment: Mapping[str, str], address: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen(64)
        start = f"from replication.base import warm; warm._serve({listener.fileno()})"
        process = subprocess.Popen(
            [sys.executable, "-c", start],
            cwd=folder,
            env=environment,
            pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the clients, which pass it on
        )
    try:
        yield
    finally:
        process.terminate()
        process.communicate()


def _serve(descriptor: int) -> None:
    """Fork for every connection, until the process that started this one is gone."""
    global _server
    _import_all()
    files = _own_files()
    before = _changes(files)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks need no waiting for
    gc.collect()
    gc.freeze()  # shared pages stay shared
    with socket.socket(fileno=descriptor) as listener:
        _server = listener.getsockname()
        while True:
            ready, _, _ = select.select([listener.fileno(), 0], [], [])
            if 0 in ready:
                return
            connection, _ = listener.accept()
            if os.fork() == 0:
                try:
                    listener.close()
                    _handle(Connection(connection.detach()), lambda: _changes(files) == before)
                except EOFError:  # a client that is gone
                    pass
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(0)
            connection.close()


def _import_all() -> None:
    stages = (_ROOT / "replication" / "stages").glob("[a-z]*.py")
    for name in [*(f"{_STAGES}{path.stem}" for path in sorted(stages)), *_LATE]:
        with suppress(ImportError):  # the stage that needs it says so
            importlib.import_module(name)


def _own_files() -> list[str]:
    """This repository's files that are imported."""
    paths = [str(getattr(module, "__file__", None) or "") for module in sys.modules.values()]
    packages = {str(_ROOT / name) for name in ("grace", "replication")}
    return [path for path in paths if any(map(os.path.realpath(path).startswith, packages))]


def _changes(paths: Sequence[str]) -> list[tuple[int, int]]:
    """When files were changed, and their sizes."""
    found = [os.stat(path) if os.path.exists(path) else None for path in paths]
    return [(status.st_mtime_ns, status.st_size) if status else (0, 0) for status in found]


def _handle(connection: Connection, unchanged: Callable[[], bool]) -> None:
    """One call: fork again, pass signals on, and say how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request = connection.recv()
    handles = [recv_handle(connection) for _ in range(4)]
    accepted = request[0] != _STAGE or unchanged()
    connection.send(accepted)
    if not accepted:
        return
    process: Any = get_context("fork").Process(target=_run, args=(*request, handles, connection))
    process.start()
    for handle in handles:
        os.close(handle)
    with suppress(OSError):
        os.setpgid(process.pid, process.pid)
    told: Connection | None = connection
    while process.sentinel not in (ready := wait([process.sentinel, *filter(None, [told])])):
        assert ready == [connection]
        try:
            number = connection.recv()
        except (EOFError, OSError):  # the client is gone
            number, told = signal.SIGTERM, None
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
    process.join()
    if told is not None:
        with suppress(OSError):
            connection.send(process.exitcode)


def _run(  # noqa: PLR0917
    function: str,
    arguments: Sequence[Any],
    folder: str,
    environment: dict[str, str],
    handles: list[int],
    connection: Connection,
) -> None:
    """In a fork of its own: call the function as a process of the client's would."""
    connection.close()
    with suppress(OSError):
        os.setpgid(0, 0)
    for number, handle in enumerate(handles[:3]):
        os.dup2(handle, number)
        os.close(handle)
    sys.stdin = os.fdopen(0, closefd=False)
    for stream in (sys.stdout, sys.__stdout__):
        stream.reconfigure(line_buffering=stream.isatty())  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    module, _, name = function.partition(":")
    try:
        value = (False, getattr(importlib.import_module(module), name)(*arguments))
    except SystemExit:
        raise
    except BaseException as error:
        error.add_note("".join(traceback.format_exception(error)).rstrip())
        value = (True, error)
    finally:
        atexit._run_exitfuncs()
    with Connection(handles[3]) as sender:
        try:
            sender.send(value)
        except OSError:  # nobody waits for it
            pass
        except Exception as error:
            sender.send((True, RuntimeError(f"a result that cannot be sent: {error}")))


def run_stage(module: str, *words: str) -> None:
    """``python -m module words``, in this process, which it ends."""
    stage = importlib.import_module(module)
    sys.argv = [str(stage.__file__), *words]
    try:
        code = stage.main()
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    _run_client(sys.argv[1:])
