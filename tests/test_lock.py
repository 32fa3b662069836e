"""The lock file: complete, for every supported Python, and of no machine in particular."""

import re
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LINES = [
    line
    for line in (ROOT / "requirements" / "lock.txt").read_text().splitlines()
    if not line.startswith("#")
]


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
