"""The part of docs/findings.md about a run of the pipeline on another processor.

python -m replication.report.documents.repeat
"""

from __future__ import annotations

import sys
from pathlib import Path

from replication.base.command import command
from replication.base.files import ROOT, read_json, write_text_atomic
from replication.report.documents import fill, markdown_table
from replication.report.documents.readme import HEADLINES, MAP, RUNS, VERDICTS, differences

DOCUMENT = ROOT / "docs" / "findings.md"
PART = "repeat"
HERE = ROOT / "results" / "small"
THERE = ROOT / "results" / "repeats" / "intel-xeon"
"""Of what `make repro` wrote there: verdicts, calibration, the tables of headlines and the map."""
GAP = "teacher - baseline"


def contents(here: Path = HERE, there: Path = THERE) -> dict[str, str]:
    """The generated part by its name.

    Args:
        here: The committed results.
        there: Files of the same names from the other processor.
    """
    origin = read_json(there / "calibration" / "qwen2_vl.json")["provenance"]
    rows = []
    for family, name in HEADLINES.items():
        table = read_json(there / "tables" / f"{name}.json")
        cells = [measured.text for _, measured in differences(table)]
        gap, committed = (_gap(folder, table["family"]) for folder in (there, here))
        rows.append((family, f"{gap:.1f} ({committed:.1f})", *cells))
    verdicts = [_verdicts(folder) for folder in (here, there)]
    changed = [
        f"{name} ({status} to {verdicts[1][name]})"
        for name, status in verdicts[0].items()
        if status != verdicts[1][name]
    ]
    maps = [read_json(folder / MAP)["rows"] for folder in (here, there)]
    answers = [[row["outcome"] for row in cells] for cells in maps]
    kept = sum(one == other for one, other in zip(*answers, strict=True))
    met = [_met(folder) for folder in (here, there)]
    lines = (
        f"- Verdicts that differ, of {len(verdicts[0])}: {', '.join(changed) or 'none'}.",
        f"- Cells of the map with the same answer: {kept} of {len(answers[0])}.",
        f"- Rows of the calibration that are met: {met[1]}, and {met[0]} in the committed results.",
    )
    introduction = (
        f"{origin['device']}, in {origin['native_arithmetic']}, at commit {origin['commit'][:7]}; "
        "in brackets the committed gap:"
    )
    head = ("4 bits", "gap", *RUNS)
    return {PART: "\n\n".join((introduction, markdown_table(head, rows), "\n".join(lines)))}


def _gap(folder: Path, family: str) -> float:
    rows = read_json(folder / "calibration" / f"{family}.json")["rows"]
    (gap,) = [row["measured"]["point"] for row in rows if row["name"] == GAP]
    return float(gap)


def _verdicts(folder: Path) -> dict[str, str]:
    return {one["id"]: one["status"] for one in read_json(folder / VERDICTS)["claims"]}


def _met(folder: Path) -> int:
    files = sorted((folder / "calibration").glob("*.json"))
    return sum(row["status"] == "met" for file in files for row in read_json(file)["rows"])


@command
def main() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    write_text_atomic(DOCUMENT, fill(text, contents(), DOCUMENT.relative_to(ROOT)))


if __name__ == "__main__":
    sys.exit(main())
