"""What a deployment result says: one variant against another. Imports nothing heavy.

A ratio's interval is the widest that the repeats of both sides allow: the least of one over the
greatest of the other. Memory is counted once a process, so it has no width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RESULT = "deploy.json"
BASELINE = "bf16"


@dataclass(frozen=True)
class Ratio:
    """A quotient with the ends that its repeats allow, and how many repeats there were."""

    point: float
    low: float
    high: float
    repeats: int


def quotient(above: Mapping[str, Any], below: Mapping[str, Any]) -> Ratio:
    """above / below, of two spreads."""
    return Ratio(
        above["median"] / below["median"],
        above["low"] / below["high"],
        above["high"] / below["low"],
        min(len(above["values"]), len(below["values"])),
    )


def peak(part: Mapping[str, Any], batch: int = 1) -> int | None:
    """The most memory through building, reading the prompt and decoding at a batch size."""
    found = part["peak_bytes"].get(f"batch {batch}")
    return None if found is None else int(found)


def ratios(variants: Mapping[str, Any], name: str = "int4") -> dict[str, Ratio]:
    """By name, those that both sides were measured for:

    throughput: decoded tokens a second at batch 1; throughput_4, throughput_16; prefill: rate of
    reading the prompt, image included; memory_reduction: percent less of the process's peak;
    weight_reduction: percent less of stored weights.
    """
    before, after = variants.get(BASELINE, {}), variants.get(name, {})
    if any("not_run" in part or not part for part in (before, after)):
        return {}
    found: dict[str, Ratio] = {}
    for batch, one in after["decode"].items():
        other = before["decode"].get(batch, {"not_run": ""})
        if "not_run" not in one and "not_run" not in other:
            label = "throughput" if batch == "1" else f"throughput_{batch}"
            found[label] = quotient(one["tokens_per_second"], other["tokens_per_second"])
    found["prefill"] = quotient(before["time_to_first_token"], after["time_to_first_token"])
    peaks = peak(before), peak(after)
    if None not in peaks:
        found["memory_reduction"] = _reduction(*peaks)  # type: ignore[arg-type]
    found["weight_reduction"] = _reduction(before["weight_bytes"], after["weight_bytes"])
    return found


def _reduction(before: float, after: float) -> Ratio:
    percent = 100 * (1 - after / before)
    assert math.isfinite(percent)
    return Ratio(percent, percent, percent, 1)
