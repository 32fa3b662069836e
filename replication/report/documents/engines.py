"""The table of docs/deployment.md, from results/engines/deploy.json.

python -m replication.report.documents.engines
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from replication.base.command import command
from replication.base.files import ROOT, write_text_atomic
from replication.measure.printing import ResultTable
from replication.measure.speed.tables import tables
from replication.report.documents import fill, markdown_table
from replication.report.tables.deployments import ENGINES, engines_report

DOCUMENT = ROOT / "docs" / "deployment.md"
PART = "engines"


def contents(report: Mapping[str, Any] | None) -> dict[str, str]:
    """The generated part by its name; ``report`` is what `make bench-engines` measured, if any."""
    if report is None:
        return {PART: f"Not run to its end yet: there is no `results/{ENGINES}`."}
    parts = [
        f"Measured on {report['device']}, {report['provenance']['instruction_set']}; medians over "
        f"{report['settings']['rounds']} rounds, with the least and the greatest repeat."
    ]
    for table, model in zip(tables(report), report["models"].values(), strict=True):
        parts += [f"{table.title}:", _speeds(table)]
        # the ratios to BF16 are left to the command's own output
        parts.append(
            "\n".join(
                f"- {part['label']}: not run: {part['not_run']}"
                for part in model["variants"].values()
                if "not_run" in part
            )
        )
    return {PART: "\n\n".join(parts)}


def _speeds(table: ResultTable) -> str:
    """The table without its floors, which only the benchmark's own output explains."""
    kept = [index for index, name in enumerate(table.header) if name != "of floor"]
    rows = [[row[index] for index in kept] for row in (table.header, *table.rows)]
    return markdown_table(rows[0], rows[1:])


@command
def main() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    write_text_atomic(DOCUMENT, fill(text, contents(engines_report(ROOT / "results")), DOCUMENT))


if __name__ == "__main__":
    sys.exit(main())
