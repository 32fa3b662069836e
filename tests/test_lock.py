"""The lock files: complete, and of no machine in particular; the main one is for every Python."""

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def lines_of(name):
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


LINES = lines_of("lock.txt")


def test_every_line_is_a_name_with_an_exact_public_version():
    for line in LINES:
        requirement = Requirement(line)
        assert not requirement.url and not requirement.extras, line
        (version,) = requirement.specifier
        assert version.operator == "==", line
        assert re.fullmatch(r"[0-9a-z.]+", version.version), line  # no local build such as +cpu


def test_what_is_installed_is_what_is_locked():
    locked = {}
    for requirement in map(Requirement, LINES):
        if requirement.marker is None or requirement.marker.evaluate():
            locked[canonicalize_name(requirement.name)] = next(iter(requirement.specifier)).version
    installed = {
        canonicalize_name(package.metadata["Name"]): package.version.partition("+")[0]
        for package in metadata.distributions(path=[p for p in sys.path if "site-packages" in p])
    }
    del installed["grace-vlm"]
    assert {name: locked.get(name) for name in installed} == installed


def test_the_engines_lock_is_exact_and_serves_this_package():
    """Of local builds there is torch's for CPUs alone: another would bring CUDA."""
    locked = {}
    for requirement in map(Requirement, lines_of("engines.txt")):
        assert not requirement.url and not requirement.extras, requirement
        (version,) = requirement.specifier
        assert version.operator == "==", requirement
        locked[canonicalize_name(requirement.name)] = version.version
    assert [name for name, version in locked.items() if "+" in version] == ["torch"]
    assert locked["torch"].endswith("+cpu")
    assert not [name for name in locked if name.startswith(("nvidia", "cuda"))]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["export"]]
    for requirement in map(Requirement, asked):
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement
