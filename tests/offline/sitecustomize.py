"""No network: a folder to put first on PYTHONPATH, for a process and all that it starts.

Python's sockets reach this machine alone (Unix sockets and the loopback, which processes that
train together need). Any other attempt fails. The file that NETWORK_LOG names gets a line of JSON
for every process that was started so, {"ran": [words]}, for every attempt, {"asked": what}, since
code may survive its failure, and for every process that is started in an environment without this
folder, {"escaped": [words]}, but for the one by which ctypes finds libraries.
"""

import json
import os
import socket
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
_STARTS = {"subprocess.Popen": 3, "os.exec": 2, "os.posix_spawn": 2}
"""The argument of an audit event that is the environment."""
_FINDS_LIBRARIES = ["/sbin/ldconfig", "-p"]
"""ctypes runs it in an environment of its own, for torch's CUDA build; it reads one local file."""
_LOCAL = ("localhost", "127.", "::1", "::ffff:127.", "0.0.0.0")


def _tell(**what: object) -> None:
    log = os.environ.get("NETWORK_LOG")
    if log:
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps(what, default=str) + "\n")


def _attempt(what: object) -> None:
    _tell(asked=what)
    raise OSError(101, f"the network is blocked: {what}")


def _is_local(host: object) -> bool:
    text = host.decode() if isinstance(host, bytes) else host
    return text in (None, "", socket.gethostname()) or str(text).startswith(_LOCAL)


def _guarded(name: str):
    real = getattr(socket.socket, name)

    def method(self, *arguments):
        address = arguments[-1]
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address[0]):
            _attempt(address)
        return real(self, *arguments)

    return method


for _name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, _name, _guarded(_name))

_getaddrinfo, _gethostbyname = socket.getaddrinfo, socket.gethostbyname


def _resolve(host, *arguments, **options):
    if not _is_local(host):
        _attempt(host)
    return _getaddrinfo(host, *arguments, **options)


def _look_up(host):
    if not _is_local(host):
        _attempt(host)
    return _gethostbyname(host)


socket.getaddrinfo, socket.gethostbyname = _resolve, _look_up


def _starts(event: str, arguments: tuple) -> None:
    if event in _STARTS:
        given = arguments[_STARTS[event]]
        if given is None or arguments[1] == _FINDS_LIBRARIES:
            return
        if _HERE not in os.fsdecode(given.get("PYTHONPATH", given.get(b"PYTHONPATH", ""))):
            _tell(escaped=arguments[1])


sys.addaudithook(_starts)
_tell(ran=sys.orig_argv)
