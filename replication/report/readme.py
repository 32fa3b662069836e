"""The README's results, from the result files: headline table, ledger's summary, deployment.

    python -m replication.report.readme

rewrites what stands between the README's two markers. Text by hand stands outside of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grace.errors import InputError
from replication.base.command import command
from replication.base.files import write_text_atomic
from replication.judge.quantities import signed
from replication.report.tables.text import bits_text
from replication.stats.verdict import Status

README = Path("README.md")
RESULTS = Path("results/small")
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
HEADLINE = "table4"
DEPLOYED = "deploy-llava-1.5-7b"


def headline(table: Mapping[str, Any]) -> str:
    """Averages of the headline table in markdown: reported and measured, with their differences
    from the baseline; ``table`` is its JSON content."""
    lines = ["| Bits | Method | reported | measured* | Δ reported | Δ measured* |"]
    lines.append("|---|---|---|---|---|---|")
    for row in table["rows"]:
        cell = row["cells"]["Avg"]
        given = row["role"] in ("teacher", "baseline")
        method = f"{row['method']} ({row['role']})" if given else row["method"]
        method += " †" if row["ours"] else ""
        delta = "" if cell["delta_measured"] is None else signed(cell["delta_measured"])
        if delta and cell["delta_low"] is not None:
            delta += f" [{signed(cell['delta_low'])}, {signed(cell['delta_high'])}]"
        plain = (
            "" if cell["reported"] is None else f"{cell['reported']:.1f}",
            "not run" if cell["measured"] is None else f"{cell['measured']:.1f}",
            "" if cell["delta_reported"] is None else signed(cell["delta_reported"]),
        )
        cells = (bits_text(row), method, plain[0], plain[1], plain[2], delta)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ledger_summary(verdicts: Mapping[str, Any]) -> str:
    """How many claims, and parts of claims, have each status; ``verdicts`` is claims.json."""
    lines = ["| status | claims | parts of claims |", "|---|---|---|"]
    for status in Status:
        claims = [claim["id"] for claim in verdicts["claims"] if claim["status"] == status.value]
        parts = sum(
            part["status"] == status.value
            for claim in verdicts["claims"]
            for part in claim["parts"]
        )
        if claims or parts:
            lines.append(f"| {status.value} | {', '.join(claims) or 'none'} | {parts} |")
    return "\n".join(lines)


def deployment(record: Mapping[str, Any]) -> str:
    """INT4 against BF16 in a sentence; ``record`` is a measurement of stage ``deploy``."""

    def ratio(name: str) -> str:
        value = record["values"][name]
        return f"{value['point']:.2f}× [{value['low']:.2f}, {value['high']:.2f}]"

    saved = record["values"]["memory_reduction"]["point"]
    return (
        f"INT4 against BF16, LLaVA-1.5-7B on {record['data']['device']}, random weights: decoding "
        f"{ratio('throughput')} at batch 1, {ratio('throughput_4')} at 4 and "
        f"{ratio('throughput_16')} at 16; reading the prompt {ratio('prefill')}; peak memory "
        f"{saved:.1f} % less. Reported: 3×, 54 % less."
    )


def fill(
    readme: str,
    table: Mapping[str, Any],
    verdicts: Mapping[str, Any],
    deployed: Mapping[str, Any],
) -> str:
    """``readme`` with the results between its markers.

    Raises:
        InputError: if the markers are not there, once each and in order.
    """
    if (
        readme.count(BEGIN) != 1
        or readme.count(END) != 1
        or readme.index(BEGIN) > readme.index(END)
    ):
        raise InputError(f"{README}: needs the lines {BEGIN} and {END}, once each, in this order")
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    parts = (
        headline(table),
        "\\* small models on stand-ins, Δ from the baseline with 95 % interval; † a control of "
        "our own.",
        "The ledger at this scale:",
        ledger_summary(verdicts),
        deployment(deployed),
    )
    return before + "\n\n".join((BEGIN, *parts, END)) + after


@command
def main() -> None:
    table, verdicts = RESULTS / "tables" / f"{HEADLINE}.json", RESULTS / "claims.json"
    deployed = RESULTS / "measurements" / f"{DEPLOYED}.json"
    for path in (README, table, verdicts, deployed):
        if not path.is_file():
            raise InputError(f"{path} is missing; run `make repro` in the repository's root first")
    found = (json.loads(path.read_text(encoding="utf-8")) for path in (table, verdicts, deployed))
    write_text_atomic(README, fill(README.read_text(encoding="utf-8"), *found))


if __name__ == "__main__":
    sys.exit(main())
