"""The table of docs/deployment.md, from results/engines/deploy.json.

python -m replication.report.documents.engines
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from replication.base.command import command
from replication.base.files import ROOT, write_text_atomic
from replication.report.documents import fill, markdown_table
from replication.report.tables.deployments import ENGINES, engines_report, ordered
from replication.results.deployment import peak

DOCUMENT = ROOT / "docs" / "deployment.md"
PART = "engines"
_GIB = 2**30


def contents(report: Mapping[str, Any] | None) -> dict[str, str]:
    """The generated part by its name; ``report`` is what `make bench-engines` measured, if any."""
    if report is None:
        return {PART: f"Not run to its end yet: there is no `results/{ENGINES}`."}
    batches = sorted(map(int, report["settings"]["batches"]))
    head = ("model", "engine", "prefill, s", *(f"batch {one}, tokens/s" for one in batches),
            "of the floor at 1", "peak, GiB")  # fmt: skip
    rows, missing = [], []
    for model, content in report["models"].items():
        for part in ordered(content["variants"]).values():
            if "not_run" in part:
                missing.append(f"- {model}, {part['label']}, not run: {part['not_run']}.")
                continue
            steps = [part["decode"][str(batch)] for batch in batches]
            rates = ["not run" if "not_run" in one else _range(one["tokens_per_second"], ".2f")
                     for one in steps]  # fmt: skip
            share = steps[0].get("fraction_of_floor")
            rows.append((
                model,
                part["label"],
                _range(part["time_to_first_token"], ".1f"),
                *rates,
                "" if share is None else f"{100 * share:.0f} %",
                f"{(peak(part) or 0) / _GIB:.1f}",
            ))  # fmt: skip
    table = markdown_table(head, rows)
    note = (
        f"Measured on {report['device']}, {report['provenance']['instruction_set']}; medians over "
        f"{report['settings']['rounds']} rounds, with the least and the greatest repeat."
    )
    return {PART: "\n\n".join([table, note, *(["\n".join(missing)] if missing else [])])}


def _range(spread: Mapping[str, Any], form: str) -> str:
    low, median, high = (format(spread[name], form) for name in ("low", "median", "high"))
    return median if low == high else f"{median} [{low}, {high}]"


@command
def main() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    write_text_atomic(DOCUMENT, fill(text, contents(engines_report(ROOT / "results")), DOCUMENT))


if __name__ == "__main__":
    sys.exit(main())
