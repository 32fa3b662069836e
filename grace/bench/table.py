"""The numbers of all formats, for a terminal."""

from collections.abc import Mapping
from typing import Any


def table(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines of a table: a format a line, and its quotients with the first."""
    first = next(iter(results.values()))
    rows = [["", "runs", "tokens/s", "", "first token, s", "", "weights, MiB", "peak memory, MiB"]]
    for name, one in results.items():
        faster = _median(one, "tokens_per_second") / _median(first, "tokens_per_second")
        sooner = _median(first, "first_token_seconds") / _median(one, "first_token_seconds")
        same = one is first
        rows.append(
            [
                name,
                one["runs"],
                _cell(one["tokens_per_second"], 2),
                "" if same else f"{faster:.2f} x",
                _cell(one["first_token_seconds"], 3),
                "" if same else f"{sooner:.2f} x as fast",
                *(_memory(one, first, key) for key in ("weight_bytes", "peak_bytes")),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)) for row in rows]
    return [line.rstrip() for line in lines]


def _median(one: Mapping[str, Any], key: str) -> float:
    return one[key]["median"]


def _cell(value: Mapping[str, float], places: int) -> str:
    ends = f"{value['low']:.{places}f}, {value['high']:.{places}f}"
    return f"{value['median']:.{places}f} [{ends}]"


def _memory(one: Mapping[str, Any], first: Mapping[str, Any], key: str) -> str:
    size = f"{one[key] / 2**20:.1f}"
    if one is first:
        return size
    change = 100 * (one[key] / first[key] - 1)
    return f"{size} ({change:+.0f} %)".replace("-", "−")
