"""docs/architecture.md draws the rooms and the imports between them as they are."""

import re
from pathlib import Path

import grimp
import networkx
import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PICTURES = dict(
    zip(("replication", "grace"), re.findall(r"```mermaid\n(.*?)```", DOCUMENT, re.S), strict=True)
)


@pytest.fixture(scope="module")
def imports():
    return grimp.build_graph(
        "grace", "replication", exclude_type_checking_imports=True, cache_dir=None
    )


def rooms_of(package, imports):
    """The rooms of a package, and their imports without those that follow from others."""
    rooms = networkx.DiGraph()
    for module in imports.modules:
        rooms.add_nodes_from(re.findall(rf"^{package}\.(\w+)", module))
        for imported in imports.find_modules_directly_imported_by(module):
            ends = [re.match(rf"{package}\.(\w+)", name) for name in (module, imported)]
            if all(ends) and ends[0][1] != ends[1][1]:
                rooms.add_edge(ends[0][1], ends[1][1])
    return networkx.transitive_reduction(rooms)


@pytest.mark.parametrize("package", PICTURES)
def test_the_picture_is_true(package, imports):
    rooms = rooms_of(package, imports)
    arrows = sorted(f"{importer} --> {imported}" for importer, imported in rooms.edges)
    drawn = [line.strip() for line in PICTURES[package].splitlines()]
    assert sorted(line for line in drawn if "-->" in line) == arrows
    words = set(re.findall(r"\w+", PICTURES[package]))
    assert rooms.nodes <= words


def test_every_room_of_the_replication_is_described(imports):
    described = set(re.findall(r"(?m)^\| `(\w+)` \|", DOCUMENT))
    folders = {path.parent.name for path in ROOT.glob("replication/*/__init__.py")}
    assert described == folders
