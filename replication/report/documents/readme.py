"""The README's results, from the result files: headline table, ledger's summary, deployment.

python -m replication.report.documents.readme
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grace.errors import InputError
from replication.base.command import command
from replication.base.files import read_json, write_text_atomic
from replication.judge.record import BY
from replication.report.documents import fill, markdown_table
from replication.report.tables.text import (
    NOT_RUN,
    bits_text,
    method_text,
    score_values,
    size_text,
)
from replication.stats.verdict import Status

README = Path("README.md")
RESULTS = Path("results/small")
PART = "results"
HEADLINE = "tables/table4.json"
VERDICTS = "claims.json"
DEPLOYED = "measurements/deploy-llava-1.5-7b.json"


def headline(table: Mapping[str, Any]) -> str:
    """Averages of the headline table: reported and measured, and the differences from the baseline.

    Args:
        table: Its JSON content.
    """
    rows = []
    for row in table["rows"]:
        reported, measured = (row["cells"]["Avg"][key] for key in ("reported", "measured"))
        deltas = score_values(table, row, "Avg", delta=True)[:2]
        rows.append(
            (
                bits_text(row),
                method_text(table, row),
                "" if reported is None else f"{reported:.1f}",
                NOT_RUN if measured is None else f"{measured:.1f}",
                *(delta.text if delta.fields else "" for delta in deltas),
            )
        )
    side = f"measured*{size_text(table)}"
    head = ("Bits", "Method", "reported", side, "Δ reported", "Δ measured*")
    return markdown_table(head, rows)


def ledger_summary(verdicts: Mapping[str, Any]) -> str:
    """The paper's claims, its reviewers' wishes and the repository's properties of each status.

    Args:
        verdicts: The content of claims.json.
    """
    rows = []
    for status in Status:
        found = [
            [
                claim["id"]
                for claim in verdicts["claims"]
                if claim["status"] == status.value and claim["by"] == by
            ]
            for by in BY
        ]
        if any(found):
            rows.append((status.value, *(", ".join(own) or "none" for own in found)))
    return markdown_table(("status", *BY.values()), rows)


def deployment(record: Mapping[str, Any]) -> str:
    """INT4 against BF16 in a sentence; ``record`` is a measurement of stage ``deploy``."""
    values = record["values"]
    ratios = {name: "{point:.2f}× [{low:.2f}, {high:.2f}]".format(**values[name]) for name in (
        "throughput", "throughput_4", "throughput_16", "prefill")}  # fmt: skip
    return (
        f"INT4 against BF16, LLaVA-1.5-7B on {record['data']['device']}, random weights: decoding "
        f"{ratios['throughput']} at batch 1, {ratios['throughput_4']} at 4 and "
        f"{ratios['throughput_16']} at 16; reading the prompt {ratios['prefill']}; peak memory "
        f"{values['memory_reduction']['point']:.1f} % less. Reported: 3×, 54 % less."
    )


def results(folder: Path = RESULTS) -> str:
    """The README's part, from the result files of scale small.

    Raises:
        InputError: for a file that is not there.
    """
    for name in (HEADLINE, VERDICTS, DEPLOYED):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder / name} is missing; run `make repro` in the repository's root first"
            )
    parts = (
        headline(read_json(folder / HEADLINE)),
        "\\* small models (stand-ins) on stand-in questions, Δ from the baseline with 95 % "
        "interval; † a control of our own.",
        "The ledger at this scale:",
        ledger_summary(read_json(folder / VERDICTS)),
        deployment(read_json(folder / DEPLOYED)),
    )
    return "\n\n".join(parts)


@command
def main() -> None:
    if not README.is_file():
        raise InputError(f"{README} is missing; run this in the repository's root")
    text = README.read_text(encoding="utf-8")
    write_text_atomic(README, fill(text, {PART: results()}, README))


if __name__ == "__main__":
    sys.exit(main())
