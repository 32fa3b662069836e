"""No network: a folder to put first on PYTHONPATH, for a process and all that it starts.

Python's sockets reach this machine alone (Unix sockets and the loopback, which processes that
train together need). Any other attempt fails, and is written to the file that NETWORK_ATTEMPTS
names: code that survives the failure is found all the same.
"""

import os
import socket

_LOCAL = ("localhost", "127.", "::1", "::ffff:127.", "0.0.0.0")


def _attempt(what: object) -> None:
    log = os.environ.get("NETWORK_ATTEMPTS")
    if log:
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{what}\n")
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
