"""What this machine has: devices, memory, disk, packages, and the hub."""

import os
import shutil
import socket
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from grace.machine import instruction_set
from replication.base import hub, provenance
from replication.base.files import ROOT
from replication.base.workers import cores

HUB = "huggingface.co"


@dataclass(frozen=True)
class Gpu:
    """An accelerator.

    Attributes:
        name: as its driver states it.
        memory: bytes.
        bf16: whether it multiplies bfloat16.
    """

    name: str
    memory: float
    bf16: bool


@dataclass(frozen=True)
class Machine:
    """What the checks look at.

    Attributes:
        gpus: the accelerators that torch sees.
        ram: free bytes of main memory.
        cores: number of cores that this process may use.
        instruction_set: what the cores compute with.
        disk: free bytes where the repository lies.
        hub: whether the hub can be reached.
        versions: of the packages that the scales need; None for one that is not installed.
        cached: whether a repository of the hub (its name, "model" or "dataset") lies in the cache.
    """

    gpus: tuple[Gpu, ...]
    ram: float
    cores: int
    instruction_set: str
    disk: float
    hub: bool
    versions: Mapping[str, str | None]
    cached: Callable[[str, str], bool]


def probe(root: Path = ROOT) -> Machine:
    """This machine."""
    return Machine(
        gpus=_gpus(),
        ram=float(psutil.virtual_memory().available),
        cores=cores(),
        instruction_set=instruction_set(),
        disk=shutil.disk_usage(root).free,
        hub=hub_reachable(),
        versions=provenance.library_versions(list(pins(root))),
        cached=lambda repository, kind: hub.cached(repository, kind) is not None,
    )


def _gpus() -> tuple[Gpu, ...]:
    import torch

    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bf16 = properties.major >= 8 or bool(getattr(torch.version, "hip", None))
        gpus.append(Gpu(properties.name, properties.total_memory, bf16))
    return tuple(gpus)


def hub_reachable(host: str | None = None, seconds: float = 3.0) -> bool:
    """Whether the hub, or the mirror that HF_ENDPOINT names, takes a connection."""
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    address = host or os.environ.get("HF_ENDPOINT", f"https://{HUB}")
    host, _, port = address.removeprefix("https://").removeprefix("http://").partition(":")
    default = 80 if address.startswith("http://") else 443
    try:
        with socket.create_connection((host.strip("/"), int(port or default)), timeout=seconds):
            return True
    except (OSError, ValueError):
        return False


def pins(root: Path = ROOT) -> dict[str, str]:
    """The packages that the scales need, and their versions in the lock file for this Python."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    chosen = [*extras["replication"], *extras["no-deps"]]
    own = [extra for line in chosen for extra in Requirement(line).extras]  # grace-vlm[export,…]
    needed = [*project["dependencies"], *chosen, *(line for name in own for line in extras[name])]
    locked = {}
    for line in (root / provenance.LOCK).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate():
                (version,) = requirement.specifier
                locked[requirement.name] = version.version
    names = [Requirement(line).name for line in needed]
    return {name: locked[name] for name in names if name in locked}
