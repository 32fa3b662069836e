"""What an installation tells Python of the project, without one."""

import shutil
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def install(folder):
    """Make a folder say, as an installation does, which entry points there are."""
    shutil.copy(ROOT / "grace_torchvision.py", folder)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    metadata = folder / "grace_vlm-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: grace-vlm\nVersion: 0\n")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
