"""A deployment result as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from replication.measure.printing import ResultTable, range_text
from replication.results.deployment import BASELINE, peak, ratios

_GIB = 2**30


def tables(report: Mapping[str, Any]) -> list[ResultTable]:
    """For each model its variants, then each variant against BF16."""
    return [_table(name, model) for name, model in report["models"].items()]


def _table(name: str, model: Mapping[str, Any]) -> ResultTable:
    parts = model["variants"]
    batches = sorted({int(batch) for part in parts.values() for batch in part.get("decode", {})})
    header = ["", "weights GiB", "peak GiB", "first token s"]
    for batch in batches:
        header += [f"tokens/s at {batch}", "of floor"]
    notes = [
        f"{part['label']}: not run: {part['not_run']}"
        for part in parts.values()
        if "not_run" in part
    ]
    for key, part in parts.items():
        comparison = ratios(parts, key) if key != BASELINE else {}
        if comparison:
            texts = (
                f"{quantity} {ratio.point:.2f}" + (" %" if "reduction" in quantity else "")
                for quantity, ratio in comparison.items()
            )
            notes.append(f"{part['label']} against {parts[BASELINE]['label']}: {', '.join(texts)}")
    return ResultTable(
        f"{name} ({model['repository']}, random weights)",
        header,
        [_row(part, batches) for part in parts.values() if "not_run" not in part],
        notes,
    )


def _row(part: Mapping[str, Any], batches: Sequence[int]) -> list[str]:
    most = peak(part)
    row = [
        part["label"],
        f"{part['weight_bytes'] / _GIB:.2f}",
        "-" if most is None else f"{most / _GIB:.2f}",
        range_text(part["time_to_first_token"], ".2f"),
    ]
    for batch in batches:
        decoded = part["decode"].get(str(batch), {"not_run": ""})
        if "not_run" in decoded:
            row += ["not run", ""]
        else:
            rate = range_text(decoded["tokens_per_second"], ".2f")
            row += [rate, f"{100 * decoded['fraction_of_floor']:.0f} %"]
    return row
