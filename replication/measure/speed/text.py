"""A deployment result as a plain table for the terminal."""

from collections.abc import Mapping
from typing import Any

from replication.results.deployment import BASELINE, peak, ratios

_GIB = 2**30


def _range(values: Mapping[str, Any], scale: float, places: int) -> str:
    low, median, high = (values[key] * scale for key in ("low", "median", "high"))
    return f"{median:.{places}f} [{low:.{places}f}, {high:.{places}f}]"


def lines(report: Mapping[str, Any]) -> list[str]:
    """One block a model: its variants, then INT4 and INT8 against BF16."""
    found = [f"{report['device']} ({report['evidence']})"]
    for name, model in report["models"].items():
        parts = model["variants"]
        batches = sorted({int(b) for part in parts.values() for b in part.get("decode", {})})
        head = ["", "weights GiB", "peak GiB", "first token s"]
        for batch in batches:
            head += [f"tokens/s at {batch}", "of floor"]
        rows = [head]
        for part in parts.values():
            label = part["label"]
            if "not_run" in part:
                rows.append([label, f"not run: {part['not_run']}"])
                continue
            most = peak(part)
            row = [
                label,
                f"{part['weight_bytes'] / _GIB:.2f}",
                "-" if most is None else f"{most / _GIB:.2f}",
                _range(part["time_to_first_token"], 1, 2),
            ]
            for batch in batches:
                one = part["decode"].get(str(batch), {"not_run": ""})
                if "not_run" in one:
                    row += ["not run", ""]
                    continue
                row += [
                    _range(one["tokens_per_second"], 1, 2),
                    f"{100 * one['fraction_of_floor']:.0f} %",
                ]
            rows.append(row)
        found += ["", f"{name} ({model['repository']}, random weights)", *_aligned(rows)]
        for key in parts:
            if key == BASELINE:
                continue
            against = ratios(parts, key)
            if against:
                shown = ", ".join(
                    f"{label} {one.point:.2f}" + ("" if "reduction" not in label else " %")
                    for label, one in against.items()
                )
                found.append(f"{parts[key]['label']} against {parts[BASELINE]['label']}: {shown}")
    return found


def _aligned(rows: list[list[str]]) -> list[str]:
    width = max(map(len, rows))
    columns = [
        max((len(row[i]) for row in rows if len(row) > 2 and i < len(row)), default=0)
        for i in range(width)
    ]
    return [
        "  ".join(cell.ljust(columns[i]) for i, cell in enumerate(row)).rstrip() for row in rows
    ]
