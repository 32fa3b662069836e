"""The README's results, from the result files: claims, headline rows, deployment, the map.

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
from replication.report.documents import fill, markdown_table
from replication.report.page.ledger import PHRASES
from replication.report.tables.text import Value, models_of, score_values
from replication.stats.verdict import Status

README = Path("README.md")
RESULTS = Path("results/small")
PART = "results"
VERDICTS = "claims.json"
DEPLOYED = "measurements/deploy-llava-1.5-7b.json"
MAP = "tables/regimes.json"
HEADLINES = {"Qwen2-VL": "table4", "Qwen3-VL": "qwen3vl", "LLaVA-1.5": "table2"}
"""Families, and the tables that hold their 4-bit models."""
RUNS = {"QAT": "qat_int4", "plain KD": "kd_int4", "GRACE": "grace_int4"}


def claims(verdicts: Mapping[str, Any]) -> str:
    """How many of the paper's claims have each status, in a sentence.

    Args:
        verdicts: The content of claims.json.
    """
    counts = verdicts["summary"]["paper"]
    found = {status: count for status in Status if (count := counts[status.value])}
    parts = [f"{count} {PHRASES[status][count > 1]}" for status, count in found.items()]
    return f"Of the paper's {sum(counts.values())} claims at this scale: {', '.join(parts)}."


def headline(folder: Path) -> str:
    """4-bit models against the 16-bit baseline in every family: measured, and reported."""
    rows = []
    for family, name in HEADLINES.items():
        table = read_json(folder / "tables" / f"{name}.json")
        values = differences(table)
        cells = [measured.text for _, measured in values]
        reported = [paper.text if paper.fields else "none" for paper, _ in values]
        sizes = " under ".join(models_of(table)[role]["size"] for role in ("baseline", "teacher"))
        rows.append((f"{family} ({sizes})", *cells, ", ".join(reported)))
    head = ("model (student under teacher)", *RUNS, f"reported: {', '.join(RUNS)}")
    return markdown_table(head, rows)


def differences(table: Mapping[str, Any]) -> list[tuple[Value, Value]]:
    """What each of RUNS differs from the baseline by, on average: reported, measured.

    Raises:
        InputError: for a table without a row of one of them.
    """
    found = {row["run"]: row for row in table["rows"]}
    for run in RUNS.values():
        if run not in found:
            raise InputError(f"the table {table['id']} has no row of the run {run}")
    rows = (score_values(table, found[run], "Avg", delta=True) for run in RUNS.values())
    return [(reported, measured) for reported, measured, *_ in rows]


def regimes(table: Mapping[str, Any]) -> str:
    """What the map says of its cells, without their numbers.

    Args:
        table: The content of the table of regimes.
    """
    cells = f"of {len(table['rows'])} cells"
    heads = [found.partition(" (")[0].rstrip(".") for found in table["findings"]]
    sixteen = [head for head in heads if cells in head and "4 bits" not in head]
    lines = ["The map of regimes (what the student has seen, labels, data of the methods):", ""]
    return "\n".join([*lines, *(f"- {head}." for head in sixteen)])


def deployment(record: Mapping[str, Any]) -> str:
    """INT4 against BF16 in a sentence; ``record`` is a measurement of stage ``deploy``."""
    values = record["values"]
    ratios = {name: "{point:.2f}× [{low:.2f}, {high:.2f}]".format(**values[name]) for name in (
        "throughput", "throughput_4", "throughput_16", "prefill")}  # fmt: skip
    return (
        f"INT4 against BF16, LLaVA-1.5-7B with random weights on {record['data']['device']}: it "
        f"decodes {ratios['throughput']} as fast at batch 1, {ratios['throughput_4']} at 4 and "
        f"{ratios['throughput_16']} at 16, prefills {ratios['prefill']} as fast, and needs "
        f"{values['memory_reduction']['point']:.1f} % less memory. Reported: 3×, 54 % less."
    )


def results(folder: Path = RESULTS) -> str:
    """The README's part, from the result files of scale small.

    Raises:
        InputError: for a file that is not there.
    """
    tables = [f"tables/{name}.json" for name in HEADLINES.values()]
    for name in (VERDICTS, DEPLOYED, MAP, *tables):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder / name} is missing; run `make repro` in the repository's root first"
            )
    parts = (
        claims(read_json(folder / VERDICTS)),
        headline(folder),
        "Points of the average of the benchmarks against the BF16 baseline, with 95 % intervals. "
        "Stand-in models and questions.",
        deployment(read_json(folder / DEPLOYED)),
        regimes(read_json(folder / MAP)),
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
